"""Lower confidence bounds of a mean of values that are never negative, and may be very large now and then.

Importance-weighted returns are such values. Percentile bootstraps and t intervals undercover them badly (.77–.90 at a
nominal .95 where an estimate is trusted); these two do not. Both depend on the values alone, not on their order, and
grow with each of them; so more values than can be drawn for are rounded down in groups, which keeps a lower bound one.
"""

from __future__ import annotations

import numpy as np

from celr_ray.cortex.actions import FloatArray, IntArray

__all__ = ["betting_lower_bound", "gaffke_lower_bound", "gaffke_p_value"]

_DRAWS = 4_000
_CHUNK_VALUES = 4_000_000
_BETS = np.append(np.geomspace(2**-12, 0.0125, 8), (np.arange(25) + 0.5) / 25)
"""The best bet shrinks with √n: even steps for up to some hundred values, geometric ones for up to a million."""
_BISECTIONS = 50
_MAX_VALUES = 10_000
_GROUPS = 5_000
"""More values than the former are rounded down in this many groups."""


def gaffke_lower_bound(values: FloatArray, alpha: float, seed: int) -> float:
    """Return Gaffke's lower bound of the mean.

    L = the α quantile of Σ u_i x_i over u ~ Dirichlet(1, …, 1) of n + 1 parts, the left-over part on 0.

    Valid for independent values ≥ 0 in all known cases (coverage .95–.98 in our simulations); no proof is known.

    Args:
        values: [n] independent, ≥ 0.
        alpha: 1 − confidence, one-sided.
        seed: of the draws.

    Source: Gaffke (2005); Learned-Miller & Thomas (2019), arXiv 1905.06208.
    """
    return float(np.quantile(_draw_gaffke_means(values, seed), alpha))


def gaffke_p_value(values: FloatArray, mean: float, seed: int) -> float:
    """Return the p-value of H0: the true mean is at most `mean`.

    The share of the draws of `gaffke_lower_bound` that do not exceed it; the same draws for the same seed.

    Args:
        values: [n] independent, ≥ 0.
        mean: the largest mean under the null hypothesis.
        seed: of the draws.
    """
    means = _draw_gaffke_means(values, seed)
    return float((1 + (means <= mean).sum()) / (1 + len(means)))


def _draw_gaffke_means(values: FloatArray, seed: int) -> FloatArray:
    """Draw Σ u_i x_i; the parts of several equal values are drawn as one, their sum has a gamma distribution."""
    found, counts, n_zero = _group(values)
    rng = np.random.default_rng(seed)
    means = np.empty(_DRAWS)
    step = max(_CHUNK_VALUES // (len(found) + 1), 1)
    for start in range(0, _DRAWS, step):
        n_draws = min(step, _DRAWS - start)
        parts = _draw_parts(rng, counts, n_draws)
        means[start : start + step] = parts @ found / (parts.sum(axis=1) + rng.standard_gamma(1 + n_zero, n_draws))
    return means


def _draw_parts(rng: np.random.Generator, counts: IntArray, n_draws: int) -> FloatArray:
    """Return gamma variables [n_draws, len(counts)]; those of shape 1 are exponential and drawn much faster."""
    parts = np.empty((n_draws, len(counts)))
    is_single = counts == 1
    parts[:, is_single] = rng.standard_exponential((n_draws, int(is_single.sum())))
    parts[:, ~is_single] = rng.standard_gamma(counts[~is_single], (n_draws, int((~is_single).sum())))
    return parts


def betting_lower_bound(values: FloatArray, alpha: float) -> float:
    """Return the largest mean that a mixture of constant bets refutes from below; valid for every n.

    K(m) = mean over λ of Π_i (1 + λ (x_i / m − 1)), λ on fixed points of (0, 1), is at most 1 in expectation if the
    true mean is m or less, so it exceeds every m with K(m) ≥ 1/α, with probability 1 − α (Ville; Markov).

    Args:
        values: [n] independent, ≥ 0.
        alpha: 1 − confidence, one-sided.

    Source: Waudby-Smith & Ramdas (2024), JRSS B 86, 1–27.
    """
    found, counts, n_zero = _group(values)
    low, high = 0.0, float(found @ counts / len(values))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_refuted = middle > 0 and _log_wealth(found, counts, n_zero, middle) >= -np.log(alpha)
        low, high = (middle, high) if is_refuted else (low, middle)
    return low


def _log_wealth(values: FloatArray, counts: IntArray, n_zero: int, mean: float) -> float:
    growth = np.array([np.log1p(bet * (values / mean - 1)) @ counts + n_zero * np.log1p(-bet) for bet in _BETS])
    top = growth.max()
    return float(top + np.log(np.mean(np.exp(growth - top))))


def _group(values: FloatArray) -> tuple[FloatArray, IntArray, int]:
    """Return positive values in ascending order, how often each counts, and how many are 0.

    Of more than `_MAX_VALUES`, groups of about equal sums are rounded down to their least; the largest stay alone.

    Raises:
        ValueError: there are none, or one is negative or not finite.
    """
    if len(values) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("the bound needs at least one value, all of them finite and not negative")
    found = np.sort(values[values > 0])
    n_zero = len(values) - len(found)
    if len(found) <= _MAX_VALUES:
        return found, np.ones(len(found), dtype=np.int64), n_zero
    share = np.cumsum(found) / found.sum()
    starts = np.unique(np.searchsorted(share, np.arange(_GROUPS) / _GROUPS, side="right"))
    starts = np.unique(np.append(starts[starts < len(found)], 0))
    return found[starts], np.diff(np.append(starts, len(found))), n_zero
