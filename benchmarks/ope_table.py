"""Off-policy estimators against exact values: ours, RLlib's and d3rlpy's on the same logs.

Problems (`tests/ope_problems.py`), behavior and evaluation policy fixed, n episodes a log, a new log each replication:

    model_fail    ModelFail of Thomas & Brunskill (2016): a hidden bit; value −.76159; FQE is wrong by construction
    model_win     their ModelWin, three visits of s1; value .45696; the policies are far apart: not evaluable
    masked_retry  masks that bind, one to three decisions an episode, near policies; value by backward induction

For each estimator: bias, RMSE, coverage of its 95 % interval; for each bound: coverage (nominal .95, one-sided), over
all replications and over those that the screen calls evaluable, and the share of logs where it is used and wrong.
RLlib: its runner of the new API stack and the estimators of the old one (it calls per-decision IS `is`, per-decision
WIS `wis`). d3rlpy: FQE, for "always action 1". A longer training of the Q networks of both may give better ones; what
they got is in the result.

    uv venv build/d3rlpy --python 3.11                                  # d3rlpy's own environment
    uv pip install --python build/d3rlpy/bin/python torch==2.13.0 numpy # first, or it pulls a CUDA build
    uv pip install --python build/d3rlpy/bin/python --no-deps d3rlpy
    uv pip install --python build/d3rlpy/bin/python tqdm h5py "gym>=0.26" click structlog colorama dataclasses-json \\
        gymnasium==1.0.0 scikit-learn
    OMP_NUM_THREADS=1 python benchmarks/ope_table.py --out benchmarks/results/ope.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import describe_machine, find_versions, write_result
from numpy.typing import NDArray

from celr_ray.cortex.evaluation import screening
from celr_ray.cortex.evaluation.bounds import betting_lower_bound, gaffke_lower_bound
from celr_ray.cortex.evaluation.estimators import ESTIMATORS, OpeReport, estimate_all, estimate_fqe, estimate_values
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, compute_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import ope_problems as problems

Floats = NDArray[np.float64]
SIZES = (50, 200, 1000)
ALPHA = 0.05
RESAMPLES = 400
D3RLPY = Path("build/d3rlpy/bin/python")
PEER_SIZE = 200
FQE_ITERATIONS = 100
FQE_STEPS = 2000


@dataclass(frozen=True)
class Problem:
    """One row block of the table.

    Attributes:
        make: (n, seed) → a log.
        table: [states, A] the evaluation policy; the state's number is the place of its 1.
        truth: its exact value.
        span: least and greatest possible return.
    """

    make: Callable[[int, int], LoggedEpisodes]
    table: Floats
    truth: float
    span: tuple[float, float]

    def evaluation(self, log: LoggedEpisodes) -> Floats:
        """Return the policy's probabilities in the logged states, [N, A]."""
        return np.asarray(log.obs @ self.table)


PROBLEMS = {
    "model_fail": Problem(problems.model_fail, problems.EVALUATION[None], problems.MODEL_FAIL_VALUE, (-1, 1)),
    "model_win": Problem(problems.model_win, np.tile(problems.EVALUATION, (18, 1)), problems.MODEL_WIN_VALUE, (-3, 3)),
    "masked_retry": Problem(
        problems.masked_retry, problems.RETRY_EVALUATION.reshape(-1, 3), problems.RETRY_VALUE, (-1.2, 1)
    ),
}


def summarise(values: Sequence[float], truth: float, covered: Sequence[bool] = ()) -> dict[str, Any]:
    """Return bias, RMSE, their Monte Carlo error, and coverage."""
    found = np.array(values)
    error = found[np.isfinite(found)] - truth
    result = {
        "bias": float(error.mean()),
        "bias_se": float(error.std(ddof=1) / np.sqrt(len(error))),
        "rmse": float(np.sqrt((error**2).mean())),
    }
    if len(covered):
        result["coverage"] = float(np.mean(covered))
    if undefined := int((~np.isfinite(found)).sum()):
        result["undefined"] = undefined
    return result


def bootstrap_wis_low(w: Floats, returns: Floats, seed: int) -> float:
    """Return the 5 % point of resampled WIS: what we do not use as a bound."""
    rows = np.random.default_rng(seed).integers(0, len(w), (RESAMPLES, len(w)))
    total = w[rows].sum(axis=1)
    return float(np.quantile((w[rows] * returns[rows]).sum(axis=1)[total > 0] / total[total > 0], ALPHA))


def find_bounds(log: LoggedEpisodes, problem: Problem, report: OpeReport, seed: int) -> dict[str, bool]:
    """Return for each bound whether it holds, evaluable or not."""
    low, high = problem.span
    weights = compute_weights(log, problem.evaluation(log))
    w, returns = weights.whole, weights.returns
    screen = report.screen
    if not screen.diagnostics.is_evaluable:
        above, below = w * np.clip(returns - low, 0, None), w * np.clip(high - returns, 0, None)
        screen = screening.Screen(
            screen.diagnostics,
            low + gaffke_lower_bound(above, ALPHA, seed),
            high - gaffke_lower_bound(below, ALPHA, seed),
            low + betting_lower_bound(above, ALPHA),
            high - betting_lower_bound(below, ALPHA),
        )
    return {
        "gaffke_low": screen.value_low <= problem.truth,
        "gaffke_high": screen.value_high >= problem.truth,
        "betting_low": screen.betting_low <= problem.truth,
        "betting_high": screen.betting_high >= problem.truth,
        "bootstrap_wis_low (not used)": bootstrap_wis_low(w, returns, seed) <= problem.truth,
    }


def measure_ours(problem: Problem, n: int, repeats: int) -> dict[str, Any]:
    """Replicate our estimators and bounds."""
    reports: list[OpeReport] = []
    bounds: list[dict[str, bool]] = []
    for seed in range(repeats):
        log = problem.make(n, seed)
        reports.append(estimate_all(log, problem.evaluation(log), problem.span, alpha=ALPHA, seed=seed))
        bounds.append(find_bounds(log, problem, reports[-1], seed))
    found = [report.screen.diagnostics for report in reports]
    is_evaluable = np.array([diagnostics.is_evaluable for diagnostics in found])
    rows = {}
    for name in ESTIMATORS:
        estimates = [report.estimates[name] for report in reports]
        covered = [x.ci_low <= problem.truth <= x.ci_high for x in estimates]
        rows[name] = summarise([x.value for x in estimates], problem.truth, covered)
    return {
        "evaluable_share": float(is_evaluable.mean()),
        "median_ess": float(np.median([x.ess for x in found])),
        "mean_weight_flag_share": float(np.mean([abs(x.mean_weight_z) > screening.MAX_MEAN_WEIGHT_Z for x in found])),
        "estimators": rows,
        "bounds": {name: cover([b[name] for b in bounds], is_evaluable) for name in bounds[0]},
        "median_bounds_if_evaluable": median_bounds(reports),
    }


def cover(held: Sequence[bool], is_evaluable: NDArray[np.bool_]) -> dict[str, Any]:
    """Return coverage over all replications and over those that are evaluable, and the share that misleads.

    Whether a log is evaluable depends on its weights, and so do the bounds: over the evaluable ones alone no bound
    promises its level. What it promises is the last figure: to be used and wrong in at most 5 % of all logs.
    """
    is_held = np.array(held)
    result: dict[str, Any] = {"coverage": float(is_held.mean())}
    if is_evaluable.any():
        result |= {"coverage_if_evaluable": float(is_held[is_evaluable].mean())}
    return result | {"used_and_wrong": float((is_evaluable & ~is_held).mean())}


def median_bounds(reports: Sequence[OpeReport]) -> dict[str, float] | None:
    """Return the median of each bound where the screen gives one."""
    screens = [report.screen for report in reports if report.screen.diagnostics.is_evaluable]
    names = ("betting_low", "value_low", "value_high", "betting_high")
    return {name: float(np.median([getattr(s, name) for s in screens])) for name in names} if screens else None


def bandit(n: int, seed: int) -> LoggedEpisodes:
    """One decision between two actions, logged uniformly; the first earns 1."""
    action = np.random.default_rng(seed).integers(0, 2, n)
    return LoggedEpisodes(
        episode=np.arange(n),
        t=np.zeros(n, dtype=np.int64),
        obs=np.ones((n, 1)),
        mask=np.ones((n, 2), dtype=bool),
        action=action,
        reward=1.0 - action,
        terminated=np.ones(n, dtype=bool),
        behavior=np.full((n, 2), 0.5),
    )


def measure_bandit(n: int, repeats: int) -> dict[str, Any]:
    """Show what RLlib's runner says of a policy that takes the good action with .9, and with .1."""
    from ope_rllib import run_new_stack

    result = {}
    for chance in (0.9, 0.1):
        table = np.array([[chance, 1 - chance]])
        logs = [bandit(n, seed) for seed in range(repeats)]
        ours = [estimate_values(log, np.repeat(table, n, axis=0))["is"].value for log in logs]
        rllib = [run_new_stack(log, table, "is", seed) for seed, log in enumerate(logs)]
        result[f"{chance:g}"] = {
            "truth": chance,
            **{f"{name}_mean": float(np.mean(values)) for name, values in (("ours_is", ours), ("rllib_is", rllib))},
            "rllib_se": float(np.std(rllib, ddof=1) / np.sqrt(repeats)),
        }
    return {"n": n, "repeats": repeats, "chance_of_the_good_action": result}


def measure_rllib(problem: Problem, n: int, repeats: int, network_repeats: int) -> dict[str, Any]:
    """Replicate RLlib's estimators on the logs that ours saw."""
    from ope_rllib import run_new_stack, run_old_stack

    logs = [problem.make(n, seed) for seed in range(repeats)]
    values: dict[str, list[float]] = {}
    for kind in ("is", "pdis"):
        values[f"new stack {kind}"] = [run_new_stack(log, problem.table, kind, s) for s, log in enumerate(logs)]
    for kind in ("is", "wis", "dm", "dr"):
        chosen = logs if kind in ("is", "wis") else logs[:network_repeats]
        values[f"old stack {kind}"] = [
            run_old_stack(log, problem.table, kind, seed, n_iters=FQE_ITERATIONS) for seed, log in enumerate(chosen)
        ]
    ours = [estimate_values(log, problem.evaluation(log)) for log in logs]
    result: dict[str, Any] = {
        name: {**summarise(found, problem.truth), "repeats": len(found)} for name, found in values.items()
    }
    for old, own in (("is", "pdis"), ("wis", "pdwis")):
        differences = np.abs(np.array(values[f"old stack {old}"]) - [estimates[own].value for estimates in ours])
        result[f"old stack {old}"][f"largest_difference_from_our_{own}"] = float(np.nanmax(differences))
    return result


def measure_d3rlpy(n: int, repeats: int) -> dict[str, Any] | None:
    """Replicate d3rlpy's FQE and ours for "always action 1"; None without its environment."""
    if not D3RLPY.exists():
        return None
    always = np.array([0.0, 1.0])
    truths = {"model_win": problems.MODEL_WIN_STEPS * 0.2, "model_fail": -1.0}
    result: dict[str, Any] = {}
    for name, truth in truths.items():
        logs = [PROBLEMS[name].make(n, seed) for seed in range(repeats)]
        ours = [estimate_fqe(log, problems.spread(always, log)).value for log in logs]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "logs.npz"))
            np.savez(path, **{f"{key}_{k}": value for k, log in enumerate(logs) for key, value in to_npz(log).items()})
            script = str(Path(__file__).with_name("ope_d3rlpy.py"))
            command = [str(D3RLPY), script, path, str(FQE_STEPS)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"d3rlpy failed: {done.stderr[-2000:]}")
        theirs = json.loads(done.stdout.splitlines()[-1])
        result[name] = {"truth": truth, "ours": summarise(ours, truth), "d3rlpy": summarise(theirs, truth)}
        print(f"d3rlpy {name}: done", file=sys.stderr)
    return {"n": n, "repeats": repeats, "policy": "always action 1", "steps": FQE_STEPS, **result}


def to_npz(log: LoggedEpisodes) -> dict[str, Any]:
    """Return what d3rlpy's script reads."""
    return {
        "obs": log.obs,
        "action": log.action,
        "reward": log.reward,
        "terminal": log.terminated.astype(float),
        "first": np.flatnonzero(log.t == 0),
    }


def round_all(value: Any) -> Any:
    """Round every number in a JSON value to four places."""
    if isinstance(value, dict):
        return {key: round_all(part) for key, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="replications of ours")
    parser.add_argument("--peer-repeats", type=int, default=50, help="replications of RLlib's table estimators")
    parser.add_argument("--network-repeats", type=int, default=8, help="of what trains a network")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    started = time.process_time()
    ours = {}
    for name, problem in PROBLEMS.items():
        ours[name] = {"truth": problem.truth}
        for n in SIZES:
            ours[name][str(n)] = measure_ours(problem, n, options.repeats)
            print(f"{name} {n}: {time.process_time() - started:.0f} CPU s", file=sys.stderr)
    from ope_rllib import be_quiet

    be_quiet()
    rllib = {
        name: measure_rllib(problem, PEER_SIZE, options.peer_repeats, options.network_repeats)
        for name, problem in PROBLEMS.items()
    }
    print(f"RLlib: {time.process_time() - started:.0f} CPU s", file=sys.stderr)
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/ope_table.py "
        f"--repeats {options.repeats} --peer-repeats {options.peer_repeats} "
        f"--network-repeats {options.network_repeats}",
        "repeats": options.repeats,
        "alpha": ALPHA,
        "ours": ours,
        "rllib_bandit": measure_bandit(1000, 20),
        "rllib": {"n": PEER_SIZE, "fqe_passes": FQE_ITERATIONS, **rllib},
        "d3rlpy_fqe": measure_d3rlpy(PEER_SIZE, options.network_repeats),
        "cpu_s": sum(os.times()[:4]),
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ["celr-ray", "ray", "torch", "numpy", "scipy"])
        | (find_versions(str(D3RLPY), ["d3rlpy"]) if D3RLPY.exists() else {}),
    }
    write_result(options.out, round_all(result))


if __name__ == "__main__":
    main()
