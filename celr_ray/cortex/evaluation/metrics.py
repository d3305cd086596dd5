"""Cost-success metrics of a family of policies, in the words of RouteLLM but with money instead of calls.

    c = (cost − cost_weak) / (cost_strong − cost_weak)              PGR = (s − s_weak) / (s_strong − s_weak)
    area = ∫₀¹ success dc        APGR = ∫₀¹ PGR dc        CPT(x) = least c at which PGR ≥ x

The curve runs from always-weak (0, 0) to always-strong (1, 1) through the policies of a family, say the thresholds of
one router, that no cheaper one equals: its monotone envelope, linear in between, because a random mix of two neighbours
gets there. Where each call costs the same, c is RouteLLM's share of calls to the strong model. A random mix of weak and
strong has APGR ½ and CPT(x) = x; a router below that line has less, as no concave hull is taken.

The envelope picks its best policies on the same tasks, so it flatters families of many policies; hold that against
APGR, not against PGR, which is one policy's own.

Intervals are percentile bootstraps over tasks, all replays of a task together. They describe; they decide nothing.

Source: Ong et al. (2024), RouteLLM, arXiv 2406.18665, section 3; the linear curve as in its evaluation code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.estimates import check_level, check_values, check_within
from celr_ray.errors import PolicyError

__all__ = ["CurveMetrics", "Metric", "bootstrap_mean", "measure_curve", "trace_curve"]

_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Metric:
    """A figure with its bootstrap interval.

    Attributes:
        value: the figure.
        ci_low, ci_high: 95 % interval unless asked otherwise; None = unbounded, as too many resamples leave it
            undefined.
        n: tasks.
        undefined_share: share of resamples in which the strong policy was not both better and dearer.
    """

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int
    undefined_share: float = 0.0


@dataclass(frozen=True)
class CurveMetrics:
    """Metrics of one family of policies.

    Attributes:
        curve: vertices (c, success) of the envelope, from c = 0 to c = 1.
        area: ∫ success dc: the mean success over all spends from weak to strong.
        apgr: average performance gap recovered.
        cpt50, cpt80: least c that recovers 50 % and 80 % of the gap.
        pgr: name of each policy → performance gap recovered; may be below 0 or above 1.
    """

    curve: tuple[tuple[float, float], ...]
    area: Metric
    apgr: Metric
    cpt50: Metric
    cpt80: Metric
    pgr: dict[str, Metric]


def trace_curve(cost: FloatArray, success: FloatArray, weak: int, strong: int) -> FloatArray | None:
    """Return the vertices [V, 2] of the monotone envelope, columns c and success.

    A policy cheaper than weak is drawn at c = 0, where the best of them counts; one dearer than strong is left out.

    Args:
        cost: [P] mean cost of each policy.
        success: [P] mean success.
        weak: index of always-weak.
        strong: index of always-strong.

    Returns:
        The vertices, or None where strong is not both better and dearer than weak: there is no gap to recover.
    """
    gap = cost[strong] - cost[weak]
    if gap <= 0 or success[strong] <= success[weak]:
        return None
    c = np.maximum((cost - cost[weak]) / gap, 0)
    order = np.lexsort((-success, c))
    order = order[c[order] <= 1]
    best = np.maximum.accumulate(success[order])
    rises = np.r_[True, best[1:] > best[:-1]]
    vertices = np.column_stack([c[order][rises], success[order][rises]])
    return vertices if vertices[-1, 0] == 1 else np.vstack([vertices, [1.0, vertices[-1, 1]]])


def measure_curve(
    names: Sequence[str],
    cost: FloatArray,
    success: FloatArray,
    *,
    weak: str,
    strong: str,
    alpha: float = 0.05,
    draws: int = 2_000,
    seed: int = 0,
) -> CurveMetrics:
    """Measure a family of policies on the same tasks.

    Args:
        names: [P] of the policies, `weak` and `strong` among them.
        cost: [P, n] cost of each policy on each task, US$; means over replays.
        success: [P, n] success in [0, 1].
        weak: name of always-weak.
        strong: name of always-strong.
        alpha: 1 − confidence of the intervals.
        draws: resamples of the tasks.
        seed: of the resamples.

    Raises:
        PolicyError: values are not finite or out of range, shapes or names do not fit, or strong is not both better
            and dearer than weak.
    """
    check_level("alpha", alpha)
    weak_row, strong_row = _check_family(names, cost, success, weak, strong)
    ends = (weak_row, strong_row)
    mean_cost, mean_success = cost.mean(axis=1), success.mean(axis=1)
    figures = _measure(mean_cost, mean_success, *ends)
    curve = trace_curve(mean_cost, mean_success, *ends)
    if figures is None or curve is None:
        raise PolicyError(
            f"no gap to recover: {strong} succeeds at {mean_success[strong_row]:.4g} for {mean_cost[strong_row]:.4g} a "
            f"task, {weak} at {mean_success[weak_row]:.4g} for {mean_cost[weak_row]:.4g}; strong must be better and "
            "dearer"
        )
    resampled = [_measure(c, s, *ends) for c, s in _resample(cost, success, draws, seed)]
    found = np.array([x for x in resampled if x is not None]).reshape(-1, len(figures))
    n, lost = cost.shape[1], 1 - len(found) / draws
    area, apgr, cpt50, cpt80, *pgr = (
        Metric(float(value), *_bound(found[:, column], draws, alpha), n, lost) for column, value in enumerate(figures)
    )
    vertices = tuple((float(c), float(s)) for c, s in curve)
    return CurveMetrics(vertices, area, apgr, cpt50, cpt80, dict(zip(names, pgr, strict=True)))


def bootstrap_mean(values: FloatArray, *, alpha: float = 0.05, draws: int = 2_000, seed: int = 0) -> Metric:
    """Return a mean over tasks, as of regrets to the oracle, with its percentile interval.

    Args:
        values: [n] one a task.
        alpha: 1 − confidence.
        draws: resamples.
        seed: of the resamples.

    Raises:
        PolicyError: a value is not finite, or there is none.
    """
    check_level("alpha", alpha)
    values = check_values("the values", values)
    if not len(values):
        raise PolicyError("there are no tasks to average over")
    means = np.array([c[0] for c, _ in _resample(values[None], values[None], draws, seed)])
    return Metric(float(values.mean()), *_bound(means, draws, alpha), len(values))


def _check_family(
    names: Sequence[str], cost: FloatArray, success: FloatArray, weak: str, strong: str
) -> tuple[int, int]:
    if cost.shape != success.shape or cost.ndim != 2 or cost.shape[0] != len(names) or cost.shape[1] == 0:
        raise PolicyError(f"costs {cost.shape} and successes {success.shape} must both be [{len(names)}, tasks]")
    if len(set(names)) < len(names) or weak not in names or strong not in names:
        raise PolicyError(f"the policies must have names of their own, {weak!r} and {strong!r} among them: {names}")
    check_within("the costs", check_values("the costs", cost.ravel()), 0, np.inf)
    check_within("the successes", check_values("the successes", success.ravel()), 0, 1)
    return list(names).index(weak), list(names).index(strong)


def _measure(cost: FloatArray, success: FloatArray, weak: int, strong: int) -> FloatArray | None:
    """Return area, APGR, CPT(50 %), CPT(80 %), then each PGR."""
    curve = trace_curve(cost, success, weak, strong)
    if curve is None:
        return None
    low, gap = success[weak], success[strong] - success[weak]
    area = float(np.trapezoid(curve[:, 1], curve[:, 0]))
    thresholds = [_find_spend(curve, low + share * gap) for share in (0.5, 0.8)]
    return np.array([area, (area - low) / gap, *thresholds, *((success - low) / gap)])


def _find_spend(curve: FloatArray, level: float) -> float:
    if curve[0, 1] >= level:
        return 0.0
    at = int(np.argmax(curve[:, 1] >= level))
    (c0, s0), (c1, s1) = curve[at - 1], curve[at]
    return float(c0 + (c1 - c0) * (level - s0) / (s1 - s0))


def _resample(cost: FloatArray, success: FloatArray, draws: int, seed: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield mean costs and successes [P] of tasks drawn with replacement, all policies on the same ones."""
    rng = np.random.default_rng(seed)
    n = cost.shape[1]
    step = max(_CHUNK_VALUES // n, 1)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        rows = rng.integers(n, size=(size, n))
        flat = (rows + n * np.arange(size)[:, None]).ravel()
        weights = np.bincount(flat, minlength=size * n).reshape(size, n) / n
        yield from zip(weights @ cost.T, weights @ success.T, strict=True)


def _bound(found: FloatArray, draws: int, alpha: float) -> tuple[float | None, float | None]:
    """An undefined resample could lie anywhere, so it counts against both ends."""
    lost = draws - len(found)
    padded_low = np.r_[np.full(lost, -np.inf), np.sort(found)]
    padded_high = np.r_[np.sort(found), np.full(lost, np.inf)]
    low = float(np.quantile(padded_low, alpha / 2, method="lower"))
    high = float(np.quantile(padded_high, 1 - alpha / 2, method="higher"))
    return (low if np.isfinite(low) else None), (high if np.isfinite(high) else None)
