"""Units of results in any order of arrival → the longest complete prefix → criteria → one decision.

What is evaluated depends on the preset order alone, so one worker and a hundred give the same decision after the same
task. Damaged results end the gate as INCONCLUSIVE.
"""

from __future__ import annotations

import pyarrow as pa

from celr_ray.cortex.evaluation.prefix import PrefixMonitor
from celr_ray.cortex.gate.criteria import Criteria, GateDecision, GateVerdict
from celr_ray.cortex.gate.plan import GatePlan
from celr_ray.cortex.gate.results import RESULT_SCHEMA, check_rows, read_outcomes, sort_rows
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.errors import PolicyError

__all__ = ["GateMonitor"]


class GateMonitor:
    """Collects units and decides."""

    def __init__(self, plan: GatePlan, config: GateConfig, *, needs_size: bool = True) -> None:
        """Begin with no unit; for the arguments see `Criteria`."""
        self.plan = plan
        self.criteria = Criteria(plan, config, needs_size=needs_size)
        self._prefix: PrefixMonitor[pa.Table] = PrefixMonitor([str(index) for index in range(len(plan.units))])
        self._tables: list[pa.Table] = []

    @property
    def decision(self) -> GateDecision | None:
        """Return the decision, None as long as there is none."""
        return self.criteria.decision

    def add(self, index: int, table: pa.Table) -> bool:
        """Take the results of a unit; returns whether the gate is decided, so that no more are needed."""
        try:
            grown = self._prefix.add(str(index), table)
        except PolicyError as error:
            self.criteria.close(GateVerdict.INCONCLUSIVE, [f"results: {error}"])
            grown = []
        for unit, rows in grown:
            if self.decision is not None:
                break
            self._evaluate(int(unit), rows)
        return self.decision is not None

    def _evaluate(self, index: int, table: pa.Table) -> None:
        start, stop = self.plan.units[index]
        task_ids = self.plan.task_ids[start:stop]
        damage = check_rows(table, task_ids, self.plan.roles, self.plan.replays)
        if damage is not None:
            self.criteria.close(GateVerdict.INCONCLUSIVE, [f"results of unit {index}: {damage}"])
            return
        self._tables.append(table)
        for outcomes in read_outcomes(table, task_ids, self.plan.roles):
            if self.criteria.update(outcomes) is not None:
                return

    def finish(self) -> GateDecision:
        """Return the decision; without one, results are missing."""
        if self.decision is not None:
            return self.decision
        missing = self._prefix.missing
        return self.criteria.close(
            GateVerdict.INCONCLUSIVE, [f"the results of {len(missing)} of {len(self.plan.units)} units are missing"]
        )

    def rows(self) -> pa.Table:
        """Return the rows that the decision rests on: those of its prefix, in the preset order."""
        if not self._tables:
            return RESULT_SCHEMA.empty_table()
        used = self.plan.task_ids[: self.criteria.n]
        return sort_rows(pa.concat_tables(self._tables), used)
