"""The driver or the judge's actor gets SIGKILL while it judges: the same judgments at the end, none paid for twice.

A judgment counts as paid for when its chunk is in the cache; a kill may cost what was asked since the last chunk.
"""

import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from runs import (
    LOOP,
    N_DEMO_LINES,
    check_files_are_whole,
    count_calls,
    count_manifests,
    ingest,
    kill_at_call,
    read_rows,
    write_logs,
)

from celr_ray.config import JudgeConfig
from celr_ray.testing import FakeJudge, make_tiny_llama
from celr_ray.training.judge import run_judge
from celr_ray.training.judgment_cache import make_request_key

SCORES = ("accuracy", "completeness", "efficiency", "judge_score", "verdict")
N_ROWS = 4 * N_DEMO_LINES
CHUNKED = JudgeConfig(checkpoint_rows=3, max_unit_rows=20)


class NotingJudge(FakeJudge):
    """Appends a line to a file for every request that it is asked."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def generate(self, requests):
        with self._log.open("a") as sink:
            sink.writelines(f"{make_request_key(request)}\n" for request in requests)
        return super().generate(requests)


def judge_noting(run: Path, log: Path) -> None:
    run_judge(str(run), CHUNKED, LOOP, on_ray=False, llm=NotingJudge(log))


def read_chunks(run: Path) -> list[str]:
    """Return the keys of all judgments in the cache."""
    files = run.glob("cache/judgments/*/*/chunk-*.parquet")
    return [key for file in files for key in pq.read_table(file)["request_key"].to_pylist()]


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"), demo_logs, 1)


def ingest_again(logs: Path, run: Path) -> Path:
    ingest(run, logs, n_buckets=4)
    return run


@pytest.fixture
def run(logs, tmp_path) -> Path:
    return ingest_again(logs, tmp_path / "run")


def expect_same_judgments(run: Path, whole: Path) -> None:
    """Compare judgments row by row; scores up to what the composition of a batch changes in floats."""
    found, wanted = ({row["trajectory_id"]: row for row in read_rows(folder, "judgments")} for folder in (run, whole))
    assert len(read_rows(run, "judgments")) == len(found) == N_ROWS
    assert found.keys() == wanted.keys()
    for key, row in found.items():
        assert row["judge_score"] == pytest.approx(wanted[key]["judge_score"], abs=1e-3)
        assert {**row, **dict.fromkeys(SCORES)} == {**wanted[key], **dict.fromkeys(SCORES)}


def check_none_was_paid_twice(run: Path, whole: Path) -> None:
    assert sorted(read_chunks(run)) == sorted(set(read_chunks(whole)))


@pytest.mark.parametrize("n_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_judging_driver_killed_at_exact_calls(run, logs, tmp_path, n_kills):
    whole = ingest_again(logs, tmp_path / "whole")
    n_calls = count_calls(partial(judge_noting, whole, tmp_path / "whole.log"))
    log, done = tmp_path / "log", set()
    for _ in range(n_kills):
        kill_at_call(partial(judge_noting, run, log), n_calls // (n_kills + 1))
        check_files_are_whole(run)
        done.add((len(read_chunks(run)), count_manifests(run, "judge")))
    judge_noting(run, log)
    assert len(done) > n_kills / 2, done
    assert read_rows(run, "judgments") == read_rows(whole, "judgments")
    check_none_was_paid_twice(run, whole)
    asked = log.read_text().split()
    assert set(asked) == set(read_chunks(whole))
    assert len(asked) <= len(set(asked)) + n_kills * CHUNKED.checkpoint_rows


def wait_for_judgments(run: Path, driver: subprocess.Popen, n: int) -> None:
    """Wait until the cache holds a number of chunks."""
    deadline = time.monotonic() + 300
    while len(list(run.glob("cache/judgments/*/*/chunk-*"))) < n:
        assert driver.poll() is None, "the judge ended before it was disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start_judge(run: Path, model: str) -> subprocess.Popen:
    words = ["judge", "--run", str(run), "--judge.model-source", model, "--judge.max-model-len", "1024"]
    words += ["--judge.checkpoint-rows", "2", "--runtime.executor", "loop"]
    return subprocess.Popen([sys.executable, "-m", "celr_ray.cli", *words], stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_driver_killed_ten_times_while_a_model_judges(run, logs, tmp_path):
    model, rng = make_tiny_llama(tmp_path / "model"), random.Random(0)
    whole = ingest_again(logs, tmp_path / "whole")
    assert start_judge(whole, model).wait(600) == 0
    for _ in range(10):
        n_before = len(list(run.glob("cache/judgments/*/*/chunk-*")))
        driver = start_judge(run, model)
        wait_for_judgments(run, driver, n_before + rng.randint(1, N_ROWS // 2 // 12))
        time.sleep(rng.uniform(0, 0.05))
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        check_files_are_whole(run)
    assert len(read_chunks(run)) < len(read_chunks(whole))
    assert start_judge(run, model).wait(600) == 0
    expect_same_judgments(run, whole)
    check_none_was_paid_twice(run, whole)


_ON_RAY = """
import sys, time
from celr_ray.config import JudgeConfig, RuntimeConfig
from celr_ray.runtime import Work
from celr_ray.stage import run_stage
from celr_ray.testing import FakeJudge
from celr_ray.training.judge import JudgeFactory, judge_plan

class SlowJudge(FakeJudge):
    def generate(self, requests):
        time.sleep(0.05)
        return super().generate(requests)

run, config = sys.argv[1], JudgeConfig(model_source="fake-judge", checkpoint_rows=3, max_unit_rows=20)
work = Work(JudgeFactory(config, llm=SlowJudge()), is_stateful=True)
run_stage(run, judge_plan(run, config), work, RuntimeConfig(executor="ray", num_cpus=2), on_ray=True)
"""


def start_on_ray(run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _ON_RAY, str(run)], stderr=subprocess.DEVNULL)


def find_actors(driver: subprocess.Popen) -> list[psutil.Process]:
    """Return the actors that judge for a driver."""
    below = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in below if "MapWorker" in " ".join(process.cmdline())]


@pytest.fixture
def whole(logs, tmp_path) -> Path:
    """A run that the judge of `_ON_RAY` has judged undisturbed, without Ray."""
    whole = ingest_again(logs, tmp_path / "whole")
    run_judge(str(whole), CHUNKED, LOOP, on_ray=False, llm=FakeJudge())
    return whole


def test_killed_judge_actor(run, whole):
    with start_on_ray(run) as driver:
        wait_for_judgments(run, driver, 5)
        actors = find_actors(driver)
        for actor in actors:
            actor.kill()
        n_judged = len(read_chunks(run))
        assert driver.wait(300) == 0
    assert len(actors) == 1
    assert n_judged < len(read_chunks(whole))
    assert read_rows(run, "judgments") == read_rows(whole, "judgments")
    check_none_was_paid_twice(run, whole)


@pytest.mark.slow
def test_killed_driver_of_a_judge_on_ray(run, whole):
    """Its actor may live on for a while and even save a chunk: the next driver takes it or makes the same again."""
    driver = start_on_ray(run)
    wait_for_judgments(run, driver, 5)
    left = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    assert len(read_chunks(run)) < len(read_chunks(whole))
    assert start_on_ray(run).wait(300) == 0
    assert read_rows(run, "judgments") == read_rows(whole, "judgments")
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive, "processes of the killed driver live on"
    check_files_are_whole(run)
