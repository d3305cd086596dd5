"""Conversations as token ids by a model's own chat template, and a bound of their number without one."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from celr_ray.core.clients import Conversation
from celr_ray.errors import ModelError

__all__ = ["ChatEncoder", "bound_prompt_tokens", "bound_text_tokens", "clean_messages"]

_TOKENS_PER_MESSAGE = 16
_TOKENS_PER_PROMPT = 128


def clean_messages(conversation: Conversation) -> list[dict[str, str]]:
    """Return role and content of each message; lone surrogates, which no tokenizer accepts, become question marks."""
    return [
        {"role": message["role"], "content": (message.get("content") or "").encode("utf-8", "replace").decode()}
        for message in conversation
    ]


def bound_text_tokens(text: str) -> int:
    """Return the most tokens that a text can have in a byte-level BPE: its UTF-8 bytes.

    Some tokenizers bring the text into Unicode's composed form first, which can be longer.
    """
    composed = unicodedata.normalize("NFC", text)
    return max(len(text.encode("utf-8", "replace")), len(composed.encode("utf-8", "replace")))


def bound_prompt_tokens(conversation: Conversation) -> int:
    """Return the most tokens that a prompt can have in a byte-level BPE: its bytes, and what a chat template adds.

    Templates add a role and two or three marks for each message, and some an own system text: Qwen 2.5 20 tokens,
    Llama 3.1 25, gpt-oss about 70.
    """
    contents = sum(bound_text_tokens(message.get("content") or "") for message in conversation)
    return contents + _TOKENS_PER_MESSAGE * len(conversation) + _TOKENS_PER_PROMPT


class ChatEncoder:
    """A tokenizer with its chat template.

    Control tokens that stand in a message's text are encoded as such, as chat servers do.
    """

    def __init__(
        self, tokenizer: Any, chat_template: str | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Take a tokenizer of transformers.

        Args:
            tokenizer: the tokenizer.
            chat_template: Jinja text; None = the tokenizer's own.
            template_kwargs: further variables of the template.

        Raises:
            ModelError: there is no chat template.
        """
        from jinja2 import TemplateError

        self._refusals = (TemplateError,)
        self._tokenizer = tokenizer
        self._chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        self._template_kwargs = dict(template_kwargs or {})
        if self._chat_template is None:
            raise ModelError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')} has no chat template: use an instruct model, "
                "or name a template file in engine_kwargs.chat_template"
            )
        system = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        self._accepts_system = not isinstance(self._apply(system), str)

    def encode(self, conversation: Conversation) -> list[int] | str:
        """Return the token ids up to where the answer begins, or why the template refuses the conversation.

        A template that refuses a system message gets it in front of the first user's.
        """
        messages = clean_messages(conversation)
        return self._apply(messages if self._accepts_system else _fold_system(messages))

    def _apply(self, messages: list[dict[str, str]]) -> list[int] | str:
        try:
            ids = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self._template_kwargs,
            )
        except self._refusals as error:
            return f"the chat template refuses the conversation: {error}"
        return list(ids)


def _fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Put leading system messages in front of the next message."""
    n = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if n in (0, len(messages)):
        return list(messages)
    content = "\n\n".join(message["content"] for message in messages[: n + 1])
    return [{**messages[n], "content": content}, *messages[n + 1 :]]
