"""Chat messages in the two forms that trainers take: with native tool calls, and as plain text.

Native: `{"role", "content", "tool_calls": [{"type": "function", "function": {"name", "arguments": {…}}}]}`, keys
without a value left out, arguments as a JSON object, because chat templates apply `tojson` to them, and
some ask only whether the key `tool_calls` exists.

Text: each call is appended to the message's content as Qwen and Hermes models write it, so that with their
templates the tokens are those of the native form:

    <tool_call>
    {"name": "get_order", "arguments": {"id": "W-17"}}
    </tool_call>

A `</tool_call` inside an argument is written `<\\/tool_call`, which is the same JSON; so the text can be read back.
This module is pure and knows nothing of trainers or files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

Row = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

_MAX_DEPTH = 200
"""Arguments nested deeper stay text: `datasets` reads JSON columns to a depth of 1,023, Python to about 1,000."""


class ToolCall(NamedTuple):
    """One call of an assistant message; `arguments` is text where it is no JSON object that a reader can take."""

    id: str | None
    name: str
    arguments: dict[str, Any] | str


def _refuse_constant(text: str) -> None:
    raise ValueError(f"not JSON: {text}")


def _parse_int(text: str) -> int:
    number = int(text) if len(text) <= 20 else 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer that the reader of JSON columns refuses")
    return number


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number


def _is_too_deep(value: Any, depth: int = 0) -> bool:
    if depth > _MAX_DEPTH:
        return True
    if isinstance(value, dict):
        return any(_is_too_deep(item, depth + 1) for item in value.values())
    return isinstance(value, list) and any(_is_too_deep(item, depth + 1) for item in value)


def _load_json(text: str) -> Any:
    """Parse JSON that any reader of the exported files can take too; raise ValueError for all else."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float)
        json.dumps(value, ensure_ascii=False).encode()
    except (RecursionError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error
    if _is_too_deep(value):
        raise ValueError("nested too deep")
    return value


def _to_utf8(text: str) -> str:
    """Replace lone surrogates, which JSON escapes can hold and UTF-8 files and tokenizers cannot."""
    return text.encode("utf-8", "replace").decode()


def _read_arguments(arguments: Any) -> dict[str, Any] | str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    try:
        value = _load_json(text)
    except ValueError:
        return _to_utf8(text)
    return value if isinstance(value, dict) else _to_utf8(text)


@lru_cache(maxsize=1024)
def read_tool_calls(text: str | None) -> tuple[ToolCall, ...] | None:
    """Parse `Message.tool_calls`; cached, as every converter asks for the same few texts.

    Returns:
        The calls, an empty tuple if there are none, None if the text is not a list of calls.
    """
    if not text:
        return ()
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if items is None:
        return ()
    if not isinstance(items, list):
        return None
    calls = []
    for item in items:
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        call_id = item.get("id")
        arguments = _read_arguments(function.get("arguments", "{}"))
        calls.append(
            ToolCall(_to_utf8(call_id) if isinstance(call_id, str) else None, _to_utf8(function["name"]), arguments)
        )
    return tuple(calls)


def has_tool_calls(message: Mapping[str, Any]) -> bool:
    """Tell whether an assistant message calls tools (or holds call text that cannot be parsed)."""
    calls = read_tool_calls(message.get("tool_calls"))
    return calls is None or bool(calls)


def has_unreadable_calls(message: Mapping[str, Any]) -> bool:
    """Tell whether a message has a call whose arguments are no JSON object, so that they are kept as text."""
    calls = read_tool_calls(message.get("tool_calls"))
    return calls is None or any(isinstance(call.arguments, str) for call in calls)


def _render_call(name: str, arguments: dict[str, Any] | str) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return "<tool_call>\n" + body.replace("</tool_call", "<\\/tool_call") + "\n</tool_call>"


def render_content(message: Mapping[str, Any]) -> str:
    """Return a message's content with its tool calls written after it."""
    content: str = message.get("content") or ""
    calls = read_tool_calls(message.get("tool_calls"))
    if calls is None:
        parts = [f"<tool_call>\n{_to_utf8(message['tool_calls'])}\n</tool_call>"]
    else:
        parts = [_render_call(call.name, call.arguments) for call in calls]
    return "\n".join([content, *parts] if content else parts)


def to_text_messages(messages: Messages) -> list[dict[str, str]]:
    """Return messages as `{"role", "content"}`, tool calls in the text; role `tool` stays `tool`."""
    return [{"role": message["role"], "content": render_content(message)} for message in messages]


def to_native_message(message: Mapping[str, Any]) -> Row:
    """Return one message with native tool calls and without keys that have no value.

    Content is "" where it is null: templates join it to other text. Calls that cannot be parsed go
    into the content.
    """
    calls = read_tool_calls(message.get("tool_calls"))
    native: Row = {"role": message["role"], "content": message.get("content") or ""}
    if calls is None:
        native["content"] = render_content(message)
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            native[key] = message[key]
    if calls:
        native["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return native


def _native_to_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    texts: list[dict[str, str]] = []
    follows_tool = False
    for message in messages:
        content: str = message.get("content") or ""
        is_tool = message["role"] == "tool"
        if is_tool:
            content = f"<tool_response>\n{content}\n</tool_response>"
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [_render_call(function["name"], function["arguments"]) for function in functions]
        content = "\n".join([content, *calls] if content else calls)
        if is_tool and follows_tool:
            texts[-1]["content"] += "\n" + content
        else:
            texts.append({"role": "user" if is_tool else message["role"], "content": content})
        follows_tool = is_tool
    return texts


def write_tools_as_text(row: Mapping[str, Any]) -> Row:
    """Turn a row of the TRL, SFT or KTO files into one for a chat template that knows no tools.

    Use it as `dataset.map(write_tools_as_text)` where `trl.chat_template_utils.supports_tool_calling(tokenizer)` is
    false: such templates drop tool calls in silence or refuse the role `tool`. Calls become
    `<tool_call>` text, tool messages become user messages in `<tool_response>` (one for adjacent results).
    """
    columns = ("prompt", "chosen", "rejected", "completion", "messages")
    return {
        key: _native_to_text(value) if key in columns and isinstance(value, list) else value
        for key, value in row.items()
    }
