"""Routing GSM8K between two models by replay: trained policies, threshold cascades, random mix and oracle.

Input: RouteLLM's evaluation responses on GSM8K (Parquet: `prompt`, and for each model a flag and a response). Five-fold
cross-validation by question: each question is judged once, by what was made without it. Of the other questions a
quarter is for validation; confidence and difficulty are learned from the rest, theirs out of fold.

    curves    answer cheap, escalate where a score is high: 1 − confidence (the threshold cascade), or what a trained
              Q-network says that escalating is worth more than stopping, Q(ESCALATE) − Q(STOP), from one training.
              Or strong at once where the question looks hard (difficulty: all that RouteLLM's routers may see).
    points    what `celr-ray train-cortex` takes, for several worths of a success, and the cascade of the project's own
              `tune_cascade` at the same cost on training and validation questions
    tried     other models of an answer's confidence

A curve's parameter is the share of held-in questions whose score is above the threshold; scores of test questions are
ranked among the held-in ones of their fold, so folds can be pooled. Networks and settings are chosen by validation
questions alone. All trainings are kept in the work folder; the same command goes on where it stopped.

    OMP_NUM_THREADS=1 python benchmarks/gsm8k_replay.py gsm8k_responses.parquet --out gsm8k_replay.json
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from gate_calibration_tests import round_all
from gsm8k_curves import Comparison, Outcome, describe_curve, find_auc, flatter, rank, sweep
from gsm8k_tried import try_others
from measure import describe_machine, find_versions, write_result
from scipy.stats import spearmanr

from celr_ray.config import BankConfig, BankReplayJob, TrainConfig, TrainCortexJob
from celr_ray.core.episodes import hash_text
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, apply_rules
from celr_ray.core.executor import draw_uniform
from celr_ray.cortex.actions import Action, BoolArray, FloatArray
from celr_ray.cortex.artefact import Artefact, load_artefact
from celr_ray.cortex.evaluation.bank import Bank, Split, load_bank, write_bank
from celr_ray.cortex.evaluation.bank_build import assemble_bank
from celr_ray.cortex.evaluation.bank_rows import BankParts
from celr_ray.cortex.evaluation.bank_sources import import_routellm
from celr_ray.cortex.evaluation.baselines import ThresholdCascade, tune_cascade
from celr_ray.cortex.evaluation.metrics import bootstrap_mean
from celr_ray.cortex.evaluation.replay_dataset import run_bank_replay
from celr_ray.cortex.evaluation.replay_run import ReplaySuite, prepare_replay, run_replay
from celr_ray.cortex.learned import load_artefact_policy
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.state import FEATURE_INDEX
from celr_ray.cortex.trainer import run_train_cortex

FOLDS, BUDGET_USD, REPLAYS = 5, 0.0164, 16
SPENDS = (0.2, 0.4, 0.6, 0.8)
WORTHS = (0.5, 0.1, 0.02)
"""Penalties for a failure, in budgets of a task: a success is worth 2 + this."""
LARGE = TrainConfig(updates=3000, alphas=[0.01])
"""As examples/cortex/demo.sh trains CQL: two layers of 128. Its other trials are left out: they take long."""
SIZES = (8, 16, 32)
PUBLISHED = {"random": {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8}, "best_router": {"apgr": 0.63}}
"""RouteLLM on GSM8K (arXiv 2406.18665), share of calls to the strong model; only these figures are taken over."""


def make_small(size: int) -> TrainConfig:
    """Return settings of a network with one small layer, fewer steps and two seeds."""
    return TrainConfig(hidden=[size], updates=1000, alphas=[0.01], seeds=[0, 1])


class GapCascade:
    """Answers cheap, then escalates where Q(ESCALATE) − Q(STOP) is at or above a threshold."""

    start_tier = 0

    def __init__(self, artefact: Artefact, threshold: float) -> None:
        self._artefact, self._threshold = artefact, threshold
        self.name = f"gap ≥ {threshold:.3g}"
        self.content_hash = f"{artefact.content_hash} {threshold!r}"

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A]."""
        answered = obs[:, FEATURE_INDEX["has_answer"]] > 0.5
        is_up = find_gap(self._artefact, obs) >= self._threshold
        return apply_rules(
            [(answered & is_up, Action.ESCALATE), (answered, Action.STOP), (~answered, Action.RECURSE)], mask
        )


def find_gap(artefact: Artefact, obs: FloatArray) -> FloatArray:
    """Return Q(ESCALATE) − Q(STOP) of states [K, D]."""
    if artefact.network is None:
        raise ValueError(f"{artefact.manifest.name} holds no network")
    scores = artefact.network.scores(obs).astype(float)
    return np.asarray(scores[:, Action.ESCALATE] - scores[:, Action.STOP])


@dataclass
class Part:
    """The questions of one split of one fold: outcomes of both tiers, and the states after the cheap answer."""

    suite: ReplaySuite
    outcome: dict[str, FloatArray]
    obs: FloatArray


def split_questions(parts: BankParts, fold: int) -> dict[str, Split]:
    """Return each question's split: its fold's is `gate`, of the others a quarter `validation`; by its text."""
    keys = {fact.text or task_id: hash_text(fact.text or task_id) for task_id, fact in parts.tasks.items()}
    uniform = draw_uniform(0, np.array(list(keys.values()), dtype=np.uint64))
    place = dict(zip(keys, np.argsort(np.argsort(uniform)).tolist(), strict=True))

    def find(number: int) -> Split:
        if number % FOLDS == fold:
            return "gate"
        return "validation" if number // FOLDS % 4 == 0 else "train"

    return {task_id: find(place[fact.text or task_id]) for task_id, fact in parts.tasks.items()}


def open_bank(parts: BankParts, fold: int, work: Path) -> Bank:
    """Return the bank of a fold, made if it is not there."""
    uri = str(work / f"fold-{fold}" / "bank")
    if not Path(uri, "bank.json").exists():
        config = BankConfig(confidence="train", difficulty="train", default_budget_usd=BUDGET_USD)
        write_bank(uri, assemble_bank(parts, config, splits=split_questions(parts, fold)))
    return load_bank(uri)


def look(bank: Bank, split: Split) -> Part:
    """Replay always-cheap and always-strong."""
    suite = prepare_replay(bank, split)
    cheap, strong = run_replay(suite, AlwaysCheap(), keep_decisions=True), run_replay(suite, AlwaysStrong())
    if cheap.decisions is None:
        raise ValueError("the replay kept no decisions")
    outcome = {
        "cheap": cheap.success[:, 0],
        "strong": strong.success[:, 0],
        "cheap_usd": cheap.cost_usd[:, 0],
        "strong_usd": strong.cost_usd[:, 0],
    }
    return Part(suite, outcome, cheap.decisions.obs[cheap.decisions.t == 1])


def train(folder: Path, worth: float, name: str, config: TrainConfig) -> list[dict[str, Any]]:
    """Train on a fold's bank, or read what was trained; return all trials with their folders, the taken one first."""
    data, out = folder / f"replay-{worth:g}", folder / f"{name}-{worth:g}"
    run_bank_replay(
        BankReplayJob(bank=str(folder / "bank"), epsilon=1.0, replays=REPLAYS, failure_penalty=worth, out=str(data))
    )
    job = TrainCortexJob(transitions=str(data), out=str(out), registry="none", train=config, algorithm="cql")
    record = run_train_cortex(job).record
    trials = [{**trial, "uri": str(out / "training" / trial["name"]), "size": name} for trial in record["trials"]]
    taken = trials.pop(record["taken"])
    return [taken, *trials]


def choose_q(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the CQL trial of the setting with the highest mean lower end on validation, and there of the best seed."""
    usable = [t for t in trials if t["trial"]["algorithm"] == "cql" and not t["score"]["problem"]]
    settings: dict[Any, list[dict[str, Any]]] = {}
    for trial in usable:
        settings.setdefault((trial["size"], str(trial["trial"]["params"])), []).append(trial)
    best = max(settings.values(), key=lambda group: fmean(t["score"]["ci_low"] for t in group))
    return max(best, key=lambda t: float(t["score"]["ci_low"]))


def check_replay(part: Part, policy: Policy, is_up: BoolArray, *, pays_both: bool) -> None:
    """Raise if replaying a policy gives other outcomes than choosing between those of both tiers."""
    found, own = run_replay(part.suite, policy), part.outcome
    cost = np.where(is_up, own["strong_usd"] + own["cheap_usd"] * pays_both, own["cheap_usd"])
    same = np.array_equal(found.success[:, 0], np.where(is_up, own["strong"], own["cheap"]))
    if not same or not np.allclose(found.cost_usd[:, 0], cost, rtol=1e-9, atol=0):
        raise ValueError(f"{policy.name}: the replay differs from the choice between both tiers' outcomes")


def measure_point(part: Part, held_in: ReplaySuite, policy: Policy) -> dict[str, FloatArray]:
    """Return what a trained policy did on the fold's questions, and the cascade tuned to its cost."""
    own = run_replay(part.suite, policy, keep_decisions=True)
    spent = float(run_replay(held_in, policy).cost_usd.mean())
    cascade = run_replay(part.suite, tune_cascade(held_in, max_cost_usd=spent).policy)
    if own.decisions is None:
        raise ValueError("the replay kept no decisions")
    calls = np.bincount(own.decisions.episode[own.decisions.action == Action.ESCALATE], minlength=len(own.success))
    return {
        "success": own.success[:, 0],
        "usd": own.cost_usd[:, 0],
        "calls": calls.astype(float),
        "fallback": own.fallback[:, 0].astype(float),
        "cascade_success": cascade.success[:, 0],
        "cascade_usd": cascade.cost_usd[:, 0],
    }


def run_fold(parts: BankParts, fold: int, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ranks, outcomes and points of a fold's questions, and what was chosen."""
    folder = work / f"fold-{fold}"
    bank = open_bank(parts, fold, work)
    by_split = {split: look(bank, split) for split in ("train", "validation", "gate")}
    test, validation = by_split["gate"], by_split["validation"]
    held_in_ids = [*by_split["train"].suite.bank.task_ids, *validation.suite.bank.task_ids]
    held_in = prepare_replay(bank.select(task_ids=held_in_ids))
    small = {worth: train(folder, worth, "small-16", make_small(16)) for worth in WORTHS}
    others = [train(folder, 0.5, f"small-{size}", make_small(size)) for size in SIZES if size != 16]
    large = train(folder, 0.5, "large", LARGE)
    main = [*small[0.5], *(trial for trials in others for trial in trials)]
    networks = {"learned": choose_q(main), "learned, 128 × 128": choose_q(large)}
    for seed in (0, 1):
        networks[f"learned, seed {seed}"] = choose_q([t for t in main if t["trial"]["seed"] == seed])

    ranks, gaps = {}, {}
    for name, sign, base in (("confidence", -1, 1), ("difficulty", 1, 0)):
        signals = {s: base + sign * part.obs[:, FEATURE_INDEX[name]] for s, part in by_split.items()}
        reference = np.concatenate([signals["train"], signals["validation"]])
        ranks[name] = rank(signals["gate"], reference)
        threshold = float(np.median(reference))
        cascade = ThresholdCascade("confidence" if name == "confidence" else "difficulty", threshold)
        check_replay(test, cascade, signals["gate"] >= threshold, pays_both=name == "confidence")
    for name, trial in networks.items():
        artefact = load_artefact(trial["uri"])
        gaps[name] = find_gap(artefact, test.obs)
        reference = find_gap(artefact, validation.obs)
        ranks[name] = rank(gaps[name], reference)
        threshold = float(np.median(reference))
        check_replay(test, GapCascade(artefact, threshold), gaps[name] >= threshold, pays_both=True)
    points = {
        f"W={worth:g}": measure_point(test, held_in, load_artefact_policy(trials[0]["uri"]))
        for worth, trials in small.items()
    }
    points["W=0.5, 128 × 128"] = measure_point(test, held_in, load_artefact_policy(large[0]["uri"]))
    splits = {task_id: split for split, part in by_split.items() for task_id in part.suite.bank.task_ids}
    seen = {i: row for part in by_split.values() for i, row in zip(part.suite.bank.task_ids, part.obs, strict=True)}
    columns = [FEATURE_INDEX[name] for name in ("confidence", "difficulty", "budget_left")]
    ranks |= try_others(parts, splits, {i: row[columns] for i, row in seen.items()})
    chosen: dict[str, Any] = {name: f"{t['size']} {t['name']}" for name, t in networks.items()}
    chosen |= {f"validation value of {name}": t["score"]["value"] for name, t in networks.items()}
    chosen["training_s"] = sum(t["seconds"] for ts in (main, large, small[0.1], small[0.02]) for t in ts)
    chosen["agreement with confidence"] = float(
        spearmanr(gaps["learned"], -test.obs[:, FEATURE_INDEX["confidence"]])[0]
    )
    return {"ranks": ranks, "outcome": test.outcome, "points": points}, chosen


def pool(folds: Sequence[Mapping[str, Any]], *path: str) -> FloatArray:
    """Return one array of all folds' questions."""
    found = []
    for fold in folds:
        value: Any = fold
        for key in path:
            value = value[key]
        found.append(np.asarray(value, dtype=float))
    return np.concatenate(found)


def describe_point(point: Mapping[str, FloatArray], own: Outcome, comparison: Comparison) -> dict[str, Any]:
    """Return one trained policy's figures and its differences at equal cost."""
    strong = own["strong_usd"].mean()
    paired = {
        "success": point["success"] - point["cascade_success"],
        "cost_share": (point["usd"] - point["cascade_usd"]) / strong,
    }
    return {
        "success": asdict(bootstrap_mean(point["success"])),
        "cost_share_of_always_strong": point["usd"].mean() / strong,
        "share_of_strong_calls": point["calls"].mean(),
        "fallback_rate": point["fallback"].mean(),
        "over_random_mix": comparison.point(point["usd"], point["success"], "random mix"),
        "over_confidence_cascade": comparison.point(point["usd"], point["success"], "confidence"),
        "over_difficulty_cascade": comparison.point(point["usd"], point["success"], "difficulty"),
        "over_tune_cascade": {name: asdict(bootstrap_mean(values)) for name, values in paired.items()},
    }


def summarise(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all figures over the questions of all folds."""
    own = {name: pool(folds, "outcome", name) for name in folds[0]["outcome"]}
    ranks = {name: pool(folds, "ranks", name) for name in folds[0]["ranks"]}
    gain = own["strong"] - own["cheap"]
    ranks["oracle"] = rank(gain, gain)
    curves = {
        name: sweep(values, own, pays_both=name not in ("difficulty", "oracle")) for name, values in ranks.items()
    }
    wrong = own["cheap"] < 0.5
    main = [name for name in curves if name in ("confidence", "difficulty", "oracle") or name.startswith("learned")]
    units = {unit: Comparison(own, curves, unit) for unit in ("usd", "calls")}
    pairs = [(a, b) for a in main if a.startswith("learned") for b in ("random mix", "confidence", "difficulty")]
    pairs += [("confidence", "random mix"), ("confidence", "difficulty"), ("difficulty", "random mix")]
    return {
        "metrics_over_usd": {name: describe_curve(curves[name], own, "usd") for name in main},
        "metrics_over_calls": {name: describe_curve(curves[name], own, "calls") for name in main},
        "published_over_calls": PUBLISHED,
        "random_scores_over_calls": flatter(own),
        "differences": {
            unit: {
                f"{a} − {b}": {
                    "apgr": comparison.apgr(a, b),
                    **{f"success at {x:g}": comparison.at_spend(a, b, x) for x in SPENDS},
                }
                for a, b in pairs
            }
            for unit, comparison in units.items()
        },
        "points": {
            name: describe_point({key: pool(folds, "points", name, key) for key in point}, own, units["usd"])
            for name, point in folds[0]["points"].items()
        },
        "ends": {
            "always_cheap": {"success": own["cheap"].mean(), "usd": own["cheap_usd"].mean()},
            "always_strong": {"success": own["strong"].mean(), "usd": own["strong_usd"].mean()},
            "either_right": np.maximum(own["cheap"], own["strong"]).mean(),
            "strong_right_where_cheap_wrong": own["strong"][wrong].mean(),
            "strong_right_where_cheap_right": own["strong"][~wrong].mean(),
        },
        "curves_usd": {
            name: [
                [float(c / own["strong_usd"].mean()), float(s)]
                for c, s in zip(curves[name].usd.mean(axis=1), curves[name].success.mean(axis=1), strict=True)
            ]
            for name in ("learned", "confidence", "difficulty", "oracle")
        },
        "tried": {
            name: {
                "auc": find_auc(ranks[name], wrong),
                "apgr_over_cascade": units["calls"].apgr(name, "confidence"),
                **describe_curve(curves[name], own, "calls"),
            }
            for name in curves
            if name != "oracle"
        },
    }


def main() -> None:
    """Run all folds and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="RouteLLM's gsm8k_responses.parquet")
    parser.add_argument("--work", type=Path, default=Path("build/gsm8k-replay"), help="folder of banks and trainings")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    content = hashlib.blake2b(options.file.read_bytes(), digest_size=8).hexdigest()
    parts = import_routellm([str(options.file)])
    work = options.work / content
    folds, chosen = zip(*(run_fold(parts, fold, work) for fold in range(FOLDS)), strict=True)
    result = {
        **summarise(folds),
        "folds": chosen,
        "interval": "95 %, percentile bootstrap over questions, paired; the trainings are held fixed",
        "source": "lm-sys/RouteLLM, evaluation responses (Apache-2.0)",
        "command": f"OMP_NUM_THREADS=1 python benchmarks/gsm8k_replay.py {options.file.name}",
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ("celr-ray", "ray", "torch", "scikit-learn", "numpy", "scipy")),
    }
    write_result(options.out, round_all(result))


if __name__ == "__main__":
    main()
