"""Tests of success on paired tasks: Tango's score test, the exact sign test, and the Clopper-Pearson bound.

Of n tasks, b succeed with the candidate only and c with the champion only. Wald's test and the percentile bootstrap of
(b − c) / n miss their level where few pairs differ, which is where gates live; these do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import beta, norm

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.estimates import Interval, ScoreTest, check_level, check_values
from celr_ray.errors import PolicyError

__all__ = [
    "clopper_pearson_upper",
    "count_discordant",
    "sign_flip_test",
    "tango",
    "tango_interval",
    "tango_scores",
    "tasks_for_zero",
]

_EDGE = 1e-9


def count_discordant(candidate: ArrayLike, champion: ArrayLike) -> tuple[int, int, int]:
    """Return (b, c, n) of paired outcomes.

    Args:
        candidate: [n] 1 = success, 0 = failure.
        champion: [n] the same tasks in the same order.

    Raises:
        PolicyError: other values, or lengths that differ.
    """
    new = check_values("the candidate's successes", np.asarray(candidate, dtype=np.float64))
    old = check_values("the champion's successes", np.asarray(champion, dtype=np.float64))
    if len(new) != len(old):
        raise PolicyError(f"outcomes are not paired: {len(new)} of the candidate, {len(old)} of the champion")
    for values in (new, old):
        if not np.isin(values, (0, 1)).all():
            raise PolicyError("outcomes of single replays must be 0 or 1; several replays need the clustered test")
    return int((new > old).sum()), int((new < old).sum()), len(new)


def tango_scores(b: ArrayLike, c: ArrayLike, n: ArrayLike, delta: ArrayLike) -> FloatArray:
    """Return Tango's statistic for H0: p_b − p_c ≤ −δ, elementwise.

        Δ = −δ    A = 2n    B = −b − c + (2n − b + c) Δ    C = −c Δ (1 − Δ)    q = (√(B² − 4AC) − B) / 2A
        z = (b − c − nΔ) / √(n (2q + Δ (1 − Δ)))

    q is the maximum likelihood estimate of p_c where p_b − p_c = Δ. With δ = 0, z is McNemar's (b − c) / √(b + c).

    Assumes independent tasks. Asymptotic: its exact size, over all p_c, is in benchmarks/results.

    Args:
        b: tasks that only the candidate solves.
        c: tasks that only the champion solves.
        n: all tasks.
        delta: margin δ in (−1, 1); a negative one asks for that much superiority.

    Returns:
        z in the broadcast shape; 0 where nothing differs and δ = 0: no evidence either way.

    Raises:
        PolicyError: counts or margin out of range.

    Source: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26.
    """
    b, c, n, delta = (np.asarray(x, dtype=np.float64) for x in (b, c, n, delta))
    if not ((b >= 0) & (c >= 0) & (n >= 1) & (b + c <= n)).all():
        raise PolicyError("counts must satisfy b ≥ 0, c ≥ 0, n ≥ 1 and b + c ≤ n")
    if not (np.abs(delta) < 1).all():
        raise PolicyError(f"the margin must lie between −1 and 1, not {delta}")
    shift = -delta
    middle = -b - c + (2 * n - b + c) * shift
    root = np.sqrt(np.maximum(middle**2 + 8 * n * c * shift * (1 - shift), 0))
    q = (root - middle) / (4 * n)
    variance = n * np.maximum(2 * q + shift * (1 - shift), 0)
    gap = b - c - n * shift
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.abs(gap) < _EDGE, 0.0, gap / np.sqrt(variance)))


def tango(b: int, c: int, n: int, delta: float) -> ScoreTest:
    """Test that a candidate's success is lower by less than a margin.

    H0: p_b − p_c ≤ −δ. A small p-value is evidence of non-inferiority, with δ = 0 of superiority.

    Args:
        b: tasks that only the candidate solves.
        c: tasks that only the champion solves.
        n: all tasks.
        delta: margin δ, a difference of success rates.

    Raises:
        PolicyError: counts or margin out of range.
    """
    z = float(tango_scores(b, c, n, delta))
    return ScoreTest(z, float(norm.sf(z)))


def tango_interval(b: int, c: int, n: int, alpha: float = 0.05) -> Interval:
    """Return the differences of success that Tango's test does not refute: two one-sided bounds at α each.

    ci_low > −δ says the same as a p-value of `tango` below α. The p-value here is that of superiority, δ = 0.

    Raises:
        PolicyError: counts or level out of range.
    """
    check_level("alpha", alpha)
    p_value = tango(b, c, n, 0.0).p_value
    value, z = (b - c) / n, float(norm.isf(alpha))

    def excess(difference: float, bound: float) -> float:
        return float(tango_scores(b, c, n, -difference)) - bound

    low = -1.0 if c == n else float(brentq(excess, -1 + _EDGE, min(value, 1 - _EDGE), args=(z,)))
    high = 1.0 if b == n else float(brentq(excess, max(value, -1 + _EDGE), 1 - _EDGE, args=(-z,)))
    return Interval(value, low, high, n, p_value)


def sign_flip_test(differences: ArrayLike, replays: int = 1) -> float:
    """Return the exact one-sided p-value that differences are lower than by chance.

    Where candidate and champion are exchangeable on each task, every difference could as well have had the other sign:
    p = P(Σ ±|d_i| ≤ Σ d_i) over all signs, each equally likely. For d in {−1, 0, 1} this is McNemar's exact test.

    Valid at every n, under that null hypothesis. Fewer than 7 differing tasks can never give p ≤ .01.

    Args:
        differences: [n] candidate − champion, each task's mean over its replays, in [−1, 1].
        replays: of each task; differences are multiples of 1 / replays.

    Raises:
        PolicyError: a difference is not finite or not such a multiple.
    """
    values = check_values("the differences", np.asarray(differences, dtype=np.float64))
    steps = np.rint(values * replays).astype(np.int64)
    if not np.allclose(steps, values * replays, atol=1e-6):
        raise PolicyError(f"differences of {replays} replays must be multiples of 1/{replays}")
    chance = np.ones(1)  # of each sum of the |d_i| that got a plus
    for size in np.abs(steps[steps != 0]):
        longer = np.zeros(len(chance) + size)
        longer[: len(chance)] = chance / 2
        longer[size:] += chance / 2
        chance = longer
    positive = int(steps[steps > 0].sum())
    return float(min(chance[: positive + 1].sum(), 1.0))


def clopper_pearson_upper(k: int, n: int, alpha: float = 0.05) -> float:
    """Return the exact one-sided upper bound of a rate after k events in n tasks.

    The largest rate p with P(Binomial(n, p) ≤ k) ≥ α; with k = 0 it is 1 − α^(1/n).

    Raises:
        PolicyError: counts or level out of range.

    Source: Clopper & Pearson (1934).
    """
    check_level("alpha", alpha)
    if not 0 <= k <= n or n < 1:
        raise PolicyError(f"cannot bound a rate after {k} events in {n} tasks")
    return 1.0 if k == n else float(beta.ppf(1 - alpha, k + 1, n - k))


def tasks_for_zero(rate: float, alpha: float = 0.05) -> int:
    """Return how many tasks without an event prove a rate of at most `rate`: 299 for 1 % at α = .05."""
    check_level("alpha", alpha)
    if not 0 < rate < 1:
        raise PolicyError(f"the rate must lie between 0 and 1, not {rate}")
    return int(np.ceil(np.log(alpha) / np.log1p(-rate)))
