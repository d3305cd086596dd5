"""Client of a server that speaks OpenAI's chat API: many requests at once, retries, and replies that are checked.

An event loop in a thread of its own does the work, so that callers need none and may well run in one. The `openai`
package retries what may pass (time-outs, 409, 429, 5xx, no contact) with backoff; what is left fails one call only,
except what would fail them all.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from celr_ray.core.chat_encoder import ChatEncoder, bound_prompt_tokens, bound_text_tokens, clean_messages
from celr_ray.core.clients import CallFailure, Conversation, FailureKind, Generation
from celr_ray.core.models import LIMIT_FIELDS, Tier
from celr_ray.errors import ModelError
from celr_ray.small_models import resolve_model

__all__ = ["OpenAIClient"]

_T = TypeVar("_T")

_MAX_WAIT_S = 120.0
"""The longest that the package waits before a retry, if the server asks for it."""

_CONTEXT = re.compile(r"context.{0,3}(length|window|size)|too long|too many tokens", re.IGNORECASE)
_FATAL = {
    401: "the key is wrong: check the variable {api_key_env}",
    402: "the account has no credit",
    404: "it knows no such model or address: check model and base_url",
}
_NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached"}


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Reply(msgspec.Struct):
    """What is read of a chat completion. The specification demands `usage`; some servers leave it out."""

    choices: list[_Choice]
    usage: _Usage | None = None


class OpenAIClient:
    """One tier on a server; satisfies `clients.ModelClient`."""

    def __init__(self, tier: Tier) -> None:
        """Prepare the connection; nothing is sent yet.

        Raises:
            ModelError: `openai` is not installed, the key's variable is not set, or the tokenizer cannot be loaded.
        """
        try:
            import openai
        except ImportError as error:
            raise ModelError(f"engine openai needs the package openai ({error}): pip install openai") from error
        self.name = tier.name
        self._tier = tier
        self._encoder = _load_encoder(tier)
        self._key = _read_key(tier)
        self._client = openai.AsyncOpenAI(
            base_url=tier.base_url,
            api_key=self._key or "none",  # never the one of OPENAI_API_KEY, which may belong to another server
            timeout=tier.timeout_s,
            max_retries=tier.max_retries,
        )
        self._slots = asyncio.Semaphore(tier.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=f"celr-ray-{tier.name}")
        self._thread.start()

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
            ModelError: the server refuses the key, the model or the account; or the client is closed.
        """
        if self._loop.is_closed():
            raise ModelError(f"the client of tier {self.name} is closed")
        limit = self._tier.max_output_tokens if max_output_tokens is None else max_output_tokens
        pairs = list(zip(conversations, seeds, strict=True))
        bodies = [self._make_body(seed, temperature, limit) for _, seed in pairs]
        calls = [self._call(chat, body, limit) for (chat, _), body in zip(pairs, bodies, strict=True)]
        return self._wait(_gather(calls))

    def prompt_tokens(self, conversations: Sequence[Conversation]) -> list[int]:
        """Return the number of tokens of each prompt: exact with the tier's tokenizer, else an upper bound."""
        return [self._count(conversation) for conversation in conversations]

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # such as Ctrl-C: stop what is still running
            future.cancel()
            raise

    def _count(self, conversation: Conversation) -> int:
        ids = None if self._encoder is None else self._encoder.encode(conversation)
        return len(ids) if isinstance(ids, list) else bound_prompt_tokens(conversation)

    def _make_body(self, seed: int, temperature: float | None, limit: int) -> dict[str, Any]:
        """Return the fields of a request besides model and messages; the tier's engine_kwargs win, up to `limit`.

        OpenAI's own servers refuse `max_tokens` for newer models; others know nothing else.
        """
        host = urlsplit(self._tier.base_url or "").hostname or ""
        is_openai = host.endswith((".openai.com", ".openai.azure.com"))
        fields = {
            "temperature": self._tier.temperature if temperature is None else temperature,
            "top_p": self._tier.top_p,
            "seed": seed,
            "max_completion_tokens" if is_openai else "max_tokens": limit,
            **self._tier.engine_kwargs,
        }
        fields |= {name: min(fields[name], limit) for name in LIMIT_FIELDS if fields.get(name) is not None}
        return {name: value for name, value in fields.items() if value is not None}

    async def _call(self, conversation: Conversation, body: dict[str, Any], limit: int) -> Generation | CallFailure:
        """Send one request.

        Raises:
            ModelError: every other request would fail too.
        """
        tier = self._tier
        if self._encoder is not None and self._count(conversation) + limit > tier.context_window:
            return CallFailure(f"prompt and answer exceed the window of {tier.context_window} tokens", "context")
        async with self._slots:
            started = time.perf_counter()
            result = await self._send(conversation, body, limit)
        seconds = time.perf_counter() - started
        return replace(result, seconds=seconds)

    async def _send(self, conversation: Conversation, body: dict[str, Any], limit: int) -> Generation | CallFailure:
        """Send one request, with its retries.

        Raises:
            ModelError: every other request would fail too.
        """
        import openai

        tier = self._tier
        messages: Any = clean_messages(conversation)
        try:
            # the package's own limit starts anew with each byte that the server sends
            async with asyncio.timeout(tier.timeout_s * (tier.max_retries + 1) + _MAX_WAIT_S * tier.max_retries):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=tier.model, messages=messages, extra_body=body
                )
        except (openai.APITimeoutError, TimeoutError):
            return self._fail(f"no answer within {tier.timeout_s:g} s", "timeout")
        except openai.APIConnectionError as error:
            return self._fail(f"no contact: {error.__cause__ or error}", "connection")
        except openai.APIStatusError as error:
            return self._judge_status(error)
        try:
            reply = msgspec.json.decode(raw.content, type=_Reply)
            return self._read(reply.choices[0], reply.usage, conversation, limit)
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            return self._fail(f"unreadable reply ({error}): {raw.content[:200]!r}", "malformed")

    def _read(self, choice: _Choice, usage: _Usage | None, conversation: Conversation, limit: int) -> Generation:
        text = choice.message.content or choice.message.refusal or ""
        tokens = (choice.logprobs.content if choice.logprobs else None) or []
        return Generation(
            text=text,
            prompt_tokens=usage.prompt_tokens if usage else self._count(conversation),
            output_tokens=usage.completion_tokens if usage else min(bound_text_tokens(text) + 1, limit),
            mean_logprob=sum(token.logprob for token in tokens) / len(tokens) if tokens else None,
            seconds=0.0,  # set by the caller, retries included
            finish_reason=choice.finish_reason or "unknown",
            is_estimated=usage is None,
        )

    def _judge_status(self, error: Any) -> CallFailure:
        """Tell what fails this call from what fails all.

        Raises:
            ModelError: a wrong key, model or address, or no credit.
        """
        status, code = error.status_code, str(error.code)
        hint = _FATAL.get(402 if code in _NO_CREDIT else status)
        if hint is not None:
            reason = self._hide_key(f"{error}"[:500])
            hint = hint.format(api_key_env=self._tier.api_key_env or "(api_key_env is not set in the tier)")
            raise ModelError(f"tier {self.name}: {self._tier.base_url} refuses every call; {hint} [{reason}]") from None
        kind: FailureKind = "server" if status in (409, 429) or status >= 500 else "refused"
        if status == 408:
            kind = "timeout"
        if kind == "refused" and _CONTEXT.search(f"{code} {error}"):
            kind = "context"
        return self._fail(str(error), kind)

    def _fail(self, reason: str, kind: FailureKind) -> CallFailure:
        return CallFailure(self._hide_key(reason)[:500], kind)

    def _hide_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


async def _gather(calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run all calls; if one raises, stop the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _read_key(tier: Tier) -> str | None:
    """Return the key out of the environment; None = the server needs none.

    Raises:
        ModelError: the variable is not set.
    """
    if tier.api_key_env is None:
        return None
    if not (key := os.environ.get(tier.api_key_env, "").strip()):
        raise ModelError(f"tier {tier.name}: the environment variable {tier.api_key_env} holds no key: set it")
    return key


def _load_encoder(tier: Tier) -> ChatEncoder | None:
    """Return the tier's tokenizer with its chat template, if it names one.

    Raises:
        ModelError: it cannot be loaded.
    """
    if tier.tokenizer is None:
        return None
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(resolve_model(tier.tokenizer))
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(f"tier {tier.name}: cannot load the tokenizer {tier.tokenizer!r}: {error}") from error
    return ChatEncoder(tokenizer, template_kwargs=tier.engine_kwargs.get("chat_template_kwargs"))
