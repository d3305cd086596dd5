"""Model calls of many episodes, gathered and sent as one batch to each tier, and what they cost at most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from celr_ray.core.clients import CallFailure, Generation, ModelClient
from celr_ray.core.episodes import KeyArray, mix_keys
from celr_ray.core.models import Tier, TierLadder
from celr_ray.core.prompts import Chat
from celr_ray.cortex.actions import FloatArray

__all__ = ["Call", "Models", "Reply", "make_seed"]

Reply = Generation | CallFailure

_SAMPLE_TEMPERATURE = 0.7
"""Samples that are compared with each other must be able to differ; used where the tier itself is greedy."""


@dataclass(frozen=True)
class Call:
    """One model call.

    Attributes:
        position: whose it is: position in the wave.
        tier: position on the ladder.
        chat: what is sent.
        seed: of its sampling.
        temperature: None = the tier's.
        max_output_tokens: None = the tier's.
    """

    position: int
    tier: int
    chat: Chat
    seed: int
    temperature: float | None = None
    max_output_tokens: int | None = None


def make_seed(seed: int, task_key: KeyArray, tier: int, attempt: int) -> int:
    """Return the sampling seed of one attempt: equal under every policy, so that policies meet the same luck.

    Args:
        seed: of the run.
        task_key: [1] key of the task.
        tier: position on the ladder.
        attempt: number of the attempt on that tier.
    """
    return int(mix_keys(seed, task_key, tier, attempt)[0] & np.uint64(0x7FFFFFFF))


class Models:
    """The tiers with their clients."""

    def __init__(self, ladder: TierLadder, clients: Mapping[str, ModelClient]) -> None:
        """Join a ladder with the clients of its tiers, by name."""
        self.ladder = ladder
        self._clients = clients

    def tier(self, number: int) -> Tier:
        """Return the tier at a position; negative counts from the strongest."""
        return self.ladder.tiers[number]

    def sampling_temperature(self, tier: int) -> float | None:
        """Return the temperature for samples that are compared with each other; None = the tier's own."""
        return None if self.tier(tier).temperature > 0 else _SAMPLE_TEMPERATURE

    def send(self, calls: Sequence[Call]) -> list[Reply]:
        """Send calls, one batch for each tier and way of sampling; returns the replies in the calls' order.

        Raises:
            ModelError: an engine is dead, or an endpoint refuses every call.
        """
        batches: dict[tuple[int, float | None, int | None], list[int]] = defaultdict(list)
        for n, call in enumerate(calls):
            batches[call.tier, call.temperature, call.max_output_tokens].append(n)
        replies: dict[int, Reply] = {}
        for (tier, temperature, max_output_tokens), members in batches.items():
            answers = self._clients[self.tier(tier).name].generate(
                [calls[n].chat for n in members],
                seeds=[calls[n].seed for n in members],
                temperature=temperature,
                max_output_tokens=max_output_tokens,
            )
            replies.update(zip(members, answers, strict=True))
        return [replies[n] for n in range(len(calls))]

    def price_usd(self, call: Call, reply: Reply) -> float:
        """Return what a call cost, US$; one that failed is taken to be free."""
        if isinstance(reply, CallFailure):
            return 0.0
        return float(self.tier(call.tier).price_usd(reply.prompt_tokens, reply.output_tokens))

    def worst_case_usd(self, calls: Sequence[Call], *, within_window: bool = True) -> FloatArray:
        """Return the most that each call can cost, [N] US$.

        Args:
            calls: of any tiers.
            within_window: price calls whose prompt and answer do not fit the context window as infinite.
        """
        prices = np.zeros(len(calls))
        for number, tier in enumerate(self.ladder.tiers):
            members = [n for n, call in enumerate(calls) if call.tier == number]
            if not members:
                continue
            counts = self._clients[tier.name].prompt_tokens([calls[n].chat for n in members])
            for n, count in zip(members, counts, strict=True):
                output = calls[n].max_output_tokens or tier.max_output_tokens
                fits = count + output <= tier.context_window or not within_window
                prices[n] = tier.price_usd(count, output) if fits else np.inf
        return prices
