"""When a gate's report is evidence for a promotion: it says PASS, of this candidate, against the champion of now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celr_ray import storage
from celr_ray.cortex.manifest import hash_bytes
from celr_ray.errors import InputError, PolicyError

__all__ = ["check_evidence", "hash_evidence", "read_evidence"]


def read_evidence(uri: str) -> dict[str, Any]:
    """Read a gate's report.

    Raises:
        PolicyError: it cannot be read, or is no JSON object.
    """
    try:
        report = storage.read_json(uri)
    except InputError as error:
        raise PolicyError(f"no evidence: {error}") from error
    if not isinstance(report, dict):
        raise PolicyError(f"no evidence: {uri} is no report of celr-ray gate")
    return report


def hash_evidence(report: Mapping[str, Any]) -> str:
    """Return the hash of a report's contents, whatever the order of its keys."""
    return hash_bytes(json.dumps(report, sort_keys=True, separators=(",", ":")).encode())


def check_evidence(
    report: Mapping[str, Any], *, candidate_hash: str, champion_hash: str | None, anchor_hash: str | None = None
) -> None:
    """Check that a report allows a promotion.

    Args:
        report: with `verdict`, `candidate.content_hash`, `champion.content_hash`, and perhaps `anchor.content_hash`.
        candidate_hash: content hash of what is to be promoted.
        champion_hash: of the champion of now; None = there is none, so no report can name it.
        anchor_hash: of the anchor of now; compared if the report names one.

    Raises:
        PolicyError: it does not; the message says why.
    """
    if champion_hash is None:
        raise PolicyError("no evidence can name the champion: there is none. Promote with --force REASON")
    verdict = report.get("verdict")
    if verdict != "PASS":
        raise PolicyError(f"the gate's verdict is {verdict!r}: only PASS promotes")
    roles = (("candidate", candidate_hash), ("champion", champion_hash), ("anchor", anchor_hash))
    for role, expected in roles:
        found = _read_hash(report, role)
        if role == "anchor" and (found is None or expected is None):
            continue
        if found != expected:
            raise PolicyError(
                f"the gate's report is of another {role}: {found!r}, here it is {expected}. Run celr-ray gate again"
            )


def _read_hash(report: Mapping[str, Any], role: str) -> str | None:
    described = report.get(role)
    found = described.get("content_hash") if isinstance(described, Mapping) else None
    return found if isinstance(found, str) else None
