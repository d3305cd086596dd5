"""Replay: the vectorised decision process beside a plain Python loop over the same rules, on one bank, equal results.

The peer is `scalar_replay.py`: one episode at a time in plain Python, written from the rules (lists, no numpy inside).
Both replay the same episodes of the same bank; ends, decisions, costs and rewards are compared for every one. A second
peer is our own code with one episode in each call. Rates are episodes per second of CPU time, medians of the repeats,
one thread; making the bank's index and orders is measured apart. The neural policy is a masked softmax over an MLP
33 → 64 → 64 → 6 in numpy, float32, with random weights, so it explores; the plain loop has none.

    celr-ray bank build --source routellm --files mmlu_responses.parquet --out build/bank-mmlu
    celr-ray bank build --source reflexion --files env_trials.jsonl.gz --out build/bank-reflexion
    OMP_NUM_THREADS=1 python benchmarks/replay.py build/bank-mmlu build/bank-reflexion \\
        --out benchmarks/results/replay.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from measure import describe_machine, find_versions, write_result
from scalar_replay import Chooser, choose_cheap, choose_random, make_heuristic, run_scalar

from celr_ray.core.escalation import AlwaysCheap, HeuristicPolicy
from celr_ray.cortex.actions import N_ACTIONS, BoolArray, FloatArray
from celr_ray.cortex.evaluation import replay_run
from celr_ray.cortex.evaluation.bank import load_bank
from celr_ray.cortex.evaluation.baselines import RetryThenEscalate
from celr_ray.cortex.evaluation.replay import ReplayConfig, SyntheticVerifier
from celr_ray.cortex.evaluation.replay_run import ReplaySuite, prepare_replay, run_replay
from celr_ray.cortex.policy import Policy, RandomPolicy
from celr_ray.cortex.state import N_FEATURES

VERIFIER = SyntheticVerifier(true_positive_rate=0.9, false_positive_rate=0.3)


class RandomNetwork:
    """A masked softmax over an MLP with random weights."""

    name = "neural (random weights)"
    content_hash = "neural"
    start_tier = 0

    def __init__(self, hidden: int = 64) -> None:
        """Draw the weights."""
        random = np.random.default_rng(0)
        sizes = (N_FEATURES, hidden, hidden, N_ACTIONS)
        self._layers = [
            random.normal(0, before**-0.5, (before, after)).astype(np.float32) for before, after in pairwise(sizes)
        ]

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the softmax over what is allowed."""
        hidden = obs.astype(np.float32)
        for weight in self._layers[:-1]:
            hidden = np.maximum(hidden @ weight, 0)
        scores = np.where(mask, hidden @ self._layers[-1], -1e9).astype(np.float64)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True)) * mask
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def time_rate(n: int, repeats: int, job: Callable[[], Any]) -> float:
    """Return episodes per second of CPU time, the median of the repeats after a warm-up."""
    job()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        job()
        seconds.append(time.process_time() - started)
    return n / statistics.median(seconds)


def cut(suite: ReplaySuite, n_tasks: int) -> ReplaySuite:
    """Return the suite of the first tasks alone."""
    part = suite.bank.select(task_ids=suite.bank.task_ids[:n_tasks])
    return prepare_replay(part, None, suite.config)


def check_equal(suite: ReplaySuite, policy: Policy, choose: Chooser) -> int:
    """Compare every episode of both; returns how many."""
    results = run_replay(suite, policy)
    episodes = run_scalar(suite, choose)
    for name, own in (("end", results.end_reason), ("decisions", results.n_decisions)):
        np.testing.assert_array_equal([int(getattr(episode, name)) for episode in episodes], own.ravel())
    for name, own in (("spent", results.cost_usd), ("elapsed", results.seconds), ("reward", results.total_reward)):
        np.testing.assert_allclose([getattr(episode, name) for episode in episodes], own.ravel(), rtol=1e-9)
    return len(episodes)


def measure_bank(uri: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all policies on one bank."""
    bank = load_bank(uri)
    config = ReplayConfig(replays=options.replays, verifier=VERIFIER)
    started = time.process_time()
    suite = prepare_replay(bank, None, config)
    prepare_s = time.process_time() - started
    small = cut(suite, options.scalar_tasks)
    choosers: dict[str, tuple[Policy, Chooser | None]] = {
        "always-cheap": (AlwaysCheap(), choose_cheap),
        "heuristic": (HeuristicPolicy(), make_heuristic(small)),
        "random": (RandomPolicy(), choose_random),
        "retry-then-escalate": (RetryThenEscalate(), None),
        "neural": (RandomNetwork(), None),
    }
    n = len(suite.columns.key) * options.replays
    policies = {}
    for name, (policy, choose) in choosers.items():
        rate = time_rate(n, options.repeats, lambda policy=policy: run_replay(suite, policy))
        kept = time_rate(n, options.repeats, lambda policy=policy: run_replay(suite, policy, keep_decisions=True))
        decisions = float(run_replay(suite, policy).n_decisions.mean())
        figures = {"episodes_per_cpu_s": round(rate), "with_all_decisions_kept": round(kept)}
        if choose is not None:
            n_equal = check_equal(small, policy, choose)
            plain = time_rate(n_equal, options.repeats, lambda choose=choose: run_scalar(small, choose))
            figures = {
                "ratio_to_plain_loop": round(rate / plain, 1),
                **figures,
                "plain_loop": round(plain),
                "episodes_compared_equal": n_equal,
            }
        policies[name] = {**figures, "decisions_per_episode": round(decisions, 2)}
        print(name, policies[name], file=sys.stderr, flush=True)
    return {
        "tasks": len(suite.columns.key),
        "replays": options.replays,
        "tiers": suite.cells.n_tiers,
        "contexts": suite.cells.n_contexts,
        "bank": bank.content_hash,
        "prepare_cpu_s": round(prepare_s, 3),
        "policies": policies,
        "one_episode_a_call": round(measure_single(suite)),
    }


def measure_single(suite: ReplaySuite) -> float:
    """Return the rate of our own code with one episode in each call, heuristic."""
    few = replace(cut(suite, 40), config=suite.config)
    before, replay_run._CHUNK = replay_run._CHUNK, 1
    try:
        return time_rate(len(few.columns.key) * few.config.replays, 1, lambda: run_replay(few, HeuristicPolicy()))
    finally:
        replay_run._CHUNK = before


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+", help="folders of banks")
    parser.add_argument("--replays", type=int, default=8, help="replays of each task")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement")
    parser.add_argument("--scalar-tasks", type=int, default=500, help="tasks that the plain loop replays too")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    banks = {uri.rstrip("/").rsplit("/", 1)[-1]: measure_bank(uri, options) for uri in options.banks}
    ratios = {name: figures["policies"]["heuristic"]["ratio_to_plain_loop"] for name, figures in banks.items()}
    result = {
        "ratio_heuristic": ratios,
        "command": f"OMP_NUM_THREADS=1 python benchmarks/replay.py {' '.join(banks)} --replays {options.replays}",
        "verifier": VERIFIER.model_dump(),
        "chunk": replay_run._CHUNK,
        "banks": banks,
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ("celr-ray", "numpy", "pyarrow")),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
