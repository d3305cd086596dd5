"""Success over several replays of each task: the task is the unit, its replays are no independent evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.bounds import gaffke_lower_bound, gaffke_p_value
from celr_ray.cortex.evaluation.estimates import Interval, check_level, check_values, check_within
from celr_ray.errors import PolicyError

__all__ = ["average_by_task", "clustered_noninferiority", "clustered_t"]


def average_by_task(tasks: Sequence[str], values: FloatArray | Sequence[float]) -> tuple[list[str], FloatArray]:
    """Return each task once, in order of first appearance, and the mean of its values.

    Args:
        tasks: [N] a task id for each replay.
        values: [N].

    Raises:
        PolicyError: a value is not finite, or the lengths differ.
    """
    array = check_values("the replays", values)
    if len(tasks) != len(array):
        raise PolicyError(f"{len(array)} values for {len(tasks)} replays")
    number: dict[str, int] = {}
    rows = np.array([number.setdefault(task, len(number)) for task in tasks], dtype=np.int64)
    return list(number), np.bincount(rows, weights=array) / np.bincount(rows)


def clustered_t(differences: FloatArray | Sequence[float], delta: float = 0.0, alpha: float = 0.05) -> Interval:
    """Return Student's interval of a mean of per-task differences, and the test of H0: mean ≤ −δ.

    Assumes independent tasks and a mean that is close to normal. It fails where most tasks agree and few lose much: 50
    tasks of which one in twenty breaks show no loss at all 8 % of the time, and then the interval is one point. For
    verdicts use `clustered_noninferiority`.

    Args:
        differences: [n] candidate − champion, one a task; see `average_by_task`.
        delta: margin.
        alpha: level of each bound.

    Returns:
        Without two tasks an infinite interval and p = 1. Where all differences are equal the interval is that value.

    Raises:
        PolicyError: a difference is not finite, or a level is out of range.
    """
    check_level("alpha", alpha)
    values = check_values("the differences", differences)
    n = len(values)
    if n < 2:
        return Interval(float(values.sum()), -np.inf, np.inf, n, 1.0)
    mean = float(values.mean())
    error = 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1)) / n**0.5
    half = float(student.isf(alpha, n - 1)) * error
    p_value = float(student.sf((mean + delta) / error, n - 1)) if error > 0 else float(mean <= -delta)
    return Interval(mean, mean - half, mean + half, n, p_value)


def clustered_noninferiority(
    differences: FloatArray | Sequence[float], delta: float, alpha: float = 0.05, seed: int = 0
) -> Interval:
    """Test H0: mean difference ≤ −δ by Student's t and by Gaffke's bound; the weaker evidence counts.

    Gaffke's bound knows that a task can lose at most 1 and so allows for losses that were not seen: without any loss,
    59 tasks are needed for δ = α = .05, as the binomial law says. It costs little where t is right.

    Args:
        differences: [n] candidate − champion, one a task, in [−1, 1].
        delta: margin.
        alpha: level of each bound.
        seed: of Gaffke's draws.

    Raises:
        PolicyError: a difference is not finite or out of range, or a level is.
    """
    by_t = clustered_t(differences, delta, alpha)
    values = np.asarray(differences, dtype=np.float64)
    check_within("the differences", values, -1, 1)
    if by_t.n < 2:
        return by_t
    low = gaffke_lower_bound(np.maximum(1 + values, 0), alpha, seed) - 1
    high = 1 - gaffke_lower_bound(np.maximum(1 - values, 0), alpha, seed)
    p_value = gaffke_p_value(np.maximum(1 + values, 0), 1 - delta, seed)
    return Interval(by_t.value, min(by_t.ci_low, low), max(by_t.ci_high, high), by_t.n, max(by_t.p_value, p_value))
