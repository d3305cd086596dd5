"""The probe: two samples of the cheapest tier before the first decision, and how far they agree.

It is paid for out of the task's budget, so a task is probed only where the budget holds both samples at their worst
case. What it shows are signals of the cheap model, never of the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from celr_ray.core.answers import AnswerKind
from celr_ray.core.calls import Call, Models
from celr_ray.core.calls import make_seed as make_call_seed
from celr_ray.core.clients import Generation
from celr_ray.core.episodes import KeyArray
from celr_ray.core.prompts import first_chat
from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.difficulty import cheap_signals

__all__ = ["Probe", "first_calls", "probe_tasks"]

_N_SAMPLES = 2
_FIRST_ATTEMPT_NUMBER = 3000
"""Seeds of samples are apart from those of attempts and verifications."""


@dataclass
class Probe:
    """What the samples show, [B] each; NaN and 0 for tasks that were not probed.

    Attributes:
        agreement: 1 if the samples agree, 0 if not.
        confidence: exp of their mean token log-probability.
        cost_usd: US$ that they cost.
        seconds: the time they took.
    """

    agreement: FloatArray
    confidence: FloatArray
    cost_usd: FloatArray
    seconds: FloatArray


def first_calls(prompts: Sequence[str], key: KeyArray, tier: int, system_prompt: str | None, seed: int) -> list[Call]:
    """Return the first attempt of each task on a tier."""
    chats = [first_chat(prompt, system_prompt) for prompt in prompts]
    return [Call(n, tier, chat, make_call_seed(seed, key[n : n + 1], tier, 0)) for n, chat in enumerate(chats)]


def probe_tasks(
    prompts: Sequence[str],
    kinds: Sequence[AnswerKind],
    key: KeyArray,
    budget_usd: FloatArray,
    models: Models,
    system_prompt: str | None,
    seed: int,
    *,
    is_wanted: bool,
) -> Probe:
    """Sample the cheapest tier twice for each task whose budget allows it; not wanted = nothing is known.

    `kinds` says how the answers to each task are compared; the other arguments are as everywhere.

    Raises:
        ModelError: an engine is dead, or an endpoint refuses every call.
    """
    n = len(prompts)
    probe = Probe(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n), np.zeros(n))
    if not is_wanted:
        return probe
    calls = first_calls(prompts, key, 0, system_prompt, seed)
    affordable = np.flatnonzero(_N_SAMPLES * models.worst_case_usd(calls) <= budget_usd)
    temperature = models.sampling_temperature(0)
    samples = [
        replace(
            calls[row],
            seed=make_call_seed(seed, key[row : row + 1], 0, _FIRST_ATTEMPT_NUMBER + sample),
            temperature=temperature,
        )
        for row in affordable
        for sample in range(_N_SAMPLES)
    ]
    replies = models.send(samples)
    for position, row in enumerate(affordable):
        mine = slice(position * _N_SAMPLES, (position + 1) * _N_SAMPLES)
        said = [reply for reply in replies[mine] if isinstance(reply, Generation)]
        probe.cost_usd[row] = sum(models.price_usd(c, r) for c, r in zip(samples[mine], replies[mine], strict=True))
        probe.seconds[row] = max(reply.seconds for reply in replies[mine])
        if len(said) == _N_SAMPLES:
            texts, logprobs = [reply.text for reply in said], [reply.mean_logprob for reply in said]
            probe.agreement[row], probe.confidence[row] = cheap_signals(texts, logprobs, kinds[row])
    return probe
