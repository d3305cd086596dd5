"""The line of champions of a policy: who is deployed, who was before, and how one takes the other's place.

MLflow can move one alias at a time, and a process can die in between. So a change is written down first, in one tag of
the policy, then the alias `champion` is moved, which is the moment the change happens, and then the rest follows:

    1. journal   the line as it will be, and the event for the audit log
    2. champion  the alias moves
    3. previous  the alias follows
    4. audit log
    5. journal   closed

Whoever comes next finds an open journal and looks at the alias `champion`: if it moved, 3 to 5 are done again, which
changes nothing that was done before; if not, the change never happened. At every moment `champion` names a version
that was loaded and checked just before. A champion that somebody set by hand in MLflow is taken as it stands, and added
to the line; an alias that somebody deleted is put back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from celr_ray.cortex.registry_audit import AuditEvent, append_event, make_event
from celr_ray.cortex.registry_lock import Claim
from celr_ray.cortex.registry_store import TAG, PolicyVersion, Store

__all__ = ["ANCHOR", "CHALLENGER", "CHAMPION", "PREVIOUS", "Line", "open_line"]

CHAMPION, CHALLENGER, PREVIOUS, ANCHOR = "champion", "challenger", "previous", "anchor"

_TAG = "line"
_MAX_LINE = 200
"""Champions remembered; the audit log has them all."""


@dataclass
class Line:
    """The champions of a policy, while its claim is held.

    Attributes:
        store: the registry.
        claim: the right to write.
        name: of the policy.
        versions: numbers of the champions, the present one last; empty = there was none.
    """

    store: Store
    claim: Claim
    name: str
    versions: list[int]

    @property
    def champion(self) -> PolicyVersion | None:
        """The present champion."""
        return self.store.version(self.name, self.versions[-1]) if self.versions else None

    @property
    def previous(self) -> PolicyVersion | None:
        """The one before it."""
        return self.store.version(self.name, self.versions[-2]) if len(self.versions) > 1 else None

    def change(self, versions: Sequence[int], event: AuditEvent, evidence: Mapping[str, Any] | None = None) -> None:
        """Let the last of `versions` be the champion.

        Args:
            versions: the line as it will be.
            event: for the audit log.
            evidence: kept in the audit log.
        """
        after = list(versions)[-_MAX_LINE:]
        self._write({"versions": self.versions, "next": after, "event": asdict(event)})
        self.claim.check()
        self.store.set_alias(self.name, CHAMPION, after[-1])
        self._finish(after, event, evidence)

    def _finish(self, versions: list[int], event: AuditEvent, evidence: Mapping[str, Any] | None = None) -> None:
        """Do what follows the move of the champion; can be done again."""
        if len(versions) > 1:
            self.store.set_alias(self.name, PREVIOUS, versions[-2])
        elif PREVIOUS in self.store.read(self.name)[0]:
            self.store.delete_alias(self.name, PREVIOUS)
        append_event(self.store, event, evidence)
        self._write({"versions": versions})
        self.versions = versions

    def _write(self, state: Mapping[str, Any]) -> None:
        self.store.set_tag(self.name, _TAG, json.dumps(state))


def open_line(store: Store, claim: Claim, name: str) -> Line:
    """Return the line of champions, after finishing what a process that died left half done."""
    aliases, tags = store.read(name)
    state = json.loads(tags.get(f"{TAG}{_TAG}", '{"versions": []}'))
    line = Line(store, claim, name, list(state["versions"]))
    champion = aliases.get(CHAMPION)
    if "next" in state and champion == state["next"][-1]:
        line._finish(list(state["next"]), AuditEvent(**state["event"]))
    elif "next" in state:
        line._write({"versions": line.versions})
    if champion is None and line.versions:
        store.set_alias(name, CHAMPION, line.versions[-1])
    elif champion is not None and (not line.versions or line.versions[-1] != champion):
        old = line.champion
        found = make_event(
            "found",
            name,
            candidate_hash=store.version(name, champion).content_hash,
            champion_hash=old.content_hash if old else None,
            details={"version": champion, "reason": "the alias champion was set outside of celr-ray"},
        )
        line._finish([*line.versions, champion], found)
    return line
