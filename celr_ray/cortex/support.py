"""What a policy has seen: whether a state is like those it was trained on, by three cheap looks.

1. Range: a feature that was only ever 0 or 1 must have a value that was seen; any other lies within the range seen,
   widened by a margin.
2. Distance: the squared Mahalanobis distance from the mean of the training states, against a threshold from their own
   distances.
3. Patterns: the combination of all the 0/1 features was seen. A learned value of a combination never seen is an
   extrapolation however near its parts are. This look is taken only if training saw almost all the combinations that
   occur, by the estimate of Good and Turing (combinations seen once, over states); with few logs it would reject too
   many good states.

A state with a number that is not finite is not for this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.errors import PolicyError

__all__ = ["Support", "SupportConfig", "fit_support"]

_MAX_BITS = 64
_CHUNK = 65536
_KINDS = {"low": "f4", "high": "f4", "is_binary": "b1", "mean": "f8", "whiten": "f8", "threshold": "f8"}


@dataclass(frozen=True)
class SupportConfig:
    """How wide the support is.

    Attributes:
        margin: what the range of a feature is widened by on each side, as a share of the range.
        quantile: of the training states' squared distances; the threshold is above it.
        slack: the threshold over that quantile.
        ridge: added to each variance of the standardised features, so that features that depend on each other have a
            finite distance.
        max_unseen: patterns are looked at only if at most this share of states is estimated to have unseen ones.
    """

    margin: float = 0.1
    quantile: float = 0.999
    slack: float = 2.0
    ridge: float = 0.01
    max_unseen: float = 0.005


@dataclass(frozen=True, eq=False)
class Support:
    """The states that a policy was trained on, as far as three looks can tell.

    Attributes:
        low, high: [D] least and greatest values that pass.
        is_binary: [D] only 0 and 1 (or one of them) were seen.
        mean: [D] of the training states.
        whiten: [D, D]; the squared length of (x − mean) @ whiten is the squared distance.
        threshold: greatest squared distance that passes; shape ().
        patterns: the combinations of the binary features that were seen, packed to 64 bits and sorted; None = not
            looked at.
        facts: how it was learned, for manifests.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    is_binary: BoolArray
    mean: FloatArray
    whiten: FloatArray
    threshold: FloatArray
    patterns: NDArray[np.uint64] | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    _binary: IntArray = field(init=False, repr=False)
    _bounds: tuple[FloatArray, FloatArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arrays.

        Raises:
            PolicyError: they do not fit together, or a number is not finite.
        """
        n = len(self.low)
        shapes = {"low": (n,), "high": (n,), "is_binary": (n,), "mean": (n,), "whiten": (n, n), "threshold": ()}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.dtype(_KINDS[name]) or not np.isfinite(array).all():
                raise PolicyError(f"{name} of the support is not {shape} finite numbers of type {_KINDS[name]}")
        if self.patterns is not None and (self.patterns.ndim != 1 or self.patterns.dtype != np.uint64):
            raise PolicyError("patterns of the support are no list of 64-bit numbers")
        object.__setattr__(self, "_binary", np.flatnonzero(self.is_binary))
        # rounding a share to float32 must not push it out; 0 and 1 are exact
        slack = np.where(self.is_binary, 0.0, 1e-6)
        object.__setattr__(self, "_bounds", (self.low - slack, self.high + slack))

    def contains(self, obs: FloatArray) -> BoolArray:
        """Tell for finite states [K, D] which are like those seen."""
        low, high = self._bounds
        within = (obs >= low) & (obs <= high)
        binary = obs[:, self._binary]
        inside = within.all(axis=1) & ((binary == 0) | (binary == 1)).all(axis=1)
        inside &= self.distance(obs) <= self.threshold
        if self.patterns is not None:
            keys = _pack(binary)
            at = np.minimum(np.searchsorted(self.patterns, keys), len(self.patterns) - 1)
            inside &= self.patterns[at] == keys
        return np.asarray(inside)

    def distance(self, obs: FloatArray) -> FloatArray:
        """Return the squared Mahalanobis distances [K] of states [K, D]."""
        white = (obs - self.mean) @ self.whiten
        return np.asarray(np.einsum("kd,kd->k", white, white))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, as `from_arrays` takes them."""
        arrays = {name: getattr(self, name) for name in _KINDS}
        return arrays if self.patterns is None else {**arrays, "patterns": self.patterns}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any] | None = None) -> Support:
        """Return the support of arrays by name.

        Raises:
            PolicyError: one is missing or surplus, or they do not fit together.
        """
        if set(arrays) - {"patterns"} != set(_KINDS):
            raise PolicyError(f"a support has the arrays {', '.join(_KINDS)}; found {', '.join(sorted(arrays))}")
        return cls(**{name: arrays[name] for name in _KINDS}, patterns=arrays.get("patterns"), facts=facts or {})


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
    is_binary = ((states == 0) | (states == 1)).all(axis=0)
    low, high = states.min(axis=0), states.max(axis=0)
    margin = np.where(is_binary, 0.0, config.margin * (high - low))
    mean, whiten = _whiten(states, config.ridge)
    patterns, unseen = _learn_patterns(states[:, is_binary], config.max_unseen)
    support = Support(
        low=(low - margin).astype(np.float32),
        high=(high + margin).astype(np.float32),
        is_binary=is_binary,
        mean=mean,
        whiten=whiten,
        threshold=np.array(0.0),
        patterns=patterns,
    )
    threshold = _choose_threshold(support, states, config)
    facts = {
        "looks": ["range", "distance", *([] if patterns is None else ["patterns"])],
        "n_states": len(states),
        "n_binary": int(is_binary.sum()),
        "n_patterns": None if patterns is None else len(patterns),
        "unseen_patterns": unseen,
        "threshold": threshold,
        **vars(config),
    }
    return replace(support, threshold=np.array(threshold), facts=facts)


def _choose_threshold(support: Support, states: FloatArray, config: SupportConfig) -> float:
    chunks = [support.distance(states[start : start + _CHUNK]) for start in range(0, len(states), _CHUNK)]
    threshold = config.slack * float(np.quantile(np.concatenate(chunks), config.quantile))
    return max(threshold, float(states.shape[1]))  # D is the mean distance; where all states are alike they have 0


def _whiten(states: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray]:
    """Return the mean, and the matrix whose product with x − mean has the Mahalanobis length."""
    mean = states.mean(axis=0)
    spread = states.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    standard = np.zeros((states.shape[1],) * 2)
    for start in range(0, len(states), _CHUNK):
        part = (states[start : start + _CHUNK] - mean) / spread
        standard += part.T @ part
    values, vectors = np.linalg.eigh(standard / len(states))
    whiten = vectors / np.sqrt(np.maximum(values, 0.0) + ridge)
    return mean, np.ascontiguousarray(whiten / spread[:, None])


def _learn_patterns(binary: FloatArray, max_unseen: float) -> tuple[NDArray[np.uint64] | None, float]:
    """Return the patterns if enough of them were seen, and the estimated share of states with unseen ones."""
    if binary.shape[1] > _MAX_BITS:
        return None, 1.0
    patterns, counts = np.unique(_pack(binary), return_counts=True)
    unseen = float((counts == 1).sum() / len(binary))
    return (patterns if unseen <= max_unseen else None), unseen


def _pack(binary: FloatArray) -> NDArray[np.uint64]:
    """Pack flags [K, B ≤ 64] to one number for each row."""
    packed = np.zeros((len(binary), 8), dtype=np.uint8)
    packed[:, : (binary.shape[1] + 7) // 8] = np.packbits(binary > 0.5, axis=1)
    return packed.view("<u8")[:, 0].astype(np.uint64)
