"""Clients of engines in this process: one batch of a tier is one batch of the engine, with a seed for each request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from celr_ray.core.chat_encoder import bound_prompt_tokens
from celr_ray.core.clients import CallFailure, Conversation, Generation, ModelClient
from celr_ray.core.models import Tier
from celr_ray.core.vllm_engine import VllmEngine

__all__ = ["VllmClient", "load_clients"]


def load_clients(tiers: Sequence[Tier], *, num_threads: int | None = None) -> dict[str, ModelClient]:
    """Load one engine for tiers that differ only in window, sampling and price; returns a client for each, by name.

    Raises:
        ModelError: the model cannot be loaded.
    """
    first = tiers[0]
    engine = VllmEngine(
        first.model,
        max_model_len=max(tier.context_window for tier in tiers),
        num_gpus=first.num_gpus,
        num_threads=num_threads,
        engine_kwargs=first.engine_kwargs,
    )
    users: set[str] = {tier.name for tier in tiers}
    return {tier.name: VllmClient(tier, engine, users) for tier in tiers}


class VllmClient:
    """One tier on an engine that other tiers may use too; satisfies `clients.ModelClient`."""

    def __init__(self, tier: Tier, engine: VllmEngine, users: set[str]) -> None:
        """Use an engine.

        Args:
            tier: the tier.
            engine: loaded, with the tier's window or a larger one.
            users: names of all tiers that use the engine; the last one that closes its client stops it.
        """
        self.name = tier.name
        self._tier = tier
        self._engine = engine
        self._users = users

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        seeds: Sequence[int],
        temperature: float | None = None,
        max_output_tokens: int | None = None,
    ) -> list[Generation | CallFailure]:
        """Answer each conversation; see `clients.ModelClient`.

        Raises:
            ModelError: the engine is dead or fails on every prompt.
        """
        from vllm import SamplingParams

        tier = self._tier
        limit = tier.max_output_tokens if max_output_tokens is None else max_output_tokens
        prompts = [self._encode(conversation, limit) for conversation in conversations]
        ready = [(ids, seed) for ids, seed in zip(prompts, seeds, strict=True) if not isinstance(ids, CallFailure)]
        sampling = [
            SamplingParams(
                temperature=tier.temperature if temperature is None else temperature,
                top_p=tier.top_p,
                max_tokens=limit,
                seed=seed,
                logprobs=0,  # of the sampled token alone: 1 % of the time
            )
            for _, seed in ready
        ]
        started = time.perf_counter()
        outputs = iter(self._engine.run([ids for ids, _ in ready], sampling))
        elapsed = time.perf_counter() - started
        return [ids if isinstance(ids, CallFailure) else _read(next(outputs), elapsed) for ids in prompts]

    def prompt_tokens(self, conversations: Sequence[Conversation]) -> list[int]:
        """Return the exact number of tokens of each prompt; a bound where the chat template refuses it."""
        encoded = [(conversation, self._engine.encoder.encode(conversation)) for conversation in conversations]
        return [bound_prompt_tokens(chat) if isinstance(ids, str) else len(ids) for chat, ids in encoded]

    def close(self) -> None:
        """Stop the engine, unless another tier still uses it."""
        self._users.discard(self.name)
        if not self._users:
            self._engine.close()

    def _encode(self, conversation: Conversation, limit: int) -> list[int] | CallFailure:
        """Return the prompt's token ids; one that leaves no room for `limit` tokens would fail the whole batch."""
        ids = self._engine.encoder.encode(conversation)
        if isinstance(ids, str):
            return CallFailure(ids[:500], "refused")
        window = min(self._tier.context_window, self._engine.window)
        if len(ids) + limit > window:
            return CallFailure(
                f"the prompt has {len(ids)} tokens; with {limit} for the answer the window of {window} is too small",
                "context",
            )
        return ids


def _read(output: Any, elapsed: float) -> Generation | CallFailure:
    """Translate a vLLM RequestOutput, or what the engine raised."""
    if isinstance(output, Exception):
        return CallFailure(f"{type(output).__name__}: {output}"[:500], "engine")
    completion, metrics = output.outputs[0], output.metrics
    n_tokens = len(completion.token_ids)
    return Generation(
        text=completion.text,
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=n_tokens,
        mean_logprob=completion.cumulative_logprob / n_tokens if n_tokens else None,
        seconds=elapsed if metrics is None else metrics.last_token_ts - metrics.scheduled_ts,
        finish_reason=completion.finish_reason or "unknown",
    )
