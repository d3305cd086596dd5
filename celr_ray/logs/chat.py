"""Reader of OpenAI chat logs: one object of {messages, task_id?, reward? or success?, cost_usd?, …} a run.

The message structs and their parser are also used by the readers of other formats whose messages have this
shape. `messages` is the only field that must be there; a log without `task_id` gets one from the text of its
first user message, so runs that began alike are runs of one task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    CallNumbers,
    Count,
    Dollars,
    LogReader,
    ParsedMessage,
    ParsedRun,
    Reward,
    Seconds,
    SourceContext,
    dump_tool_calls,
    make_task_id,
    render_tool_call,
    single_record_reader,
)

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class ContentPart(msgspec.Struct, gc=False):
    """One part of a message's content; `source` is read only for its media type, all below it is of Anthropic's."""

    type: str
    text: str | None = None
    refusal: str | None = None
    source: Any = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: Any = None


Content = str | list[ContentPart] | None
"""What a message's content may be: text, parts, or nothing."""

_TOOL_PARTS = ("tool_use", "tool_result")
_THOUGHTS = ("thinking", "redacted_thinking")


class ChatFunction(msgspec.Struct, gc=False):
    """The function of a tool call; arguments are JSON text, or the object itself."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ChatToolCall(msgspec.Struct, gc=False):
    """One tool call of an assistant message."""

    function: ChatFunction
    id: str | None = None


class ChatMessage(msgspec.Struct, gc=False):
    """One message in the OpenAI shape, the older `function_call` included."""

    role: str
    content: Content = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ChatToolCall] | None = None
    function_call: ChatFunction | None = None
    refusal: str | None = None


class _Run(msgspec.Struct, gc=False):
    messages: list[ChatMessage]
    task_id: int | str | None = None
    domain: str | None = None
    model: str | None = None
    prompt: str | None = None
    reward: Reward | None = None
    success: bool | None = None
    cost_usd: Dollars | None = None
    budget_limit_usd: Dollars | None = None
    duration_s: Seconds | None = None
    n_retries: Count | None = None


def read_content(content: Content) -> tuple[str | None, int]:
    """Return a content as text, and how many of its parts are no text.

    Parts are joined by a line break; one that is no text becomes a placeholder such as `[image: image/png]`.
    """
    if content is None or isinstance(content, str):
        return content, 0
    texts = []
    hidden = 0
    for part in content:
        text = part.text if part.text is not None else part.refusal
        if text is None:
            hidden += 1
            kind = part.source.get("media_type") if isinstance(part.source, dict) else None
            text = f"[{part.type[:40]}: {kind[:40]}]" if isinstance(kind, str) else f"[{part.type[:40]}]"
        texts.append(text)
    return "\n".join(texts), hidden


def _count_parts(content: Content, kinds: Collection[str]) -> int:
    return sum(part.type in kinds for part in content) if isinstance(content, list) else 0


def _without_parts(content: Content, kinds: Collection[str]) -> Content:
    """Return a content without its parts of some kinds; nothing, if nothing else was there."""
    if not _count_parts(content, kinds):
        return content
    return [part for part in content or () if isinstance(part, ContentPart) and part.type not in kinds] or None


def _iter_unfolded(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """Yield messages with Anthropic's tool parts as the tool calls and tool messages that they are.

    Raises:
        RecordError: a tool call has no name, or the content of a tool's result is no content.
    """
    for message in messages:
        if not _count_parts(message.content, _TOOL_PARTS):
            yield message
            continue
        parts = [part for part in message.content or () if isinstance(part, ContentPart)]
        for part in parts:
            if part.type == "tool_result":
                try:
                    content: Content = msgspec.convert(part.content, Content)
                except msgspec.ValidationError as error:
                    raise RecordError(f"wrong shape: content of a tool_result: {error}") from error
                yield ChatMessage("tool", content, tool_call_id=part.tool_use_id)
        calls = [_read_tool_use(part) for part in parts if part.type == "tool_use"]
        rest = _without_parts(message.content, _TOOL_PARTS)
        if calls or rest:
            yield msgspec.structs.replace(message, content=rest, tool_calls=[*(message.tool_calls or ()), *calls])


def _read_tool_use(part: ContentPart) -> ChatToolCall:
    if not part.name:
        raise RecordError("a tool_use without the name of its tool")
    return ChatToolCall(ChatFunction(part.name, part.input if isinstance(part.input, dict) else "{}"), part.id)


def read_messages(messages: Iterable[ChatMessage]) -> tuple[list[ParsedMessage], int]:
    """Return messages with running call ids, and how many content parts became placeholders.

    A tool message without a name gets that of the call it answers. Anthropic's parts `tool_use` and `tool_result`
    become tool calls and tool messages; its `thinking` is left out, and counted.

    Raises:
        RecordError: a role is unknown.
    """
    calls = CallNumbers()
    names: dict[str, str] = {}
    parsed = []
    hidden = 0
    for message in _iter_unfolded(messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise RecordError(f"unknown message role {message.role[:40]!r}")
        thoughts = _count_parts(message.content, _THOUGHTS)
        hidden += thoughts
        content, n_placeholders = read_content(_without_parts(message.content, _THOUGHTS))
        if thoughts and content is None and not message.tool_calls:
            continue
        hidden += n_placeholders
        own_calls = list(message.tool_calls or ())
        if message.function_call is not None:
            own_calls.append(ChatToolCall(message.function_call))
        rendered = []
        for call in own_calls:
            number = calls.assign(call.id)
            names[number] = call.function.name
            rendered.append(render_tool_call(number, call.function.name, call.function.arguments))
        answered = calls.look_up(message.tool_call_id) if role == "tool" else None
        name = (message.name or names.get(answered or "")) if role == "tool" else None
        text = message.refusal if content is None else content
        parsed.append(ParsedMessage(role, text, name, answered, dump_tool_calls(rendered)))
    return parsed, hidden


def has_agent(messages: Iterable[ParsedMessage]) -> bool:
    """Tell whether a conversation has a message of the agent."""
    return any(message.role == "assistant" for message in messages)


def count_agent_messages(messages: Iterable[ParsedMessage]) -> int:
    """Return the number of the agent's messages."""
    return sum(message.role == "assistant" for message in messages)


def is_success(success: bool | None, reward: float | None) -> bool | None:
    """Return the outcome: as the source says it, else reward 1 (or more), else unknown."""
    return success if success is not None or reward is None else reward >= 1 - 1e-6


def make_prompt_task_id(source: str, messages: Iterable[ParsedMessage]) -> str:
    """Return `SOURCE/prompt-HASH` for a run whose log names no task: a hash of its first user message.

    Raises:
        RecordError: there is no user message either.
    """
    text = next((message.content for message in messages if message.role == "user" and message.content), None)
    if text is None:
        raise RecordError("nothing tells which task this is: no task id and no user message")
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return make_task_id(source, None, f"prompt-{digest}")


def _parse(run: _Run, context: SourceContext) -> ParsedRun:
    messages, hidden = read_messages(run.messages)
    if not has_agent(messages):
        raise RecordError("the conversation has no message of the agent")
    success = is_success(run.success, run.reward)
    own_id = run.task_id
    return ParsedRun(
        task_id=make_prompt_task_id("chat", messages) if own_id is None else make_task_id("chat", run.domain, own_id),
        messages=messages,
        status="UNKNOWN" if success is None else "SUCCESS" if success else "FAILED",
        domain=run.domain,
        model=run.model,
        prompt=run.prompt,
        success=success,
        reward=run.reward,
        cost_usd=run.cost_usd,
        budget_limit_usd=run.budget_limit_usd,
        duration_s=run.duration_s,
        n_steps=count_agent_messages(messages),
        n_retries=run.n_retries,
        n_hidden_messages=hidden,
    )


CHAT = LogReader(
    "chat",
    lambda keys: "messages" in keys,
    single_record_reader(msgspec.json.Decoder(_Run), _parse),
    lacks=("n_steps_completed",),
    unmapped=("tools", "metadata", "messages[].name of users and assistants", "messages[].reasoning_content"),
    shares_keys=True,
)
