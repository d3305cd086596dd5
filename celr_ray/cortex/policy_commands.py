"""What `celr-ray policy` does: the registry as text that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from celr_ray.cortex.champions import CHAMPION
from celr_ray.cortex.evidence import read_evidence
from celr_ray.cortex.registry import PolicyRegistry, PolicyVersion, split_reference
from celr_ray.cortex.registry_audit import AuditEvent
from celr_ray.errors import ConfigError

__all__ = ["list_policies", "promote_policy", "roll_back_policy", "show_policy"]


def list_policies(registry: str | None) -> str:
    """Return one line for each alias of each policy.

    Raises:
        PolicyError: there is no such registry.
    """
    opened = PolicyRegistry(registry)
    rows = [
        (name, alias, f"{name}@{version.version}", version.content_hash, _describe_kind(version))
        for name, aliases in opened.list().items()
        for alias, version in aliases.items()
    ]
    if not rows:
        return f"no policies in {opened.uri}"
    return _format_table([("policy", "alias", "version", "content hash", "kind"), *rows])


def show_policy(reference: str, registry: str | None) -> str:
    """Return a policy's versions and history, or a version's manifest.

    Raises:
        PolicyError: there is none.
    """
    opened = PolicyRegistry(registry)
    if "@" in reference:
        version = opened.resolve(reference)
        manifest = opened.load_artefact(version).manifest
        return f"{version}\naliases: {', '.join(version.aliases) or 'none'}\n{manifest.to_json().decode().rstrip()}"
    history = opened.history(reference)
    versions = [
        (f"{v.name}@{v.version}", v.content_hash, _describe_kind(v), _format_ms(v.created_ms), ", ".join(v.aliases))
        for v in history.versions
    ]
    table = _format_table([("version", "content hash", "kind", "registered", "aliases"), *versions])
    return "\n".join([table, "", "what happened:", *(f"  {_describe_event(event)}" for event in history.events)])


def promote_policy(reference: str, registry: str | None, *, evidence: str | None, force: str | None) -> str:
    """Promote a version, and return what changed.

    Args:
        reference: NAME@VERSION or NAME@ALIAS.
        registry: see `find_registry`.
        evidence: file of the gate's report.
        force: reason to do without.

    Raises:
        ConfigError: neither or both are given.
        PolicyError: it is refused; the champion is as it was.
    """
    if (evidence is None) == (not force):
        raise ConfigError(
            "--evidence: give the gate_report.json of a celr-ray gate that passed this candidate; or, without one, "
            "--force REASON"
        )
    opened = PolicyRegistry(registry)
    name, _ = split_reference(reference)
    candidate = opened.resolve(reference)
    champion = opened.resolve(f"{name}@{CHAMPION}")
    report = None if evidence is None else read_evidence(evidence)
    promoted = opened.promote(
        name, candidate.version, expected_champion=champion.content_hash, evidence=report, force=force
    )
    return f"champion of {name}: {promoted}, before {champion}" + ("; forced" if force else "")


def roll_back_policy(name: str, registry: str | None, *, reason: str) -> str:
    """Roll back to the previous champion, and return what changed.

    Raises:
        PolicyError: there is none before.
    """
    opened = PolicyRegistry(registry)
    before = opened.resolve(f"{name}@{CHAMPION}")
    return f"champion of {name}: {opened.rollback(name, reason=reason)}, before {before}"


def _describe_kind(version: PolicyVersion) -> str:
    return version.tags.get("celr.algorithm") or version.kind


def _describe_event(event: AuditEvent) -> str:
    parts = [event.when, event.event, event.candidate_hash or ""]
    parts += [f"against {event.champion_hash}"] if event.champion_hash else []
    parts += [f"evidence {event.evidence_hash}"] if event.evidence_hash else []
    parts += [f"{key} {value}" for key, value in event.details.items()]
    return "  ".join([*parts, f"by {event.user}" if event.user else ""]).rstrip()


def _format_ms(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
