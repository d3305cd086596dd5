"""What a gate is going to do, fixed before the first result: tasks and their order, roles, caps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from celr_ray.core.episodes import hash_text
from celr_ray.core.executor import draw_uniform
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.errors import InputError
from celr_ray.stage import hash_json

__all__ = ["GatePlan", "make_plan"]

_ORDER_STREAM = 0x4F52444552


@dataclass(frozen=True)
class GatePlan:
    """The preset task set.

    Attributes:
        task_ids: [n] in the order in which results are evaluated.
        strata: name of a grouping → [n] stratum of each task.
        roles: who runs every task: candidate, champion, and anchor unless the champion is the anchor.
        replays: episodes of each task and role.
        cap_usd: most that the runtime lets any of them spend on a task, US$.
        rows_per_unit: tasks of one unit of work.
        must_pass: tasks that the candidate must solve.
    """

    task_ids: tuple[str, ...]
    strata: Mapping[str, tuple[str, ...]]
    roles: tuple[str, ...]
    replays: int
    cap_usd: float
    rows_per_unit: int
    must_pass: frozenset[str] = frozenset()

    @cached_property
    def units(self) -> list[tuple[int, int]]:
        """Return the units of work as ranges of the order: start (included), stop (excluded)."""
        n = len(self.task_ids)
        return [(start, min(start + self.rows_per_unit, n)) for start in range(0, n, self.rows_per_unit)]

    @property
    def base_of_anchor(self) -> str:
        """Return the role whose figures are the anchor's."""
        return "anchor" if "anchor" in self.roles else "champion"

    @property
    def content_hash(self) -> str:
        """Return the hash of the tasks and their order."""
        return hash_json(list(self.task_ids))


def make_plan(
    task_ids: Sequence[str],
    strata: Mapping[str, Sequence[str]],
    config: GateConfig,
    *,
    cap_usd: float,
    has_own_anchor: bool,
) -> GatePlan:
    """Order the tasks by the seed, and look for the tasks that must pass.

    Args:
        task_ids: [n] of the suite, in any order.
        strata: name of a grouping → [n] stratum of each task; groupings of one stratum are left out.
        config: the settings.
        cap_usd: most that a policy may spend on a task, US$.
        has_own_anchor: the anchor is not the champion.

    Raises:
        InputError: a task that must pass is not in the suite, or beyond `max_tasks`, or a task is there twice.
    """
    if len(set(task_ids)) < len(task_ids):
        raise InputError("a task of the suite is there twice; each must be there once")
    keys = np.array([hash_text(task_id) for task_id in task_ids], dtype=np.uint64)
    order = np.lexsort((np.asarray(task_ids, dtype=str), draw_uniform(config.seed, keys, _ORDER_STREAM)))
    order = order[: config.max_tasks]
    chosen = tuple(task_ids[row] for row in order)
    if absent := sorted(set(config.must_pass) - set(chosen)):
        raise InputError(f"must-pass: {len(absent)} tasks are not among those of the gate, first {absent[0]!r}")
    groups = {name: tuple(str(labels[row]) for row in order) for name, labels in sorted(strata.items())}
    roles = ("candidate", "champion", "anchor") if has_own_anchor else ("candidate", "champion")
    return GatePlan(
        task_ids=chosen,
        strata={name: labels for name, labels in groups.items() if len(set(labels)) > 1},
        roles=roles,
        replays=config.replays,
        cap_usd=cap_usd,
        rows_per_unit=config.rows_per_unit,
        must_pass=frozenset(config.must_pass),
    )
