"""Reader of tau2-bench results (sierra-research/tau2-bench): one object of {info, tasks, simulations}.

The agent's cost is the run's cost; what the simulated user cost is not. Tool calls that the simulated user
makes, and their results, are out of the agent's sight and left out (counted in `n_hidden_messages`).
A run without any user message is the benchmark's solo mode, a different task: domain `DOMAIN-solo`.
The task's text is the user scenario of the task definition, from `tasks` in the same file or from a task
definition file (a JSON list) among the inputs; without either the prompt is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    CallNumbers,
    Dollars,
    LogReader,
    ParsedMessage,
    ParsedRun,
    ReadItem,
    Reward,
    Seconds,
    SourceContext,
    decode,
    dump_tool_calls,
    make_task_id,
    render_tool_call,
)


class _ToolCall(msgspec.Struct, gc=False):
    name: str
    arguments: dict[str, Any]
    id: str | None = None
    requestor: str = "assistant"


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    id: str | None = None
    requestor: str = "assistant"


class _RewardInfo(msgspec.Struct, gc=False):
    reward: Reward


class _Simulation(msgspec.Struct, gc=False):
    task_id: str
    messages: list[_Message]
    termination_reason: str
    reward_info: _RewardInfo | None = None
    agent_cost: Dollars | None = None
    duration: Seconds | None = None


class _AgentInfo(msgspec.Struct, gc=False):
    llm: str | None = None


class _EnvironmentInfo(msgspec.Struct, gc=False):
    domain_name: str


class _Info(msgspec.Struct, gc=False):
    environment_info: _EnvironmentInfo
    agent_info: _AgentInfo | None = None


class _Instructions(msgspec.Struct, gc=False):
    domain: str | None = None
    task_instructions: str | None = None
    reason_for_call: str | None = None
    known_info: str | None = None
    unknown_info: str | None = None


class _Scenario(msgspec.Struct, gc=False):
    instructions: _Instructions | str | None = None


class _Task(msgspec.Struct, gc=False):
    id: str
    user_scenario: _Scenario


class _File(msgspec.Struct, gc=False):
    info: _Info
    simulations: list[msgspec.Raw]
    tasks: list[msgspec.Raw] = []


_FILE_DECODER = msgspec.json.Decoder(_File)
_SIMULATION_DECODER = msgspec.json.Decoder(_Simulation)
_TASK_DECODER = msgspec.json.Decoder(_Task)
_TASK_LIST_DECODER = msgspec.json.Decoder(list[_Task])
_SUCCESSFUL_ENDS = ("user_stop", "agent_stop")


def _task_text(task: _Task) -> str | None:
    scenario = task.user_scenario.instructions
    if scenario is None or isinstance(scenario, str):
        return scenario
    parts = (scenario.reason_for_call, scenario.known_info, scenario.unknown_info, scenario.task_instructions)
    return "\n\n".join(part.strip() for part in parts if part and part.strip()) or None


def read_task_definitions(raw: bytes) -> dict[str, str]:
    """Read a task definition file: a JSON list of tau2-bench tasks.

    Returns:
        Task text by task_id; tasks whose scenario names no domain are left out.

    Raises:
        RecordError: the bytes are not such a list.
    """
    texts = {}
    for task in decode(_TASK_LIST_DECODER, raw):
        scenario, text = task.user_scenario.instructions, _task_text(task)
        if text and isinstance(scenario, _Instructions) and scenario.domain:
            texts[make_task_id("tau2_bench", scenario.domain, task.id)] = text
    return texts


def _own_task_texts(file: _File, domain: str) -> dict[str, str]:
    texts = {}
    for raw in file.tasks:
        try:
            task = decode(_TASK_DECODER, bytes(raw))
        except RecordError:
            continue  # a task definition of an unknown shape only means that its runs have no prompt
        text = _task_text(task)
        if text:
            texts[make_task_id("tau2_bench", domain, task.id)] = text
    return texts


def _parse_messages(messages: list[_Message]) -> tuple[list[ParsedMessage], int]:
    """Return the conversation as the agent saw it, and how many messages it did not see."""
    calls = CallNumbers()
    parsed: list[ParsedMessage] = []
    hidden = 0
    for message in messages:
        if message.role == "tool":
            if message.requestor == "user":
                hidden += 1
                continue
            parsed.append(ParsedMessage("tool", message.content, None, calls.look_up(message.id)))
        elif message.role == "user":
            if message.tool_calls and not message.content:
                hidden += 1
                continue
            parsed.append(ParsedMessage("user", message.content))
        elif message.role in ("assistant", "system"):
            rendered = [render_tool_call(calls.assign(c.id), c.name, c.arguments) for c in message.tool_calls or ()]
            if message.content or rendered:
                parsed.append(ParsedMessage(message.role, message.content, tool_calls=dump_tool_calls(rendered)))
        else:
            raise RecordError(f"unknown message role {message.role[:40]!r}")
    return parsed, hidden


def _parse(run: _Simulation, info: _Info, task_texts: Mapping[str, str]) -> ParsedRun:
    messages, hidden = _parse_messages(run.messages)
    if not any(message.role == "assistant" for message in messages):
        raise RecordError("the conversation has no message of the agent")
    domain = info.environment_info.domain_name
    is_solo = not any(message.role == "user" for message in messages)
    reward = run.reward_info.reward if run.reward_info else None
    success = None if reward is None else reward >= 1 - 1e-6
    status = "UNKNOWN" if success is None else "SUCCESS" if success else "FAILED"
    if status == "FAILED" and run.termination_reason not in _SUCCESSFUL_ENDS:
        status = "STUCK"
    return ParsedRun(
        task_id=make_task_id("tau2_bench", f"{domain}-solo" if is_solo else domain, run.task_id),
        messages=messages,
        status=status,
        domain=f"{domain}-solo" if is_solo else domain,
        model=info.agent_info.llm if info.agent_info else None,
        prompt=task_texts.get(make_task_id("tau2_bench", domain, run.task_id)),
        success=success,
        reward=reward,
        cost_usd=run.agent_cost,
        duration_s=run.duration,
        n_steps=sum(message.role == "assistant" for message in messages),
        n_hidden_messages=hidden,
    )


def _read(raw: bytes, context: SourceContext) -> Iterator[ReadItem]:
    file = decode(_FILE_DECODER, raw)
    domain = file.info.environment_info.domain_name
    task_texts = {**context.task_texts, **_own_task_texts(file, domain)}
    for index, item in enumerate(file.simulations):
        run = bytes(item)
        try:
            result: ParsedRun | RecordError = _parse(decode(_SIMULATION_DECODER, run), file.info, task_texts)
        except RecordError as error:
            result = error
        yield ReadItem(index, run, result)


TAU2_BENCH = LogReader(
    "tau2_bench",
    lambda keys: {"info", "simulations"} <= keys,
    _read,
    record=_Simulation,
    lacks=("budget_limit_usd", "n_steps_completed", "n_retries"),
)
