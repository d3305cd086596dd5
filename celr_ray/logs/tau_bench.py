"""Reader of tau-bench results (sierra-research/tau-bench): records of {task_id, reward, info, traj, trial}.

The records name neither model nor domain. The domain is read from the first heading of the system text
("# Airline Agent Policy"), else from the file name; the model from a file name of the form `MODEL-DOMAIN`.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    CallNumbers,
    LogReader,
    ParsedMessage,
    ParsedRun,
    Reward,
    SourceContext,
    dump_tool_calls,
    make_task_id,
    render_tool_call,
    single_record_reader,
)

_HEADING = re.compile(r"\A#\s+(\w+) agent policy", re.IGNORECASE)
_FILE_NAME = re.compile(r"\A(?P<model>.+?)[-_](?P<domain>airline|retail)\b")


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str = "{}"


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Task(msgspec.Struct, gc=False):
    instruction: str | None = None


class _Info(msgspec.Struct, gc=False):
    task: _Task | None = None


class _Run(msgspec.Struct, gc=False):
    task_id: int | str
    reward: Reward
    traj: list[_Message]
    info: _Info


def parse_chat(messages: list[_Message]) -> list[ParsedMessage]:
    """Normalise OpenAI chat messages: known roles, tool calls numbered in order.

    Raises:
        RecordError: a role that chat formats do not have.
    """
    calls = CallNumbers()
    parsed = []
    for message in messages:
        if message.role not in ("system", "user", "assistant", "tool"):
            raise RecordError(f"unknown message role {message.role[:40]!r}")
        rendered = [
            render_tool_call(calls.assign(call.id), call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        ]
        parsed.append(
            ParsedMessage(
                message.role,
                message.content,
                message.name if message.role == "tool" else None,
                calls.look_up(message.tool_call_id) if message.role == "tool" else None,
                dump_tool_calls(rendered),
            )
        )
    return parsed


def _find_domain(messages: list[ParsedMessage], file_name: str) -> str:
    system = next((m.content for m in messages if m.role == "system" and m.content), "")
    heading = _HEADING.match(system)
    if heading:
        return heading[1].lower()
    named = _FILE_NAME.match(file_name)
    if named:
        return named["domain"]
    return "system-" + hashlib.blake2b(system.encode(), digest_size=4).hexdigest()


def _parse(run: _Run, context: SourceContext) -> ParsedRun:
    if not run.traj:
        raise RecordError("the conversation (traj) is empty")
    messages = parse_chat(run.traj)
    domain = _find_domain(messages, context.file_name)
    named = _FILE_NAME.match(context.file_name)
    success = run.reward >= 1 - 1e-6
    return ParsedRun(
        task_id=make_task_id("tau_bench", domain, run.task_id),
        messages=messages,
        status="SUCCESS" if success else "FAILED",
        domain=domain,
        model=named["model"] if named else None,
        prompt=run.info.task.instruction if run.info.task else None,
        success=success,
        reward=run.reward,
        n_steps=sum(message.role == "assistant" for message in messages),
    )


TAU_BENCH = LogReader(
    "tau_bench",
    lambda keys: {"task_id", "reward", "traj", "info"} <= keys,
    single_record_reader(msgspec.json.Decoder(_Run), _parse),
    lacks=("cost_usd", "budget_limit_usd", "duration_s", "n_steps_completed", "n_retries"),
)
