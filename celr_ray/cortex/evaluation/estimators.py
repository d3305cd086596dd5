"""Off-policy estimators: what a policy would have earned, from another policy's logs. They screen, they never promote.

    IS     mean(w G)                         WIS                Σ w G / Σ w
    PDIS   mean Σ_t W_t r_t                  per-decision WIS   Σ_t Σ_i W_it r_it / Σ_i W_it
    DR     mean Σ_t [W_t (r_t − Q̂(s_t, a_t)) + W_{t−1} V̂(s_t)],  Q̂ fitted on the other folds

IS and PDIS are unbiased where the behavior policy's probabilities are right and cover the evaluation policy; the
weighted ones trade a bias of order 1/n for less variance; DR is unbiased too, and has less variance the better Q̂ is.
Intervals are for a look: normal ones that keep the episodes of a task together, which undercover when few weights
dominate; FQE's by a jackknife over the folds, blind to what the regression cannot fit. What decides is
`screening.veto`, by Gaffke's bounds. Episodes whose log was cut have no return: they are left out and counted.

Source: Precup, Sutton & Singh (2000); Jiang & Li (2016); Thomas & Brunskill (2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from celr_ray.cortex.actions import FloatArray, IntArray
from celr_ray.cortex.evaluation.episode_values import (
    N_FOLDS,
    EpisodeValues,
    Fits,
    PartSums,
    finish_sums,
    sum_part,
    value_episodes,
)
from celr_ray.cortex.evaluation.fqe import QFunction
from celr_ray.cortex.evaluation.logged import LoggedEpisodes
from celr_ray.cortex.evaluation.screening import Diagnostics, Screen, diagnose_weights, screen_values
from celr_ray.cortex.reward import RETURN_RANGE

__all__ = [
    "ESTIMATORS",
    "OpeEstimate",
    "OpeReport",
    "diagnose",
    "estimate_all",
    "estimate_dr",
    "estimate_fqe",
    "estimate_values",
    "make_report",
    "screen",
]

ESTIMATORS = ("is", "wis", "pdis", "pdwis", "dr", "fqe")
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class OpeEstimate:
    """One estimate of a policy's value.

    Attributes:
        value: the estimate; NaN where no weight is left to estimate it from.
        ci_low, ci_high: 95 % interval, tasks being the independent units; an indication, no bound.
        n: episodes that it is made of.
        ess: effective sample size (Σw)²/Σw²; n for FQE, which weights nothing.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    ess: float


@dataclass(frozen=True)
class OpeReport:
    """All that logs tell of a policy.

    Attributes:
        estimates: by the names of `ESTIMATORS`. Show them only beside `screen.diagnostics`.
        screen: bounds and diagnostics.
        behavior: what the logged episodes earned themselves: the value of the policies that made them.
    """

    estimates: dict[str, OpeEstimate]
    screen: Screen
    behavior: OpeEstimate


def estimate_all(
    log: LoggedEpisodes,
    evaluation: FloatArray,
    return_range: tuple[float, float] = RETURN_RANGE,
    *,
    n_folds: int = N_FOLDS,
    alpha: float = 0.05,
    seed: int = 0,
) -> OpeReport:
    """Return every estimate, the bounds and the diagnostics.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        return_range: (R_lo, R_hi) that no return can leave.
        n_folds: of the cross-fit, at least 2.
        alpha: 1 − confidence of each bound.
        seed: of folds and Gaffke's draws.

    Raises:
        PolicyError: the probabilities are none, or a return leaves its range.
    """
    sums = sum_part(log, evaluation, n_folds=n_folds, seed=seed)
    fits = finish_sums(sums, seed=seed)
    values = value_episodes(log, evaluation, fits)
    return make_report(values, sums, fits, return_range, alpha=alpha, seed=seed)


def make_report(
    values: EpisodeValues,
    sums: PartSums,
    fits: Fits,
    return_range: tuple[float, float] = RETURN_RANGE,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> OpeReport:
    """Put together what the two passes over all parts found; the arguments are those of `estimate_all`."""
    found = screen_values(values, sums.n_unsupported, return_range, alpha=alpha, seed=seed)
    behavior = _estimate_mean(values.returns[~values.is_cut], values.task[~values.is_cut], int((~values.is_cut).sum()))
    return OpeReport(_estimate(values, fits), found, behavior)


def _estimate(values: EpisodeValues, fits: Fits) -> dict[str, OpeEstimate]:
    done = values.take(~values.is_cut)
    w, task = done.weight, done.task
    ess = _effective_size(w)
    mean_w = float(w.mean()) if len(w) else 0.0
    wis = float((w * done.returns).mean() / mean_w) if mean_w > 0 else math.nan
    influence = w * (done.returns - wis) / mean_w if mean_w > 0 else w * math.nan
    return {
        "is": _estimate_mean(w * done.returns, task, ess),
        "wis": _estimate_ratio(wis, influence, task, ess),
        "pdis": _estimate_mean(done.pdis, task, ess),
        "pdwis": _estimate_ratio(float(fits.step_value.sum()), done.pdwis, task, ess),
        "dr": _estimate_mean(done.dr, task, ess),
        "fqe": _estimate_by_jackknife(fits, len(values.weight)),
    }


def _effective_size(w: FloatArray) -> float:
    return float(w.sum()) ** 2 / float((w**2).sum()) if (w > 0).any() else 0.0


def _estimate_mean(parts: FloatArray, task: IntArray, ess: float) -> OpeEstimate:
    """Return the mean of one number for each episode."""
    if not len(parts):
        return OpeEstimate(math.nan, -math.inf, math.inf, 0, 0.0)
    value = float(parts.mean())
    return _estimate_ratio(value, parts - value, task, ess)


def _estimate_ratio(value: float, influence: FloatArray, task: IntArray, ess: float) -> OpeEstimate:
    """Return an estimate whose error is the mean of what each episode adds to it, summed within tasks first."""
    n = len(influence)
    of_task = np.bincount(np.unique(task, return_inverse=True)[1], influence)
    m = len(of_task)
    half = _Z95 * math.sqrt(m / (m - 1) * float((of_task**2).sum())) / n if m > 1 else math.inf
    return OpeEstimate(value, value - half, value + half, n, ess)


def _estimate_by_jackknife(fits: Fits, n: int) -> OpeEstimate:
    """Return FQE's value, its error from the fits that leave out one fold of tasks each."""
    left = fits.fqe_without[np.isfinite(fits.fqe_without)]
    k = len(left)
    spread = math.sqrt((k - 1) / k * float(((left - left.mean()) ** 2).sum())) if k > 1 else math.inf
    half = float(student.ppf(0.975, k - 1)) * spread if k > 1 else math.inf
    return OpeEstimate(fits.fqe, fits.fqe - half, fits.fqe + half, n, float(n))


def diagnose(log: LoggedEpisodes, evaluation: FloatArray) -> Diagnostics:
    """Look at weights and support only.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
    """
    values, sums, _ = _evaluate(log, evaluation)
    return diagnose_weights(values.weight, values.is_cut, sums.n_unsupported)


def estimate_values(log: LoggedEpisodes, evaluation: FloatArray) -> dict[str, OpeEstimate]:
    """Return the estimates that need no model: `is`, `wis`, `pdis`, `pdwis`.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
    """
    values, _, fits = _evaluate(log, evaluation)
    found = _estimate(values, fits)
    return {name: found[name] for name in ("is", "wis", "pdis", "pdwis")}


def estimate_fqe(log: LoggedEpisodes, evaluation: FloatArray) -> OpeEstimate:
    """Return the value by fitted Q evaluation; its interval knows the data's spread, not what the regression misses."""
    values, _, fits = _evaluate(log, evaluation)
    return _estimate(values, fits)["fqe"]


def estimate_dr(
    log: LoggedEpisodes, evaluation: FloatArray, *, n_folds: int = N_FOLDS, seed: int = 0, q: QFunction | None = None
) -> OpeEstimate:
    """Return the doubly robust value, Q̂ cross-fitted: no task is corrected by a fit that saw it.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        n_folds: at least 2.
        seed: of the folds.
        q: use this Q̂ for all episodes instead of fitting one.
    """
    values, _, fits = _evaluate(log, evaluation, n_folds=n_folds, seed=seed, q=q)
    return _estimate(values, fits)["dr"]


def _evaluate(
    log: LoggedEpisodes, evaluation: FloatArray, *, n_folds: int = N_FOLDS, seed: int = 0, q: QFunction | None = None
) -> tuple[EpisodeValues, PartSums, Fits]:
    sums = sum_part(log, evaluation, n_folds=n_folds, seed=seed)
    fits = finish_sums(sums, seed=seed, q=q)
    return value_episodes(log, evaluation, fits), sums, fits


def screen(
    log: LoggedEpisodes,
    evaluation: FloatArray,
    return_range: tuple[float, float] = RETURN_RANGE,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Screen:
    """Bound a policy's value from both sides; see `screening`.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        return_range: (R_lo, R_hi) that no return can leave.
        alpha: 1 − confidence of each bound.
        seed: of Gaffke's draws.

    Raises:
        PolicyError: the probabilities are none, or a return leaves its range.
    """
    values, sums, _ = _evaluate(log, evaluation)
    return screen_values(values, sums.n_unsupported, return_range, alpha=alpha, seed=seed)
