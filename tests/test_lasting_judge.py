"""Engines that die: the judge goes on with another one, finds the request that kills, and gives up in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from celr_ray import runtime
from celr_ray.config import RuntimeConfig
from celr_ray.errors import CelrRayError, ModelError
from celr_ray.testing import FakeJudge, make_tiny_llama
from celr_ray.training import lasting_judge
from celr_ray.training.judge_prompt import JudgeRequest
from celr_ray.training.lasting_judge import MAX_DEATHS, LastingJudge
from celr_ray.training.self_reward import JudgeReply


class Mortal(FakeJudge):
    """Dies, for good, of any batch that holds a request `is_deadly` tells; notes whether it was closed."""

    def __init__(self, is_deadly: Callable[[JudgeRequest], bool]) -> None:
        super().__init__()
        self._is_deadly = is_deadly
        self.is_dead = self.is_closed = False

    def generate(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        self.is_dead = self.is_dead or any(map(self._is_deadly, requests))
        if self.is_dead:
            raise ModelError("the judge's engine died")
        return super().generate(requests)

    def close(self) -> None:
        self.is_closed = True


class Factory:
    """Makes engines of which the first `n_mortal` die of a deadly request; keeps all it made."""

    def __init__(self, is_deadly: Callable[[JudgeRequest], bool], n_mortal: int = 10**6) -> None:
        self.made: list[Mortal] = []
        self._is_deadly, self._n_mortal = is_deadly, n_mortal

    def __call__(self) -> Mortal:
        is_mortal = len(self.made) < self._n_mortal
        self.made.append(Mortal(self._is_deadly if is_mortal else lambda request: False))
        return self.made[-1]


REQUESTS = [JudgeRequest(f"task {i}", "run") for i in range(256)]


def is_ours(request: JudgeRequest) -> bool:
    return request.task.startswith("task")


def test_a_dead_engine_is_closed_and_replaced_and_its_batch_asked_again() -> None:
    factory = Factory(is_ours, n_mortal=1)
    judge = LastingJudge(factory)
    assert judge.generate(REQUESTS) == FakeJudge().generate(REQUESTS)
    assert [engine.is_closed for engine in factory.made] == [True, False]
    assert judge.generate(REQUESTS[:3]) == FakeJudge().generate(REQUESTS[:3])
    assert len(factory.made) == 2
    assert judge.name == "fake-judge"


@pytest.mark.parametrize("killers", [{0}, {255}, {100}, {17, 200}])
def test_requests_that_kill_every_engine_become_engine_errors_alone(killers: set[int]) -> None:
    factory = Factory(lambda request: request in [REQUESTS[i] for i in killers])
    replies = LastingJudge(factory).generate(REQUESTS)
    expected = FakeJudge().generate(REQUESTS)
    for i, (reply, other) in enumerate(zip(replies, expected, strict=True)):
        if i in killers:
            assert (reply.status, reply.judge_score) == ("engine_error", None)
            assert reply.detail is not None
            assert "died of this request" in reply.detail
        else:
            assert reply == other
    assert all(engine.is_closed for engine in factory.made[:-1])
    assert len(factory.made) <= 1 + len(killers) * 10


def test_engines_that_die_of_a_harmless_request_end_the_job() -> None:
    factory = Factory(lambda request: True)
    with pytest.raises(ModelError, match="engine died"):
        LastingJudge(factory).generate(REQUESTS)
    assert len(factory.made) == 2


def test_deaths_without_an_answer_between_them_are_bounded() -> None:
    factory = Factory(is_ours)
    with pytest.raises(ModelError, match=f"{MAX_DEATHS + 1} engines died one after another"):
        LastingJudge(factory).generate(REQUESTS)
    assert len(factory.made) == MAX_DEATHS + 1


def test_an_engine_that_cannot_be_started_at_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting_judge, "_PAUSES_S", (0.0, 0.0, 0.0))
    factory = Factory(is_ours, n_mortal=1)
    calls: list[int] = []

    def make(n_failures: int) -> Mortal:
        calls.append(1)
        if 1 < len(calls) <= 1 + n_failures:
            raise ModelError("no memory left on the device")
        return factory()

    assert len(LastingJudge(lambda: make(2)).generate(REQUESTS)) == len(REQUESTS)
    factory.made.clear()
    calls.clear()
    with pytest.raises(ModelError, match="no memory left"):
        LastingJudge(lambda: make(3)).generate(REQUESTS)


def _make_suicide(notes: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run_unit(unit: dict[str, Any]) -> dict[str, Any]:
        with open(notes, "a") as sink:
            print(unit["index"], file=sink)
        if unit["index"] == 1:
            os._exit(1)
        return unit

    return run_unit


def test_a_unit_that_kills_its_actor_is_tried_again_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: Any
) -> None:
    monkeypatch.setattr(runtime, "_MAX_RETRIES", 2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    notes = tmp_path / "notes"
    work = runtime.Work(partial(_make_suicide, str(notes)), is_stateful=True)
    with pytest.raises(CelrRayError, match="died, and again at each of 2 retries"):
        list(runtime.run_units([{"index": 0}, {"index": 1}], work, RuntimeConfig(executor="ray"), on_ray=True))
    begun = notes.read_text().split()
    assert begun.count("1") == 3
    assert begun.count("0") <= 1  # none, if the other actor was not up yet when the job ended


_KILLED_CORE = """
import os, signal, sys, threading, time
from celr_ray.errors import ModelError
from celr_ray.training.engine import VllmJudgeEngine
from celr_ray.training.judge_prompt import JudgeRequest

engine = VllmJudgeEngine(sys.argv[1], max_model_len=1024)
core = engine._llm.llm_engine.engine_core.resources.engine_manager.processes[0]
requests = [JudgeRequest(f"Task {i}", "run " * 50) for i in range(2000)]

def kill_when_busy():
    while engine._llm.llm_engine.get_num_unfinished_requests() < 100:
        time.sleep(0.01)
    os.kill(core.pid, signal.SIGKILL)

assert engine.generate(requests[:1])[0].status == "ok"
threading.Thread(target=kill_when_busy).start()
for call in ("busy", "dead already"):
    try:
        engine.generate(requests)
    except ModelError as error:
        print(call, "|", error)
engine.close()
"""


def test_a_killed_engine_core_ends_the_call_that_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # vLLM's default, and ours on GPUs
    model = make_tiny_llama(tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-c", _KILLED_CORE, model], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["busy", "dead already"]
    assert all("engine died" in line for line in lines)
