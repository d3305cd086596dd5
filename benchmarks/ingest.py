"""Ingest + score + Parquet: ours in one process beside `datasets` doing the same job, and the serial bound.

Every contender turns the same JSONL of CELR plan logs into scored, zstd-compressed Parquet, each in a fresh process,
in turns, several times; the figures are medians. The serial bound is what the job costs at least with
the libraries used: decode into typed structs, build the Arrow table, write the Parquet file, and nothing else.

    python benchmarks/ingest.py --rows 40000 --repeats 3 --out benchmarks/results/ingest.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

TEXT = "the agent reads a file plans three steps runs tests fixes one error and reports what it found to user"
WORDS = TEXT.split()


def write_logs(path: Path, n_rows: int, seed: int = 0) -> int:
    """Write CELR plan logs of 2–8 KB; returns the size in bytes."""
    rng = random.Random(seed)
    with path.open("w") as sink:
        for row in range(n_rows):
            steps = [
                {
                    "id": f"step-{i}",
                    "description": " ".join(rng.choices(WORDS, k=12)),
                    "status": rng.choice(("COMPLETED", "COMPLETED", "FAILED")),
                    "difficulty": 0.3,
                    "agent": None,
                    "output": " ".join(rng.choices(WORDS, k=rng.randrange(80, 300))),
                    "retry_count": rng.randrange(3),
                }
                for i in range(rng.randrange(3, 7))
            ]
            log = {
                "task_id": f"task-{min(int(rng.paretovariate(1.1)), n_rows)}",
                "original_request": f"request {row}: " + " ".join(rng.choices(WORDS, k=30)),
                "final_status": rng.choice(("SUCCESS", "FAILED")),
                "total_cost": rng.random(),
                "budget_limit_usd": 1.0,
                "plan": steps,
                "execution_log": ["[2026-02-12T22:17:12] LLM call: ollama/llama3.2, tokens=210, cost=$0.0004"],
            }
            sink.write(json.dumps(log) + "\n")
    return path.stat().st_size


def run_ours(logs: Path, out: Path) -> None:
    """Our ingest stage in a plain loop."""
    from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
    from celr_ray.logs.ingest import run_ingest

    run_ingest([str(logs)], str(out), IngestConfig(), ScoreConfig(), RuntimeConfig(executor="loop"))


def run_datasets(logs: Path, out: Path) -> None:
    """The same columns and scores with `datasets`: load_dataset, batched map, to_parquet."""
    from datasets import load_dataset

    def score(batch: dict[str, list]) -> dict[str, list]:
        retries = [sum(step["retry_count"] for step in plan) for plan in batch["plan"]]
        done = [sum(s["status"] == "COMPLETED" for s in plan) / len(plan) for plan in batch["plan"]]
        success = [float(status == "SUCCESS") for status in batch["final_status"]]
        cost = [min(max(1 - c / b, 0), 1) for c, b in zip(batch["total_cost"], batch["budget_limit_usd"], strict=True)]
        efficiency = [1 / (1 + n) for n in retries]
        answers = ["\n\n".join(f"{step['description']}\n\n{step['output']}" for step in plan) for plan in batch["plan"]]
        return {
            "messages": [
                [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
                for request, answer in zip(batch["original_request"], answers, strict=True)
            ],
            "success_score": success,
            "efficiency_score": efficiency,
            "cost_score": cost,
            "completion_score": done,
            "composite_score": [
                0.6 * s + 0.15 * e + 0.15 * c + 0.1 * d
                for s, e, c, d in zip(success, efficiency, cost, done, strict=True)
            ],
        }

    data = load_dataset("json", data_files=str(logs), split="train", cache_dir=str(out / "cache"))
    data = data.map(score, batched=True, remove_columns=["plan", "execution_log"], load_from_cache_file=False)
    data.to_parquet(str(out / "out.parquet"))  # its writer chooses the compression itself


def run_bound(logs: Path, out: Path) -> None:
    """Decode into typed structs, build the messages and id columns, write zstd-1 Parquet; nothing checked or scored."""
    import msgspec
    import pyarrow as pa

    from celr_ray import storage
    from celr_ray.logs.base import ParsedMessage
    from celr_ray.logs.celr import _PlanLog
    from celr_ray.logs.columns import build_messages

    decoder = msgspec.json.Decoder(_PlanLog)
    records = [decoder.decode(line) for line in logs.read_bytes().splitlines()]
    texts = ["\n\n".join(f"{s.description}\n\n{s.output}" for s in record.plan) for record in records]
    table = pa.table(
        {
            "task_id": [record.task_id for record in records],
            "prompt": [record.original_request for record in records],
            "cost_usd": [record.total_cost for record in records],
            "messages": build_messages(
                [
                    [ParsedMessage("user", record.original_request), ParsedMessage("assistant", text)]
                    for record, text in zip(records, texts, strict=True)
                ]
            ),
        }
    )
    storage.write_parquet(str(out / "out.parquet"), table)


CONTENDERS = {"ours": run_ours, "datasets": run_datasets, "serial_bound": run_bound}


def measure(name: str, logs: Path) -> dict[str, float]:
    """Run one contender in a fresh process; import time is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--contender", name, "--logs", str(logs), "--out", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def run_contender(name: str, logs: Path, out: Path) -> None:
    """Child process: run one contender and print its figures."""
    warm = out / "warm.jsonl"
    warm.write_text("".join(logs.open().readline() for _ in range(1)))
    (out / "warm").mkdir()
    CONTENDERS[name](warm, out / "warm")  # imports, and the first use of each library
    (out / "timed").mkdir()
    wall, cpu = time.perf_counter(), time.process_time()
    CONTENDERS[name](logs, out / "timed")
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def main() -> None:
    """Run all contenders in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="logs to write")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        run_contender(options.contender, options.logs, Path(options.out))
        return
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs.jsonl"
        n_bytes = write_logs(logs, options.rows)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(options.repeats):
            for name in CONTENDERS:
                runs[name].append(measure(name, logs))
    medians = {
        name: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    result = {
        "cpu_seconds_of_datasets_over_ours": round(medians["datasets"]["cpu_s"] / medians["ours"]["cpu_s"], 2),
        "ours_share_of_serial_bound": round(medians["serial_bound"]["cpu_s"] / medians["ours"]["cpu_s"], 2),
        "ours_mb_per_cpu_second": round(n_bytes / 1e6 / medians["ours"]["cpu_s"], 1),
        "rows": options.rows,
        "input_mb": round(n_bytes / 1e6, 1),
        "medians": medians,
        "command": f"python benchmarks/ingest.py --rows {options.rows} --repeats {options.repeats}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {p: metadata.version(p) for p in ("celr-ray", "datasets", "msgspec", "pyarrow")},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
