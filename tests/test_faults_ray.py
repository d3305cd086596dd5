"""Workers and nodes of Ray die while they ingest and while they pair: the job goes on and gives the same rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import ROWS, count_manifests, pipeline_words, read_contents, write_logs

from celr_ray.cli import main

N_UNITS = {"ingest": 52, "pair": 32}


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"), demo_logs, 20)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, logs):
    """What a run holds that nothing disturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(pipeline_words(logs, run)) == 0
    assert {stage: count_manifests(run, stage) for stage in N_UNITS} == N_UNITS
    return read_contents(run, ROWS)


def check_same(run: Path, undisturbed) -> None:
    assert read_contents(run, ROWS) == undisturbed
    for entry in json.loads((run / "run.json").read_text())["stages"].values():
        assert entry["rows_in"] == entry["rows_out"] + entry["rejected"] + entry.get("duplicates", 0)


def find_workers(parent: psutil.Process) -> list[int]:
    """Return the Ray worker processes below a driver that run units now."""
    found = []
    for child in parent.children(recursive=True):
        try:
            if "MapBatches" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def kill_workers(driver: subprocess.Popen, run: Path, stage: str) -> int:
    """Kill all workers once a stage has begun; returns how many units it had finished then."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert driver.poll() is None, f"the run ended before a worker was killed in {stage}"
        if count_manifests(run, stage) and (workers := find_workers(psutil.Process(driver.pid))):
            n_done = count_manifests(run, stage)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            return n_done
        time.sleep(0.001)
    raise AssertionError(f"no worker was seen in {stage}")


def test_killed_workers_in_ingest_and_pairing(logs, tmp_path, undisturbed):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "celr_ray.cli", *pipeline_words(logs, run, "ray")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        n_done = {stage: kill_workers(driver, run, stage) for stage in N_UNITS}
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert all(0 < n_done[stage] < N_UNITS[stage] for stage in N_UNITS), n_done
    check_same(run, undisturbed)


_ON_CLUSTER = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from celr_ray.cli import main

words, run, stages = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
ray.init(address=cluster.address, log_to_driver=False)
codes, done = [], []
job = threading.Thread(target=lambda: codes.append(main(words)))
job.start()
for stage, node in zip(stages, nodes):
    while job.is_alive() and not list(run.glob(f"manifests/{stage}/*")):
        time.sleep(0.001)
    done.append(len(list(run.glob(f"manifests/{stage}/*"))))
    cluster.remove_node(node, allow_graceful=False)
job.join()
print(json.dumps(done))
ray.shutdown()
cluster.shutdown()
sys.exit(codes[0])
"""


def test_removed_nodes_in_ingest_and_pairing(logs, tmp_path, undisturbed):
    run = tmp_path / "run"
    words = [json.dumps(pipeline_words(logs, run, "ray")), str(run), *N_UNITS]
    result = subprocess.run(
        [sys.executable, "-c", _ON_CLUSTER, *words], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    n_done = json.loads(result.stdout.splitlines()[-1])
    assert all(0 < n < total for n, total in zip(n_done, N_UNITS.values(), strict=True)), n_done
    check_same(run, undisturbed)
