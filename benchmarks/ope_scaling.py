"""Time and memory of `evaluate_transitions` at growing sizes: six actions, 33 features, four decisions an episode.

The logged policy takes any allowed action but prefers the first; the one to evaluate takes any with equal probability.
Each size runs in a fresh process, in a plain loop; writing the transitions is not counted, reading them is.

    OMP_NUM_THREADS=1 python benchmarks/ope_scaling.py --sizes 10000 100000 1000000 \\
        --out benchmarks/results/ope_scaling.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure import describe_machine, find_versions, measure, timed, write_result

from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.episode_rows import EpisodeRows, make_transition_table
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions
from celr_ray.cortex.policy import RandomPolicy
from celr_ray.cortex.state import N_FEATURES

LENGTH = 4
PART_EPISODES = 12_500


def make_rows(n: int, seed: int) -> EpisodeRows:
    """Draw n episodes."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n * LENGTH, N_ACTIONS)) < 0.5
    mask[:, -1] = True
    behavior = mask * np.linspace(1.5, 1.0, N_ACTIONS)
    behavior /= behavior.sum(axis=1, keepdims=True)
    chance = rng.random((n * LENGTH, 1))
    action = np.minimum((chance >= np.cumsum(behavior, axis=1)).sum(axis=1), N_ACTIONS - 1)
    names = [f"{seed:04d}-{number:08d}" for number in range(n)]
    return EpisodeRows(
        eps_id=names,
        run_id=names,
        rank=[0] * n,
        task_id=names,
        policy_hash=["0" * 16] * n,
        source=["benchmark"] * n,
        is_cut=np.zeros(n, dtype=bool),
        length=np.full(n, LENGTH),
        obs=rng.random((n * LENGTH, N_FEATURES)),
        mask=mask,
        action=action,
        reward=rng.uniform(-1, 0, n * LENGTH),
        behavior=behavior,
    )


def write_parts(folder: Path, n_transitions: int) -> None:
    """Write parts of equal size."""
    n_episodes = n_transitions // LENGTH
    for number, start in enumerate(range(0, n_episodes, PART_EPISODES)):
        table = make_transition_table(make_rows(min(PART_EPISODES, n_episodes - start), number))
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd", row_group_size=65_536)


def run_job(folder: str) -> None:
    """Evaluate, as the measured part of this process."""

    def job() -> dict[str, Any]:
        found = evaluate_transitions(folder, RandomPolicy(), on_ray=False)
        problems = found.report.screen.diagnostics.problems
        return {"transitions": found.n_transitions, "is_evaluable": not problems}

    timed(job)


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="transitions")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_job(options.job)
        return
    rows = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_parts(Path(folder), size)
            figures = measure([sys.executable, __file__, "--job", folder])
            figures["cpu_us_per_transition"] = 1e6 * figures["cpu_s"] / figures["transitions"]
            rows[str(size)] = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
    largest, smallest = (rows[str(size)]["cpu_us_per_transition"] for size in (max(options.sizes), min(options.sizes)))
    result = {
        "cpu_per_transition_largest_over_smallest": round(largest / smallest, 3),
        "sizes": rows,
        "command": f"OMP_NUM_THREADS=1 python benchmarks/ope_scaling.py --sizes {' '.join(map(str, options.sizes))}",
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ["celr-ray", "numpy", "pyarrow"]),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
