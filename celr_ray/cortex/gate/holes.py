"""Whether the gate itself can be trusted here: loophole policies and damaged results go through the same judge.

They are judged on the suite's first tasks, against the same champion and anchor, by the same criteria, but without the
numbers of tasks that a PASS needs: a small suite shall not hide a hole. None may pass. Damaged results are those of a
control, the champion at 70 % of its cost, which does pass, where there are tasks enough, as long as it is not damaged;
they are judged without the anchor, which the champion itself may not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.loopholes import make_loopholes
from celr_ray.cortex.evaluation.replay_run import ReplaySuite
from celr_ray.cortex.gate.criteria import GateVerdict
from celr_ray.cortex.gate.monitor import GateMonitor
from celr_ray.cortex.gate.plan import GatePlan
from celr_ray.cortex.gate.results import RESULT_SCHEMA, Role
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.suites import replay_rows
from celr_ray.cortex.policy import Policy

__all__ = ["MAX_HOLE_TASKS", "HoleResult", "check_holes", "judge_tables"]

MAX_HOLE_TASKS = 300
_UNITS = 10
"""So many that none is long enough for a PASS by itself: what damages one unit is met before."""
_HONEST_COST = 0.7
_EXPLOSIVE_SHARE, _EXPLOSIVE_TYPICAL, _EXPLOSIVE_MEAN = 0.05, 0.9, 1.05


@dataclass(frozen=True)
class HoleResult:
    """What the judge said of one deceit.

    Attributes:
        name: the deceit.
        verdict: never PASS where the gate can be trusted.
        reason: the first reason.
        n_tasks: tasks that it took.
        is_control: no deceit: may pass.
    """

    name: str
    verdict: GateVerdict
    reason: str
    n_tasks: int
    is_control: bool = False


def check_holes(
    suite: ReplaySuite, policies: Mapping[Role, Policy], plan: GatePlan, config: GateConfig
) -> tuple[HoleResult, ...]:
    """Try all deceits.

    Args:
        suite: a bank made ready; holds the plan's tasks.
        policies: champion, and anchor if the plan has one.
        plan: of the gate; its first tasks are used.
        config: of the gate.
    """
    n_tasks = min(len(plan.task_ids), MAX_HOLE_TASKS)
    plan = replace(
        plan,
        task_ids=plan.task_ids[:n_tasks],
        rows_per_unit=max(n_tasks // _UNITS, 1),
        strata={name: labels[:MAX_HOLE_TASKS] for name, labels in plan.strata.items()},
        must_pass=frozenset(plan.must_pass & set(plan.task_ids[:MAX_HOLE_TASKS])),
    )
    place = {task_id: row for row, task_id in enumerate(suite.bank.task_ids)}
    rows = np.array([place[task_id] for task_id in plan.task_ids], dtype=np.int64)
    others = [replay_rows(suite, role, policies[role], rows) for role in plan.roles if role != "candidate"]  # type: ignore[index, arg-type]
    hard = float(np.median(suite.bank.tasks["difficulty"].to_numpy()[rows]))

    found = []
    for policy in make_loopholes(policies["champion"], hard):
        played = pa.concat_tables([replay_rows(suite, "candidate", policy, rows), *others])
        found.append(judge_tables(policy.name, split_units(played, plan), plan, config))
    return (*found, *_judge_damages(others[0], replace(plan, roles=("candidate", "champion")), config))


def _judge_damages(champion: pa.Table, plan: GatePlan, config: GateConfig) -> list[HoleResult]:
    """Judge results made from the champion's rows."""

    def judge(name: str, candidate: pa.Table, damage: _Damage | None = None, *, is_control: bool = False) -> HoleResult:
        units = split_units(pa.concat_tables([candidate, champion]), plan)
        return judge_tables(name, damage(units) if damage else units, plan, config, is_control=is_control)

    honest = _scale_cost(champion, np.full(len(champion), _HONEST_COST))
    return [
        judge("explosive-costs", _scale_cost(champion, _explosions(champion, plan.cap_usd))),
        *(judge(name, honest, damage) for name, damage in _DAMAGES.items()),
        judge("champion-unchanged", _as_candidate(champion)),
        judge("control: champion at 70 % of its cost", honest, is_control=True),
    ]


def judge_tables(
    name: str, units: list[tuple[int, pa.Table]], plan: GatePlan, config: GateConfig, *, is_control: bool = False
) -> HoleResult:
    """Judge results as a gate would."""
    monitor = GateMonitor(plan, config, needs_size=False)
    for index, table in units:
        if monitor.add(index, table):
            break
    decision = monitor.finish()
    return HoleResult(name, decision.verdict, decision.reasons[0], decision.n_tasks, is_control)


def split_units(table: pa.Table, plan: GatePlan) -> list[tuple[int, pa.Table]]:
    """Return the rows of each unit of the plan."""
    place = {task_id: number // plan.rows_per_unit for number, task_id in enumerate(plan.task_ids)}
    unit = np.array([place[task_id] for task_id in table["task_id"].to_pylist()])
    return [(index, table.filter(pa.array(unit == index))) for index in range(len(plan.units))]


def _as_candidate(rows: pa.Table) -> pa.Table:
    return _set(rows, "role", pa.array(["candidate"] * len(rows), pa.string()))


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    position = RESULT_SCHEMA.get_field_index(name)
    return rows.set_column(position, RESULT_SCHEMA.field(position), values)


def _scale_cost(champion: pa.Table, factor: FloatArray) -> pa.Table:
    """Return the champion's rows as a candidate's, at other costs."""
    return _set(_as_candidate(champion), "cost_usd", pc.multiply(champion["cost_usd"], pa.array(factor)))


def _explosions(champion: pa.Table, cap_usd: float) -> FloatArray:
    """Return factors of cost: most tasks 10 % cheaper, 5 % so dear that the mean is 5 % above the champion's.

    Every twentieth task explodes, by the same amount each, at most up to the cap; the rest pays what is left.
    """
    cost = np.maximum(champion["cost_usd"].to_numpy(), 1e-12)
    n_rows = len(cost)
    explodes = np.arange(n_rows) % round(1 / _EXPLOSIVE_SHARE) == 0
    target = _EXPLOSIVE_MEAN * cost.sum()
    typical = _EXPLOSIVE_TYPICAL * cost[~explodes].sum()
    each = min((target - typical) / explodes.sum(), cap_usd)
    scale = (target - each * explodes.sum()) / max(cost[~explodes].sum(), 1e-12)
    return np.asarray(np.minimum(np.where(explodes, each, cost * scale), cap_usd) / cost)


_Units = list[tuple[int, pa.Table]]
_Damage = Callable[[_Units], _Units]


def _change_first(change: Callable[[pa.Table], pa.Table]) -> _Damage:
    def damage(units: _Units) -> _Units:
        index, table = units[0]
        return [(index, change(table)), *units[1:]]

    return damage


def _put(name: str, value: Any) -> _Damage:
    """Return the damage of one figure of the candidate's first row."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[table["role"].to_pylist().index("candidate")] = value
        return _set(table, name, pa.array(values, RESULT_SCHEMA.field(name).type))

    return _change_first(change)


def _censor_all(table: pa.Table) -> pa.Table:
    """Claim of every episode of the candidate that its outcome is not known."""
    is_own = pc.equal(table["role"], "candidate")
    success = pc.if_else(is_own, pa.scalar(None, pa.float64()), table["success"])
    return _set(_set(table, "censored", pc.or_(is_own, table["censored"])), "success", success)


_DAMAGES: dict[str, _Damage] = {
    "nan-success": _put("success", float("nan")),
    "nan-cost": _put("cost_usd", float("nan")),
    "missing-success": _put("success", None),
    "success-above-1": _put("success", 2.0),
    "negative-cost": _put("cost_usd", -1.0),
    "one-unsafe-run": _put("unsafe", True),
    "all-censored": lambda units: [(index, _censor_all(table)) for index, table in units],
    "empty-results": _change_first(lambda table: table.slice(0, 0)),
    "short-results": _change_first(lambda table: table.slice(0, len(table) - 1)),
    "missing-unit": lambda units: units[1:],
    "doubled-rows": _change_first(lambda table: pa.concat_tables([table, table])),
    "one-result-for-another": _change_first(
        lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])
    ),
    "unit-twice": lambda units: [units[0], *units],
}
