"""The audit log of a registry: every promotion, rollback and gate as a run of its own in MLflow, never changed again.

It lies where the policies lie, embedded or on a server, and can be read in MLflow's own pages. Whoever may write to the
registry may also delete runs: it is a record, no proof against its owner.
"""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from celr_ray.cortex.registry_store import TAG, Store

__all__ = ["AUDIT_EXPERIMENT", "AuditEvent", "append_event", "make_event", "read_events"]

AUDIT_EXPERIMENT = "celr-ray-audit"


@dataclass(frozen=True)
class AuditEvent:
    """Something that happened to a policy.

    Attributes:
        event: register, promote, rollback, gate, …
        policy: its name.
        when: ISO 8601, UTC.
        user: login name of who did it, as the system says.
        candidate_hash: content hash of what came, or was looked at.
        champion_hash: content hash of the champion before.
        evidence_hash: hash of the gate's report.
        details: what else there is to say, such as a forced promotion's reason.
        event_id: identifies it.
    """

    event: str
    policy: str
    when: str
    user: str
    candidate_hash: str | None = None
    champion_hash: str | None = None
    evidence_hash: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    event_id: str = ""


def make_event(event: str, policy: str, **facts: Any) -> AuditEvent:
    """Return an event of now; `facts` are further fields of `AuditEvent`."""
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    return AuditEvent(event, policy, when, _user(), event_id=uuid.uuid4().hex, **facts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return ""


def append_event(store: Store, event: AuditEvent, evidence: Mapping[str, Any] | None = None) -> None:
    """Write an event, unless it is there already.

    Args:
        store: the registry.
        event: what happened.
        evidence: the gate's report, kept with it.
    """
    if store.find_events(AUDIT_EXPERIMENT, f"tags.`{TAG}event_id` = '{event.event_id}'"):
        return
    record = asdict(event)
    tags = {f"{TAG}policy": event.policy, f"{TAG}event_id": event.event_id, f"{TAG}record": json.dumps(record)}
    document = {**record, "evidence": evidence}
    store.add_event(AUDIT_EXPERIMENT, f"{event.event} {event.policy}", tags, document)


def read_events(store: Store, name: str) -> list[AuditEvent]:
    """Return what happened to a policy, oldest first."""
    rows = store.find_events(AUDIT_EXPERIMENT, f"tags.`{TAG}policy` = '{name}'")
    events = [AuditEvent(**json.loads(row[f"{TAG}record"])) for row in rows if f"{TAG}record" in row]
    return sorted(events, key=lambda event: event.when)
