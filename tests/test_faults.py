"""Killed drivers, workers and nodes: the same command afterwards gives the rows of an undisturbed run.

Each fault compares the rows with an undisturbed run, and checks that every file under a final name is whole.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from runs import quarantine, read_rows

N_COPIES = 20
FOLDERS = ("trajectories", "pairs", "unpaired", "tasks")


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    """About 5 MB of JSONL made of the demo's benchmark rows under new task ids, with some damaged lines."""
    lines = [json.loads(line) for line in (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()]
    folder = tmp_path_factory.mktemp("logs")
    for number in range(4):
        with (folder / f"{number}.jsonl").open("w") as sink:
            for copy in range(N_COPIES):
                for line in lines:
                    task = f"{line['task_id']}-{number}-{copy % 8}"
                    sink.write(json.dumps({**line, "task_id": task, "latency_s": copy + line["latency_s"]}) + "\n")
                sink.write('{"damaged": \n')
    return folder


def command(logs, out, executor="loop"):
    flags = ["--ingest.split-bytes", "100000", "--ingest.files-per-unit", "1", "--ingest.n-buckets", "32"]
    words = [sys.executable, "-m", "celr_ray.cli", "pipeline", "--logs", str(logs), "--out", str(out), *flags]
    return [*words, "--runtime.executor", executor, "--runtime.num-cpus", "2"]


def run_to_end(logs, out, executor="loop") -> float:
    """Run the pipeline; returns the seconds it took."""
    started = time.monotonic()
    result = subprocess.run(command(logs, out, executor), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return time.monotonic() - started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, logs):
    """The rows of a run that nothing disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    seconds = run_to_end(logs, out)
    rows = {folder: read_rows(out, folder) for folder in FOLDERS}
    assert len(rows["trajectories"]) == 4 * N_COPIES * 46
    assert len(quarantine(out)) == 4 * N_COPIES
    return {**rows, "quarantine": quarantine(out), "seconds": seconds}


def check_files_are_whole(out: Path) -> None:
    """Check that whatever stands under a final name can be read."""
    for path in out.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if path.suffix == ".parquet":
            pq.ParquetFile(path).metadata  # noqa: B018
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]


def check_same(out: Path, undisturbed) -> None:
    for folder in FOLDERS:
        assert read_rows(out, folder) == undisturbed[folder], folder
    assert quarantine(out) == undisturbed["quarantine"]
    record = json.loads((out / "run.json").read_text())["stages"]["ingest"]
    assert record["rows_in"] == record["rows_out"] + record["rejected"] == 4 * N_COPIES * 47


def kill_and_run_again(logs, out, seconds: float) -> None:
    process = subprocess.Popen(command(logs, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    process.wait()
    if out.exists():
        check_files_are_whole(out)


@pytest.mark.parametrize("share", [0.45, 0.8])
def test_killed_driver(logs, tmp_path, undisturbed, share):
    kill_and_run_again(logs, tmp_path / "run", undisturbed["seconds"] * share)
    run_to_end(logs, tmp_path / "run")
    check_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_driver_killed_at_random_moments_of_every_stage(logs, tmp_path, undisturbed, seed):
    """Thirty moments spread over ingest, pairing and export; in each third of them two kills in a row."""
    rng = random.Random(seed)
    for _ in range(1 + (seed % 3 == 0)):
        kill_and_run_again(logs, tmp_path / "run", rng.uniform(0.15, 1.0) * undisturbed["seconds"])
    run_to_end(logs, tmp_path / "run")
    check_same(tmp_path / "run", undisturbed)


def find_workers(parent: psutil.Process) -> list[psutil.Process]:
    """Return the Ray worker processes below a driver that run units."""
    found = []
    for child in parent.children(recursive=True):
        try:
            if "MapBatches" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_killed_worker_on_ray(logs, tmp_path, undisturbed):
    process = subprocess.Popen(
        command(logs, tmp_path / "run", "ray"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    killed = 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and killed < 3:
        for worker in find_workers(psutil.Process(process.pid))[:1]:
            os.kill(worker.pid, signal.SIGKILL)
            killed += 1
            time.sleep(0.3)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=240)
    assert killed >= 1
    assert process.returncode == 0, stderr
    check_same(tmp_path / "run", undisturbed)


_ON_CLUSTER = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
from celr_ray.cli import main

logs, out, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
ray.init(address=cluster.address, log_to_driver=False)
codes = []
job = threading.Thread(target=lambda: codes.append(main(["pipeline", "--logs", logs, "--out", out, *flags])))
job.start()
deadline = time.monotonic() + 120
from pathlib import Path
while len(list(Path(out).glob("manifests/ingest/*"))) < 5 and time.monotonic() < deadline:
    time.sleep(0.05)
cluster.remove_node(nodes[0], allow_graceful=False)
while not list(Path(out).glob("manifests/pair/*")) and job.is_alive() and time.monotonic() < deadline:
    time.sleep(0.02)
cluster.remove_node(nodes[1], allow_graceful=False)
print("alive when removed:", job.is_alive())
job.join()
ray.shutdown()
cluster.shutdown()
sys.exit(codes[0])
"""


def test_removed_nodes_during_ingest_and_pairing(logs, tmp_path, undisturbed):
    script = tmp_path / "cluster.py"
    script.write_text(_ON_CLUSTER)
    flags = command(logs, tmp_path / "run", "ray")[8:-2]
    result = subprocess.run(
        [sys.executable, str(script), str(logs), str(tmp_path / "run"), *flags],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "alive when removed: True" in result.stdout
    check_same(tmp_path / "run", undisturbed)
