"""Reader of ATIF 1.0–1.8 (Agent Trajectory Interchange Format, Harbor RFC 0001), and what `extra.celr` holds.

ATIF has no task id, outcome, reward or budget, and cannot tell an empty text from none. What it lacks stands
under the key `celr` of its `extra` objects: `CelrRun` at the root, `CelrStep` in a step, `CelrResult` in an
observation's result, `CelrCall` in a tool call. These structs are the one definition of it: this reader takes
them, `convert` writes them. Files without them are read as far as they tell.

Steps copied from another run (`is_copied_context`) are left out and counted. Sub-agents are runs of their own.
Source: the fields of all versions as in the PyPI package `atif` 1.8, which this module does not need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    CallNumbers,
    Count,
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
from celr_ray.logs.chat import Content, count_agent_messages, has_agent, is_success, make_prompt_task_id, read_content

SCHEMA_VERSION = "ATIF-v1.8"
"""The version that `convert` writes; readers take every 1.x."""

_VERSION = re.compile(r"ATIF-v1\.\d+\Z")
_MAX_DEPTH = 16
_ROLES = {"system": "system", "user": "user", "agent": "assistant"}


class CelrRun(msgspec.Struct, gc=False, omit_defaults=True):
    """Root `extra.celr`: the columns of `schema.Trajectory` that ATIF has no field for; null = unknown.

    The task id is the only field that must be there. An absent outcome follows from the reward, an absent number of
    steps from the messages; `source_format` is for people.
    """

    task_id: str
    domain: str | None = None
    prompt: str | None = None
    status: Literal["SUCCESS", "FAILED", "STUCK", "UNKNOWN"] | None = None
    success: bool | UnsetType | None = UNSET
    reward: Reward | None = None
    budget_limit_usd: Dollars | None = None
    duration_s: Seconds | None = None
    n_steps: Count | UnsetType | None = UNSET
    n_steps_completed: Count | None = None
    n_retries: Count | None = None
    n_hidden_messages: Count = 0
    source_format: str | None = None


class CelrStep(msgspec.Struct, gc=False, omit_defaults=True):
    """Step `extra.celr`: a content that `message` cannot tell, or a step that only carries an observation."""

    content: str | UnsetType | None = UNSET
    is_placeholder: bool = False


class CelrResult(msgspec.Struct, gc=False, omit_defaults=True):
    """Result `extra.celr`: a tool message without a call in its step, or with another name than the call's."""

    role: Literal["tool"] | None = None
    name: str | UnsetType | None = UNSET
    tool_call_id: str | None = None


class CelrCall(msgspec.Struct, gc=False, omit_defaults=True):
    """Tool call `extra.celr`: the arguments' own text, where writing the object again would change it."""

    arguments: str | None = None


class _RunExtra(msgspec.Struct, gc=False):
    celr: CelrRun | None = None


class _StepExtra(msgspec.Struct, gc=False):
    celr: CelrStep | None = None


class _ResultExtra(msgspec.Struct, gc=False):
    celr: CelrResult | None = None


class _CallExtra(msgspec.Struct, gc=False):
    celr: CelrCall | None = None


class _Call(msgspec.Struct, gc=False):
    tool_call_id: str
    function_name: str
    arguments: dict[str, Any] | str = {}
    extra: _CallExtra | None = None


class _Result(msgspec.Struct, gc=False):
    source_call_id: str | None = None
    content: Content = None
    subagent_trajectory_ref: list[Any] | None = None
    extra: _ResultExtra | None = None


class _Observation(msgspec.Struct, gc=False):
    results: list[_Result]


class _Metrics(msgspec.Struct, gc=False):
    cost_usd: Dollars | None = None


class _Step(msgspec.Struct, gc=False):
    source: Literal["system", "user", "agent"]
    message: Content = None
    model_name: str | None = None
    tool_calls: list[_Call] | None = None
    observation: _Observation | None = None
    metrics: _Metrics | None = None
    is_copied_context: bool | None = None
    extra: _StepExtra | None = None


class _Agent(msgspec.Struct, gc=False):
    model_name: str | None = None


class _FinalMetrics(msgspec.Struct, gc=False):
    total_cost_usd: Dollars | None = None


class _Document(msgspec.Struct, gc=False):
    schema_version: str
    agent: _Agent
    steps: list[_Step]
    final_metrics: _FinalMetrics | None = None
    subagent_trajectories: list[msgspec.Raw] | None = None
    extra: _RunExtra | None = None


_DECODER = msgspec.json.Decoder(_Document)


class _Conversation:
    """Turns steps into messages, one after another, with running call ids."""

    def __init__(self) -> None:
        self.messages: list[ParsedMessage] = []
        self.n_placeholders = 0
        self._calls = CallNumbers()
        self._names: dict[str, str] = {}

    def add(self, step: _Step) -> None:
        """Append the messages of one step: its own, then one for each result of its observation."""
        calls = [self._render(call) for call in step.tool_calls or ()]
        celr = (step.extra.celr if step.extra else None) or CelrStep()
        if not celr.is_placeholder:
            text = self._read(step.message)
            if celr.content is not UNSET:
                text = celr.content
            elif calls and not text:
                text = None
            self.messages.append(ParsedMessage(_ROLES[step.source], text, tool_calls=dump_tool_calls(calls)))
        results = step.observation.results if step.observation else []
        only = (
            step.tool_calls[0].tool_call_id if step.tool_calls and len(step.tool_calls) == len(results) == 1 else None
        )
        for result in results:
            self._add_result(result, result.source_call_id or only)

    def _render(self, call: _Call) -> dict[str, Any]:
        number = self._calls.assign(call.tool_call_id)
        self._names[number] = call.function_name
        celr = call.extra.celr if call.extra else None
        text = celr.arguments if celr else None
        return render_tool_call(number, call.function_name, call.arguments if text is None else text)

    def _add_result(self, result: _Result, call_id: str | None) -> None:
        text = self._read(result.content)
        if text is None and result.subagent_trajectory_ref:
            text = "[sub-agent run]"
            self.n_placeholders += 1
        celr = (result.extra.celr if result.extra else None) or CelrResult()
        answered = celr.tool_call_id if celr.role == "tool" else self._calls.look_up(call_id)
        if celr.role is None and call_id is None:
            self.messages.append(ParsedMessage("user", text))  # what the environment says without having been called
            return
        name = self._names.get(answered or "") if celr.name is UNSET else celr.name
        self.messages.append(ParsedMessage("tool", text, name, answered))

    def _read(self, content: Content) -> str | None:
        text, n_placeholders = read_content(content)
        self.n_placeholders += n_placeholders
        return text


def _convert(steps: list[_Step]) -> _Conversation:
    conversation = _Conversation()
    for step in steps:
        conversation.add(step)
    return conversation


def _find_cost(document: _Document, steps: list[_Step]) -> float | None:
    final = document.final_metrics
    if final is not None and final.total_cost_usd is not None:
        return final.total_cost_usd
    costs = [s.metrics.cost_usd for s in steps if s.metrics and s.metrics.cost_usd is not None]
    return sum(costs) if costs else None


def _find_model(document: _Document, steps: list[_Step]) -> str | None:
    if document.agent.model_name is not None:
        return document.agent.model_name
    models = {step.model_name for step in steps if step.model_name is not None}
    return models.pop() if len(models) == 1 else None


def _describe_foreign(document: _Document, messages: list[ParsedMessage]) -> CelrRun:
    """Say what can be said of a run without `extra.celr`: its task by its first user message, copied or not."""
    if not has_agent(messages):
        raise RecordError("the trajectory has no message of the agent")
    whole = _convert(document.steps).messages
    return CelrRun(task_id=make_prompt_task_id("atif", whole))


def _parse(document: _Document) -> ParsedRun:
    if not _VERSION.match(document.schema_version):
        raise RecordError(f"schema_version {document.schema_version[:40]!r}: ATIF-v1.0 to ATIF-v1.8 are known")
    if not document.steps:
        raise RecordError("the trajectory has no steps")
    steps = [step for step in document.steps if not step.is_copied_context]
    conversation = _convert(steps)
    messages = conversation.messages
    n_copied = len(_convert([step for step in document.steps if step.is_copied_context]).messages)
    celr = document.extra.celr if document.extra else None
    celr = celr or _describe_foreign(document, messages)
    success = is_success(None, celr.reward) if celr.success is UNSET else celr.success
    outcome = "UNKNOWN" if success is None else "SUCCESS" if success else "FAILED"
    return ParsedRun(
        task_id=make_task_id("", None, celr.task_id),
        messages=messages,
        status=celr.status or outcome,
        domain=celr.domain,
        model=_find_model(document, steps),
        prompt=celr.prompt,
        success=success,
        reward=celr.reward,
        cost_usd=_find_cost(document, steps),
        budget_limit_usd=celr.budget_limit_usd,
        duration_s=celr.duration_s,
        n_steps=count_agent_messages(messages) if celr.n_steps is UNSET else celr.n_steps,
        n_steps_completed=celr.n_steps_completed,
        n_retries=celr.n_retries,
        n_hidden_messages=celr.n_hidden_messages + n_copied + conversation.n_placeholders,
    )


def _read(raw: bytes, context: SourceContext) -> Iterator[ReadItem]:
    """Yield the trajectory, then those of its sub-agents, each before its own sub-agents."""
    todo = [(raw, 0)]
    position = 0
    while todo:
        own, depth = todo.pop()
        try:
            document: _Document = decode(_DECODER, own)
            inner = [(bytes(item), depth + 1) for item in document.subagent_trajectories or ()]
            if inner and depth >= _MAX_DEPTH:
                raise RecordError(f"sub-agents nested deeper than {_MAX_DEPTH}")
            todo += reversed(inner)
            result: ParsedRun | RecordError = _parse(document)
        except RecordError as error:
            if position == 0 and len(todo) == 0:
                raise
            result = error
        yield ReadItem(position, own, result)
        position += 1


ATIF = LogReader(
    "atif",
    lambda keys: {"schema_version", "agent", "steps"} <= keys,
    _read,
    record=_Document,
    unmapped=(
        "session_id",
        "trajectory_id",
        "continued_trajectory_ref",
        "notes",
        "agent.name",
        "agent.version",
        "agent.tool_definitions",
        "steps[].timestamp",
        "steps[].reasoning_content",
        "steps[].reasoning_effort",
        "steps[].llm_call_count",
        "steps[].metrics but cost_usd",
        "extra but celr",
    ),
)
