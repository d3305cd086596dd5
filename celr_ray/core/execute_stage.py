"""The execute stage: a unit is some tasks whose episodes advance together; it writes logs and a table of episodes.

    LOGS/logs/part-00000.jsonl       one ATIF document a task, for `celr-ray pipeline --logs LOGS/logs`
    LOGS/episodes/part-00000.parquet one row a task: outcome, cost, decisions
    LOGS/rejected/part-00000.jsonl   task lines that cannot be used
    LOGS/summary.json                success and cost with intervals

A unit is the least that is lost: an engine that dies takes its unit's episodes with it, and they are begun anew.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.config import ExecuteConfig, ExecuteJob
from celr_ray.core.calls import Models
from celr_ray.core.clients import OUTAGES, ModelClient, count_gpus, open_clients
from celr_ray.core.episode_log import make_episode_document
from celr_ray.core.episodes import EndReason, Episodes
from celr_ray.core.executor import Results, run_episodes
from celr_ray.core.live import LiveWorld
from celr_ray.core.models import TierLadder, load_tiers
from celr_ray.core.monitor import Monitor, load_rules
from celr_ray.core.sandbox import check_sandbox
from celr_ray.core.task_columns import make_task_columns
from celr_ray.core.tasks import Task, TaskFile, plan_task_units, read_tasks
from celr_ray.core.transcript import Transcript
from celr_ray.core.verifier import ModelCheck, PythonTestsCheck
from celr_ray.cortex.actions import ATTEMPTS, Action, BoolArray, FloatArray
from celr_ray.cortex.difficulty import DifficultyModel, load_difficulty
from celr_ray.cortex.policy import EpsilonSoft, Policy, find_fallbacks, load_policy
from celr_ray.cortex.state import FEATURE_INDEX, SCHEMA_HASH
from celr_ray.errors import ConfigError
from celr_ray.run_folder import check_run_folder, part_name
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.schema import EPISODE_SCHEMA
from celr_ray.stage import StagePlan, StageReport, hash_json, open_stage, run_stage
from celr_ray.training.engine import engine_environment

__all__ = ["Executor", "execute_plan", "open_worker_clients", "run_execute"]

_logger = logging.getLogger(__name__)

_RESULT_SETTINGS = {
    "rows_per_unit",
    "default_budget_usd",
    "default_time_limit_s",
    "system_prompt",
    "probe",
    "limits",
    "escalation",
    "allow_weak_sandbox",
}
_TIER_FIELDS_OF_NO_EFFECT = {"concurrency", "api_key_env"}
"""May change between a run and its resumption."""


def _load_difficulty(config: ExecuteConfig) -> DifficultyModel:
    return DifficultyModel.neutral() if config.difficulty is None else load_difficulty(config.difficulty)


def _make_policy(job: ExecuteJob, monitor: Monitor) -> Policy:
    """Return the policy that decides, softened by ε where its logs shall serve others."""

    def safe_actions(obs: FloatArray, mask: BoolArray) -> BoolArray:
        return monitor.safe_actions({name: obs[:, column] for name, column in FEATURE_INDEX.items()})

    policy = load_policy(job.policy, job.execute.escalation, registry=job.registry)
    return (
        EpsilonSoft(policy, job.execute.epsilon, safe_actions, monitor.content_hash) if job.execute.epsilon else policy
    )


def execute_plan(
    job: ExecuteJob, ladder: TierLadder, tasks: Sequence[Task], n_rejected: int, policy: Policy
) -> StagePlan:
    """List the units: tasks in the order of the file, `rows_per_unit` in each; the first one notes rejected lines."""
    config = job.execute
    monitor = load_rules(config.monitor_rules)
    settings = {
        "tasks": hash_json([task.model_dump(mode="json") for task in tasks]),
        "n_rejected": n_rejected,
        "tiers": ladder.model_dump(mode="json", exclude={"tiers": {"__all__": _TIER_FIELDS_OF_NO_EFFECT}}),
        "policy": policy.content_hash,
        "difficulty": _load_difficulty(config).content_hash,
        "monitor": monitor.content_hash,
        "state_schema": SCHEMA_HASH,
        "seed": job.runtime.seed,
        **config.model_dump(mode="json", include=_RESULT_SETTINGS),
    }
    units = plan_task_units(tasks, config.rows_per_unit)
    units[0]["rejected"] = n_rejected
    return StagePlan("execute", settings, units)


def run_execute(job: ExecuteJob, *, clients: Mapping[str, ModelClient] | None = None) -> StageReport:
    """Run the tasks that have no episode yet; no engine starts if there are none.

    Args:
        job: the settings.
        clients: models to use in this process instead of the tiers' own, by the tiers' names.

    Raises:
        ConfigError: tiers, rules or policy are wrong.
        InputError: there is no usable task.
        ModelError: a model cannot be loaded, its engine died, or its endpoint refuses every call.
        RunMismatchError: the folder holds an execution with other tasks or settings.
    """
    ladder = load_tiers(job.tiers)
    file = _read_tasks(job)
    _check_verifier_tiers(file.tasks, ladder)
    # Made once: an alias of the registry may move while the job runs, and workers elsewhere may not reach the registry.
    policy = _make_policy(job, load_rules(job.execute.monitor_rules))
    plan = execute_plan(job, ladder, file.tasks, len(file.rejected), policy)
    check_run_folder(job.out, must_exist=False)
    if any(isinstance(check, PythonTestsCheck) for task in file.tasks for check in (task.checker, task.verifier)):
        check_sandbox(allow_weak=job.execute.allow_weak_sandbox)
    for warning in ladder.warnings():
        _logger.warning(warning)
    open_stage(job.out, plan, overwrite=job.overwrite)
    if file.rejected:
        rows = "".join(row.model_dump_json() + "\n" for row in file.rejected)
        storage.write_bytes(storage.join(job.out, "rejected", part_name(0, "jsonl")), rows.encode())
    num_gpus = count_gpus(ladder)
    factory = ExecuteFactory(job, policy, clients)
    work = Work(
        factory=factory,
        is_stateful=True,
        concurrency=job.execute.concurrency,
        num_cpus=job.execute.num_cpus,
        num_gpus=num_gpus,
        env=engine_environment(num_gpus),
    )
    on_ray = clients is None and uses_ray(job.runtime, is_large=job.execute.concurrency > 1 or num_gpus > 0)
    try:
        report = run_stage(job.out, plan, work, job.runtime, on_ray=on_ray, overwrite=job.overwrite)
    finally:
        for client in factory.opened:
            client.close()
    _warn_of_failures(report.counts)
    return report


def _warn_of_failures(counts: Mapping[str, int]) -> None:
    """Say it where most calls failed: the figures then tell of the engines, not of policy and models."""
    failed = {key.partition(".")[2]: n for key, n in counts.items() if key.startswith("failed_calls.")}
    n_failed = sum(failed.values())
    n_calls = sum(counts.get(f"actions.{action.name}", 0) for action in (*ATTEMPTS, Action.VERIFY))
    if 2 * n_failed > n_calls:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in failed.items())
        _logger.warning(
            f"{n_failed:,} of {n_calls:,} attempts and verifications failed ({kinds}): `failure` of the decisions in "
            "the logs says why; mend it and run again into another folder"
        )


def _read_tasks(job: ExecuteJob) -> TaskFile:
    file = read_tasks(job.tasks)
    return file if job.execute.limit is None else TaskFile(file.tasks[: job.execute.limit], file.rejected)


def _check_verifier_tiers(tasks: Sequence[Task], ladder: TierLadder) -> None:
    """Check, before any engine starts, that verifiers name tiers of this ladder.

    Raises:
        ConfigError: one does not; the message names the first such task.
    """
    names = {tier.name for tier in ladder.tiers} | {"current"}
    wrong = [t for t in tasks if isinstance(t.verifier, ModelCheck) and t.verifier.tier not in names]
    if wrong:
        check = wrong[0].verifier
        tier = check.tier if isinstance(check, ModelCheck) else ""
        raise ConfigError(
            f"{len(wrong)} tasks have a verifier on a tier that the ladder lacks, first {wrong[0].task_id!r}: "
            f"{tier!r}; use current or one of {', '.join(tier.name for tier in ladder.tiers)}"
        )


@dataclass(frozen=True)
class ExecuteFactory:
    """Makes the function that runs a unit; picklable, and loads the models only where it is called.

    Attributes:
        job: the settings.
        policy: decides.
        clients: use these models and load none; only without Ray.
        opened: the models that were loaded in this process, for its owner to close; those of an actor end with it.
    """

    job: ExecuteJob
    policy: Policy
    clients: Mapping[str, ModelClient] | None = None
    opened: list[ModelClient] = field(default_factory=list)

    def __call__(self) -> UnitFunction:
        """Read the tasks and open the models."""
        ladder = load_tiers(self.job.tiers)
        clients = self.clients
        if clients is None:
            clients = open_worker_clients(self.job, ladder)
            self.opened.extend(clients.values())
        return Executor(self.job, ladder, self.policy, clients).run_unit


def open_worker_clients(job: ExecuteJob, ladder: TierLadder) -> Mapping[str, ModelClient]:
    """Load the models in a worker; engines on CPU compute on its share of the machine."""
    n_cpus = len(os.sched_getaffinity(0))
    return open_clients(ladder, num_threads=max(n_cpus // job.execute.concurrency, 1))


class Executor:
    """Runs tasks with the same models."""

    def __init__(self, job: ExecuteJob, ladder: TierLadder, policy: Policy, clients: Mapping[str, ModelClient]) -> None:
        """Read the tasks of a job.

        Args:
            job: the settings.
            ladder: the tiers.
            policy: decides.
            clients: the tiers' models, by name.
        """
        self._job = job
        self._ladder = ladder
        self._models = Models(ladder, clients)
        self._tasks = _read_tasks(job).tasks
        self._monitor = load_rules(job.execute.monitor_rules)
        self._policy = policy
        self._difficulty = _load_difficulty(job.execute)

    def run_unit(self, unit: Unit) -> Manifest:
        """Run the episodes of one unit and write them; see `stage.run_stage` for the contract."""
        tasks = self._tasks[unit["start"] : unit["stop"]]
        return self.run_tasks(tasks, unit["run"], unit["index"], n_rejected=unit.get("rejected", 0))

    def run_tasks(self, tasks: Sequence[Task], run: str, index: int, *, n_rejected: int = 0) -> Manifest:
        """Run the episodes of some tasks together, and write logs and rows.

        Args:
            tasks: what to run.
            run: folder for `logs` and `episodes`.
            index: number of the parts to write.
            n_rejected: lines of the task file that belong to these tasks' unit and are none.

        Raises:
            PolicyError: the policy gave no probabilities, or chose what is not allowed.
        """
        config = self._job.execute
        seed = self._job.runtime.seed
        columns = make_task_columns(tasks, self._models, self._monitor, self._difficulty, config, seed=seed)
        world = LiveWorld(
            tasks,
            self._models,
            self._monitor,
            system_prompt=config.system_prompt,
            seed=seed,
            allow_weak_sandbox=config.allow_weak_sandbox,
        )
        episodes = Episodes(
            columns,
            len(self._ladder.tiers),
            config.limits,
            config.escalation,
            start_tier=self._policy.start_tier,
        )
        results = run_episodes(episodes, self._policy, world, seed=seed)
        documents = [
            make_episode_document(row, transcript, results, self._ladder, self._describe(episodes, row))
            for row, transcript in enumerate(world.transcripts)
        ]
        logs = b"".join(msgspec.json.encode(document) + b"\n" for document in documents)
        table = _make_table(world.transcripts, results, episodes, self._policy)
        storage.write_parquet(storage.join(run, "episodes", part_name(index)), table)
        storage.write_bytes(storage.join(run, "logs", part_name(index, "jsonl")), logs)
        return {
            "rows_in": len(tasks) + n_rejected,
            "rows_out": len(tasks),
            "rejected": n_rejected,
            **_count(results, world.transcripts),
            "fallbacks": int(table["n_fallbacks"].to_numpy().sum()),
        }

    def _describe(self, episodes: Episodes, row: int) -> dict[str, Any]:
        """Return what is the same for all episodes, and what was known of this one before its first call."""
        tasks = episodes.tasks
        agreement = tasks.probe_agreement[row]
        return {
            "policy": self._policy.name,
            "policy_hash": self._policy.content_hash,
            "state_schema": SCHEMA_HASH,
            "monitor": self._monitor.content_hash,
            "seed": self._job.runtime.seed,
            "epsilon": self._job.execute.epsilon,
            "tiers": [tier.name for tier in self._ladder.tiers],
            "limits": self._job.execute.limits.model_dump(),
            "escalation": self._job.execute.escalation.model_dump(),
            "time_limit_s": float(tasks.time_limit_s[row]),
            "difficulty": float(tasks.difficulty[row]),
            "is_difficulty_known": bool(tasks.is_difficulty_known[row]),
            "risk": float(tasks.risk[row]),
            "probe": None
            if np.isnan(agreement)
            else {
                "agreement": float(agreement),
                "confidence": float(tasks.probe_confidence[row]),
                "cost_usd": float(tasks.probe_usd[row]),
                "seconds": float(tasks.probe_s[row]),
            },
        }


def _count(results: Results, transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """Count outcomes, for the manifest."""
    events = [event for transcript in transcripts for event in transcript.events]
    reasons = Counter(EndReason(int(reason)).name.lower() for reason in results.end_reason)
    failures = Counter(event.failure_kind for event in events if event.failure_kind is not None)
    return {
        "succeeded": int(np.nansum(results.success)),
        "without_checker": int(np.isnan(results.success).sum()),
        "unsafe": int(results.unsafe.sum()),
        "decisions": len(events),
        "actions": dict(Counter(event.action for event in events)),
        "ended": dict(reasons),
        "failed_calls": dict(failures),
    }


def _make_table(transcripts: Sequence[Transcript], results: Results, episodes: Episodes, policy: Policy) -> pa.Table:
    """Return one row for each episode."""
    n = len(transcripts)
    decisions = results.decisions
    tokens = np.zeros((2, n), dtype=np.int64)
    np.add.at(tokens[0], decisions.episode, decisions.outcomes.prompt_tokens)
    np.add.at(tokens[1], decisions.episode, decisions.outcomes.output_tokens)
    tasks = [transcript.task for transcript in transcripts]
    columns = {
        "task_id": [task.task_id for task in tasks],
        "domain": [task.domain for task in tasks],
        "level": [None if task.level is None else str(task.level) for task in tasks],
        "policy": [policy.name] * n,
        "policy_hash": [policy.content_hash] * n,
        "success": pa.array(results.success == 1, mask=np.isnan(results.success)),
        "correctness": pa.array(results.correctness, mask=np.isnan(results.correctness)),
        "unsafe": results.unsafe,
        "end_reason": [EndReason(int(reason)).name for reason in results.end_reason],
        "budget_usd": results.budget_usd,
        "cost_usd": results.cost_usd,
        "seconds": results.seconds,
        "difficulty": episodes.tasks.difficulty,
        "total_reward": pa.array(results.total_reward, mask=np.isnan(results.total_reward)),
        "final_tier": episodes.tier,
        "n_attempts": episodes.attempts.sum(axis=1),
        "n_failed_calls": [sum(event.failure is not None for event in t.events) for t in transcripts],
        "n_outages": [sum(event.failure_kind in OUTAGES for event in t.events) for t in transcripts],
        "n_fallbacks": np.bincount(decisions.episode[find_fallbacks(policy, decisions.obs)], minlength=n),
        "actions": [[event.action for event in t.events] for t in transcripts],
        "prompt_tokens": tokens[0],
        "output_tokens": tokens[1],
    }
    return pa.table(columns, schema=EPISODE_SCHEMA)
