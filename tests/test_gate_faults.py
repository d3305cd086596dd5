"""A live gate on Ray whose driver, workers or nodes are killed gives the same report as one that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from calibration import load_benchmark
from runs import count_manifests

from celr_ray.cli import main
from celr_ray.cortex.gatekeeper import REPORT, RESULTS

N_TASKS, ROWS_PER_UNIT, SECONDS = 90, 5, 0.1
N_UNITS = N_TASKS // ROWS_PER_UNIT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A file of tasks and a ladder on a server that sleeps."""
    benchmark = load_benchmark("sleeping_engine")
    engine = benchmark.SleepingEngine(SECONDS)
    yield benchmark.write_suite(tmp_path_factory.mktemp("suite"), engine.url, N_TASKS)
    engine.close()


def gate_words(suite, out: Path, *more: str) -> list[str]:
    tasks, tiers = suite
    names = [word for role in ("candidate", "champion", "anchor") for word in (f"--{role}", "always-cheap")]
    words = ["gate", *names, "--suite", str(tasks), "--tiers", str(tiers), "--out", str(out)]
    return [*words, "--gate.rows-per-unit", str(ROWS_PER_UNIT), *more]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, suite) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(gate_words(suite, out)) == 4
    assert count_manifests(out, "gate") == N_UNITS
    return out


def check_same(out: Path, undisturbed: Path) -> None:
    for name in (REPORT, RESULTS):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    record = json.loads((out / "run.json").read_text())["stages"]["gate"]
    assert record["rows_in"] == record["rows_out"] == N_TASKS


def wait_for(out: Path, driver: subprocess.Popen, n_units: int) -> int:
    """Wait until some units are done; returns how many."""
    deadline = time.monotonic() + 240
    while (n_done := count_manifests(out, "gate")) < n_units:
        assert driver.poll() is None, "the gate ended before it was disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return n_done


def start(words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "celr_ray.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_killed_driver_goes_on(suite, undisturbed, tmp_path):
    out = tmp_path / "out"
    with start(gate_words(suite, out)) as driver:
        wait_for(out, driver, 3)
        driver.send_signal(signal.SIGKILL)
    n_done = count_manifests(out, "gate")
    assert 3 <= n_done < N_UNITS
    assert not (out / REPORT).exists()
    assert main(gate_words(suite, out)) == 4
    assert json.loads((out / "run.json").read_text())["stages"]["gate"]["units_run_now"] == N_UNITS - n_done
    check_same(out, undisturbed)


def find_workers(parent: psutil.Process) -> list[int]:
    """Return the Ray actors below a driver that run units."""
    found = []
    for child in parent.children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def test_killed_workers_change_nothing(suite, undisturbed, tmp_path):
    out = tmp_path / "out"
    with start(gate_words(suite, out, "--concurrency", "2", "--runtime.executor", "ray")) as driver:
        n_done = wait_for(out, driver, 2)
        workers = find_workers(psutil.Process(driver.pid))
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _, errors = driver.communicate(timeout=400)
    assert n_done < N_UNITS
    assert driver.returncode == 4, errors[-3000:]
    check_same(out, undisturbed)


_ON_CLUSTER = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from celr_ray.cli import main

words, out = json.loads(sys.argv[1]), Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
ray.init(address=cluster.address, log_to_driver=False)
codes = []
job = threading.Thread(target=lambda: codes.append(main(words)))
job.start()
while job.is_alive() and len(list(out.glob("manifests/gate/*"))) < 2:
    time.sleep(0.01)
n_done = len(list(out.glob("manifests/gate/*")))
cluster.remove_node(nodes[0], allow_graceful=False)
job.join()
print(json.dumps({"n_done": n_done, "code": codes[0]}))
ray.shutdown()
cluster.shutdown()
"""


def test_a_removed_node_changes_nothing(suite, undisturbed, tmp_path):
    out = tmp_path / "out"
    words = gate_words(suite, out, "--concurrency", "3", "--runtime.executor", "ray")
    command = [sys.executable, "-c", _ON_CLUSTER, json.dumps(words), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["code"] == 4, result.stderr[-3000:]
    assert 2 <= found["n_done"] < N_UNITS
    check_same(out, undisturbed)
