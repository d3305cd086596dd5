"""A live gate on one machine with three Ray nodes: how its wall time falls with workers where calls wait, not compute.

The tiers are a server whose answers take a fixed time (`sleeping_engine.py`), one request at a time for each worker, as
from a provider that limits each client. Candidate and champion are the same policy, so every task of the suite is run.
The reports of all runs must be the same bytes. `ideal_s` is the sleep alone, divided by the workers.

    python benchmarks/gate_scaling.py --out benchmarks/results/gate_scaling.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import describe_machine, find_versions, write_result
from sleeping_engine import SleepingEngine, write_suite

from celr_ray.cli import main as run_command

N_NODES = 3


def run_gate(folder: Path, suite: tuple[Path, Path], workers: int, rows_per_unit: int) -> tuple[dict[str, Any], bytes]:
    """Run a gate with some workers; returns its times and its report.

    Times are in seconds: `wall_s` from the call to the report, `units_s` from the first finished unit to the last,
    without the start of Ray's actors and without the report.
    """
    out = folder / f"out-{workers}"
    tasks, tiers = suite
    roles = [word for role in ("candidate", "champion", "anchor") for word in (f"--{role}", "always-cheap")]
    words = ["gate", *roles, "--suite", str(tasks), "--tiers", str(tiers), "--out", str(out)]
    words += ["--concurrency", str(workers), "--runtime.executor", "ray", "--gate.rows-per-unit", str(rows_per_unit)]
    started = time.perf_counter()
    code = run_command(words)
    wall_s = time.perf_counter() - started
    if code != 4:
        raise RuntimeError(f"the gate ended with {code}; a policy against itself must be INCONCLUSIVE (4)")
    ends = sorted(path.stat().st_mtime for path in (out / "manifests" / "gate").iterdir())
    return {"workers": workers, "wall_s": wall_s, "units_s": ends[-1] - ends[0]}, (
        out / "gate_report.json"
    ).read_bytes()


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=0.25, help="what an answer takes")
    parser.add_argument("--rows-per-unit", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(N_NODES):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    engine = SleepingEngine(options.seconds)
    runs: list[dict[str, Any]] = []
    reports = set()
    with tempfile.TemporaryDirectory() as name:
        suite = write_suite(Path(name), engine.url, options.tasks)
        for repeat in range(options.repeats):
            for workers in range(1, N_NODES + 1):
                folder = Path(name) / str(repeat)
                figures, report = run_gate(folder, suite, workers, options.rows_per_unit)
                reports.add(report)
                runs.append({**figures, "ideal_s": 2 * options.tasks * options.seconds / workers})
    engine.close()
    ray.shutdown()
    cluster.shutdown()
    best = {w: min(run["units_s"] for run in runs if run["workers"] == w) for w in range(1, N_NODES + 1)}
    result = {
        "ratio": {f"{w} workers against 1": round(best[1] / best[w], 2) for w in best},
        "all_reports_equal": len(reports) == 1,
        "settings": {**{key: value for key, value in vars(options).items() if key != "out"}, "nodes": N_NODES},
        "runs": [{key: round(value, 2) for key, value in run.items()} for run in runs],
        "command": "python benchmarks/gate_scaling.py",
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ["celr-ray", "ray"]),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
