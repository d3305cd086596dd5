"""How models are called: one interface for engines in this process and for servers.

A client takes many conversations at once and gives one result each, in order: a `Generation`, or a `CallFailure` where
only this call failed. What would fail every call (a dead engine, a wrong key) is a `ModelError`.

    open_clients(ladder) -> {tier name: ModelClient}
    ├── client_vllm.VllmClient      engine vllm: vllm_engine.VllmEngine, shared by tiers with the same model
    └── client_openai.OpenAIClient  engine openai: HTTP
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from celr_ray.core.models import Tier, TierLadder
from celr_ray.errors import ConfigError

__all__ = [
    "OUTAGES",
    "CallFailure",
    "Conversation",
    "FailureKind",
    "Generation",
    "Message",
    "ModelClient",
    "open_clients",
]

Message = Mapping[str, Any]
"""A chat message with the keys of `schema.Message`; only role and content are sent."""

Conversation = Sequence[Message]

FailureKind = Literal["context", "engine", "timeout", "server", "connection", "refused", "malformed"]
"""context: prompt and answer exceed the window; engine: vLLM failed on this prompt; timeout, server (429, 5xx),
connection: of an endpoint, after all retries; refused: by the chat template or the endpoint; malformed: the endpoint's
reply cannot be read."""

OUTAGES: frozenset[FailureKind] = frozenset(("engine", "timeout", "server", "connection", "malformed"))
"""Failures that say something of the model's provider, not of what was sent."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote.

    Attributes:
        text: the answer, maybe empty.
        prompt_tokens: tokens of the prompt.
        output_tokens: tokens of the answer, its end token included.
        mean_logprob: mean log-probability of the answer's tokens, ≤ 0, before temperature and top_p; None = unknown.
        seconds: from the engine's first work on the call to its last token, or to the server's reply with all retries;
            not the wait for a free slot. Calls of a batch overlap: their seconds do not add up.
        finish_reason: stop, length (cut at the limit) or what the server says.
        is_estimated: the server did not count tokens; both counts are upper bounds.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    mean_logprob: float | None
    seconds: float
    finish_reason: str
    is_estimated: bool = False


@dataclass(frozen=True, slots=True)
class CallFailure:
    """A call without an answer; another call may well succeed.

    Attributes:
        reason: for a person.
        kind: for counting.
        seconds: the time that was lost on it, all retries included.
    """

    reason: str
    kind: FailureKind
    seconds: float = 0.0


class ModelClient(Protocol):
    """One tier's model. One thread at a time."""

    name: str
    """The tier's name."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        seeds: Sequence[int],
        temperature: float | None = None,
        max_output_tokens: int | None = None,
    ) -> list[Generation | CallFailure]:
        """Answer each conversation, in order.

        Args:
            conversations: N chats that end where the answer begins.
            seeds: [N] of the sampling of each, so that a result does not depend on what else is in the batch.
            temperature: None = the tier's.
            max_output_tokens: None = the tier's.

        Raises:
            ModelError: every call would fail: the engine is dead, or the server knows neither key nor model.
        """
        ...

    def prompt_tokens(self, conversations: Sequence[Conversation]) -> list[int]:
        """Return how many tokens each prompt has, exactly or at most: never less than `generate` will count."""
        ...

    def close(self) -> None:
        """Give memory and connections back; may be called twice."""
        ...


def open_clients(ladder: TierLadder, *, num_threads: int | None = None) -> dict[str, ModelClient]:
    """Load the models of a ladder; tiers with the same model, GPUs and engine_kwargs share one engine.

    Engines on CPU run in this process, one at a time, each with a KV cache of VLLM_CPU_KVCACHE_SPACE GiB (default 2) or
    of its `kv_cache_memory_bytes` in engine_kwargs.

    Args:
        ladder: the tiers.
        num_threads: compute threads of engines on CPU; None = all CPUs that this process may use.

    Returns:
        A client for each tier, by name.

    Raises:
        ConfigError: several engines would need a GPU each.
        ModelError: a model cannot be loaded, or the environment lacks a key.
    """
    shared = _share_engines(ladder)
    count_gpus(ladder)
    clients: dict[str, ModelClient] = {}
    try:
        for tier in ladder.tiers:
            if tier.engine == "openai":
                from celr_ray.core.client_openai import OpenAIClient

                clients[tier.name] = OpenAIClient(tier)
        for tiers in shared:
            from celr_ray.core.client_vllm import load_clients

            clients |= load_clients(tiers, num_threads=num_threads)
    except BaseException:
        for client in clients.values():
            client.close()
        raise
    return clients


def _share_engines(ladder: TierLadder) -> list[list[Tier]]:
    """Group the tiers that run on the same vLLM engine."""
    shared: dict[str, list[Tier]] = defaultdict(list)
    for tier in ladder.tiers:
        if tier.engine == "vllm":
            shared[json.dumps([tier.model, tier.num_gpus, tier.engine_kwargs], sort_keys=True)].append(tier)
    return list(shared.values())


def count_gpus(ladder: TierLadder) -> float:
    """Return the GPUs that the engines of a ladder take in one process; each takes the first that the process sees.

    Raises:
        ConfigError: there are several engines, and together they need more than one GPU.
    """
    used = [tiers[0].num_gpus for tiers in _share_engines(ladder) if tiers[0].num_gpus]
    if len(used) > 1 and sum(used) > 1:
        raise ConfigError(
            f"the vllm tiers ask for {' + '.join(f'{n:g}' for n in used)} GPUs, but engines of one process share its "
            "first GPU: give each a part (num_gpus: 0.5), or serve one with `vllm serve` and use engine: openai"
        )
    return sum(used)
