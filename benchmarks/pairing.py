"""Pairing: our pair stage beside DuckDB, Polars and Ray Data `groupby().map_groups`, over the same trajectories.

The input is what our ingest wrote from synthetic logs, with a hot task. Everyone reads the light columns, takes the
best and the worst run of each task, and writes three tables: pairs with their texts, the runs of one-sided tasks (at
most 16 a task), and the task table. Rows a CPU second count all trajectories read. All give the same numbers of pairs
and unpaired rows, which is checked; benchmarks/peers.py says what the peers leave out. `map_groups` shuffles whole
rows, and its Ray is warm; the others run in one process.

    uv venv build/peers && uv pip install --python build/peers/bin/python duckdb polars
    python benchmarks/pairing.py --rows 100000 --repeats 3 --out benchmarks/results/pairing.json
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from generate_logs import generate
from measure import PEERS, describe_machine, find_versions, measure, take_medians, take_turns, timed, write_result

NAMES = ("ours", "duckdb", "polars", "map_groups")


def make_run(rows: int, folder: Path, run: Path) -> tuple[int, int]:
    """Generate logs, ingest them with our loop and delete them; returns the rows and those of the hot task."""
    from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
    from celr_ray.logs.ingest import run_ingest

    made = generate(folder, rows)
    loop = RuntimeConfig(executor="loop")
    counts = run_ingest([str(folder)], str(run), IngestConfig(), ScoreConfig(), loop).counts
    shutil.rmtree(folder)
    return counts["rows_out"], made.hot_rows


def pair_ours(run: Path) -> dict[str, Any]:
    """Our pair stage in a plain loop."""
    import pyarrow as pa

    from celr_ray.config import PairConfig, RuntimeConfig
    from celr_ray.training.pair_stage import run_pair

    counts = run_pair(str(run), PairConfig(), RuntimeConfig(executor="loop")).counts
    pool = pa.default_memory_pool().backend_name
    return {"pairs": counts["pairs"], "kto_rows": counts["kto_rows"], "memory_pool": pool}


def _pair_group(group: dict[str, Any]) -> dict[str, list[Any]]:
    """Pair one task; rows of all three tables in one, as `map_groups` has one output."""
    rows = [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]
    rows = sorted(
        (row for row in rows if row["success"] is not None),
        key=lambda row: (row["success_score"], row["composite_score"], row["trajectory_id"]),
    )
    outcomes = {bool(row["success"]) for row in rows}
    found: list[tuple[str, Any, Any, Any, Any, Any]] = []
    if len(rows) > 1:
        worst, best = rows[0], rows[-1]
        gap = best["composite_score"] - worst["composite_score"]
        if len(outcomes) == 2 or (outcomes == {True} and gap >= 0.05):
            texts = [list(row["messages"]) for row in (best, worst)]
            ids = best["trajectory_id"], worst["trajectory_id"]
            found.append(("pair", texts[0][:1], texts[0][1:], texts[1][1:], *ids))
    if len(outcomes) == 1:
        for row in sorted(rows, key=lambda row: row["trajectory_id"])[:16]:
            messages = list(row["messages"])
            found.append(("unpaired", messages[:1], messages[1:], [], row["trajectory_id"], None))
    names = ("kind", "prompt", "chosen", "rejected", "chosen_id", "rejected_id")
    return {name: [values[i] for values in found] for i, name in enumerate(names)}


def pair_map_groups(run: Path, out: Path) -> dict[str, Any]:
    """What a user of Ray Data would write first: groupby on whole rows."""
    import pyarrow.parquet as pq
    import ray

    columns = ["task_id", "trajectory_id", "success", "success_score", "composite_score", "messages"]
    data = ray.data.read_parquet(str(run / "trajectories"), columns=columns)
    data.groupby("task_id").map_groups(_pair_group, batch_format="numpy").write_parquet(str(out), compression="zstd")
    kinds = pq.read_table(out, columns=["kind"])["kind"].to_pylist()
    return {"pairs": kinds.count("pair"), "kto_rows": kinds.count("unpaired")}


def run_contender(name: str, run: Path, warm: Path, out: Path) -> None:
    """Child process: run one of ours, first on a few rows so that imports and Ray's start are not counted."""
    if name == "ours":
        pair_ours(warm)
        timed(lambda: pair_ours(run))
        return
    import ray

    from celr_ray.config import RuntimeConfig
    from celr_ray.runtime import connect

    connect(RuntimeConfig(num_cpus=2))
    ray.data.DataContext.get_current().enable_progress_bars = False
    pair_map_groups(warm, out / "warm")
    timed(lambda: pair_map_groups(run, out / "timed"))


def run_once(name: str, folder: Path, peers: Path) -> dict[str, Any]:
    """Run one contender in a fresh process and an empty output folder."""
    here = Path(__file__).resolve()
    run, warm = folder / "run", folder / "warm"
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if name in ("duckdb", "polars"):
            command = [str(peers), str(here.with_name("peers.py")), "pair", name]
            command += ["--input", str(run / "trajectories"), "--warm", str(warm / "trajectories"), "--out", out]
        else:
            command = [sys.executable, str(here), "--contender", name, "--run", str(run), "--warm", str(warm)]
            command += ["--out", out]
        try:
            return measure(command)
        finally:
            for one in (run, warm):
                forget_pairs(one)


def forget_pairs(run: Path) -> None:
    """Delete what the pair stage left in a run, so that the next call does all of it again."""
    from celr_ray import stage

    stage.delete_from(str(run), "pair")


def main() -> None:
    """Run all contenders in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="logs to write")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="contenders")
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the environment with duckdb and polars")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for temporary data")
    parser.add_argument("--out", default=None, help="JSON file for the results; rewritten after every round")
    parser.add_argument("--contender", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        import celr_ray.allocator  # noqa: F401 - as the command line does

        run_contender(options.contender, options.run, options.warm, Path(options.out))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as text:
        folder = Path(text)
        n_rows, n_hot = make_run(options.rows, folder / "logs", folder / "run")
        make_run(200, folder / "logs", folder / "warm")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
        for number in range(options.repeats):
            for name in take_turns(options.only, number):
                runs[name].append(run_once(name, folder, options.peers))
                print(f"run {number + 1} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
            medians = {name: take_medians(found) for name, found in runs.items()}
            for figures in medians.values():
                figures["rows_per_cpu_second"] = round(n_rows / figures["cpu_s"])
            own = medians.get("ours")
            ratios = {
                f"rows_per_cpu_second_over_{name}": round(figures["cpu_s"] / own["cpu_s"], 2)
                for name, figures in medians.items()
                if own and name != "ours"
            }
            result = {
                **ratios,
                "same_counts": len({(f["pairs"], f["kto_rows"]) for f in medians.values()}) == 1,
                "rows": n_rows,
                "hot_task_rows": n_hot,
                "rounds": number + 1,
                "medians": medians,
                "cpu_s_of_each_run": {name: [round(run["cpu_s"], 2) for run in found] for name, found in runs.items()},
                "command": f"python benchmarks/pairing.py --rows {options.rows} --repeats {options.repeats} "
                f"--only {' '.join(options.only)}",
                "machine": describe_machine(),
                "versions": {
                    **find_versions(sys.executable, ["celr-ray", "ray", "pyarrow"]),
                    **(find_versions(str(options.peers), ["duckdb", "polars"]) if options.peers.exists() else {}),
                },
            }
            write_result(options.out, result)


if __name__ == "__main__":
    main()
