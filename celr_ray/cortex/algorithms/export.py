"""From a trained module to numpy arrays, and back: what a policy is made of, and what CQL and IQL can start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from celr_ray.errors import PolicyError

__all__ = ["Mlp", "Weights", "export_weights", "forward", "load_mlp"]

Array = NDArray[Any]
Layers = tuple[tuple[Array, Array], ...]


class Mlp(Protocol):
    """An MLP as arrays; `celr_ray.cortex.network.Network` is one too."""

    @property
    def mean(self) -> Array:
        """[D] subtracted from the features."""
        ...

    @property
    def scale(self) -> Array:
        """[D] what they are divided by then."""
        ...

    @property
    def layers(self) -> Layers:
        """(weight [out, in], bias [out]) of each layer; a ReLU between each two."""
        ...


class Weights(NamedTuple):
    """An MLP as float32 arrays: scores = layers((features − mean) / scale), a ReLU between each two layers.

    Attributes:
        mean, scale: [D].
        layers: (weight [out, in], bias [out]) of each layer.
    """

    mean: Array
    scale: Array
    layers: Layers


def export_weights(state: Mapping[str, Any], decider: str) -> Weights:
    """Return the network that decides.

    Args:
        state: the state of a `MaskedModule`, by parameter name.
        decider: name of its network: `policy` or `q`.

    Raises:
        PolicyError: a weight is not finite.
    """
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith(f"{decider}.")})
    layers = tuple(
        (_to_array(state[f"{decider}.{n}.weight"]), _to_array(state[f"{decider}.{n}.bias"])) for n in numbers
    )
    weights = Weights(_to_array(state["mean"]), _to_array(state["scale"]), layers)
    if not all(np.isfinite(array).all() for layer in layers for array in layer):
        raise PolicyError("the trained network has weights that are not finite: it cannot be used")
    return weights


def load_mlp(decider: str, mlp: Mlp, sizes: list[int], factor: float = 1.0) -> dict[str, Array]:
    """Return the state of one network and the standardisation, made from an MLP.

    Args:
        decider: name of the network.
        mlp: where the weights come from.
        sizes: features, hidden layers, actions: what the network has.
        factor: what the last layer is multiplied by.

    Raises:
        PolicyError: the MLP has other sizes.
    """
    found = [len(mlp.mean), *(len(bias) for _, bias in mlp.layers)]
    if found != sizes:
        raise PolicyError(f"cannot start from a network of sizes {found}: this training has {sizes}")
    state: dict[str, Array] = {"mean": _to_array(mlp.mean), "scale": _to_array(mlp.scale)}
    last = len(mlp.layers) - 1
    for number, (weight, bias) in enumerate(mlp.layers):
        times = np.float32(factor if number == last else 1.0)
        state[f"{decider}.{2 * number}.weight"] = _to_array(weight) * times
        state[f"{decider}.{2 * number}.bias"] = _to_array(bias) * times
    return state


def forward(mlp: Mlp, features: Array) -> Array:
    """Return the scores [K, A] of features [K, D]."""
    hidden = (np.asarray(features, dtype=np.float32) - mlp.mean) / mlp.scale
    for number, (weight, bias) in enumerate(mlp.layers):
        hidden = hidden @ weight.T + bias
        if number < len(mlp.layers) - 1:
            hidden = np.maximum(hidden, 0)
    return hidden


def _to_array(value: Any) -> Array:
    return np.array(value, dtype=np.float32)
