"""Where a candidate is worse: strata of tasks by difficulty or domain, single tasks, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.estimates import check_level, check_values
from celr_ray.cortex.evaluation.proportions import sign_flip_test
from celr_ray.errors import PolicyError

__all__ = ["RegressedTask", "StratumResult", "find_regressed", "holm", "strata_worse"]


def holm(p_values: ArrayLike) -> FloatArray:
    """Return Holm's adjusted p-values: reject where they are at most α, with a familywise error of at most α.

    The k-th smallest of m is multiplied by m − k + 1 and then raised to its predecessor, at most 1.

    Args:
        p_values: [m] of tests that may depend on each other in any way.

    Raises:
        PolicyError: a p-value is not finite or outside [0, 1].

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.
    """
    values = check_values("the p-values", np.asarray(p_values, dtype=np.float64))
    if ((values < 0) | (values > 1)).any():
        raise PolicyError("p-values must lie in [0, 1]")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


@dataclass(frozen=True)
class StratumResult:
    """How a candidate does on one stratum.

    Attributes:
        grouping: what the tasks are grouped by.
        stratum: name of the group.
        n: its tasks.
        value: mean difference candidate − champion.
        p_value: exact, one-sided, that it is worse.
        p_adjusted: Holm's, over all strata of all groupings.
        is_worse: whether that is proven.
    """

    grouping: str
    stratum: str
    n: int
    value: float
    p_value: float
    p_adjusted: float
    is_worse: bool


def strata_worse(
    groupings: Mapping[str, Sequence[str]], differences: ArrayLike, *, replays: int = 1, alpha: float = 0.01
) -> tuple[StratumResult, ...]:
    """Test each stratum for being worse, exactly, with Holm's correction over all of them.

    A stratum of fewer than 7 tasks can prove nothing at 99 %: look at its value, and at the regressed tasks.

    Args:
        groupings: name of each grouping → [n] the stratum of each task.
        differences: [n] candidate − champion, each task's mean over its replays, in [−1, 1].
        replays: of each task.
        alpha: familywise level.

    Returns:
        One result a stratum, ordered by grouping and stratum.

    Raises:
        PolicyError: a difference is not finite, lengths differ, or the level is out of range.
    """
    check_level("alpha", alpha)
    values = check_values("the differences", np.asarray(differences, dtype=np.float64))
    members: list[tuple[str, str, FloatArray]] = []
    for grouping, labels in sorted(groupings.items()):
        if len(labels) != len(values):
            raise PolicyError(f"grouping {grouping!r} names {len(labels)} strata for {len(values)} tasks")
        names = np.asarray(labels, dtype=str)
        members += [(grouping, str(name), values[names == name]) for name in np.unique(names)]
    p_values = [sign_flip_test(part, replays) for _, _, part in members]
    adjusted = holm(p_values)
    return tuple(
        StratumResult(grouping, name, len(part), float(part.mean()), p, float(q), bool(q <= alpha))
        for (grouping, name, part), p, q in zip(members, p_values, adjusted, strict=True)
    )


@dataclass(frozen=True)
class RegressedTask:
    """A task on which the candidate succeeds less often than the champion."""

    task_id: str
    candidate: float
    champion: float


def find_regressed(tasks: Sequence[str], candidate: ArrayLike, champion: ArrayLike) -> tuple[RegressedTask, ...]:
    """Return the tasks with a lower rate of success, the largest losses first, then by name.

    Args:
        tasks: [n] ids.
        candidate: [n] success of each task, its mean over replays.
        champion: [n] the same.

    Raises:
        PolicyError: a rate is not finite, or lengths differ.
    """
    new = check_values("the candidate's successes", np.asarray(candidate, dtype=np.float64))
    old = check_values("the champion's successes", np.asarray(champion, dtype=np.float64))
    if not len(tasks) == len(new) == len(old):
        raise PolicyError(f"{len(tasks)} tasks, but {len(new)} and {len(old)} outcomes")
    lost = [RegressedTask(task, float(a), float(b)) for task, a, b in zip(tasks, new, old, strict=True) if a < b]
    return tuple(sorted(lost, key=lambda x: (x.candidate - x.champion, x.task_id)))
