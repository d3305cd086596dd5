"""What `celr-ray gate` does: names to policies, suite to tasks, the gate, its page, the audit log, the promotion."""

from __future__ import annotations

from dataclasses import dataclass

from celr_ray import storage
from celr_ray.config import GateJob
from celr_ray.core.clients import count_gpus
from celr_ray.core.models import load_tiers
from celr_ray.cortex.champions import ANCHOR, CHAMPION
from celr_ray.cortex.gate.criteria import GateVerdict
from celr_ray.cortex.gate.live import LiveSuite
from celr_ray.cortex.gate.report import GateReport
from celr_ray.cortex.gate.stage import Workers
from celr_ray.cortex.gate.suites import BankSuite, Suite
from celr_ray.cortex.gatekeeper import PAGE, REPORT, PromotionGate
from celr_ray.cortex.policy import Policy, load_policy
from celr_ray.cortex.registry import PolicyRegistry, PolicyVersion, split_reference
from celr_ray.errors import ConfigError
from celr_ray.run_folder import check_run_folder
from celr_ray.stage import write_run_record
from celr_ray.training.engine import engine_environment

__all__ = ["run_gate"]


@dataclass(frozen=True)
class _Role:
    """A policy, what the report calls it, and its version where the registry has it."""

    policy: Policy
    reference: str
    version: PolicyVersion | None = None


def run_gate(job: GateJob) -> tuple[str, int]:
    """Run the gate; returns the line for people and the exit code.

    Raises:
        ConfigError: suite, tiers and flags do not go together.
        InputError: the suite cannot be used.
        PolicyError: a policy cannot be used, or `--promote` is refused; the report is written then.
        RunMismatchError: the folder holds another gate.
    """
    candidate = _find_role(job, job.candidate)
    if job.promote and candidate.version is None:
        raise ConfigError(f"--promote needs a registered candidate (NAME@VERSION), {job.candidate} is none")
    champion = _find_base(job, candidate, job.champion, CHAMPION)
    anchor = _find_base(job, candidate, job.anchor, ANCHOR)
    check_run_folder(job.out, must_exist=False)
    gate = PromotionGate(
        job.gate,
        out=job.out,
        runtime=job.runtime,
        workers=_find_workers(job),
        transitions=job.transitions,
        overwrite=job.overwrite,
    )
    roles = {"candidate": candidate, "champion": champion, "anchor": anchor}
    references = {role: found.reference for role, found in roles.items()}
    report = gate.run(candidate.policy, champion.policy, anchor.policy, _find_suite(job), references=references)
    write_run_record(job.out, job.model_dump(mode="json"), [gate.stage_report] if gate.stage_report else [])
    page = _write_page(job.out, report)
    line = f"{report}; {storage.join(job.out, REPORT)}{page}"
    if candidate.version is not None:
        line += _tell_registry(job, candidate.version, champion.policy.content_hash, report)
    return line, report.exit_code


def _find_role(job: GateJob, name: str) -> _Role:
    """Return the policy that a name means now; an alias may move later, the version does not."""
    if "@" not in name or "/" in name:
        policy = load_policy(name, job.execute.escalation, registry=job.registry)
        return _Role(policy, policy.name)
    registry = PolicyRegistry(job.registry)
    version = registry.resolve(name)
    return _Role(registry.load(version), f"{version.name}@{version.version}", version)


def _find_base(job: GateJob, candidate: _Role, name: str | None, alias: str) -> _Role:
    """Return champion or anchor: as named, else the registry's of the candidate's name, else the heuristic."""
    if name is not None:
        return _find_role(job, name)
    return _find_role(job, "heuristic" if candidate.version is None else f"{candidate.version.name}@{alias}")


def _find_suite(job: GateJob) -> Suite:
    if storage.is_directory(job.suite):
        if job.tiers is not None:
            raise ConfigError("--tiers: a bank is replayed; only a file of tasks is run on tiers")
        return BankSuite(job.suite, job.gate, job.execute.escalation, job.execute.limits)
    if storage.stat(job.suite) is None:
        raise ConfigError(f"--suite: there is neither a bank nor a file of tasks at {job.suite}")
    if job.tiers is None:
        raise ConfigError(f"--tiers is missing: {job.suite} is no folder of a bank, so its tasks are to be run")
    if job.execute.limit is not None:
        raise ConfigError("--execute.limit: how many tasks a gate uses is --gate.max-tasks")
    execute = job.execute.model_copy(update={"concurrency": job.concurrency})
    return LiveSuite(job.suite, job.tiers, execute, job.gate)


def _find_workers(job: GateJob) -> Workers:
    if job.tiers is None:
        return Workers(job.concurrency, job.num_cpus)
    num_gpus = count_gpus(load_tiers(job.tiers))
    return Workers(job.concurrency, job.num_cpus, num_gpus, engine_environment(num_gpus))


def _write_page(out: str, report: GateReport) -> str:
    """Write the HTML page where its libraries are installed; returns what to add to the line."""
    try:
        from celr_ray.report.gate_page import render_gate_page
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("plotly", "jinja2", "markupsafe"):
            raise
        return f" (no page: {error.name} is not installed, pip install 'celr-ray[report]')"
    uri = storage.join(out, PAGE)
    storage.write_bytes(uri, render_gate_page(report.document))
    return f", {PAGE}"


def _tell_registry(job: GateJob, version: PolicyVersion, champion_hash: str, report: GateReport) -> str:
    """Write the gate into the audit log, and promote if asked; returns what to add to the line.

    Raises:
        PolicyError: the champion has changed meanwhile, or the registry cannot be written.
    """
    registry = PolicyRegistry(job.registry)
    name, _ = split_reference(f"{version.name}@{version.version}")
    registry.record_event(
        name,
        "gate",
        candidate_hash=version.content_hash,
        champion_hash=champion_hash,
        evidence=report.document,
        details={"verdict": report.verdict.value, "version": version.version, "reason": report.reasons[0]},
    )
    if not job.promote:
        return ""
    if report.verdict is not GateVerdict.PASS:
        return "; not promoted"
    promoted = registry.promote(name, version.version, expected_champion=champion_hash, evidence=report.document)
    return f"; promoted: champion of {name} is {promoted}"
