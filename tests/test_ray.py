"""The same rows through Ray as through a plain loop; a job submitted to a real head."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import ray
from conftest import ROOT
from runs import ingest, pair, quarantine, read_rows

from celr_ray.config import RuntimeConfig
from celr_ray.errors import ModelError
from celr_ray.runtime import Work, run_units, uses_ray

RAY = RuntimeConfig(executor="ray", num_cpus=2)
BIN = os.path.dirname(sys.executable)


def test_ray_and_loop_give_the_same_rows(tmp_path, demo_logs, local_ray):
    (tmp_path / "logs").mkdir()
    for path in demo_logs.iterdir():
        shutil.copy(path, tmp_path / "logs")
    lines = (demo_logs / "celr_benchmark.jsonl").read_bytes().splitlines()
    (tmp_path / "logs" / "bad.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:50], b"\xff\xfe", lines[2]]))
    cut = {"split_bytes": 20_000, "files_per_unit": 2}
    ingest(tmp_path / "loop", tmp_path / "logs", **cut)
    report = ingest(tmp_path / "ray", tmp_path / "logs", runtime=RAY, **cut)
    assert report.units > 4
    assert report.counts["rejected"] == 2
    assert read_rows(tmp_path / "ray") == read_rows(tmp_path / "loop")
    assert quarantine(tmp_path / "ray") == quarantine(tmp_path / "loop")
    pair(tmp_path / "loop", strategy="all")
    pair(tmp_path / "ray", runtime=RAY, strategy="all")
    for folder in ("pairs", "unpaired", "tasks"):
        assert read_rows(tmp_path / "ray", folder) == read_rows(tmp_path / "loop", folder)


def test_tables_are_read_as_ray_datasets(tmp_path, demo_logs, local_ray):
    import celr_ray

    ingest(tmp_path / "run", demo_logs)
    pair(tmp_path / "run")
    uri = str(tmp_path / "run")
    trajectories = celr_ray.read_trajectories(uri)
    assert trajectories.count() == 92
    assert trajectories.filter(lambda row: row["success"]).count() == sum(
        bool(row["success"]) for row in read_rows(uri)
    )
    assert celr_ray.read_pairs(uri).count() == len(read_rows(uri, "pairs"))
    with pytest.raises(celr_ray.tables.InputError, match="no judgments"):
        celr_ray.read_judgments(uri)


def _make_tagger(tag):
    made_by = os.getpid()
    return lambda unit: {"index": unit["index"], "tag": tag, "made_by": made_by}


@pytest.mark.parametrize("is_stateful", [False, True])
def test_units_run_once_each_in_other_processes(local_ray, is_stateful):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    work = Work(partial(_make_tagger, "x"), is_stateful=is_stateful)
    found = list(run_units([{"index": i} for i in range(5)], work, RAY, on_ray=True))
    assert sorted(manifest["index"] for manifest in found) == [0, 1, 2, 3, 4]
    makers = {manifest["made_by"] for manifest in found}
    assert os.getpid() not in makers
    assert not is_stateful or len(makers) == 1


def _fail_to_load():
    raise ModelError("cannot load the judge 'nothing'")


@pytest.mark.parametrize("is_stateful", [False, True])
def test_an_error_of_ours_keeps_its_kind_and_words_through_ray(local_ray, is_stateful):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    work = Work(_fail_to_load, is_stateful=is_stateful)
    with pytest.raises(ModelError, match="cannot load the judge 'nothing'"):
        list(run_units([{"index": 0}], work, RAY, on_ray=True))


def test_auto_chooses_ray_only_where_it_pays(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert uses_ray(RuntimeConfig(), is_large=True)
    assert uses_ray(RuntimeConfig(address="ray-head:6379"), is_large=False)
    assert not uses_ray(RuntimeConfig(executor="loop"), is_large=True)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert uses_ray(RuntimeConfig(), is_large=False)


def test_an_address_where_nothing_answers_is_one_clear_error():
    script = (
        "from celr_ray.runtime import connect; from celr_ray.config import RuntimeConfig;"
        f"connect(RuntimeConfig(address='127.0.0.1:{free_port()}'))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "ConfigError: cannot start or reach Ray (address 127.0.0.1:" in result.stderr
    assert "nothing answers" in result.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A real Ray head with its job server on 127.0.0.1, token authentication on; ended by its process group."""
    port, dashboard = free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [os.path.join(BIN, "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--include-dashboard=true", f"--temp-dir={tmp_path_factory.mktemp('ray')}"]
    log = (tmp_path_factory.mktemp("log") / "head.log").open("w+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    listing = [os.path.join(BIN, "ray"), "job", "list", "--address", address]
    deadline = time.monotonic() + 120
    while subprocess.run(listing, env=environment, capture_output=True, check=False).returncode:
        assert process.poll() is None, (log.seek(0), log.read())[1]
        assert time.monotonic() < deadline, "the head's job server did not answer in 120 s"
        time.sleep(1)
    yield address, environment
    process.terminate()
    process.wait(timeout=60)


def test_ray_job_submit_runs_the_pipeline(head, tmp_path, demo_logs):
    address, environment = head
    out = tmp_path / "run"
    command = [os.path.join(BIN, "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    command += ["--", sys.executable, "jobs/pipeline.py", "--logs", str(demo_logs), "--out", str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "92 runs in, 0 rejected; 19 pairs of 23 tasks" in result.stdout
    record = json.loads((out / "run.json").read_text())
    assert record["stages"]["ingest"]["rows_in"] == 92


def test_a_failing_job_is_a_failed_job(head, tmp_path):
    address, environment = head
    command = [os.path.join(BIN, "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    command += ["--", sys.executable, "jobs/pipeline.py", "--logs", str(tmp_path / "none"), "--out", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode != 0
    assert "no such file or folder" in result.stdout + result.stderr
