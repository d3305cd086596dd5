"""What policies did on a unit of tasks: the rows, their checks, and one value a task for each role.

A row is one episode of one role. A row that is missing, doubled or not finite is no result: nothing here fills it in.
An episode that took longer than its time limit is a failure that spent the whole budget, whoever ran it. One that was
censored (the records of a bank ran out, a provider failed) is bounded, against the candidate: its own count as failures
that spent the whole budget, those of the others as successes at what they had spent.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from celr_ray.core.episodes import EndReason

__all__ = [
    "RESULT_SCHEMA",
    "Role",
    "TaskOutcome",
    "check_rows",
    "drop_seconds",
    "hash_rows",
    "make_rows",
    "read_outcomes",
    "sort_rows",
]

Role = Literal["candidate", "champion", "anchor"]

RESULT_SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("replay", pa.int64(), nullable=False),
        pa.field("success", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("budget_usd", pa.float64()),
        pa.field("unsafe", pa.bool_()),
        pa.field("censored", pa.bool_()),
        pa.field("timed_out", pa.bool_()),
        pa.field("n_decisions", pa.int64()),
        pa.field("n_fallbacks", pa.int64()),
        pa.field("end_reason", pa.string()),
        pa.field("problem", pa.string()),
    ]
)
"""One row an episode. `problem`: why the policy could not decide this unit; then there are no figures."""

_FIGURES = ("cost_usd", "seconds", "budget_usd", "n_decisions", "n_fallbacks")


@dataclass(frozen=True)
class TaskOutcome:
    """What one role did on one task, over its replays.

    Attributes:
        success: mean, 0 to 1.
        cost_usd: mean, US$.
        seconds: mean.
        n_unsafe: unsafe episodes.
        n_censored: episodes that were bounded.
        n_timed_out: episodes that took longer than their time limit.
        n_decisions: decisions of all replays.
        n_fallbacks: those that the policy left to a simpler one.
        problem: why the policy could not decide; then success and cost are NaN.
    """

    success: float
    cost_usd: float
    seconds: float = 0.0
    n_unsafe: int = 0
    n_censored: int = 0
    n_timed_out: int = 0
    n_decisions: int = 0
    n_fallbacks: int = 0
    problem: str | None = None


def make_rows(
    role: Role, task_ids: Sequence[str], replays: int, figures: Mapping[str, Any] | None, problem: str | None = None
) -> pa.Table:
    """Return the rows of one role.

    Args:
        role: who decided.
        task_ids: [n].
        replays: R.
        figures: [n, R] arrays by column; `end_reason` holds the numbers of `EndReason`. None = there are none.
        problem: why there are none.
    """
    n_rows = len(task_ids) * replays
    columns: dict[str, Any] = {
        "task_id": np.repeat(np.asarray(task_ids, dtype=object), replays),
        "role": [role] * n_rows,
        "replay": np.tile(np.arange(replays), len(task_ids)),
        "problem": pa.array([problem] * n_rows, pa.string()),
    }
    for field in RESULT_SCHEMA:
        if field.name not in columns:
            columns[field.name] = _column(field, figures, n_rows)
    return pa.table({name: columns[name] for name in RESULT_SCHEMA.names}, schema=RESULT_SCHEMA)


def _column(field: pa.Field, figures: Mapping[str, Any] | None, n_rows: int) -> pa.Array:
    if figures is None:
        return pa.nulls(n_rows, field.type)
    values = np.asarray(figures[field.name]).ravel()
    if field.name == "end_reason":
        return pa.array([EndReason(int(value)).name for value in values], pa.string())
    if field.name == "success":
        return pa.array(values, pa.float64(), mask=np.isnan(values))
    return pa.array(values, field.type)


def check_rows(table: pa.Table, task_ids: Sequence[str], roles: Sequence[str], replays: int) -> str | None:
    """Return what is wrong with the rows of a unit, or None.

    Each task must be there once for each role and replay, and every figure finite; only a candidate that could not
    decide has none, and only a censored episode has no success.

    Args:
        table: rows.
        task_ids: [n] what was to be run.
        roles: who was to run it.
        replays: episodes of each.
    """
    if table.schema.names != RESULT_SCHEMA.names:
        return f"the results have other columns: {', '.join(table.schema.names)}"
    expected = {(task, role, replay) for task in task_ids for role in roles for replay in range(replays)}
    columns = (table[name].to_pylist() for name in ("task_id", "role", "replay"))
    found = Counter(zip(*columns, strict=True))
    if missing := sorted(expected - set(found)):
        return f"{len(missing)} of {len(expected)} results are missing, first {_name(missing[0])}"
    if unknown := sorted(set(found) - expected):
        return f"{len(unknown)} results are of nothing that was asked for, first {_name(unknown[0])}"
    if doubled := sorted(key for key, count in found.items() if count > 1):
        return f"{len(doubled)} results are there more than once, first {_name(doubled[0])}"
    return _check_figures(table)


def _name(key: tuple[str, str, int]) -> str:
    return f"{key[0]!r} ({key[1]}, replay {key[2]})"


def _check_figures(table: pa.Table) -> str | None:
    has_problem = table["problem"].is_valid().to_numpy()
    is_candidate = np.asarray(table["role"].to_pylist(), dtype=object) == "candidate"
    wrong = {"no figures, though only a candidate may be unable to decide": has_problem & ~is_candidate}
    for name in ("unsafe", "censored", "timed_out"):
        wrong[f"no {name}"] = ~has_problem & ~table[name].is_valid().to_numpy()
    for name in _FIGURES:
        values = _floats(table, name)
        wrong[f"no finite {name}"] = ~has_problem & ~(np.isfinite(values) & (values >= 0))
    success, is_censored = _floats(table, "success"), _flags(table, "censored")
    wrong["a success outside of [0, 1]"] = np.isfinite(success) & ((success < 0) | (success > 1))
    wrong["no success"] = ~has_problem & ~is_censored & ~np.isfinite(success)
    for text, rows in wrong.items():
        if rows.any():
            at = int(np.flatnonzero(rows)[0])
            where = _name(tuple(table[name][at].as_py() for name in ("task_id", "role", "replay")))
            return f"{int(rows.sum())} results have {text}, first {where}"
    return None


def _floats(table: pa.Table, name: str) -> Any:
    return table[name].cast(pa.float64()).to_numpy()


def _flags(table: pa.Table, name: str) -> Any:
    return table[name].fill_null(False).to_numpy()


def sort_rows(table: pa.Table, task_ids: Sequence[str]) -> pa.Table:
    """Return the rows of some tasks, in the order of the tasks, then of roles and replays."""
    place = {task: number for number, task in enumerate(task_ids)}
    positions = np.array([place.get(task, -1) for task in table["task_id"].to_pylist()], dtype=np.int64)
    roles = np.asarray(table["role"].to_pylist(), dtype=str)
    order = np.lexsort((table["replay"].to_numpy(), roles, positions))
    return table.take(order[positions[order] >= 0]).combine_chunks()


def read_outcomes(table: pa.Table, task_ids: Sequence[str], roles: Sequence[str]) -> list[dict[str, TaskOutcome]]:
    """Return for each task what each role did; the rows must have passed `check_rows`.

    Args:
        table: rows.
        task_ids: [n].
        roles: to read.
    """
    ordered = sort_rows(table, task_ids)
    n_rows = len(ordered) // (len(task_ids) * len(roles))
    names = sorted(roles)
    shape = (len(task_ids), len(names), n_rows)
    is_own = (np.asarray(names) == "candidate")[None, :, None]
    censored = _flags(ordered, "censored").reshape(shape)
    success, cost, budget = (_floats(ordered, name).reshape(shape) for name in ("success", "cost_usd", "budget_usd"))
    unsafe, late = (_flags(ordered, name).reshape(shape) for name in ("unsafe", "timed_out"))
    success = np.where(censored, np.where(is_own | unsafe, 0.0, 1.0), success)
    success = np.where(late, 0.0, success)
    cost = np.where((censored & is_own) | late, np.fmax(budget, cost), cost)
    seconds, decisions, fallbacks = (
        _floats(ordered, name).reshape(shape) for name in ("seconds", "n_decisions", "n_fallbacks")
    )
    problems = np.asarray(ordered["problem"].to_pylist(), dtype=object).reshape(shape)

    def outcome(task: int, role: int) -> TaskOutcome:
        problem = problems[task, role, 0]
        if problem is not None:
            return TaskOutcome(np.nan, np.nan, problem=problem)
        return TaskOutcome(
            success=float(success[task, role].mean()),
            cost_usd=float(cost[task, role].mean()),
            seconds=float(seconds[task, role].mean()),
            n_unsafe=int(unsafe[task, role].sum()),
            n_censored=int(censored[task, role].sum()),
            n_timed_out=int(late[task, role].sum()),
            n_decisions=int(decisions[task, role].sum()),
            n_fallbacks=int(fallbacks[task, role].sum()),
        )

    return [{name: outcome(task, role) for role, name in enumerate(names)} for task in range(len(task_ids))]


def drop_seconds(table: pa.Table) -> pa.Table:
    """Return the rows without measured times: they differ in every live run, and are kept in its logs."""
    place = RESULT_SCHEMA.get_field_index("seconds")
    return table.set_column(place, RESULT_SCHEMA.field(place), pa.nulls(len(table), pa.float64()))


def hash_rows(table: pa.Table) -> str:
    """Return the hash of the rows' values, whatever version of Parquet they are stored by."""
    digest = hashlib.blake2b(digest_size=16)
    for name in RESULT_SCHEMA.names:
        digest.update(f"\n{name} {len(table)}\n".encode())
        digest.update(repr(table[name].to_pylist()).encode())
    return digest.hexdigest()
