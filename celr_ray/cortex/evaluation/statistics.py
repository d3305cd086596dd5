"""The statistics of the gate, in one place. The task is the unit of analysis, and levels are one-sided.

proportions   success, one pair a task: Tango, exact sign test; unsafe: Clopper-Pearson
clustered     success, several replays a task
cost_tests    cost: t and bootstrap-t, Gaffke at the cap
sequential    early stop: e-processes, then a last test
prefix        results in any order of arrival, evaluated in the preset one
strata        strata proven worse, Holm, regressed tasks
"""

from __future__ import annotations

from celr_ray.cortex.evaluation.clustered import average_by_task, clustered_noninferiority, clustered_t
from celr_ray.cortex.evaluation.cost_tests import (
    MIN_COST_TASKS,
    CostBounds,
    bootstrap_t_upper,
    bound_differences,
    compare_costs,
    cost_upper_bounds,
)
from celr_ray.cortex.evaluation.estimates import Interval, ScoreTest
from celr_ray.cortex.evaluation.prefix import PrefixMonitor
from celr_ray.cortex.evaluation.proportions import (
    clopper_pearson_upper,
    count_discordant,
    sign_flip_test,
    tango,
    tango_interval,
    tango_scores,
    tasks_for_zero,
)
from celr_ray.cortex.evaluation.sequential import (
    Decision,
    EProcess,
    Levels,
    SequentialTest,
    log_wealth,
    watch_cost,
    watch_success,
)
from celr_ray.cortex.evaluation.strata import RegressedTask, StratumResult, find_regressed, holm, strata_worse

__all__ = [
    "MIN_COST_TASKS",
    "CostBounds",
    "Decision",
    "EProcess",
    "Interval",
    "Levels",
    "PrefixMonitor",
    "RegressedTask",
    "ScoreTest",
    "SequentialTest",
    "StratumResult",
    "average_by_task",
    "bootstrap_t_upper",
    "bound_differences",
    "clopper_pearson_upper",
    "clustered_noninferiority",
    "clustered_t",
    "compare_costs",
    "cost_upper_bounds",
    "count_discordant",
    "find_regressed",
    "holm",
    "log_wealth",
    "sign_flip_test",
    "strata_worse",
    "tango",
    "tango_interval",
    "tango_scores",
    "tasks_for_zero",
    "watch_cost",
    "watch_success",
]
