"""What a policy has seen: whether a state is like those it was trained on, by four cheap looks.

1. Range: every feature lies within the range seen, widened by a margin.
2. Levels: a feature that only ever had a few values (a flag, a tier) has one of them.
3. Pairs: any two of those features had their two values together before. "Passed" and "failed" were each seen, never
   both at once. This look is taken only if few training states would fail it when left out themselves; with few logs
   it would reject too many good states.
4. Distance: the squared Mahalanobis distance from the mean of the training states, against a threshold from their own
   distances.

A state with a number that is not finite is not for this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from celr_ray.cortex.actions import BoolArray, FloatArray
from celr_ray.errors import PolicyError

__all__ = ["Support", "SupportConfig", "fit_support"]

_CHUNK = 65536
_ROUNDING = 1e-6
"""Logs hold features as 32-bit numbers, the runtime has 64 bits: no look may tell .7 from .7."""


@dataclass(frozen=True)
class SupportConfig:
    """How wide the support is.

    Attributes:
        margin: what the range of a feature is widened by on each side, as a share of the range.
        max_levels: a feature with at most so many values, each seen twice or more, has levels; flags always have.
        max_left_out: share of training states that may fail the look at pairs when left out themselves; above it, that
            look is not taken. States of one task are alike, so other tasks fail several times as often; a gate allows
            2 % of all.
        quantile: of the training states' squared distances; the threshold is above it.
        slack: the threshold over that quantile.
        ridge: added to each variance of the standardised features, so that features that depend on each other have a
            finite distance.
        min_spread: least standard deviation of a feature, as a share of its range, so that rare flags do not rule.
    """

    margin: float = 0.1
    max_levels: int = 4
    max_left_out: float = 0.002
    quantile: float = 0.999
    slack: float = 1.5
    ridge: float = 0.01
    min_spread: float = 0.25


@dataclass(frozen=True, eq=False)
class Support:
    """The states that a policy was trained on, as far as the looks can tell; D features, L levels of all together.

    Attributes:
        low, high: [D] least and greatest values that pass.
        level_feature: [L] which feature (a whole number) a level is of; ascending.
        level_value: [L] its value.
        unseen: [L, L] 1 where the two levels were never seen together; all 0 = not looked at.
        mean: [D] of the training states.
        whiten: [D, D]; the squared length of (x − mean) @ whiten is the squared distance.
        threshold: greatest squared distance that passes; shape ().
        facts: how it was learned, for manifests.
    """

    low: FloatArray
    high: FloatArray
    level_feature: FloatArray
    level_value: FloatArray
    unseen: FloatArray
    mean: FloatArray
    whiten: FloatArray
    threshold: FloatArray
    facts: Mapping[str, Any] = field(default_factory=dict)
    _columns: NDArray[np.intp] = field(init=False, repr=False)
    _n_discrete: int = field(init=False, repr=False)
    _bounds: tuple[FloatArray, FloatArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arrays.

        Raises:
            PolicyError: they do not fit together, or a number is not finite.
        """
        n, n_levels = len(self.low), len(self.level_feature)
        shapes = {
            **dict.fromkeys(("low", "high", "mean"), (n,)),
            **dict.fromkeys(("level_feature", "level_value"), (n_levels,)),
            "unseen": (n_levels, n_levels),
            "whiten": (n, n),
            "threshold": (),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
                raise PolicyError(f"{name} of the support is not {shape} finite numbers of 64 bits")
        columns = self.level_feature.astype(np.intp)
        if not (columns == self.level_feature).all() or not ((columns >= 0) & (columns < n)).all():
            raise PolicyError("level_feature of the support names features that there are not")
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "_n_discrete", len(np.unique(columns)))
        object.__setattr__(self, "_bounds", (self.low - _ROUNDING, self.high + _ROUNDING))

    def contains(self, obs: FloatArray) -> BoolArray:
        """Tell for finite states [K, D] which are like those seen."""
        low, high = self._bounds
        inside = ((obs >= low) & (obs <= high)).all(axis=1)
        levels = _find_levels(obs, self._columns, self.level_value)
        inside &= levels.sum(axis=1) == self._n_discrete
        inside &= np.einsum("kl,kl->k", levels @ self.unseen, levels) == 0
        inside &= self.distance(obs) <= self.threshold
        return np.asarray(inside)

    def distance(self, obs: FloatArray) -> FloatArray:
        """Return the squared Mahalanobis distances [K] of states [K, D]."""
        white = (obs - self.mean) @ self.whiten
        return np.asarray(np.einsum("kd,kd->k", white, white))

    def to_arrays(self) -> dict[str, FloatArray]:
        """Return the arrays by name, as `from_arrays` takes them."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any] | None = None) -> Support:
        """Return the support of arrays by name.

        Raises:
            PolicyError: one is missing or surplus, or they do not fit together.
        """
        if set(arrays) != set(_ARRAYS):
            raise PolicyError(f"a support has the arrays {', '.join(_ARRAYS)}; found {', '.join(sorted(arrays))}")
        return cls(**arrays, facts=facts or {})


_ARRAYS = ("low", "high", "level_feature", "level_value", "unseen", "mean", "whiten", "threshold")


def _find_levels(obs: FloatArray, columns: NDArray[np.intp], values: FloatArray) -> FloatArray:
    """Return 1 [K, L] where a state has a level, else 0."""
    return (np.abs(obs[:, columns] - values) <= _ROUNDING).astype(np.float64)


def fit_support(obs: ArrayLike, config: SupportConfig | None = None) -> Support:
    """Learn what states look like.

    Args:
        obs: [N, D] training states; some 100,000 random ones of more say as much.
        config: how wide; None = the defaults.

    Raises:
        PolicyError: there is no state, or a number is not finite.
    """
    config = config or SupportConfig()
    states = np.asarray(obs, dtype=np.float64)
    if states.ndim != 2 or not states.size or not np.isfinite(states).all():
        raise PolicyError(f"a support is learned from finite states [N, D], at least one; got shape {states.shape}")
    low, high = states.min(axis=0), states.max(axis=0)
    margin = config.margin * (high - low)
    features, values = _list_levels(states, config.max_levels)
    unseen, left_out = _find_unseen(states, features, values)
    takes_pairs = left_out <= config.max_left_out
    mean, whiten = _whiten(states, np.maximum(states.std(axis=0), config.min_spread * (high - low)), config.ridge)
    support = Support(
        low=low - margin,
        high=high + margin,
        level_feature=features.astype(np.float64),
        level_value=values,
        unseen=unseen if takes_pairs else np.zeros_like(unseen),
        mean=mean,
        whiten=whiten,
        threshold=np.array(0.0),
    )
    threshold = _choose_threshold(support, states, config)
    facts = {
        "looks": ["range", "levels", *(["pairs"] if takes_pairs else []), "distance"],
        "n_states": len(states),
        "n_levels": len(values),
        "left_out": left_out,
        "threshold": threshold,
        **vars(config),
    }
    return replace(support, threshold=np.array(threshold), facts=facts)


def _list_levels(states: FloatArray, max_levels: int) -> tuple[NDArray[np.intp], FloatArray]:
    """Return the features and values of all levels."""
    features, values = [], []
    for column, seen in enumerate(states.T):
        levels, counts = np.unique(np.round(seen, 6), return_counts=True)
        is_flag = bool(np.isin(levels, (0, 1)).all())
        if is_flag or (len(levels) <= max_levels and counts.min() > 1):  # else further values are to be expected
            features += [column] * len(levels)
            values += levels.tolist()
    return np.array(features, dtype=np.intp), np.array(values, dtype=np.float64)


def _find_unseen(states: FloatArray, features: NDArray[np.intp], values: FloatArray) -> tuple[FloatArray, float]:
    """Return which pairs of levels were never seen, [L, L], and the share of states with a pair that only they have."""
    together = np.zeros((len(values),) * 2)
    for part in _split(states):
        levels = _find_levels(part, features, values)
        together += levels.T @ levels
    once = (together == 1).astype(np.float64)
    alone = 0
    for part in _split(states):
        levels = _find_levels(part, features, values)
        alone += int(np.count_nonzero(np.einsum("kl,kl->k", levels @ once, levels)))
    return (together == 0).astype(np.float64), alone / len(states)


def _whiten(states: FloatArray, spread: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray]:
    """Return the mean, and the matrix whose product with x − mean has the Mahalanobis length."""
    mean = states.mean(axis=0)
    spread = np.where(spread > _ROUNDING, spread, 1.0)
    covariance = np.zeros((states.shape[1],) * 2)
    for part in _split(states):
        standard = (part - mean) / spread
        covariance += standard.T @ standard
    variances, vectors = np.linalg.eigh(covariance / len(states))
    whiten = vectors / np.sqrt(np.maximum(variances, 0.0) + ridge)
    return mean, np.ascontiguousarray(whiten / spread[:, None])


def _choose_threshold(support: Support, states: FloatArray, config: SupportConfig) -> float:
    distances = np.concatenate([support.distance(part) for part in _split(states)])
    threshold = config.slack * float(np.quantile(distances, config.quantile))
    return max(threshold, float(states.shape[1]))  # D is the mean distance; where all states are alike they have 0


def _split(states: FloatArray) -> list[FloatArray]:
    return [states[start : start + _CHUNK] for start in range(0, len(states), _CHUNK)]
