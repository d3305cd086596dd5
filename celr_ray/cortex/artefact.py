"""A policy on disk or in an object store: a folder with `policy.npz` and `manifest.json`, and nothing executable.

    FOLDER/policy.npz       the network, and what its training states looked like; the heuristic has none
    FOLDER/manifest.json    how it decides, where it is from, two hashes; written last

Equal policies give equal bytes. Whatever is wrong with a folder is one PolicyError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from celr_ray import storage
from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.actions import ACTIONS, MASK_VERSION, N_ACTIONS
from celr_ray.cortex.arrays import MAX_BYTES, pack_arrays, unpack_arrays
from celr_ray.cortex.manifest import Algorithm, Decision, Manifest, clean_numbers, hash_bytes, read_manifest
from celr_ray.cortex.network import Network
from celr_ray.cortex.reward import find_reward_scale
from celr_ray.cortex.state import N_FEATURES, SCHEMA_HASH, StateExtractor
from celr_ray.cortex.support import Support
from celr_ray.errors import InputError, PolicyError

__all__ = [
    "MANIFEST_NAME",
    "WEIGHTS_NAME",
    "Artefact",
    "load_artefact",
    "make_artefact",
    "make_heuristic_artefact",
    "save_artefact",
]

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "policy.npz"
_SUPPORT = "support."


@dataclass(frozen=True, eq=False)
class Artefact:
    """A policy as it is stored.

    Attributes:
        manifest: all that is known of it.
        network: scores states; None = the heuristic.
        support: which states it may decide; None = the heuristic, which decides all.
    """

    manifest: Manifest
    network: Network | None = None
    support: Support | None = None

    @property
    def content_hash(self) -> str:
        """Identifies what it decides."""
        return self.manifest.content_hash


def make_artefact(
    network: Network,
    support: Support,
    *,
    name: str,
    algorithm: Algorithm,
    decision: Decision,
    data_hash: str | None = None,
    parent: str | None = None,
    start_tier: int = 0,
    escalation: EscalationConfig | None = None,
    reward_scale: float = find_reward_scale(),
    training: dict[str, Any] | None = None,
) -> Artefact:
    """Put a trained policy together.

    Args:
        network: scores the states of this package's schema.
        support: which states it has seen, from `fit_support`.
        name: what people call it.
        algorithm: what trained it.
        decision: softmax for logits, greedy for values.
        data_hash: of the training data.
        parent: content hash of the policy that training started from.
        start_tier: tier of a first RECURSE.
        escalation: thresholds of the heuristic that decides where the network cannot.
        reward_scale: training rewards over raw ones.
        training: parameters, seed, metrics.

    Raises:
        PolicyError: sizes do not fit the features and actions, or a setting is wrong.
    """
    _check_sizes(network, support, name)
    arrays = pack_arrays(_name_arrays(network, support))
    manifest = Manifest(
        kind="network",
        name=name,
        algorithm=algorithm,
        decision=decision,
        start_tier=start_tier,
        weights_hash=hash_bytes(arrays),
        reward_scale=reward_scale,
        data_hash=data_hash,
        parent=parent,
        support=clean_numbers(dict(support.facts)),
        training=clean_numbers(training or {}),
        **_surroundings(escalation),
    )
    return Artefact(manifest.with_hashes(), network, support)


def make_heuristic_artefact(escalation: EscalationConfig | None = None, *, name: str = "heuristic") -> Artefact:
    """Put the static heuristic together: thresholds and no weights. Its hash is that of the built-in policy."""
    manifest = Manifest(
        kind="heuristic",
        name=name,
        algorithm=None,
        decision=None,
        start_tier=0,
        weights_hash=None,
        reward_scale=None,
        data_hash=None,
        parent=None,
        support={},
        training={},
        **_surroundings(escalation),
    )
    return Artefact(manifest.with_hashes())


def _surroundings(escalation: EscalationConfig | None) -> dict[str, Any]:
    return {
        "schema_hash": SCHEMA_HASH,
        "features": list(StateExtractor.names),
        "mask_version": MASK_VERSION,
        "actions": list(ACTIONS),
        "escalation": escalation or EscalationConfig(),
        "code_version": metadata.version("celr-ray"),
    }


def _name_arrays(network: Network, support: Support) -> dict[str, Any]:
    return {**network.to_arrays(), **{f"{_SUPPORT}{name}": array for name, array in support.to_arrays().items()}}


def _check_sizes(network: Network, support: Support, where: str) -> None:
    sizes = (network.n_features, network.n_actions, len(support.low))
    if sizes != (N_FEATURES, N_ACTIONS, N_FEATURES):
        raise PolicyError(
            f"{where}: the network takes {sizes[0]} features and scores {sizes[1]} actions, its support has {sizes[2]} "
            f"features; a state has {N_FEATURES}, and there are {N_ACTIONS} actions"
        )


def save_artefact(uri: str, artefact: Artefact) -> Manifest:
    """Write a policy into a folder, replacing one that is there.

    Raises:
        OutputError: it cannot be written.
    """
    place = storage.join(uri, MANIFEST_NAME)
    storage.delete_file(place)  # a folder without a manifest is no policy, so new weights never stand under an old one
    if artefact.network is not None and artefact.support is not None:
        data = pack_arrays(_name_arrays(artefact.network, artefact.support))
        storage.write_bytes(storage.join(uri, WEIGHTS_NAME), data)
    storage.write_bytes(place, artefact.manifest.to_json())
    return artefact.manifest


def load_artefact(uri: str) -> Artefact:
    """Read a policy from a folder, and check every part of it.

    Raises:
        PolicyError: there is none, it was changed or damaged, or it does not fit this package.
    """
    place = storage.join(uri, MANIFEST_NAME)
    manifest = read_manifest(_read(place, f"no policy in {uri}"), place)
    if manifest.kind == "heuristic":
        return Artefact(manifest)
    place = storage.join(uri, WEIGHTS_NAME)
    data = _read(place, f"the policy in {uri} has no weights")
    if (found := hash_bytes(data)) != manifest.weights_hash:
        raise PolicyError(
            f"{place} was changed since it was written: its hash is {found}, the manifest says "
            f"{manifest.weights_hash}. Take a copy that nobody edited, or train anew"
        )
    return _read_arrays(manifest, data, place)


def _read_arrays(manifest: Manifest, data: bytes, place: str) -> Artefact:
    arrays = unpack_arrays(data, place)
    own = {name: array for name, array in arrays.items() if not name.startswith(_SUPPORT)}
    seen = {name.removeprefix(_SUPPORT): array for name, array in arrays.items() if name.startswith(_SUPPORT)}
    try:
        network, support = Network.from_arrays(own), Support.from_arrays(seen, manifest.support)
    except PolicyError as error:
        raise PolicyError(f"{place}: {error}") from None
    _check_sizes(network, support, place)
    if manifest.decision is None or manifest.algorithm is None:
        raise PolicyError(f"{place}: the manifest does not say how the network decides")
    return Artefact(manifest, network, support)


def _read(uri: str, missing: str) -> bytes:
    """Read a file of bounded size.

    Raises:
        PolicyError: there is none, it is too long, or it cannot be read.
    """
    try:
        file = storage.stat(uri)
        if file is None:
            raise PolicyError(f"{missing}: there is no {uri}")
        if file.size_bytes > MAX_BYTES:
            raise PolicyError(f"{uri} has {file.size_bytes:,} bytes; at most {MAX_BYTES:,} are read")
        return storage.read_bytes(uri)
    except InputError as error:
        raise PolicyError(f"cannot read the policy: {error}") from error
