"""Tests that may stop early: e-processes over the preset order, then one last test when all tasks are in.

    passing      H0: E[x] ≤ m;  K_n = mean_λ Π_i (1 + λ (x_i − m)),  λ on 25 points of (0, .99 / (m − low))
    opposing     the same for the opposite claim, so for the null hypothesis that the candidate is good enough

Each factor is ≥ 0 and has a mean of at most 1 under its H0 if x ≥ low, so K exceeds 1/α *ever* with probability ≤ α
(Ville), at any n, and one may look after each task. For success x is the difference, low = −1, m = −δ, and K is

    K_n = mean_λ (1 + λ (1 + δ))^b (1 − λ (1 − δ))^c (1 + λδ)^(n − b − c)

Levels add up: K ≥ 1/.01 ever, or else the last test at .04, so a false PASS has at most .05 if the last test holds its
level. A futility stop, K' ≥ 1/.05 of the opposing process, can only take a PASS away; it ends good candidates with
probability ≤ .05.

A criterion that has passed stays passed. A gate with several criteria passes at the first task at which all have
passed; no further correction is due (an intersection-union test), but alternatives ("better in one of the two") must
share their levels.

Valid in the preset order only: see `celr_ray.cortex.evaluation.prefix`.

Source: Ville (1939); Waudby-Smith & Ramdas (2024), JRSS B 86, 1–27; Ramdas et al. (2023), arXiv 2210.01948.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.clustered import clustered_noninferiority
from celr_ray.cortex.evaluation.cost_tests import bound_differences
from celr_ray.cortex.evaluation.estimates import check_level
from celr_ray.cortex.evaluation.proportions import tango
from celr_ray.errors import PolicyError

__all__ = ["Decision", "EProcess", "Levels", "SequentialTest", "log_wealth", "watch_cost", "watch_success"]

_SHARES = (np.arange(25) + 0.5) / 25 * 0.99
"""λ as a share of the largest bet that cannot lose everything."""
_ERROR = 1e-9


class Decision(StrEnum):
    """What a sequential test says after a task."""

    CONTINUE = "continue"
    """Nothing yet."""
    PASS_EARLY = "pass_early"
    """Proven by the e-process."""
    PASS_FINAL = "pass_final"
    """Proven by the last test, with all tasks in."""
    FUTILE = "futile"
    """The opposite is proven."""
    NOT_PROVEN = "not_proven"
    """All tasks are in, and neither is proven."""

    @property
    def is_pass(self) -> bool:
        """Tell whether the claim is proven."""
        return self in (Decision.PASS_EARLY, Decision.PASS_FINAL)


@dataclass(frozen=True)
class Levels:
    """Levels of error.

    Attributes:
        early: of the e-process.
        final: of the last test; a false PASS has at most early + final.
        futility: of the opposing e-process.
    """

    early: float = 0.01
    final: float = 0.04
    futility: float = 0.05

    def __post_init__(self) -> None:
        """Check the levels.

        Raises:
            PolicyError: one is out of range.
        """
        for name, level in vars(self).items():
            check_level(f"the level {name}", level)

    def share(self, parts: int) -> Levels:
        """Return the levels of one of several alternatives of which a single one suffices (Bonferroni)."""
        return Levels(self.early / parts, self.final / parts, self.futility)


def log_wealth(b: ArrayLike, c: ArrayLike, n: ArrayLike, delta: float) -> FloatArray:
    """Return log K_n of the passing e-process of success, elementwise, for differences −1, 0 and 1.

    Args:
        b: tasks so far that only the candidate solves.
        c: tasks so far that only the champion solves.
        n: tasks so far.
        delta: margin in [0, 1).
    """
    b, c, n = (np.asarray(x, dtype=np.float64)[..., None] for x in (b, c, n))
    bets = _SHARES / (1 - delta)
    growth = b * np.log1p(bets * (1 + delta)) + c * np.log1p(-bets * (1 - delta)) + (n - b - c) * np.log1p(bets * delta)
    return _log_mean(growth)


def _log_mean(growth: FloatArray) -> FloatArray:
    top = growth.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(growth - top).mean(axis=-1)))


class EProcess:
    """Evidence against H0: E[x] ≤ m, for independent x ≥ low, that may be looked at after each value."""

    def __init__(self, mean: float, low: float) -> None:
        """Start with wealth 1.

        Args:
            mean: m, the largest mean under H0.
            low: the least possible x.

        Raises:
            PolicyError: low is not below m.
        """
        if not low < mean < np.inf or not np.isfinite(low):
            raise PolicyError(f"an e-process needs a finite least value below the mean {mean}, not {low}")
        self._mean, self._low = mean, low
        self._bets = _SHARES / (mean - low)
        self._growth = np.zeros(len(self._bets))
        self.n = 0

    def update(self, value: float) -> float:
        """Take the next value in the preset order and return log K.

        Raises:
            PolicyError: the value is not finite, or below the least possible one: K would prove nothing.
        """
        if not np.isfinite(value) or value < self._low - _ERROR * max(abs(self._low), 1):
            raise PolicyError(f"value {self.n} of an e-process must be finite and at least {self._low:g}, not {value}")
        self._growth += np.log1p(self._bets * (max(value, self._low) - self._mean))
        self.n += 1
        return self.log_wealth

    @property
    def log_wealth(self) -> float:
        """Return log K."""
        return float(_log_mean(self._growth))


class SequentialTest:
    """One criterion over the preset order: passes early, ends for futility, or is decided when all tasks are in."""

    def __init__(
        self,
        n: int,
        final: Callable[[FloatArray], float],
        levels: Levels,
        passing: EProcess | None,
        opposing: EProcess | None,
    ) -> None:
        """Begin.

        Args:
            n: tasks of the preset order.
            final: p-value of the last test, from all n values.
            levels: of error.
            passing: fed with −value if smaller values are better, see `watch_cost`; None = no early PASS.
            opposing: fed with the negative of what `passing` gets; None = no futility stop.
        """
        if n < 1:
            raise PolicyError("a sequential test needs at least one task")
        self._n, self._final, self._levels = n, final, levels
        self._passing, self._opposing = passing, opposing
        self._values: list[float] = []
        self.decision = Decision.CONTINUE
        self.p_value: float | None = None
        """Of the last test; None unless it was made."""

    @property
    def n(self) -> int:
        """Return the number of tasks that went into the decision."""
        return len(self._values)

    def update(self, value: float) -> Decision:
        """Take the result of the next task of the preset order; after a decision nothing changes it.

        Args:
            value: larger is better for the candidate.

        Raises:
            PolicyError: the value is not finite or out of range, or the last test refuses the values.
        """
        if self.decision is not Decision.CONTINUE:
            return self.decision
        if not np.isfinite(value):
            raise PolicyError(f"the result of task {self.n} of the preset order is {value}: it proves nothing")
        self._values.append(float(value))
        self.decision = self._decide(value)
        return self.decision

    def _decide(self, value: float) -> Decision:
        won = self._passing is not None and self._passing.update(value) >= -np.log(self._levels.early)
        lost = self._opposing is not None and self._opposing.update(-value) >= -np.log(self._levels.futility)
        if won:
            return Decision.PASS_EARLY
        if lost:
            return Decision.FUTILE
        if self.n < self._n:
            return Decision.CONTINUE
        self.p_value = self._final(np.array(self._values))
        return Decision.PASS_FINAL if self.p_value <= self._levels.final else Decision.NOT_PROVEN


def watch_success(
    n: int, delta: float, levels: Levels | None = None, *, replays: int = 1, seed: int = 0
) -> SequentialTest:
    """Test that success is lower by less than δ; feed it candidate − champion, each task's mean over its replays.

    The last test is Tango's with one replay, else Student's t and Gaffke's bound over tasks.

    Args:
        n: tasks of the preset order.
        delta: margin in [0, 1); 0 asks for superiority.
        levels: of error.
        replays: of each task.
        seed: of Gaffke's draws.

    Raises:
        PolicyError: the margin is out of range.
    """
    if not 0 <= delta < 1:
        raise PolicyError(f"the margin must lie in [0, 1), not {delta}")

    def final(values: FloatArray) -> float:
        if replays > 1:
            return clustered_noninferiority(values, delta, seed=seed).p_value
        if not np.isin(values, (-1, 0, 1)).all():
            raise PolicyError("differences of single replays must be −1, 0 or 1; say how many replays there are")
        return tango(int((values > 0).sum()), int((values < 0).sum()), len(values), delta).p_value

    return SequentialTest(n, final, levels or Levels(), EProcess(-delta, -1.0), EProcess(delta, -1.0))


def watch_cost(
    n: int, ratio: float, levels: Levels | None = None, *, cap: float | None, is_strict: bool = False, seed: int = 0
) -> SequentialTest:
    """Test that the mean of D = C_new − ρ · C_base is below 0; feed it −D, each task's mean over its replays.

    The last test is t and bootstrap-t, in strict mode Gaffke's. Without a cap there is no early PASS and no futility.

    Args:
        n: tasks of the preset order.
        ratio: ρ > 0.
        levels: of error.
        cap: US$ that the runtime lets either policy spend on a task at most.
        is_strict: whether the last test is Gaffke's at the cap.
        seed: of the draws.

    Raises:
        PolicyError: strict without a cap, or a cap or ratio that is not positive.
    """
    if is_strict and cap is None:
        raise PolicyError("the strict cost test needs the cap on what a task may cost")
    if not 0 < ratio < np.inf or (cap is not None and not 0 < cap < np.inf):
        raise PolicyError(f"ratio and cap must be positive and finite, not {ratio} and {cap}")

    def final(values: FloatArray) -> float:
        bounds = bound_differences(-values, ratio, levels_used.final, seed=seed, cap=cap if is_strict else None)
        return bounds.p_value if bounds.gaffke_p_value is None else bounds.gaffke_p_value

    levels_used = levels or Levels()
    passing = None if cap is None else EProcess(0.0, -cap)
    opposing = None if cap is None else EProcess(0.0, -ratio * cap)
    return SequentialTest(n, final, levels_used, passing, opposing)
