"""A judge that outlasts the deaths of its engine, and finds the request that kills it.

On GPUs an engine dies of the kernel's memory killer, of a fault of the device, or of one prompt, as an exception inside
vLLM's engine core ends the core. A run of millions of rows must survive all three. So a dead engine is replaced and its
batch asked once more; if the second one dies as well, the batch is halved, each part asked on a new engine, until the
request that kills stands alone and becomes an `engine_error`. Replacements are bounded: a new engine that fails on a
harmless request, or `MAX_DEATHS` deaths without one answer between them, end the job; the same command goes on from
what was saved. This module knows nothing of vLLM.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from celr_ray.errors import ModelError
from celr_ray.training.judge_prompt import JudgeRequest
from celr_ray.training.self_reward import JudgeLLM, JudgeReply

__all__ = ["MAX_DEATHS", "LastingJudge", "MortalJudge"]

MAX_DEATHS = 20
"""Deaths in a row, no request answered between them. To find one killer among n requests takes 3 + log2 n."""

_PAUSES_S = (0.0, 10.0, 30.0)
"""Waits before the tries to start another engine: the memory of the dead one may be held for a while."""

_HARMLESS = JudgeRequest("Say hello.", "<assistant>Hello</assistant>")

_logger = logging.getLogger(__name__)


class MortalJudge(JudgeLLM, Protocol):
    """An engine: its `generate` raises ModelError once it is dead."""

    def close(self) -> None:
        """Give back what the engine holds, whether it is dead or not; a second call does nothing."""


class LastingJudge:
    """Asks an engine, and makes another one whenever it dies; satisfies `self_reward.JudgeLLM`."""

    def __init__(self, make_engine: Callable[[], MortalJudge]) -> None:
        """Make the first engine.

        Raises:
            ModelError: it cannot be made.
        """
        self._make_engine = make_engine
        self._engine = make_engine()
        self._n_deaths = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._engine.name

    def generate(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Judge all requests in one batch, again if the engine dies of it.

        Raises:
            ModelError: engines die whatever they are asked.
        """
        return self._ask(requests, tries=2)

    def _ask(self, requests: Sequence[JudgeRequest], tries: int) -> list[JudgeReply]:
        """Ask up to `tries` engines; if all of them die, ask for each half alone."""
        for _ in range(tries):
            try:
                replies = self._engine.generate(requests)
            except ModelError as error:
                cause = error
                self._replace_engine(error)
            else:
                self._n_deaths = 0
                return replies
        if len(requests) == 1:
            return [JudgeReply("engine_error", f"the engine died of this request: {cause}"[:500])]
        middle = len(requests) // 2
        return self._ask(requests[:middle], tries=1) + self._ask(requests[middle:], tries=1)

    def _replace_engine(self, cause: ModelError) -> None:
        """Start another engine and try it out.

        Raises:
            ModelError: there were too many deaths, or the new engine cannot be made or fails too.
        """
        self._n_deaths += 1
        if self._n_deaths > MAX_DEATHS:
            raise ModelError(f"{self._n_deaths} engines died one after another, the last one so: {cause}") from cause
        _logger.warning("%s; starting another engine", cause)
        self._engine.close()
        self._engine = self._start_engine()
        self._engine.generate([_HARMLESS])

    def _start_engine(self) -> MortalJudge:
        """Make an engine, trying a few times.

        Raises:
            ModelError: no try succeeded.
        """
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            try:
                return self._make_engine()
            except ModelError as error:
                cause = error
                _logger.warning("no other engine: %s", error)
        raise cause
