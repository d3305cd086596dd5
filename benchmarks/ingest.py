"""Ingest + score + Parquet: ours beside DuckDB, Polars and `datasets` doing the same job, and the serial bound.

Every contender turns the same JSONL of CELR plan logs into scored, zstd-compressed Parquet, each in a fresh process, in
turns, several times; the figures are medians of CPU seconds (all processes) and wall time. The serial bound is what the
job costs at least with our libraries: decode into typed structs, build the Arrow table, write the Parquet file, and
nothing else. Ours, the bound and DuckDB read logs of which 0.1 % are damaged; Polars and `datasets` stop at the first
damaged line and get the same logs without damage. benchmarks/peers.py says what the peers do not do.

    uv venv build/peers && uv pip install --python build/peers/bin/python duckdb polars
    python benchmarks/ingest.py --rows 40000 --repeats 3 --out benchmarks/results/ingest.json
    python benchmarks/ingest.py --rows 300000 --only loop ray_1 ray_2 --out benchmarks/results/ingest_ray.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from generate_logs import generate
from measure import PEERS, describe_machine, find_versions, measure, take_medians, take_turns, timed, write_result

PIECE_BYTES = 1_500_000
PART_BYTES = 128 * 2**20
WARM_UNIT_BYTES = 128 * 2**10


def run_ours(logs: Path, out: Path, workers: int, **settings: int) -> dict[str, Any]:
    """Our ingest stage: in a plain loop (0 workers) or through Ray."""
    from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
    from celr_ray.logs.ingest import run_ingest

    runtime = RuntimeConfig(executor="ray" if workers else "loop", num_cpus=workers or None)
    config = IngestConfig(**settings)
    counts = run_ingest([str(logs)], str(out / "run"), config, ScoreConfig(), runtime).counts
    return {"rows_in": counts["rows_in"], "rows_out": counts["rows_out"], "rejected": counts["rejected"]}


def run_bound(logs: Path, out: Path) -> dict[str, Any]:
    """Decode into typed structs, build the messages and id columns, write zstd-1 Parquet; nothing checked or scored."""
    import msgspec
    import pyarrow as pa

    from celr_ray import storage
    from celr_ray.logs.base import ParsedMessage
    from celr_ray.logs.celr import _PlanLog
    from celr_ray.logs.columns import build_messages

    decoder = msgspec.json.Decoder(_PlanLog)

    def build(lines: list[bytes]) -> pa.Table:
        records = []
        for line in lines:
            try:
                records.append(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
        conversations = [
            [
                ParsedMessage("user", record.original_request),
                ParsedMessage("assistant", "\n\n".join(f"{s.description}\n\n{s.output}" for s in record.plan)),
            ]
            for record in records
        ]
        columns = {
            "task_id": [record.task_id for record in records],
            "prompt": [record.original_request for record in records],
            "cost_usd": [record.total_cost for record in records],
            "messages": build_messages(conversations),
        }
        return pa.table(columns)

    n_rows = 0
    for number, file in enumerate(sorted(logs.glob("*.jsonl"))):
        pieces: list[pa.Table] = []
        with file.open("rb") as source:
            while lines := source.readlines(PIECE_BYTES):
                pieces.append(build(lines))
                if len(pieces) * PIECE_BYTES >= PART_BYTES:
                    storage.write_parquet(str(out / f"{number}-{n_rows}.parquet"), pa.concat_tables(pieces))
                    n_rows += sum(piece.num_rows for piece in pieces)
                    pieces = []
        if pieces:
            storage.write_parquet(str(out / f"{number}-{n_rows}.parquet"), pa.concat_tables(pieces))
            n_rows += sum(piece.num_rows for piece in pieces)
    return {"rows_out": n_rows}


OURS: dict[str, Callable[..., dict[str, Any]]] = {
    "loop": partial(run_ours, workers=0),
    "bound": run_bound,
    "ray_1": partial(run_ours, workers=1),
    "ray_2": partial(run_ours, workers=2),
}
PEER_NAMES = ("duckdb", "polars", "datasets")
NEEDS_UNDAMAGED = ("polars", "datasets")


def run_contender(name: str, logs: Path, warm: Path, out: Path) -> None:
    """Child process: run one of ours, first on a few logs so that imports and Ray's start are not counted.

    Ray starts a worker when a second unit waits, so there the few logs are cut into several units.
    """
    for folder in ("warm", "timed"):
        (out / folder).mkdir()
    OURS[name](warm, out / "warm", **({"split_bytes": WARM_UNIT_BYTES} if name.startswith("ray") else {}))
    timed(lambda: OURS[name](logs, out / "timed"))


def run_once(name: str, folder: Path, peers: Path) -> dict[str, Any]:
    """Run one contender in a fresh process and an empty output folder."""
    here = Path(__file__).resolve()
    logs = folder / ("undamaged" if name in NEEDS_UNDAMAGED else "logs")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if name in OURS:
            command = [sys.executable, str(here), "--contender", name, "--logs", str(logs)]
        else:
            python = sys.executable if name == "datasets" else str(peers)
            command = [python, str(here.with_name("peers.py")), "ingest", name, "--input", str(logs)]
        figures = measure([*command, "--warm", str(folder / "warm"), "--out", out])
        stored = sum(file.stat().st_size for file in Path(out, "timed").rglob("*.parquet"))
        return {**figures, "output_mb": stored / 1e6}


def compute_ratios(medians: dict[str, Any], n_mb: float) -> dict[str, float]:
    """Return the figures that the targets are about; above 1 is better for ours except where a share is named."""
    ratios: dict[str, float] = {}
    loop = medians.get("loop")
    if loop is None:
        return ratios
    ratios["ours_mb_per_cpu_second"] = n_mb / loop["cpu_s"]
    if "bound" in medians:
        ratios["ours_share_of_serial_bound"] = medians["bound"]["cpu_s"] / loop["cpu_s"]
    for name in PEER_NAMES:
        if name in medians:
            ratios[f"cpu_seconds_of_{name}_over_ours"] = medians[name]["cpu_s"] / loop["cpu_s"]
    for name in ("ray_1", "ray_2"):
        if name in medians:
            ratios[f"{name}_share_of_loop_rate_per_cpu_second"] = loop["cpu_s"] / medians[name]["cpu_s"]
            ratios[f"{name}_speed_over_loop_by_wall"] = loop["wall_s"] / medians[name]["wall_s"]
    if "ray_1" in medians and "ray_2" in medians:
        ratios["ray_2_speed_over_ray_1_by_wall"] = medians["ray_1"]["wall_s"] / medians["ray_2"]["wall_s"]
    return {key: round(value, 2) for key, value in ratios.items()}


def main() -> None:
    """Run all contenders in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="logs to write")
    parser.add_argument("--files", type=int, default=2, help="files they stand in")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender")
    parser.add_argument("--only", nargs="+", help="contenders; default: all but Ray, which needs 1.5 GB of logs")
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the environment with duckdb and polars")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for temporary data")
    parser.add_argument("--out", default=None, help="JSON file for the results; rewritten after every round")
    parser.add_argument("--contender", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        import celr_ray.allocator  # noqa: F401 - as the command line does

        run_contender(options.contender, options.logs, options.warm, Path(options.out))
        return
    names = options.only or ["loop", "bound", *PEER_NAMES]
    if not options.peers.exists() and not {"duckdb", "polars"}.isdisjoint(names):
        print(f"no {options.peers}: DuckDB and Polars are left out; see --help for how to make it", file=sys.stderr)
        names = [name for name in names if name not in ("duckdb", "polars")]
    with tempfile.TemporaryDirectory(dir=options.scratch) as text:
        folder = Path(text)
        made = generate(folder / "logs", options.rows, n_files=options.files)
        generate(folder / "warm", 200, damaged_share=0)
        if not set(NEEDS_UNDAMAGED).isdisjoint(names):
            generate(folder / "undamaged", options.rows, n_files=options.files, damaged_share=0)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(options.repeats):
            for name in take_turns(names, number):
                runs[name].append(run_once(name, folder, options.peers))
                print(f"run {number + 1} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
            medians = {name: take_medians(found) for name, found in runs.items()}
            result = {
                **compute_ratios(medians, made.n_bytes / 1e6),
                "rows": made.rows,
                "damaged": made.damaged,
                "hot_task_rows": made.hot_rows,
                "input_mb": round(made.n_bytes / 1e6, 1),
                "rounds": number + 1,
                "medians": medians,
                "cpu_s_of_each_run": {name: [round(run["cpu_s"], 2) for run in found] for name, found in runs.items()},
                "command": f"python benchmarks/ingest.py --rows {options.rows} --repeats {options.repeats}"
                + (f" --only {' '.join(options.only)}" if options.only else ""),
                "machine": describe_machine(),
                "versions": {
                    **find_versions(sys.executable, ["celr-ray", "ray", "msgspec", "pyarrow", "datasets"]),
                    **(find_versions(str(options.peers), ["duckdb", "polars"]) if options.peers.exists() else {}),
                },
            }
            write_result(options.out, result)


if __name__ == "__main__":
    main()
