"""Tasks for agents: what is asked, how an answer is checked, and how a file of tasks is read.

    checker    ground truth: sets success when an episode has ended, hidden until then.
    verifier   what may be run while an episode goes on; it can be wrong (visible tests against hidden ones).

A task file is JSONL, one task a line, plain or packed (.gz, .zst), local or on an object store. A bad line never ends
a job: it becomes a rejected row that names file, line, field and what to do, so lines in = tasks + rejected. Only a
file without any usable task is an error. Neither models nor Ray are known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from celr_ray import storage
from celr_ray.core.checks import Check, NumericCheck, RuleCheck
from celr_ray.errors import InputError
from celr_ray.logs.framing import FileRange, LineCounter, Value, iter_values
from celr_ray.runtime import Unit
from celr_ray.schema import QuarantineRow

__all__ = ["ANSWER_RULE", "Task", "TaskFile", "gsm8k_tasks", "plan_task_units", "read_tasks"]

ANSWER_RULE = "End with a line 'Answer: <number>'."
"""Ends the prompt of a task whose answer is a number."""

_MAX_LINE_BYTES = 16 * 2**20
_MAX_RAW_CHARACTERS = 64 * 1024
_MAX_SHOWN_ERRORS = 3
_MAX_SHOWN_CHARACTERS = 60


class Task(BaseModel):
    """One task. Null = not known: without a checker it gets no outcome, without a verifier it cannot be verified."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task_id: str = Field(min_length=1, description="unique in its file; SOURCE/DOMAIN/ID keeps several sources apart")
    prompt: str = Field(min_length=1, description="the text that the agent gets")
    checker: Annotated[RuleCheck, Field(discriminator="kind")] | None = Field(
        None, description="ground truth; never of kind model or agreement, which are opinions"
    )
    verifier: Check | None = Field(None, description="what may be run before the end")
    difficulty: float | None = Field(None, ge=0, le=1, description="0 easy to 1 hard; null = to be estimated")
    domain: str | None = Field(None, description="what it is about, such as arithmetic")
    budget_usd: float | None = Field(None, gt=0, allow_inf_nan=False, description="most that may be spent, US$")
    time_limit_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="most time, seconds")
    level: int | str | None = Field(None, description="the source's own grade; for reports, no policy sees it")


class TaskFile(NamedTuple):
    """What a file of tasks holds.

    Attributes:
        tasks: the usable ones, in the order of the file.
        rejected: the lines that are no task, with their reasons.
    """

    tasks: list[Task]
    rejected: list[QuarantineRow]


def read_tasks(uri: str) -> TaskFile:
    """Read a file of tasks; blank lines do not count, and of equal task_ids the first line stands.

    Args:
        uri: local path or URI of a JSONL file, plain, .gz or .zst.

    Raises:
        InputError: the file cannot be read, or holds no usable task.
    """
    tasks: list[Task] = []
    rejected: list[QuarantineRow] = []
    lines: dict[str, int] = {}
    counter = LineCounter()
    for value in iter_values(FileRange(uri), _MAX_LINE_BYTES, counter):
        task = _parse(value, lines)
        if isinstance(task, Task):
            lines[task.task_id] = counter.line
            tasks.append(task)
        else:
            raw = bytes(value.raw).decode("utf-8", errors="backslashreplace")
            rejected.append(_reject(uri, value.offset, counter.line, None, task, raw, value.n_bytes))
    _check_any(uri, tasks, rejected)
    return TaskFile(tasks, rejected)


def _parse(value: Value, lines: Mapping[str, int]) -> Task | str:
    """Return the task of a line, or why it is none."""
    if value.damage is not None:
        return f"{value.damage}; mend or delete it"
    try:
        task = Task.model_validate_json(bytes(value.raw))
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors(include_url=False)]
        more = len(problems) - _MAX_SHOWN_ERRORS
        return "; ".join(problems[:_MAX_SHOWN_ERRORS]) + (f"; and {more} more" if more > 0 else "")
    if task.task_id in lines:
        return (
            f"task_id: {task.task_id!r} is the task of line {lines[task.task_id]} already; rename or delete one of them"
        )
    return task


def _describe(problem: ErrorDetails) -> str:
    """Say in one sentence which field is wrong, its value, and what to do."""
    field = ".".join(map(str, problem["loc"]))
    kind, message = problem["type"], problem["msg"]
    if kind == "json_invalid":
        return f"not valid JSON ({message.removeprefix('Invalid JSON: ')}); each line must be one JSON object"
    if kind == "model_type":
        return f"{_shorten(problem['input'])} is no task; each line must be one JSON object with task_id and prompt"
    if kind == "missing":
        return f"{field}: missing; add it"
    if kind == "extra_forbidden":
        return f"{field}: unknown; delete it or correct its spelling (of a task: {', '.join(Task.model_fields)})"
    if kind == "union_tag_invalid":
        kinds, tag = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
        return f"{field}: no kind {tag!r} here; use one of {kinds}"
    return f"{field}: {message}, is {_shorten(problem['input'])}; correct or delete it"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"


def _reject(
    uri: str, offset: int, line: int, index: int | None, reason: str, raw: str, raw_bytes: int
) -> QuarantineRow:
    return QuarantineRow(
        file=uri,
        offset=offset,
        line=line,
        index=index,
        reason=reason,
        raw=raw[:_MAX_RAW_CHARACTERS],
        raw_bytes=raw_bytes,
    )


def _check_any(uri: str, tasks: Sequence[Task], rejected: Sequence[QuarantineRow]) -> None:
    if tasks:
        return
    shown = "; ".join(f"line {row.line}: {row.reason}" for row in rejected[:_MAX_SHOWN_ERRORS])
    more = len(rejected) - _MAX_SHOWN_ERRORS
    raise InputError(f"no usable task in {uri}: {shown}" + (f"; and {more} more lines" if more > 0 else ""))


def plan_task_units(tasks: Sequence[Task], rows_per_unit: int) -> list[Unit]:
    """Cut tasks into units: ranges `start` (included) to `stop` (excluded) of at most `rows_per_unit` ≥ 1 tasks."""
    starts = range(0, len(tasks), rows_per_unit)
    return [{"start": start, "stop": min(start + rows_per_unit, len(tasks))} for start in starts]


_RESPONSE = "_response"
_MARKED_ANSWER = re.compile(r"####\s*([^\n]*)")
_NUMBER = re.compile(r"(-?)\$?(\d[\d,]*(?:\.\d+)?)")


def gsm8k_tasks(uri: str) -> TaskFile:
    """Make tasks of RouteLLM's file of GSM8K responses, with numeric checkers.

    The file has no column of answers, only the responses of some models and whether each was right. So the answer is
    taken from the right responses: the number after `####`, else the last one in the text. A question that no model
    solved, or whose right responses disagree or give no whole number (all of GSM8K's answers are whole), is rejected.
    So the hardest questions are missing, and success on the others overstates success on GSM8K.

    Args:
        uri: a Parquet file with `prompt` and, for each model NAME, `NAME` (bool) and `NAME_response` (text).

    Raises:
        InputError: it cannot be read, has other columns, or gives no task.
    """
    table = storage.read_parquet(uri)
    models = [name for name in table.column_names if f"{name}{_RESPONSE}" in table.column_names]
    if "prompt" not in table.column_names or not models:
        raise InputError(
            f"{uri} is not RouteLLM's file of GSM8K responses: it must have the columns prompt, NAME and "
            f"NAME{_RESPONSE}, has {', '.join(table.column_names)}"
        )
    tasks, rejected = [], []
    for index, row in enumerate(table.to_pylist()):
        question = (row["prompt"] or "").strip()
        answer = _agreed_answer([row[f"{name}{_RESPONSE}"] or "" for name in models if row[name]])
        if isinstance(answer, float) and question:
            tasks.append(_make_gsm8k_task(index, question, answer))
        else:
            reason = str(answer) if question else "prompt: missing"
            rejected.append(_reject(uri, 0, index + 1, index, reason, question, len(question.encode())))
    _check_any(uri, tasks, rejected)
    return TaskFile(tasks, rejected)


def _make_gsm8k_task(index: int, question: str, answer: float) -> Task:
    return Task(
        task_id=f"routellm/gsm8k/{index:04d}",
        prompt=f"{question} {ANSWER_RULE}",
        checker=NumericCheck(kind="numeric", answer=int(answer), tolerance=0),
        domain="gsm8k",
    )


def _agreed_answer(responses: Sequence[str]) -> float | str:
    """Return the whole number that all right responses give, or why there is none."""
    if not responses:
        return "no model's response is right, so the answer is not known"
    answers = {_last_number(response) for response in responses}
    answer = next(iter(answers))
    if len(answers) > 1 or answer is None or not answer.is_integer():
        return f"the right responses end in {', '.join(sorted(map(str, answers)))}: not one whole number"
    return answer


def _last_number(response: str) -> float | None:
    """Return the number after the last `####`, else the last one in the text."""
    marked = _MARKED_ANSWER.findall(response)
    numbers = _NUMBER.findall(marked[-1]) if marked else []
    numbers = numbers[:1] or _NUMBER.findall(response)[-1:]
    return float(numbers[0][0] + numbers[0][1].replace(",", "")) if numbers else None
