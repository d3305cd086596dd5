"""The network of a learned policy: an MLP in numpy alone, for decisions without PyTorch.

It scores states and knows nothing of masks, actions or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from celr_ray.errors import PolicyError

__all__ = ["Float32Array", "Network"]

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Network:
    """scores = layers((features − mean) / scale), with a ReLU between each two layers.

    Computed in float64 and rounded to float32: BLAS adds up in another order for one state than for a thousand, and
    the rounding hides it, so that a state gets the same scores in every batch.

    Attributes:
        mean: [D] subtracted from the features.
        scale: [D] what they are divided by then; above 0.
        layers: (weight [out, in], bias [out]) of each layer.
    """

    mean: Float32Array
    scale: Float32Array
    layers: tuple[tuple[Float32Array, Float32Array], ...]
    _steps: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arrays and turn them to float32.

        Raises:
            PolicyError: they do not fit together, or a number is not finite.
        """
        layers = tuple((_read_array(w, "weight", 2), _read_array(b, "bias", 1)) for w, b in self.layers)
        self._set("mean", _read_array(self.mean, "mean", 1))
        self._set("scale", _read_array(self.scale, "scale", 1))
        self._set("layers", layers)
        self._check_shapes()
        # ascontiguousarray: products with a transposed view take another, slower path through BLAS
        steps = tuple((np.ascontiguousarray(w.T, dtype=np.float64), b.astype(np.float64)) for w, b in layers)
        self._set("_steps", ((self.mean.astype(np.float64), 1 / self.scale.astype(np.float64)), *steps))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_shapes(self) -> None:
        sizes = [len(self.mean)]
        if self.scale.shape != self.mean.shape:
            raise PolicyError(f"the network has {len(self.mean)} means and {len(self.scale)} scales")
        if not (self.scale > 0).all():
            raise PolicyError("a scale of the network is not above 0")
        for number, (weight, bias) in enumerate(self.layers):
            if weight.shape != (len(bias), sizes[-1]):
                raise PolicyError(
                    f"layer {number} of the network has weights of shape {weight.shape} and {len(bias)} biases; "
                    f"{sizes[-1]} numbers go in"
                )
            sizes.append(len(bias))
        if len(sizes) < 2 or 0 in sizes:
            raise PolicyError(f"a network of the sizes {sizes} decides nothing")

    @property
    def n_features(self) -> int:
        """Numbers that go in, D."""
        return len(self.mean)

    @property
    def n_actions(self) -> int:
        """Scores that come out, A."""
        return len(self.layers[-1][1])

    def scores(self, obs: ArrayLike) -> Float32Array:
        """Return the scores [K, A] of states [K, D].

        Raises:
            PolicyError: the states have another shape.
        """
        hidden = np.asarray(obs, dtype=np.float64)
        if hidden.ndim != 2 or hidden.shape[1] != self.n_features:
            raise PolicyError(f"the network scores states of shape [K, {self.n_features}]; got {hidden.shape}")
        (mean, per_scale), *layers = self._steps
        hidden = (hidden - mean) * per_scale
        last = len(layers) - 1
        for number, (weight, bias) in enumerate(layers):
            hidden = hidden @ weight
            hidden += bias
            if number < last:
                np.maximum(hidden, 0.0, out=hidden)
        return hidden.astype(np.float32)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Network:
        """Return the network of arrays named `mean`, `scale`, `layers.0.weight`, `layers.0.bias`, …

        Raises:
            PolicyError: one is missing or surplus, or they do not fit together.
        """
        n_layers = sum(name.endswith(".weight") for name in arrays)
        wanted = ["mean", "scale", *(f"layers.{n}.{kind}" for n in range(n_layers) for kind in ("weight", "bias"))]
        if set(arrays) != set(wanted):
            raise PolicyError(f"a network has the arrays {', '.join(wanted)}; found {', '.join(sorted(arrays))}")
        layers = tuple((arrays[f"layers.{n}.weight"], arrays[f"layers.{n}.bias"]) for n in range(n_layers))
        return cls(arrays["mean"], arrays["scale"], layers)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, as `from_arrays` takes them."""
        arrays: dict[str, NDArray[Any]] = {"mean": self.mean, "scale": self.scale}
        for number, (weight, bias) in enumerate(self.layers):
            arrays[f"layers.{number}.weight"] = weight
            arrays[f"layers.{number}.bias"] = bias
        return arrays

    @classmethod
    def from_mlp(cls, mean: ArrayLike, scale: ArrayLike, layers: Sequence[tuple[ArrayLike, ArrayLike]]) -> Network:
        """Return the network of an MLP given in any numbers."""
        pairs = tuple((np.asarray(w, dtype=np.float32), np.asarray(b, dtype=np.float32)) for w, b in layers)
        return cls(np.asarray(mean, dtype=np.float32), np.asarray(scale, dtype=np.float32), pairs)


def _read_array(value: Any, name: str, n_dimensions: int) -> Float32Array:
    try:
        array = np.ascontiguousarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{name} of the network: no numbers ({error})") from None
    if array.ndim != n_dimensions:
        raise PolicyError(f"{name} of the network has shape {array.shape}; it needs {n_dimensions} dimensions")
    if not np.isfinite(array).all():
        raise PolicyError(f"{name} of the network holds numbers that are not finite")
    return array
