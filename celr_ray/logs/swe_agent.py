"""Readers of SWE-agent (`.traj`) and mini-swe-agent (`.traj.json`) runs.

Neither file says whether the task was solved: that is decided later by the benchmark's own evaluation, so the
outcome is null. How a run ended (`exit_status`), what it cost and what it submitted are not put into
messages; a message that the program wrote in the agent's place when it stopped the run ("Exit due to cost
limit") is left out with all that follows it. Demonstrations are another run, copied into the context of this one,
and left out too. Both are counted in `n_hidden_messages`. Where SWE-agent tried several times (its RetryAgent), each of
the `attempts` is a run, and the copy of the best one beside them is none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    Count,
    Dollars,
    LogReader,
    ParsedMessage,
    ParsedRun,
    ReadItem,
    SourceContext,
    decode,
    make_task_id,
    single_record_reader,
)
from celr_ray.logs.chat import (
    ChatMessage,
    ChatToolCall,
    Content,
    count_agent_messages,
    has_agent,
    make_prompt_task_id,
    read_messages,
)

_TRAJ_NAME = re.compile(r"(?P<stem>.+?)\.traj(\.json)?(\.gz|\.zst)?\Z")
_NO_MODELS = ("replay", "human", "human_thought", "instant_empty_submit")
_MINI_MARKS = ("trajectory_format", "_path")


class _HistoryMessage(msgspec.Struct, gc=False):
    role: str
    content: Content = None
    tool_calls: list[ChatToolCall] | str | None = None
    tool_call_ids: list[str] | str | None = None
    is_demo: bool | None = None


class _TrajectoryStep(msgspec.Struct, gc=False):
    response: str = ""


class _ModelStats(msgspec.Struct, gc=False):
    instance_cost: Dollars | None = None
    tokens_sent: int | None = None
    api_calls: Count | None = None


class _Info(msgspec.Struct, gc=False):
    exit_status: str | None = None
    model_stats: _ModelStats | None = None


class _Model(msgspec.Struct, gc=False):
    name: str | None = None
    per_instance_cost_limit: Dollars | None = None


class _Agent(msgspec.Struct, gc=False):
    model: _Model | None = None


class _Problem(msgspec.Struct, gc=False):
    id: str | None = None
    text: str | None = None


class _ReplayConfig(msgspec.Struct, gc=False):
    agent: _Agent | None = None
    problem_statement: _Problem | None = None


class _Run(msgspec.Struct, gc=False):
    history: list[_HistoryMessage] | None = None
    trajectory: list[_TrajectoryStep] = []
    info: _Info | None = None
    replay_config: _ReplayConfig | str | None = None
    path: str | None = msgspec.field(default=None, name="_path")
    attempts: list[msgspec.Raw] | None = None


class _MiniModel(msgspec.Struct, gc=False):
    model_name: str | None = None


class _MiniAgent(msgspec.Struct, gc=False):
    cost_limit: Dollars | None = None


class _MiniConfig(msgspec.Struct, gc=False):
    agent: _MiniAgent | None = None
    model: _MiniModel | None = None


class _MiniInfo(msgspec.Struct, gc=False):
    exit_status: str | None = None
    model_stats: _ModelStats | None = None
    config: _MiniConfig | None = None


class _MiniRun(msgspec.Struct, gc=False):
    messages: list[ChatMessage]
    info: _MiniInfo | None = None
    instance_id: str | None = None
    path: str | None = msgspec.field(default=None, name="_path")


_RUN_DECODER = msgspec.json.Decoder(_Run)
_REPLAY_DECODER = msgspec.json.Decoder(_ReplayConfig)
_CALLS_DECODER = msgspec.json.Decoder(list[ChatToolCall])


def _file_stem(path: str | None, context: SourceContext) -> str | None:
    """Return the file's name before `.traj`; of a row in a JSONL file, that of the file it came from."""
    name = _TRAJ_NAME.match((path or context.file_name).rsplit("/", 1)[-1])
    return name["stem"] if name else None


def _read_literal(text: str, what: str) -> object:
    """Read a list that was written as Python text, as older files hold them.

    Raises:
        RecordError: it is neither JSON nor a Python literal.
    """
    try:
        value: object = ast.literal_eval(text)
        json.dumps(value, ensure_ascii=False).encode()  # not so for half a surrogate pair, which no file can hold
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise RecordError(f"wrong shape: {what} is text that holds no list: {text[:40]!r}") from error
    return value


def _read_tool_calls(calls: list[ChatToolCall] | str | None) -> list[ChatToolCall] | None:
    if not isinstance(calls, str):
        return calls
    if calls.lstrip().startswith(('[{"', "null", "[]")):
        return decode(_CALLS_DECODER, calls.encode()) if calls.strip() != "null" else None
    try:
        return msgspec.convert(_read_literal(calls, "tool_calls"), list[ChatToolCall] | None)
    except msgspec.ValidationError as error:
        raise RecordError(f"wrong shape: tool_calls: {error}") from error


def _read_call_id(ids: list[str] | str | None) -> str | None:
    values = _read_literal(ids, "tool_call_ids") if isinstance(ids, str) else ids
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, str) else None


def _is_exit_text(message: ParsedMessage) -> bool:
    return message.role == "assistant" and not message.tool_calls and (message.content or "").startswith("Exit due to ")


def _without_exit(messages: list[ParsedMessage]) -> tuple[list[ParsedMessage], int]:
    """Cut what the program wrote when it stopped the run: its own text in the agent's place, and what follows."""
    agent = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if agent and _is_exit_text(messages[agent[-1]]):
        return messages[: agent[-1]], len(messages) - agent[-1]
    return messages, 0


def _last_response(run: _Run, messages: Sequence[ParsedMessage]) -> list[ParsedMessage]:
    """Return the agent's last message where only `trajectory` has it: SWE-agent 1.0 left it out of `history`."""
    said = [message.content for message in messages if message.role == "assistant"]
    responses = [step.response for step in run.trajectory]
    if len(responses) == len(said) + 1 and said == responses[:-1] and responses[-1]:
        return [ParsedMessage("assistant", responses[-1])]
    return []


def _status(exit_status: str | None) -> str:
    return "STUCK" if exit_status and not exit_status.lower().startswith("submitted") else "UNKNOWN"


def _cost(stats: _ModelStats | None) -> float | None:
    """Return the run's cost; None where nothing was metered (a replay or a demonstration: no tokens, no calls)."""
    if stats is None or (not stats.instance_cost and (stats.tokens_sent == 0 or stats.api_calls == 0)):
        return None
    return stats.instance_cost


def _task_id(source: str, own: str | None, messages: Sequence[ParsedMessage]) -> str:
    return make_task_id(source, None, own) if own else make_prompt_task_id(source, messages)


def _read(raw: bytes, context: SourceContext) -> Iterator[ReadItem]:
    run: _Run = decode(_RUN_DECODER, raw)
    if not run.attempts:
        yield ReadItem(0, raw, _parse(run, context))
        return
    for position, item in enumerate(run.attempts):
        own = bytes(item)
        try:
            attempt: _Run = decode(_RUN_DECODER, own)
            attempt.path = attempt.path or run.path
            attempt.replay_config = attempt.replay_config or run.replay_config
            result: ParsedRun | RecordError = _parse(attempt, context)
        except RecordError as error:
            result = error
        yield ReadItem(position, own, result)


def _parse(run: _Run, context: SourceContext) -> ParsedRun:
    if run.history is None:
        raise RecordError("wrong shape: Object missing required field `history`")
    chat = [
        ChatMessage(
            message.role,
            message.content,
            tool_calls=_read_tool_calls(message.tool_calls),
            tool_call_id=_read_call_id(message.tool_call_ids),
        )
        for message in run.history
        if not message.is_demo
    ]
    messages, hidden = read_messages(chat)
    messages, cut = _without_exit([*messages, *_last_response(run, messages)])
    if not has_agent(messages):
        raise RecordError("the history has no message of the agent")
    replay = run.replay_config
    if isinstance(replay, str):
        replay = decode(_REPLAY_DECODER, replay.encode()) if replay.strip() not in ("", "null") else None
    problem = replay.problem_statement if replay else None
    model = replay.agent.model if replay and replay.agent else None
    own_id = problem.id if problem and problem.id else _file_stem(run.path, context)
    return ParsedRun(
        task_id=_task_id("swe_agent", own_id, messages),
        messages=messages,
        status=_status(run.info.exit_status if run.info else None),
        model=model.name if model and model.name not in _NO_MODELS else None,
        prompt=problem.text if problem else None,
        cost_usd=_cost(run.info.model_stats if run.info else None),
        budget_limit_usd=(model.per_instance_cost_limit or None) if model else None,
        n_steps=count_agent_messages(messages),
        n_hidden_messages=hidden + cut + len(run.history) - len(chat),
    )


def _parse_mini(run: _MiniRun, context: SourceContext) -> ParsedRun:
    spoken = [message for message in run.messages if message.role != "exit"]
    if spoken and spoken[-1].role == "user" and not spoken[-1].content:
        spoken.pop()
    messages, hidden = read_messages(spoken)
    if not has_agent(messages):
        raise RecordError("the conversation has no message of the agent")
    config = run.info.config if run.info else None
    stem = _file_stem(run.path, context)
    own_id = run.instance_id or (stem if stem and "__" in stem else None)
    return ParsedRun(
        task_id=_task_id("mini_swe_agent", own_id, messages),
        messages=messages,
        status=_status(run.info.exit_status if run.info else None),
        model=config.model.model_name if config and config.model else None,
        cost_usd=_cost(run.info.model_stats if run.info else None),
        budget_limit_usd=(config.agent.cost_limit or None) if config and config.agent else None,
        n_steps=count_agent_messages(messages),
        n_hidden_messages=hidden + len(run.messages) - len(spoken),
    )


def _is_swe_agent(keys: frozenset[str]) -> bool:
    own = {key for key in keys if not key.startswith("_")}
    if "attempts" in own:
        return own == {"attempts"} or not own.isdisjoint(("trajectory", "replay_config"))
    return "history" in own and (own == {"history"} or not own.isdisjoint(("trajectory", "info", "environment")))


def _is_mini(keys: frozenset[str]) -> bool:
    marked = not keys.isdisjoint(_MINI_MARKS) or ("info" in keys and "task_id" not in keys)
    return "messages" in keys and marked


_NO_OUTCOME = ("domain", "success", "reward", "duration_s", "n_steps_completed", "n_retries")

SWE_AGENT = LogReader(
    "swe_agent",
    _is_swe_agent,
    _read,
    record=_Run,
    lacks=_NO_OUTCOME,
    unmapped=(
        "environment",
        "trajectory (the same steps again, with state and execution_time)",
        "history[].thought",
        "history[].action",
        "history[].agent",
        "info.submission",
        "info.edited_files30",
        "info.model_stats.tokens_sent",
        "replay_config.env",
    ),
    shares_keys=True,
)
MINI_SWE_AGENT = LogReader(
    "mini_swe_agent",
    _is_mini,
    single_record_reader(msgspec.json.Decoder(_MiniRun), _parse_mini),
    lacks=("prompt", *_NO_OUTCOME),
    unmapped=("info.submission", "info.config.environment", "info.mini_version", "messages[].extra"),
    shares_keys=True,
)
