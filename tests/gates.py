"""Plans, outcomes and suites for tests of the gate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray.cortex.evaluation.bank import Bank, make_bank
from celr_ray.cortex.gate.criteria import Criteria, GateDecision
from celr_ray.cortex.gate.plan import GatePlan, make_plan
from celr_ray.cortex.gate.practice import make_practice_bank
from celr_ray.cortex.gate.results import TaskOutcome
from celr_ray.cortex.gate.settings import GateConfig

CAP = 0.08


def plan_of(n: int, config: GateConfig, *, has_own_anchor: bool = False, **strata: Any) -> GatePlan:
    task_ids = [f"task/{i:04d}" for i in range(n)]
    return make_plan(task_ids, strata, config, cap_usd=CAP, has_own_anchor=has_own_anchor)


def decide(
    config: GateConfig,
    figures: Mapping[str, tuple[Any, Any]],
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    needs_size: bool = True,
    **strata: Any,
) -> GateDecision:
    """Judge outcomes given in the order of the plan.

    Args:
        config: settings.
        figures: role → success [n], cost [n].
        changes: place → fields of the candidate's outcome there.
        needs_size: as of `Criteria`.
        strata: by the order of task ids.
    """
    n = len(figures["candidate"][0])
    criteria = Criteria(plan_of(n, config, has_own_anchor="anchor" in figures, **strata), config, needs_size=needs_size)
    for place in range(n):
        outcomes = {
            role: TaskOutcome(float(success[place]), float(cost[place]), n_decisions=2)
            for role, (success, cost) in figures.items()
        }
        if changes and place in changes:
            outcomes["candidate"] = TaskOutcome(**{**vars(outcomes["candidate"]), **changes[place]})
        if criteria.update(outcomes) is not None:
            break
    assert criteria.decision is not None
    return criteria.decision


def simulate(seed: int, n: int, *, ratio: float = 0.75, gain: float = 0.0, discord: float = 0.04) -> dict[str, Any]:
    """Return paired outcomes: costs at a ratio with noise, success equal but for some discordant tasks."""
    rng = np.random.default_rng(seed)
    old = rng.random(n) < 0.7
    swapped = rng.random(n)
    new = np.where(swapped < discord / 2, True, np.where(swapped > 1 - discord / 2, False, old))
    new = np.where(rng.random(n) < gain, True, new)
    base = np.minimum(rng.lognormal(np.log(0.01), 0.5, n), CAP)
    cost = np.minimum(base * ratio * rng.gamma(10, 0.1, n), CAP)
    return {"candidate": (new.astype(float), cost), "champion": (old.astype(float), base)}


@cache
def practice_bank(n_gate: int = 340, n_train: int = 60, seed: int = 0) -> Bank:
    """Return a simulated bank with gate and training tasks; on it retry-then-escalate beats the heuristic's cost."""
    n = n_gate + n_train
    bank = make_practice_bank(seed, n)
    split = pa.array(["gate"] * n_gate + ["train"] * n_train)
    place = bank.tasks.schema.get_field_index("split")
    tasks = bank.tasks.set_column(place, bank.tasks.schema.field(place), split)
    return make_bank(bank.tiers, tasks, bank.attempts, bank.notes)
