"""What the gate's statistics return, and the checks that all of their inputs pass: nothing missing, nothing NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import FloatArray
from celr_ray.errors import PolicyError

__all__ = ["Interval", "ScoreTest", "check_level", "check_values", "check_within"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds and the one-sided test that goes with them.

    Attributes:
        value: the estimate.
        ci_low, ci_high: two one-sided bounds at level α each, so an interval of confidence 1 − 2α; infinite where
            there is no evidence.
        n: units of analysis, that is tasks.
        p_value: of the one-sided test that the function states; 1 where there is no evidence.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    p_value: float


@dataclass(frozen=True)
class ScoreTest:
    """A one-sided score test.

    Attributes:
        z: the statistic, standard normal at the border of the null hypothesis.
        p_value: P(Z ≥ z).
    """

    z: float
    p_value: float


def check_values(name: str, values: FloatArray | Sequence[float]) -> FloatArray:
    """Return the values as an array [n].

    Args:
        name: what they are; for the message.
        values: [n].

    Raises:
        PolicyError: not one-dimensional, or a value is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise PolicyError(f"{name} must be one value a unit, not an array of shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise PolicyError(
            f"{len(bad)} of {len(array)} values of {name} are not finite, first at {bad[0]}: a result that is missing "
            "is no result; leave the gate inconclusive instead"
        )
    return array


def check_within(name: str, values: FloatArray, low: float, high: float) -> None:
    """Check that all values lie in a range, rounding errors apart.

    Raises:
        PolicyError: one does not; the message says which.
    """
    slack = 1e-9 * max(abs(low) if np.isfinite(low) else 0, abs(high) if np.isfinite(high) else 0, 1)
    bad = np.flatnonzero((values < low - slack) | (values > high + slack))
    if len(bad):
        raise PolicyError(
            f"{len(bad)} of {len(values)} values of {name} are outside [{low:g}, {high:g}], "
            f"first {values[bad[0]]:g} at {bad[0]}"
        )


def check_level(name: str, level: float) -> None:
    """Check that a level of error lies between 0 and ½.

    Raises:
        PolicyError: it does not.
    """
    if not 0 < level < 0.5:
        raise PolicyError(f"{name} must lie between 0 and 0.5, not {level}")
