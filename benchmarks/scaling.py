"""Ingest and pairing at 10⁴, 10⁵ and 10⁶ logs: time per log and peak memory, in one process without Ray.

Flat means: from 10⁵ logs on the CPU time per log stays within 20 %, and the peak memory of the process does not grow
with the number of logs. Sizes are run in turns where there is more than one repeat; the logs of each size are made,
used by both stages, and deleted. What a stage reads is not in the system's page cache when it begins: millions of logs
never are, so a few thousand must not be either. One line in a thousand is damaged, and one task has up to 20,000 runs.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --sizes 1000000 3000000 --repeats 1       # needs 35 GB of disk
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from generate_logs import generate
from measure import describe_machine, find_versions, measure, take_medians, timed, write_result

SIZES = (10_000, 100_000, 1_000_000)
_ROWS_PER_FILE = 200_000


def run_job(job: str, logs: Path, run: Path) -> dict[str, Any]:
    """Run one of our two stages in a plain loop and return its counts."""
    from celr_ray.config import IngestConfig, PairConfig, RuntimeConfig, ScoreConfig
    from celr_ray.logs.ingest import run_ingest
    from celr_ray.training.pair_stage import run_pair

    loop = RuntimeConfig(executor="loop")
    if job == "ingest":
        counts = run_ingest([str(logs)], str(run), IngestConfig(), ScoreConfig(), loop).counts
    else:
        counts = run_pair(str(run), PairConfig(), loop).counts
    return {key: counts[key] for key in ("rows_in", "rows_out", "rejected", "pairs", "kto_rows") if key in counts}


def drop_from_cache(folder: Path) -> None:
    """Write a folder's files to disk and drop them from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as source:
                os.fsync(source.fileno())
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_size(n_rows: int, scratch: Path | None) -> dict[str, Any]:
    """Make the logs of one size, run both stages on them, each in a fresh process, and delete everything."""
    with tempfile.TemporaryDirectory(dir=scratch) as text:
        folder = Path(text)
        logs, run = folder / "logs", folder / "run"
        made = generate(logs, n_rows, n_files=-(-n_rows // _ROWS_PER_FILE))
        result: dict[str, Any] = {"rows": n_rows, "input_mb": made.n_bytes / 1e6, "hot_task_rows": made.hot_rows}
        for job in ("ingest", "pair"):
            drop_from_cache(folder)
            command = [sys.executable, str(Path(__file__).resolve()), "--job", job]
            figures = measure([*command, "--logs", str(logs), "--run", str(run)])
            result.update({f"{job}_{key}": value for key, value in figures.items() if "worker" not in key})
            result[f"{job}_cpu_us_per_log"] = figures["cpu_s"] / n_rows * 1e6
        if result["ingest_rows_out"] + made.damaged != n_rows:
            raise RuntimeError(
                f"{made.damaged} of {n_rows} lines are damaged, {result['ingest_rejected']} were rejected"
            )
        return result


def main() -> None:
    """Run all sizes and print time per log and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of logs")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each size")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for temporary data: 8 GB for a million logs")
    parser.add_argument("--out", default=None, help="JSON file for the results; rewritten after every size")
    parser.add_argument("--job", choices=["ingest", "pair"], help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        import celr_ray.allocator  # noqa: F401 - as the command line does

        with tempfile.TemporaryDirectory() as text:
            generate(Path(text, "logs"), 200, damaged_share=0)
            for job in ("ingest", "pair"):
                run_job(job, Path(text, "logs"), Path(text, "run"))
        timed(lambda: run_job(options.job, options.logs, options.run))
        return
    runs: dict[int, list[dict[str, Any]]] = {}
    for number in range(options.repeats):
        for size in options.sizes:
            runs.setdefault(size, []).append(run_size(size, options.scratch))
            print(f"run {number + 1}: {runs[size][-1]}", file=sys.stderr, flush=True)
            medians = {str(n): take_medians(found) for n, found in runs.items()}
            ratios = {}
            for n in (1_000_000, 3_000_000):
                for job in ("ingest", "pair") if {"100000", str(n)} <= set(medians) else ():
                    key = f"{job}_cpu_us_per_log"
                    ratios[f"{key}_{n // 10**6}e6_over_1e5"] = round(medians[str(n)][key] / medians["100000"][key], 2)
            peaks = [m[f"{job}_peak_memory_mb"] for m in medians.values() for job in ("ingest", "pair")]
            result = {
                **ratios,
                "peak_memory_mb_of_all": max(peaks),
                "medians": medians,
                "repeats": number + 1,
                "command": f"python benchmarks/scaling.py --sizes {' '.join(map(str, options.sizes))} "
                f"--repeats {options.repeats}",
                "machine": describe_machine(),
                "versions": find_versions(sys.executable, ["celr-ray", "pyarrow", "msgspec"]),
            }
            write_result(options.out, result)


if __name__ == "__main__":
    main()
