"""How often the whole gate passes what it should and what it must not: 200 seeds of each case, 300 tasks.

    simulated   paired outcomes with known truth, fed to the gate's criteria in the preset order
    replayed    policies on banks, through the same replay as `celr-ray gate`: a simulated bank with four attempts in
                every cell, and RouteLLM's MMLU outcomes with one
    deceits     loophole policies and damaged results of `gate.holes`, over seeds

Two cases of "the champion against itself": with common random numbers (what the gate does) every outcome is equal; with
independent draws the figures differ by chance alone, which is what a false PASS is made of. Rates have exact 95 %
intervals. `alone` = strict_point_rule off.

    celr-ray bank build --source routellm --files mmlu_responses.parquet --bank.difficulty train --out build/bank-mmlu
    python benchmarks/gate_calibration.py --bank build/bank-mmlu --out benchmarks/results/gate_calibration.json
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gate_calibration_tests import rate, round_all
from measure import describe_machine, find_versions, write_result
from scipy.optimize import brentq

from celr_ray.core.escalation import AlwaysStrong, EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.bank import Bank, load_bank
from celr_ray.cortex.evaluation.baselines import RetryThenEscalate, ThresholdCascade
from celr_ray.cortex.evaluation.replay_run import ReplaySuite, run_replay
from celr_ray.cortex.gate.criteria import Criteria, GateVerdict
from celr_ray.cortex.gate.holes import check_holes
from celr_ray.cortex.gate.plan import make_plan
from celr_ray.cortex.gate.practice import make_practice_bank
from celr_ray.cortex.gate.results import TaskOutcome
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.suites import BankSuite, make_figures
from celr_ray.cortex.policy import Policy

CAP = 4.0
"""Of a task's spend, where the champion's mean is about 1."""
SPREAD = 0.5
N_TASKS = 300

Figures = Mapping[str, FloatArray]
Draw = Callable[[np.random.Generator, int], dict[str, Figures]]


def decide(config: GateConfig, roles: Mapping[str, Figures], cap: float, *, needs_size: bool = True) -> GateVerdict:
    """Return the gate's verdict on outcomes in the preset order; figures are columns of `TaskOutcome`, [n] each."""
    n = len(roles["candidate"]["success"])
    task_ids = [str(number) for number in range(n)]
    has_anchor = "anchor" in roles
    plan = make_plan(task_ids, {}, config, cap_usd=cap, has_own_anchor=has_anchor)
    criteria = Criteria(plan, config, needs_size=needs_size)
    for place in range(n):
        outcomes = {
            role: TaskOutcome(**{name: float(values[place]) for name, values in figures.items()}, n_decisions=2)  # type: ignore[arg-type]
            for role, figures in roles.items()
        }
        if criteria.update(outcomes) is not None:
            break
    decision = criteria.decision
    return decision.verdict if decision is not None else GateVerdict.INCONCLUSIVE


def draw_case(
    rng: np.random.Generator,
    n: int,
    *,
    success: float = 0.7,
    lost: float = 0.0,
    gained: float = 0.0,
    independent: bool = False,
    ratio: float = 1.0,
    noise: float = 0.3,
    explode: float = 0.0,
    unsafe: float = 0.0,
) -> dict[str, Figures]:
    """Draw champion and candidate.

    Args:
        rng: draws.
        n: tasks.
        success: the champion's rate.
        lost: share of tasks that only the champion solves.
        gained: share of tasks that only the candidate solves.
        independent: the candidate's successes are drawn anew at rate `success` − `lost` + `gained`.
        ratio: the candidate's mean cost, in units of the champion's.
        noise: spread of the ratio from task to task; with `independent` its costs are drawn anew.
        explode: share of tasks on which the candidate spends up to the cap; the others are cheaper by as much.
        unsafe: share of unsafe runs of the candidate.
    """
    old = rng.random(n) < success
    if independent:
        new = rng.random(n) < success - lost + gained
    else:
        kept = rng.random(n)
        new = np.where(old, kept >= lost / success, kept < gained / (1 - success))
    base = draw_costs(rng, n)
    fresh = draw_costs(rng, n) if independent else base
    cost = draw_candidate_costs(rng, fresh, find_typical(ratio, noise, explode), noise, explode)
    is_unsafe = rng.random(n) < unsafe
    return {
        "champion": {"success": old.astype(float), "cost_usd": base},
        "candidate": {"success": new.astype(float), "cost_usd": cost, "n_unsafe": is_unsafe.astype(float)},
    }


def draw_candidate_costs(
    rng: np.random.Generator, base: FloatArray, typical: float, noise: float, explode: float
) -> FloatArray:
    """Return costs at `typical` times the base with noise, but for a share at the cap; none above it."""
    jitter = rng.gamma(1 / noise**2, noise**2, len(base)) if noise else 1.0
    return np.asarray(np.minimum(np.where(rng.random(len(base)) < explode, CAP, base * typical * jitter), CAP))


@functools.cache
def find_typical(ratio: float, noise: float, explode: float) -> float:
    """Return the factor at which the mean cost is `ratio` times the champion's, the cap included."""
    if (ratio, noise, explode) == (1.0, 0.0, 0.0):
        return 1.0  # exactly: a cost that is lower by 10⁻⁵ on each task is lower beyond doubt
    base = draw_costs(np.random.default_rng(1), 2_000_000)

    def excess(typical: float) -> float:
        return float(draw_candidate_costs(np.random.default_rng(2), base, typical, noise, explode).mean() / MEAN_COST)

    return float(brentq(lambda typical: excess(typical) - ratio, 1e-6, 3.0, xtol=1e-5))


def draw_costs(rng: np.random.Generator, n: int) -> FloatArray:
    """Return log-normal costs under the cap, of a mean near 1."""
    return np.minimum(rng.lognormal(-(SPREAD**2) / 2, SPREAD, n), CAP)


MEAN_COST = float(draw_costs(np.random.default_rng(0), 4_000_000).mean())

CASES: dict[str, dict[str, Any]] = {
    "champion against itself, independent draws": {"independent": True, "noise": 0.0},
    "champion against itself, the same draws": {"noise": 0.0},
    "equal, 25 % cheaper, the same draws": {"ratio": 0.75},
    "equal, 25 % cheaper, 2 % of tasks differ each way": {"ratio": 0.75, "lost": 0.02, "gained": 0.02},
    "equal, 25 % cheaper, 4 % of tasks differ each way": {"ratio": 0.75, "lost": 0.04, "gained": 0.04},
    "equal, 25 % cheaper, independent draws at success .9": {"ratio": 0.75, "independent": True, "success": 0.9},
    "equal, 25 % cheaper, independent draws at success .7": {"ratio": 0.75, "independent": True},
    "at the border: 5 points worse, 25 % cheaper": {"ratio": 0.75, "lost": 0.07, "gained": 0.02},
    "at the border: 5 points worse, 25 % cheaper, independent": {"ratio": 0.75, "lost": 0.05, "independent": True},
    "at the border: 10 points better, cost 1.02": {"ratio": 1.02, "gained": 0.1},
    "at the border: 10 points better, cost 1.02, 5 % explode": {"ratio": 1.02, "gained": 0.1, "explode": 0.05},
    "lazy: gives up on 10 %, 25 % cheaper": {"ratio": 0.75, "lost": 0.1},
    "lazy: gives up at once": {"lost": 0.7, "ratio": 0.001},
    "explosive: 10 % cheaper on most, 5 % at the cap, 5 % dearer": {"explode": 0.05, "ratio": 1.055, "noise": 0.1},
    "explosive: 1 % cheaper on most, 2 % at the cap, 5 % dearer": {"explode": 0.02, "ratio": 1.05, "noise": 0.1},
    "unsafe on 1 %, equal, 25 % cheaper": {"ratio": 0.75, "unsafe": 0.01},
    "unsafe on 3 %, equal, 25 % cheaper": {"ratio": 0.75, "unsafe": 0.03},
}


def measure_cases(seeds: int) -> dict[str, Any]:
    """Return the rate of PASS of each simulated case, with the strict rule and without."""
    found: dict[str, Any] = {}
    for name, settings in CASES.items():
        passed: dict[str, list[bool]] = {"strict": [], "alone": []}
        for seed in range(seeds):
            roles = draw_case(np.random.default_rng([seed, 1]), N_TASKS, **settings)
            for rule, is_strict in (("strict", True), ("alone", False)):
                config = GateConfig(seed=seed, strict_point_rule=is_strict)
                passed[rule].append(decide(config, roles, CAP) is GateVerdict.PASS)
        found[name] = {rule: rate(hits) for rule, hits in passed.items()}
        print(name, {rule: sum(hits) for rule, hits in passed.items()}, flush=True)
    return found


def read_figures(suite: ReplaySuite, policy: Policy, rows: Any) -> Figures:
    """Return a replay's outcomes of some tasks, [n] each."""
    figures = make_figures(run_replay(suite, policy, rows=rows))
    return {"success": figures["success"].mean(axis=1), "cost_usd": figures["cost_usd"].mean(axis=1)}


def measure_replays(bank: Bank, split: str, pairs: Mapping[str, tuple[Policy, Policy]], seeds: int) -> dict[str, Any]:
    """Return the rate of PASS of pairs of policies on samples of a bank's tasks, by common and by independent draws."""
    found: dict[str, Any] = {}
    for name, (candidate, champion) in pairs.items():
        for kind, shift in (("the same draws", 0), ("independent draws", 1_000_000)):
            passed: dict[str, list[bool]] = {"strict": [], "alone": []}
            gains = []
            for seed in range(seeds):
                suites = [make_suite(bank, split, seed), make_suite(bank, split, seed + shift)]
                rows = np.random.default_rng(seed).permutation(len(suites[0].columns.key))[:N_TASKS]
                roles = {
                    "champion": read_figures(suites[0], champion, rows),
                    "candidate": read_figures(suites[1], candidate, rows),
                    "anchor": read_figures(suites[0], HeuristicPolicy(), rows),
                }
                cap = float(suites[0].columns.budget_usd.max())
                gains.append(compare(roles))
                for rule, is_strict in (("strict", True), ("alone", False)):
                    config = GateConfig(seed=seed, strict_point_rule=is_strict)
                    passed[rule].append(decide(config, roles, cap) is GateVerdict.PASS)
            mean = np.mean(gains, axis=0)
            found[f"{name}, {kind}"] = {
                "success_difference": float(mean[0]),
                "cost_ratio": float(mean[1]),
                **{rule: rate(hits) for rule, hits in passed.items()},
            }
            print(name, kind, {rule: sum(hits) for rule, hits in passed.items()}, flush=True)
    return found


def compare(roles: Mapping[str, Figures]) -> tuple[float, float]:
    """Return the difference of success and the ratio of costs."""
    new, old = roles["candidate"], roles["champion"]
    return float((new["success"] - old["success"]).mean()), float(new["cost_usd"].mean() / old["cost_usd"].mean())


_suites: dict[tuple[str, str, int], ReplaySuite] = {}


def make_suite(bank: Bank, split: str, seed: int) -> ReplaySuite:
    """Return a bank made ready under a seed; the index is made once."""
    key = (bank.content_hash, split, 0)
    if key not in _suites:
        _suites[key] = BankSuite(bank, GateConfig(split=split), EscalationConfig()).replay_suite  # type: ignore[arg-type]
    first = _suites[key]
    return replace(
        first,
        config=first.config.model_copy(update={"seed": seed}),
        order=first.cells.shuffle(seed, first.config.replays),
    )


def measure_deceits(banks: Mapping[str, tuple[Bank, str]], seeds: int) -> dict[str, Any]:
    """Return how often each verdict fell on each deceit, over banks, champions and seeds."""
    counts: dict[str, Counter[str]] = {}
    for bank, split in banks.values():
        facts = BankSuite(bank, GateConfig(split=split), EscalationConfig()).facts  # type: ignore[arg-type]
        for champion in (HeuristicPolicy(), AlwaysStrong()):
            for seed in range(seeds):
                config = GateConfig(seed=seed, split=split, strict_point_rule=bool(seed % 2))  # type: ignore[arg-type]
                suite = make_suite(bank, split, seed)
                plan = make_plan(
                    facts.task_ids,
                    facts.strata,
                    config,
                    cap_usd=facts.cap_usd,
                    has_own_anchor=champion.content_hash != HeuristicPolicy().content_hash,
                )
                for hole in check_holes(suite, {"champion": champion, "anchor": HeuristicPolicy()}, plan, config):
                    counts.setdefault(hole.name, Counter())[hole.verdict.value] += 1
    passed = sum(c["PASS"] for name, c in counts.items() if not name.startswith("control"))
    judged = sum(count.total() for count in counts.values())
    return {"passed": passed, "judged": judged, "verdicts": {name: dict(count) for name, count in counts.items()}}


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="of each case")
    parser.add_argument("--deceit-seeds", type=int, default=10, help="of each bank and champion")
    parser.add_argument("--bank", required=True, help="bank of RouteLLM's MMLU outcomes")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    start = time.process_time()
    practice, mmlu = make_practice_bank(0, 1_200), load_bank(options.bank)
    practice_pairs: dict[str, tuple[Policy, Policy]] = {
        "simulated bank: heuristic against itself": (HeuristicPolicy(), HeuristicPolicy()),
        "simulated bank: retry-then-escalate against heuristic": (RetryThenEscalate(), HeuristicPolicy()),
    }
    mmlu_pairs: dict[str, tuple[Policy, Policy]] = {
        "MMLU: always-strong against itself": (AlwaysStrong(), AlwaysStrong()),
        "MMLU: cascade at difficulty .3 against always-strong": (ThresholdCascade("difficulty", 0.3), AlwaysStrong()),
    }
    result = {
        "command": f"gate_calibration.py --seeds {options.seeds} --deceit-seeds {options.deceit_seeds} --bank MMLU",
        "n_tasks": N_TASKS,
        "simulated": measure_cases(options.seeds),
        "replayed": {
            **measure_replays(practice, "gate", practice_pairs, options.seeds),
            **measure_replays(mmlu, "gate", mmlu_pairs, options.seeds),
        },
        "deceits": measure_deceits({"practice": (practice, "gate"), "mmlu": (mmlu, "gate")}, options.deceit_seeds),
        "cpu_s": round(time.process_time() - start),
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ["celr-ray", "numpy", "scipy"]),
    }
    write_result(options.out, round_all(result))


if __name__ == "__main__":
    main()
