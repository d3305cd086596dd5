"""Off-policy estimators: what a policy would have earned, from another policy's logs. They screen, they never promote.

    IS     mean(w G)                         WIS                Σ w G / Σ w
    PDIS   mean Σ_t W_t r_t                  per-decision WIS   Σ_t Σ_i W_it r_it / Σ_i W_it
    DR     mean Σ_t [W_t (r_t − Q̂(s_t, a_t)) + W_{t−1} V̂(s_t)],  Q̂ fitted on the other folds

IS and PDIS are unbiased where the behavior policy's probabilities are right and cover the evaluation policy; the
weighted ones trade a bias of order 1/n for less variance; DR is unbiased too, and has less variance the better Q̂ is.
Intervals are normal ones for a look; they undercover when few weights dominate. What decides is `Screen.value_low`, by
Gaffke's bound.

Source: Precup, Sutton & Singh (2000); Jiang & Li (2016); Thomas & Brunskill (2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.bounds import betting_lower_bound, gaffke_lower_bound
from celr_ray.cortex.evaluation.fqe import QFunction, fit_q
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, Weights, compute_weights, read_support

__all__ = [
    "Diagnostics",
    "OpeEstimate",
    "Screen",
    "diagnose",
    "estimate_dr",
    "estimate_fqe",
    "estimate_values",
    "screen",
]

_Z95 = 1.959963984540054
_MIN_ESS = 30
_MIN_ESS_SHARE = 0.1
_MAX_WEIGHT_SHARE = 0.2
_MAX_MEAN_WEIGHT_Z = 3.0


@dataclass(frozen=True)
class OpeEstimate:
    """One estimate of a policy's value.

    Attributes:
        value: the estimate.
        ci_low, ci_high: 95 % normal interval over episodes; an indication, no bound.
        n: episodes.
        ess: effective sample size (Σw)²/Σw²; n for FQE, which weights nothing.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    ess: float


@dataclass(frozen=True)
class Diagnostics:
    """Whether logs can tell anything about a policy.

    Attributes:
        n: episodes.
        ess: effective sample size (Σw)²/Σw².
        max_weight_share: the largest weight over the sum of all.
        zero_weight_share: share of episodes with weight 0.
        mean_weight: must be near 1.
        mean_weight_z: its distance from 1 in standard errors; beyond 3 the logged probabilities are wrong.
        n_unsupported: decisions where the policy might do what the behavior policy never does.
        problems: why the policy is not evaluable; empty = it is.
    """

    n: int
    ess: float
    max_weight_share: float
    zero_weight_share: float
    mean_weight: float
    mean_weight_z: float
    n_unsupported: int
    problems: tuple[str, ...]

    @property
    def is_evaluable(self) -> bool:
        """Tell whether estimates may be used."""
        return not self.problems


def diagnose(log: LoggedEpisodes, evaluation: FloatArray) -> Diagnostics:
    """Look at weights and support.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
    """
    weights = compute_weights(log, evaluation)
    return _diagnose(weights.whole, int((~read_support(log, evaluation)).sum()))


def _diagnose(w: FloatArray, n_unsupported: int) -> Diagnostics:
    n, total = len(w), float(w.sum())
    ess = total**2 / float((w**2).sum()) if total > 0 else 0.0
    share = float(w.max()) / total if total > 0 else 1.0
    error = float(w.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    mean = float(w.mean())
    z = (mean - 1) / error if error > 0 else 0.0 if mean == 1 else np.inf
    found = {
        f"{n_unsupported} decisions might take what the behavior policy never does": n_unsupported > 0,
        f"effective sample size {ess:.1f} is below {_MIN_ESS}": ess < _MIN_ESS,
        f"effective sample size is {ess / n:.3f} of n, below {_MIN_ESS_SHARE}": ess / n < _MIN_ESS_SHARE,
        f"one episode has {share:.2f} of all weight, above {_MAX_WEIGHT_SHARE}": share > _MAX_WEIGHT_SHARE,
        f"the mean weight {mean:.3f} is {abs(z):.1f} standard errors from 1: logged probabilities are wrong": abs(z)
        > _MAX_MEAN_WEIGHT_Z,
    }
    problems = tuple(text for text, holds in found.items() if holds)
    return Diagnostics(n, ess, share, float((w == 0).mean()), mean, float(z), n_unsupported, problems)


def _from_parts(parts: FloatArray, ess: float) -> OpeEstimate:
    """Return the mean of one number for each episode."""
    n = len(parts)
    value = float(parts.mean())
    half = _Z95 * float(parts.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return OpeEstimate(value, value - half, value + half, n, ess)


def _from_ratio(value: float, influence: FloatArray, ess: float) -> OpeEstimate:
    """Return a ratio estimate; its error is that of its influence function (delta method)."""
    spread = _from_parts(influence, ess)
    half = spread.ci_high - spread.value
    return OpeEstimate(value, value - half, value + half, spread.n, ess)


def estimate_values(log: LoggedEpisodes, evaluation: FloatArray) -> dict[str, OpeEstimate]:
    """Return the estimates that need no model: `is`, `wis`, `pdis`, `pdwis`.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
    """
    weights = compute_weights(log, evaluation)
    w, returns, steps, reward = weights.whole, weights.returns, weights.cumulative, weights.reward
    ess = diagnose(log, evaluation).ess
    result = {"is": _from_parts(w * returns, ess), "pdis": _from_parts((steps * reward).sum(axis=1), ess)}
    mean_w = w.mean()
    wis = float((w * returns).mean() / mean_w) if mean_w > 0 else np.nan
    result["wis"] = _from_ratio(wis, w * (returns - wis) / mean_w if mean_w > 0 else w * np.nan, ess)
    mean_steps = steps.mean(axis=0)
    scaled = np.divide(steps, mean_steps, out=np.full_like(steps, np.nan), where=mean_steps > 0)
    step_values = (scaled * reward).mean(axis=0)
    result["pdwis"] = _from_ratio(float(step_values.sum()), (scaled * (reward - step_values)).sum(axis=1), ess)
    return result


def estimate_fqe(log: LoggedEpisodes, evaluation: FloatArray) -> OpeEstimate:
    """Return the value by fitted Q evaluation; its interval knows only the spread of first states."""
    first = log.t == 0
    values = (fit_q(log, evaluation).predict(log.obs) * evaluation).sum(axis=1)[first]
    return _from_parts(values, float(len(values)))


def estimate_dr(
    log: LoggedEpisodes, evaluation: FloatArray, *, n_folds: int = 2, seed: int = 0, q: QFunction | None = None
) -> OpeEstimate:
    """Return the doubly robust value, Q̂ cross-fitted: no episode is corrected by a fit that saw it.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        n_folds: at least 2.
        seed: of the folds.
        q: use this Q̂ for all episodes instead of fitting one.
    """
    if n_folds < 2 or n_folds > log.n_episodes:
        raise ValueError(f"n_folds is {n_folds}, not within 2 and the number of episodes, {log.n_episodes}")
    fold = np.random.default_rng(seed).permutation(log.n_episodes) % n_folds
    predicted = np.zeros(log.mask.shape)
    for number in range(n_folds):
        rows = fold[log.episode] == number
        fitted = q or fit_q(log.take(np.flatnonzero(fold != number)), evaluation[~rows])
        predicted[rows] = fitted.predict(log.obs[rows])
    taken = log.pad(predicted[np.arange(len(log.action)), log.action])
    value = log.pad((predicted * evaluation).sum(axis=1))
    weights = compute_weights(log, evaluation)
    before = np.concatenate([np.ones((log.n_episodes, 1)), weights.cumulative[:, :-1]], axis=1)
    parts = (weights.cumulative * (weights.reward - taken) + before * value).sum(axis=1)
    return _from_parts(parts, diagnose(log, evaluation).ess)


@dataclass(frozen=True)
class Screen:
    """Bounds on a policy's value, for a veto only.

    Attributes:
        diagnostics: whether they may be used.
        value_low, value_high: one-sided 1 − α bounds by Gaffke; NaN where the policy is not evaluable.
        betting_low: lower bound by betting, valid without conjecture and wider; NaN likewise.
    """

    diagnostics: Diagnostics
    value_low: float
    value_high: float
    betting_low: float


def screen(
    log: LoggedEpisodes,
    evaluation: FloatArray,
    return_range: tuple[float, float],
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Screen:
    """Bound a policy's value from both sides.

    With x = w (G − R_lo) ≥ 0, whose mean is V − R_lo: V ≥ R_lo + L[x]; and V ≤ R_hi − L[w (R_hi − G)].

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        return_range: (R_lo, R_hi) that no return can leave.
        alpha: 1 − confidence of each bound.
        seed: of Gaffke's draws.
    """
    low, high = return_range
    weights: Weights = compute_weights(log, evaluation)
    returns = weights.returns
    if returns.min() < low or returns.max() > high:
        raise ValueError(f"returns from {returns.min():g} to {returns.max():g} leave the range {low:g} to {high:g}")
    diagnostics = diagnose(log, evaluation)
    if not diagnostics.is_evaluable:
        return Screen(diagnostics, np.nan, np.nan, np.nan)
    above, below = weights.whole * (returns - low), weights.whole * (high - returns)
    return Screen(
        diagnostics,
        low + gaffke_lower_bound(above, alpha, seed),
        high - gaffke_lower_bound(below, alpha, seed),
        low + betting_lower_bound(above, alpha),
    )
