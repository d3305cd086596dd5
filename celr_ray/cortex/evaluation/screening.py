"""The screen before the gate: whether logs can tell anything about a policy, bounds on its value, and the veto.

With x = w (G − R_lo) ≥ 0, whose mean is V − R_lo:  V ≥ R_lo + L[x];  and likewise  V ≤ R_hi − L[w (R_hi − G)].
Episodes of one task are one value of x. An episode whose log was cut counts as if it had earned the worst (for the
lower bound) or the best (for the upper one): x = 0.

The screen can only say no. Bounds of importance-weighted returns are wide, so that they do not overlap is strong
evidence, and that they overlap is none: a candidate that is not vetoed still has everything to prove.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.bounds import betting_lower_bound, gaffke_lower_bound
from celr_ray.cortex.evaluation.episode_values import EpisodeValues
from celr_ray.errors import PolicyError

__all__ = ["Diagnostics", "Screen", "Verdict", "Veto", "diagnose_weights", "screen_values", "veto"]

MIN_ESS = 30
MIN_ESS_SHARE = 0.1
MAX_WEIGHT_SHARE = 0.2
MAX_MEAN_WEIGHT_Z = 3.0
MAX_CUT_SHARE = 0.05
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Diagnostics:
    """Whether logs can tell anything about a policy.

    Attributes:
        n: episodes.
        n_cut: those whose log stops before their end.
        ess: effective sample size (Σw)²/Σw².
        max_weight_share: the largest weight over the sum of all.
        zero_weight_share: share of episodes with weight 0.
        mean_weight: must be near 1.
        mean_weight_z: its distance from 1 in standard errors. Beyond 3, either the logged probabilities are not those
            that acted, or (below 1) the weights that matter are too rare to have been seen.
        n_unsupported: decisions where the policy might do what the behavior policy never does, or episodes that it
            would have begun on another tier.
        problems: why the policy is not evaluable; empty = it is.
    """

    n: int
    n_cut: int
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


@dataclass(frozen=True)
class Screen:
    """Bounds on a policy's value, for a veto only.

    Attributes:
        diagnostics: whether they may be used.
        value_low, value_high: one-sided 1 − α bounds by Gaffke; NaN where the policy is not evaluable.
        betting_low, betting_high: bounds by betting, valid without conjecture and wider; NaN likewise.
        alpha: of each bound.
    """

    diagnostics: Diagnostics
    value_low: float
    value_high: float
    betting_low: float
    betting_high: float
    alpha: float = 0.05


class Verdict(StrEnum):
    """What the screen says; there is no PASS among it."""

    REJECTED = "REJECTED"
    NOT_REJECTED = "NOT_REJECTED"
    NOT_EVALUABLE = "NOT_EVALUABLE"


@dataclass(frozen=True)
class Veto:
    """The screen's word on a candidate.

    Attributes:
        verdict: only REJECTED has a consequence.
        reason: one sentence with the figures.
    """

    verdict: Verdict
    reason: str


def veto(candidate: Screen, champion: Screen) -> Veto:
    """Reject a candidate whose upper bound is below the champion's lower bound, both from the same logs.

    A candidate that is no worse is rejected with probability 2α at most, since one of the bounds must have failed.

    Args:
        candidate: who wants to be promoted.
        champion: who is deployed now.
    """
    for name, found in (("candidate", candidate), ("champion", champion)):
        if not found.diagnostics.is_evaluable:
            problems = "; ".join(found.diagnostics.problems)
            return Veto(Verdict.NOT_EVALUABLE, f"these logs cannot evaluate the {name}: {problems}")
    bounds = f"upper bound {candidate.value_high:.4g}, the champion's lower bound is {champion.value_low:.4g}"
    if candidate.value_high < champion.value_low:
        return Veto(Verdict.REJECTED, f"the candidate is worse than the champion: {bounds}")
    return Veto(Verdict.NOT_REJECTED, f"not proven worse, which is no proof of anything else: {bounds}")


def diagnose_weights(w: FloatArray, is_cut: BoolArray, n_unsupported: int) -> Diagnostics:
    """Look at weights and support.

    Args:
        w: [B] weights of whole episodes.
        is_cut: [B] the log stops before the episode's end.
        n_unsupported: decisions where the policy might do what the behavior policy never does.
    """
    n, n_cut, total = len(w), int(is_cut.sum()), float(w.sum())
    ess = total**2 / float((w**2).sum()) if total > 0 else 0.0
    share = float(w.max()) / total if total > 0 else 1.0
    z = _mean_weight_z(w)
    found = {
        f"{n_unsupported} decisions might take what the behavior policy never does, or begin on another tier": (
            n_unsupported > 0
        ),
        f"{n_cut} of {n} episodes stop before their end: their returns are unknown": n_cut > MAX_CUT_SHARE * n,
        f"effective sample size {ess:.1f} is below {MIN_ESS}": ess < MIN_ESS,
        f"effective sample size is {ess / n:.3f} of n, below {MIN_ESS_SHARE}": ess / n < MIN_ESS_SHARE,
        f"one episode has {share:.2f} of all weight, above {MAX_WEIGHT_SHARE}": share > MAX_WEIGHT_SHARE,
        f"the mean weight {w.mean():.3f} is {abs(z):.1f} standard errors from 1: the logged probabilities are wrong, "
        "or the weights that matter too rare to be seen": abs(z) > MAX_MEAN_WEIGHT_Z,
    }
    problems = tuple(text for text, holds in found.items() if holds)
    return Diagnostics(n, n_cut, ess, share, float((w == 0).mean()), float(w.mean()), float(z), n_unsupported, problems)


def _mean_weight_z(w: FloatArray) -> float:
    distance = float(w.mean()) - 1
    if abs(distance) < _ROUNDING:
        return 0.0
    error = float(w.std(ddof=1)) / math.sqrt(len(w)) if len(w) > 1 else 0.0
    return distance / error if error > 0 else math.copysign(math.inf, distance)


def screen_values(
    values: EpisodeValues, n_unsupported: int, return_range: tuple[float, float], *, alpha: float = 0.05, seed: int = 0
) -> Screen:
    """Bound a policy's value from both sides.

    Args:
        values: of all episodes.
        n_unsupported: decisions where the policy might do what the behavior policy never does.
        return_range: (R_lo, R_hi) that no return can leave.
        alpha: 1 − confidence of each bound.
        seed: of Gaffke's draws.

    Raises:
        PolicyError: a return leaves its range.
    """
    low, high = return_range
    returns = values.returns[~values.is_cut]
    slack = 1e-6 * max(high - low, 1.0)
    if len(returns) and (returns.min() < low - slack or returns.max() > high + slack):
        raise PolicyError(f"returns from {returns.min():g} to {returns.max():g} leave the range {low:g} to {high:g}")
    diagnostics = diagnose_weights(values.weight, values.is_cut, n_unsupported)
    if not diagnostics.is_evaluable:
        return Screen(diagnostics, math.nan, math.nan, math.nan, math.nan, alpha)
    weight = np.where(values.is_cut, 0.0, values.weight)
    above = _average_tasks(weight * np.clip(values.returns - low, 0.0, None), values.task)
    below = _average_tasks(weight * np.clip(high - values.returns, 0.0, None), values.task)
    found = Screen(
        diagnostics,
        low + gaffke_lower_bound(above, alpha, seed),
        high - gaffke_lower_bound(below, alpha, seed),
        low + betting_lower_bound(above, alpha),
        high - betting_lower_bound(below, alpha),
        alpha,
    )
    return found if found.value_low <= found.value_high else _refuse_crossed(found)


def _refuse_crossed(found: Screen) -> Screen:
    """Return a screen without bounds: a lower one above the upper one means that one of them has failed."""
    text = (
        f"the lower bound {found.value_low:.4g} is above the upper one {found.value_high:.4g}: the weights are unusual"
    )
    diagnostics = replace(found.diagnostics, problems=(*found.diagnostics.problems, text))
    return Screen(diagnostics, math.nan, math.nan, math.nan, math.nan, found.alpha)


def _average_tasks(values: FloatArray, task: IntArray) -> FloatArray:
    """Return one value for each task, with the mean of the episodes' values."""
    number = np.unique(task, return_inverse=True)[1]
    of_task = np.bincount(number, values)
    return np.asarray(of_task * (len(of_task) / len(values)))
