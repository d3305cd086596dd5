"""The whole pipeline gets SIGKILL from outside: the same command afterwards gives what an undisturbed run gives.

The kills come at seeded shares of the time that the undisturbed run took; see test_faults_driver for kills at exact
calls of each stage.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import (
    N_DEMO_LINES,
    ROWS,
    check_files_are_whole,
    pipeline_words,
    quarantine,
    read_contents,
    read_rows,
    write_logs,
)

N_COPIES = 20


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    """About 5 MB of JSONL."""
    return write_logs(tmp_path_factory.mktemp("logs"), demo_logs, N_COPIES)


def run_to_end(logs, run) -> float:
    """Run the pipeline; returns the seconds it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "celr_ray.cli", *pipeline_words(logs, run)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return time.monotonic() - started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, logs):
    """What a run holds that nothing disturbed, and how many seconds it took."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    seconds = run_to_end(logs, run)
    assert len(read_rows(run)) == 4 * N_COPIES * N_DEMO_LINES
    assert len(quarantine(run)) == 4 * N_COPIES
    return seconds, read_contents(run, ROWS)


def kill_after(logs, run, seconds: float) -> bool:
    """Start the pipeline and kill it after a time; tells whether it was still at work."""
    command = [sys.executable, "-m", "celr_ray.cli", *pipeline_words(logs, run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.kill()
    process.wait()
    if run.exists():
        check_files_are_whole(run)
    return process.returncode == -signal.SIGKILL


def check_same(run: Path, undisturbed) -> None:
    assert read_contents(run, ROWS) == undisturbed
    record = json.loads((run / "run.json").read_text())["stages"]["ingest"]
    assert record["rows_in"] == record["rows_out"] + record["rejected"] == 4 * N_COPIES * (N_DEMO_LINES + 1)


def test_killed_pipeline(logs, tmp_path, undisturbed):
    seconds, expected = undisturbed
    kill_after(logs, tmp_path / "run", 0.6 * seconds)
    run_to_end(logs, tmp_path / "run")
    check_same(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pipeline_killed_at_random_moments(logs, tmp_path, undisturbed):
    """Ten moments; in each third of them two kills in a row."""
    (seconds, expected), rng = undisturbed, random.Random(0)
    hits = []
    for number in range(10):
        run = tmp_path / str(number) / "run"
        n_kills = 1 + (number % 3 == 0)
        hits += [kill_after(logs, run, rng.uniform(0.15, 1.0) * seconds) for _ in range(n_kills)]
        run_to_end(logs, run)
        check_same(run, expected)
    assert sum(hits) >= 3, "the kills came too late"
