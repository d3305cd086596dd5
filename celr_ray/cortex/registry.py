"""The registry of policies, on MLflow: trainings as runs, versions, and the aliases that say which one is deployed.

    champion     deployed now
    challenger   trained last, to be looked at by the gate
    previous     the champion before, one step of rollback
    anchor       the static heuristic, frozen, which every gate compares with and which can always be loaded

A new policy begins with the heuristic as its version 1, anchor and champion at once. Only `promote` and `rollback` move
`champion`, one writer at a time (`registry_lock`), against a champion that is read at that moment, with evidence, and
with an entry in the audit log (`champions`, `registry_audit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.artefact import Artefact, load_artefact, make_heuristic_artefact
from celr_ray.cortex.champions import ANCHOR, CHALLENGER, CHAMPION, open_line
from celr_ray.cortex.evidence import check_evidence, hash_evidence
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.registry_audit import AuditEvent, append_event, make_event, read_events
from celr_ray.cortex.registry_lock import WAIT_S, claim_policy
from celr_ray.cortex.registry_place import find_registry
from celr_ray.cortex.registry_store import PolicyVersion, Store, check_name, open_store
from celr_ray.errors import PolicyError

__all__ = ["PolicyHistory", "PolicyRegistry", "PolicyVersion", "split_reference"]


@dataclass(frozen=True)
class PolicyHistory:
    """All that is known of a policy.

    Attributes:
        versions: oldest first.
        events: the audit log, oldest first.
    """

    versions: list[PolicyVersion]
    events: list[AuditEvent]


def split_reference(reference: str) -> tuple[str, str]:
    """Split NAME@ALIAS or NAME@VERSION.

    Raises:
        PolicyError: it is neither.
    """
    name, at, which = reference.rpartition("@")
    if not at or not which:
        raise PolicyError(f"{reference!r} is no NAME@ALIAS or NAME@VERSION, such as router@champion or router@3")
    check_name(name)
    return name, which


class PolicyRegistry:
    """Front door to the registry. It is opened at the first call; reading never makes one.

    Example:
        registry = PolicyRegistry("sqlite:///mlflow.db")
        made = registry.log_training("router", "runs/cortex/policy", metrics={"value": 0.7})
        registry.promote("router", made.version, expected_champion=…, evidence=report)
        policy = registry.load("router@champion")
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        """Name the registry.

        Args:
            tracking_uri: `sqlite:///FILE`, `http://…`, …, a file `*.db` or a folder; None = MLFLOW_TRACKING_URI, else
                `mlflow.db` in the current folder.
        """
        self.uri = find_registry(tracking_uri)
        self._store: Store | None = None

    def _open(self, *, create: bool = False) -> Store:
        if self._store is None:
            self._store = open_store(self.uri, create=create)
        return self._store

    # Reading

    def resolve(self, reference: str) -> PolicyVersion:
        """Return the version that NAME@ALIAS or NAME@VERSION means now.

        Raises:
            PolicyError: no such registry, name, alias or version.
        """
        name, which = split_reference(reference)
        store = self._open()
        aliases, _ = store.read(name)
        if which.isdecimal():
            return store.version(name, int(which))
        if which not in aliases:
            there = ", ".join(sorted(aliases)) or "none"
            raise PolicyError(f"{name} has no alias {which!r} in the registry {self.uri}; it has: {there}")
        return store.version(name, aliases[which])

    def load_artefact(self, reference: str | PolicyVersion) -> Artefact:
        """Return the artefact of a version, checked against what was registered.

        Raises:
            PolicyError: there is none, or it cannot be used.
        """
        version = reference if isinstance(reference, PolicyVersion) else self.resolve(reference)
        return self._open().load(version)

    def load(self, reference: str | PolicyVersion) -> Policy:
        """Return the policy of a version: a `LearnedPolicy`, or the heuristic.

        Raises:
            PolicyError: there is none, or it cannot be used.
        """
        from celr_ray.cortex.learned import make_policy

        return make_policy(self.load_artefact(reference))

    def list(self) -> dict[str, dict[str, PolicyVersion]]:
        """Return all policies by name, each with its aliases and their versions."""
        store = self._open()
        return {
            name: {alias: store.version(name, version) for alias, version in sorted(aliases.items())}
            for name, aliases in store.names().items()
        }

    def history(self, name: str) -> PolicyHistory:
        """Return all versions of a policy and all that happened to it.

        Raises:
            PolicyError: there is none of that name.
        """
        store = self._open()
        return PolicyHistory(store.versions(name), read_events(store, name))

    # Adding

    def log_training(
        self,
        name: str,
        artefact_uri: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[float]] | None = None,
        tags: Mapping[str, str] | None = None,
        alias: str | None = CHALLENGER,
    ) -> PolicyVersion:
        """Log a training as a run with its artefact, and register that as a new version.

        Args:
            name: of the policy; a new one begins with the heuristic as anchor and champion, under the thresholds of
                the artefact's fallback.
            artefact_uri: folder of the artefact.
            params: settings of the training, nested or flat.
            metrics: final figures.
            curves: figures step by step.
            tags: further tags of run and version.
            alias: points to the new version; None = no alias.

        Raises:
            PolicyError: the artefact cannot be used, or the registry cannot be written.
        """
        if alias in (CHAMPION, ANCHOR):
            raise PolicyError(f"a training does not set the alias {alias}: promote moves it, with evidence")
        artefact = load_artefact(artefact_uri)
        self.register_heuristic(name, artefact.manifest.escalation)
        store = self._open()
        made = store.add_version(name, artefact, params=params, metrics=metrics, curves=curves, tags=tags)
        if alias is not None:
            store.set_alias(name, alias, made.version)
        return store.version(name, made.version)

    def register_heuristic(self, name: str, escalation: EscalationConfig | None = None) -> PolicyVersion:
        """Let a policy begin: its anchor is the static heuristic, which is also the first champion.

        Args:
            name: of the policy.
            escalation: thresholds; one that has an anchor keeps its own.

        Returns:
            The anchor.

        Raises:
            PolicyError: the registry cannot be written.
        """
        check_name(name)
        store = self._open(create=True)
        store.create(name)
        aliases, _ = store.read(name)
        if ANCHOR in aliases and CHAMPION in aliases:
            return store.version(name, aliases[ANCHOR])
        with claim_policy(store, name) as claim:
            aliases, _ = store.read(name)
            if ANCHOR not in aliases:
                made = store.add_version(name, make_heuristic_artefact(escalation))
                store.set_alias(name, ANCHOR, made.version)
            anchor = store.version(name, store.read(name)[0][ANCHOR])
            line = open_line(store, claim, name)
            if not line.versions:
                event = make_event(
                    "register", name, candidate_hash=anchor.content_hash, details={"version": anchor.version}
                )
                line.change([anchor.version], event)
            return store.version(name, anchor.version)

    # Changing the champion

    def promote(
        self,
        name: str,
        version: int,
        *,
        expected_champion: str | None,
        evidence: Mapping[str, Any] | None = None,
        force: str | None = None,
        wait_s: float = WAIT_S,
    ) -> PolicyVersion:
        """Make a version the champion, if the champion is still the one expected.

        Args:
            name: of the policy.
            version: what to promote; it is loaded and checked first.
            expected_champion: content hash of the champion that the decision was made against; None = there is none.
            evidence: the gate's report: PASS, of this candidate, against this champion.
            force: promote without evidence, for this reason; it is recorded.
            wait_s: how long to wait for another writer, seconds.

        Returns:
            The new champion.

        Raises:
            PolicyError: no evidence, another champion than expected, or the candidate cannot be used. The champion is
                as it was then.
        """
        if (evidence is None) == (not force):
            raise PolicyError("a promotion needs the gate's report as evidence, or force with a reason, not both")
        store = self._open()
        store.read(name)
        with claim_policy(store, name, wait_s) as claim:
            line = open_line(store, claim, name)
            champion, candidate = line.champion, store.version(name, version)
            champion_hash = champion.content_hash if champion else None
            if champion_hash != expected_champion:
                raise PolicyError(
                    f"not promoted: the champion of {name} is {champion or 'none'} by now, not the expected "
                    f"{expected_champion}. Run the gate against it"
                )
            if champion is not None and candidate.content_hash == champion.content_hash:
                raise PolicyError(f"not promoted: {candidate} decides as the champion {champion} does")
            if evidence is not None:
                check_evidence(
                    evidence,
                    candidate_hash=candidate.content_hash,
                    champion_hash=champion_hash,
                    anchor_hash=_anchor_hash(store, name),
                )
            store.load(candidate)
            event = make_event(
                "promote",
                name,
                candidate_hash=candidate.content_hash,
                champion_hash=champion_hash,
                evidence_hash=None if evidence is None else hash_evidence(evidence),
                details={"version": version, **({"forced": force} if force else {})},
            )
            line.change([*line.versions, version], event, evidence)
        return store.version(name, version)

    def rollback(self, name: str, *, reason: str = "", wait_s: float = WAIT_S) -> PolicyVersion:
        """Make the previous champion the champion again; done twice, it goes back two steps.

        Args:
            name: of the policy.
            reason: for the audit log.
            wait_s: how long to wait for another writer, seconds.

        Returns:
            The champion.

        Raises:
            PolicyError: there is none before, or it cannot be used; the champion is as it was then.
        """
        store = self._open()
        store.read(name)
        with claim_policy(store, name, wait_s) as claim:
            line = open_line(store, claim, name)
            champion, previous = line.champion, line.previous
            if previous is None:
                raise PolicyError(
                    f"{name} has no champion before {champion or 'the first one'}: nothing to roll back to"
                )
            store.load(previous)
            event = make_event(
                "rollback",
                name,
                candidate_hash=previous.content_hash,
                champion_hash=champion.content_hash if champion else None,
                details={"version": previous.version, **({"reason": reason} if reason else {})},
            )
            line.change(line.versions[:-1], event)
        return store.version(name, previous.version)

    def record_event(
        self,
        name: str,
        event: str,
        *,
        candidate_hash: str | None = None,
        champion_hash: str | None = None,
        evidence: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> AuditEvent:
        """Write something else that happened to a policy, such as a gate, into the audit log.

        Raises:
            PolicyError: there is none of that name, or the registry cannot be written.
        """
        store = self._open()
        store.read(name)
        made = make_event(
            event,
            name,
            candidate_hash=candidate_hash,
            champion_hash=champion_hash,
            evidence_hash=None if evidence is None else hash_evidence(evidence),
            details=dict(details or {}),
        )
        append_event(store, made, evidence)
        return made


def _anchor_hash(store: Store, name: str) -> str | None:
    aliases, _ = store.read(name)
    return store.version(name, aliases[ANCHOR]).content_hash if ANCHOR in aliases else None
