"""What is known of a stored policy: the manifest of its artefact, and the hashes that bind it.

`content_hash` covers what decides: weights, support, way of deciding, features, actions, masks, the fallback's
thresholds. Equal hashes decide alike, wherever and whenever they were trained. `manifest_hash` covers all the rest too,
so that an edited metric is noticed. Neither is a signature.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import ACTIONS, MASK_VERSION
from celr_ray.cortex.state import SCHEMA_HASH, StateExtractor
from celr_ray.errors import PolicyError

__all__ = ["FORMAT", "VERSION", "Algorithm", "Decision", "Manifest", "clean_numbers", "hash_bytes", "read_manifest"]

FORMAT = "celr-ray policy"
VERSION = 1

Algorithm = Literal["bc", "cql", "iql"]
Decision = Literal["softmax", "greedy"]

_DECIDING = (
    "format",
    "version",
    "kind",
    "decision",
    "start_tier",
    "schema_hash",
    "features",
    "mask_version",
    "actions",
    "escalation",
    "weights_hash",
)


def hash_bytes(data: bytes) -> str:
    """Return the BLAKE2b hash of bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Manifest(BaseModel):
    """What `manifest.json` says. Fields without a default must be there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["celr-ray policy"] = "celr-ray policy"
    version: Literal[1] = 1
    kind: Literal["network", "heuristic"] = Field(description="a learned network, or the static heuristic")
    name: str = Field(min_length=1, description="what people call it")
    algorithm: Algorithm | None = Field(description="what trained the network")
    decision: Decision | None = Field(description="softmax: scores are logits to draw from; greedy: the best score")
    start_tier: int = Field(description="tier of a first RECURSE: 0 = cheapest, −1 = strongest")
    schema_hash: str = Field(description="of the features' names, units, bounds and order")
    features: list[str]
    mask_version: int
    actions: list[str]
    escalation: EscalationConfig = Field(description="thresholds of the heuristic, which is also the fallback")
    weights_hash: str | None = Field(description="of policy.npz")
    reward_scale: float | None = Field(description="training rewards over raw ones")
    data_hash: str | None = Field(description="of the training data")
    code_version: str = Field(description="version of celr-ray that made it")
    parent: str | None = Field(description="content hash of the policy that training started from")
    support: dict[str, Any] = Field(description="what counts as seen in training, and how many states it is from")
    training: dict[str, Any] = Field(description="parameters, seed, metrics")
    content_hash: str = ""
    manifest_hash: str = ""

    def with_hashes(self) -> Self:
        """Return it with its two hashes filled in."""
        hashed = self.model_copy(update={"content_hash": self.compute_content_hash()})
        return hashed.model_copy(update={"manifest_hash": hashed.compute_manifest_hash()})

    def compute_content_hash(self) -> str:
        """Return the hash of all that decides; the heuristic's is the same as that of the built-in policy."""
        if self.kind == "heuristic":
            return HeuristicPolicy(self.escalation).content_hash
        fields = self.model_dump(mode="json")
        return hash_bytes(_dump([fields[name] for name in _DECIDING]).encode())

    def compute_manifest_hash(self) -> str:
        """Return the hash of all fields but itself."""
        return hash_bytes(_dump(self.model_dump(mode="json", exclude={"manifest_hash"})).encode())

    def to_json(self) -> bytes:
        """Return the file's bytes; equal manifests give equal bytes."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        return (text + "\n").encode()


def clean_numbers(value: Any) -> Any:
    """Return nested settings as JSON can hold them: numpy numbers as Python's, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): clean_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_numbers(item) for item in value]
    if hasattr(value, "tolist"):
        return clean_numbers(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_manifest(data: bytes, where: str) -> Manifest:
    """Read and check a manifest.

    Args:
        data: the file.
        where: its name, for messages.

    Raises:
        PolicyError: it is none, was changed, or is of another version, feature schema or mask version.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise PolicyError(f"{where} is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PolicyError(f"{where} is no manifest of a policy")
    if document.get("version") != VERSION:
        raise PolicyError(
            f"{where} has version {document.get('version')!r}, this package reads {VERSION}: train it anew"
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise PolicyError(f"{where} is no manifest of a policy: {_explain(error)}") from None
    _check_hashes(manifest, where)
    _check_current(manifest, where)
    return manifest


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())[:400]


def _check_hashes(manifest: Manifest, where: str) -> None:
    pairs = (
        ("content hash", manifest.content_hash, manifest.compute_content_hash()),
        ("manifest hash", manifest.manifest_hash, manifest.compute_manifest_hash()),
    )
    for name, stated, found in pairs:
        if stated != found:
            raise PolicyError(
                f"{where} was changed since it was written: its {name} is {found}, it says {stated!r}. Take a copy "
                "that nobody edited, or train anew"
            )


def _check_current(manifest: Manifest, where: str) -> None:
    """Raise if the policy was trained on other features, actions or masks than this package's."""
    again = "train it anew, or use the celr-ray version that made it"
    made = f"(made by celr-ray {manifest.code_version})"
    if manifest.schema_hash != SCHEMA_HASH or manifest.features != list(StateExtractor.names):
        raise PolicyError(
            f"{where} is of a policy with other features: schema {manifest.schema_hash}, this package has "
            f"{SCHEMA_HASH} {made}; {again}"
        )
    if manifest.mask_version != MASK_VERSION or manifest.actions != list(ACTIONS):
        raise PolicyError(
            f"{where} is of a policy trained under other masks: version {manifest.mask_version} of "
            f"{', '.join(manifest.actions)}, this package has version {MASK_VERSION} {made}; {again}"
        )


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
