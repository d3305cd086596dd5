"""Readers of CELR's own three log shapes: plan form, step form, benchmark rows.

None of them holds chat messages, so a conversation of two is made: the request, and what the agent wrote.
Execution logs, council debates and state vectors are not mapped into texts: they hold statuses and costs,
which must never reach a trainer. Of the execution log only the model's name is read, if all calls agree.
"""

from __future__ import annotations

import re

import msgspec

from celr_ray.logs.base import (
    Count,
    Dollars,
    LogReader,
    ParsedMessage,
    ParsedRun,
    Seconds,
    SourceContext,
    make_task_id,
    single_record_reader,
)

_RUNTIME_ERROR = re.compile(r"Execution failed after \d+ attempts|completion_cost\(\) got an unexpected keyword")
"""How outputs begin that are CELR's own error report and not a word of the agent's."""

_LLM_CALL = re.compile(r"LLM call: ([^,]+), tokens=")
_STATUS = {"SUCCESS": "SUCCESS", "COMPLETED": "SUCCESS", "FAILED": "FAILED", "STUCK": "STUCK"}
_OUTCOME = {"SUCCESS": True, "FAILED": False, "STUCK": False}


class _PlanStep(msgspec.Struct, gc=False):
    description: str
    status: str
    output: str | None = None
    retry_count: Count = 0


class _PlanLog(msgspec.Struct, gc=False):
    task_id: str
    original_request: str
    final_status: str
    plan: list[_PlanStep]
    execution_log: list[str] = []
    total_cost: Dollars | None = None
    total_cost_usd: Dollars | None = None
    budget_limit_usd: Dollars | None = None


class _LoggedStep(msgspec.Struct, gc=False):
    description: str
    status: str
    retry_count: Count = 0
    cost_usd: Dollars | None = None


class _StepLog(msgspec.Struct, gc=False):
    task_id: str
    original_request: str
    status: str
    steps: list[_LoggedStep]
    cost_usd: Dollars | None = None
    total_retries: Count | None = None


class _BenchmarkRow(msgspec.Struct, gc=False):
    task_id: str
    method: str
    prompt: str
    output: str
    success: bool
    accuracy: bool | None = None
    cost_usd: Dollars | None = None
    latency_s: Seconds | None = None
    steps_executed: Count | None = None
    retries: Count | None = None
    model: str | None = msgspec.field(default=None, name="_model")
    direct_model: str | None = msgspec.field(default=None, name="_direct_model")


def _status(text: str) -> str:
    return _STATUS.get(text) or _STATUS.get(text.strip().upper(), "UNKNOWN")


def _is_completed(status: str) -> bool:
    return status == "COMPLETED" or status.upper() == "COMPLETED"


def _find_model(lines: list[str]) -> str | None:
    """Return the model that every call in an execution log names, None if they differ or none does."""
    models = {name for line in lines for name in _LLM_CALL.findall(line) if name != "None"}
    return models.pop() if len(models) == 1 else None


def _conversation(request: str, answer: str) -> list[ParsedMessage]:
    return [ParsedMessage("user", request), ParsedMessage("assistant", answer)]


def _parse_plan(log: _PlanLog, context: SourceContext) -> ParsedRun:
    status = _status(log.final_status)
    parts: list[str] = []
    n_completed = n_retries = 0
    for step in log.plan:
        parts.append(step.description)
        if step.output:
            parts.append(step.output)
        n_completed += _is_completed(step.status)
        n_retries += step.retry_count
    return ParsedRun(
        task_id=make_task_id("celr", None, log.task_id),
        messages=_conversation(log.original_request, "\n\n".join(parts)),
        status=status,
        model=_find_model(log.execution_log) if log.execution_log else None,
        prompt=log.original_request,
        success=_OUTCOME.get(status),
        cost_usd=log.total_cost if log.total_cost is not None else log.total_cost_usd,
        budget_limit_usd=log.budget_limit_usd,
        n_steps=len(log.plan),
        n_steps_completed=n_completed,
        n_retries=n_retries,
    )


def _parse_steps(log: _StepLog, context: SourceContext) -> ParsedRun:
    status = _status(log.status)
    retries = log.total_retries if log.total_retries is not None else sum(step.retry_count for step in log.steps)
    return ParsedRun(
        task_id=make_task_id("celr", None, log.task_id),
        messages=_conversation(log.original_request, "\n".join(step.description for step in log.steps)),
        status=status,
        prompt=log.original_request,
        success=_OUTCOME.get(status),
        cost_usd=log.cost_usd,
        n_steps=len(log.steps),
        n_steps_completed=sum(_is_completed(step.status) for step in log.steps),
        n_retries=retries,
    )


def _parse_benchmark(row: _BenchmarkRow, context: SourceContext) -> ParsedRun:
    right = row.success if row.accuracy is None else row.success and row.accuracy
    model = row.direct_model or row.model if row.method == "direct" else row.model
    is_answer = not _RUNTIME_ERROR.match(row.output)
    messages = _conversation(row.prompt, row.output)
    return ParsedRun(
        task_id=make_task_id("celr", None, row.task_id),
        messages=messages if is_answer else messages[:1],
        n_hidden_messages=int(not is_answer),
        status="SUCCESS" if row.success else "FAILED",
        model=model,
        prompt=row.prompt,
        success=right,
        reward=None if row.accuracy is None else float(right),
        cost_usd=row.cost_usd,
        duration_s=row.latency_s,
        n_steps=row.steps_executed,
        n_retries=row.retries,
    )


CELR_PLAN = LogReader(
    "celr_plan",
    lambda keys: {"task_id", "final_status", "plan"} <= keys,
    single_record_reader(msgspec.json.Decoder(_PlanLog), _parse_plan),
    lacks=("reward", "duration_s", "domain"),
)
CELR_STEP = LogReader(
    "celr_step",
    lambda keys: {"task_id", "status", "steps", "original_request"} <= keys,
    single_record_reader(msgspec.json.Decoder(_StepLog), _parse_steps),
    lacks=("reward", "duration_s", "domain", "budget_limit_usd", "model"),
)
CELR_BENCHMARK = LogReader(
    "celr_benchmark",
    lambda keys: {"task_id", "method", "prompt", "output", "success"} <= keys,
    single_record_reader(msgspec.json.Decoder(_BenchmarkRow), _parse_benchmark),
    lacks=("domain", "budget_limit_usd", "n_steps_completed"),
)
