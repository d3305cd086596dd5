"""From logs to a policy: dataset, trials, choice on held-out tasks, artefact, registry.

    OUT/transitions/…            the dataset (unless --transitions names another)
    OUT/training/TRIAL/…         the artefact of every trial
    OUT/training/training.json   settings, curves, scores, and why which was taken
    OUT/training/index.html      the same to look at
    OUT/policy/…                 the artefact that was taken

The same command goes on where an interrupted one stopped: finished trials are kept. Training decides nothing about
deployment: the new version is the registry's `challenger` until a gate has passed it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from celr_ray import storage
from celr_ray.config import TrainCortexJob
from celr_ray.core.escalation import HeuristicPolicy
from celr_ray.cortex.artefact import Artefact, load_artefact, save_artefact
from celr_ray.cortex.cold_start import check_agreement, measure_agreement, train_clone
from celr_ray.cortex.dataset import describe_dataset, read_dataset_record, run_dataset
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.policy import Policy, load_policy
from celr_ray.cortex.registry import PolicyRegistry, PolicyVersion
from celr_ray.cortex.selection import Score, choose, score_policies
from celr_ray.cortex.state import SCHEMA_HASH
from celr_ray.cortex.training_page import write_training_page
from celr_ray.cortex.trial_runner import run_trials
from celr_ray.cortex.trials import Trial, TrialData, list_trials, policy_uri
from celr_ray.errors import ConfigError, PolicyError
from celr_ray.lock import run_lock
from celr_ray.runtime import uses_ray
from celr_ray.stage import StagePlan, StageReport, check_run_folder, open_stage, write_run_record

__all__ = ["OfflineTrainer", "TrainingReport", "run_train_cortex"]

_logger = logging.getLogger(__name__)

NO_REGISTRY = "none"
_LARGE_EPISODES = 200_000


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to.

    Attributes:
        artefact_uri: folder of the policy.
        content_hash: identifies it.
        algorithm: what trained it.
        is_cold_start: the heuristic was cloned, for want of logs.
        reason: why this trial was taken.
        version: NAME@VERSION in the registry; None = not registered.
        n_trials, n_run: all trials, and those run now.
        record: training.json.
    """

    artefact_uri: str
    content_hash: str
    algorithm: str
    is_cold_start: bool
    reason: str
    version: str | None
    n_trials: int
    n_run: int
    record: dict[str, Any]

    def __str__(self) -> str:
        """Return one line for people."""
        what = (
            "cold start, the heuristic cloned" if self.is_cold_start else f"{self.algorithm} of {self.n_trials} trials"
        )
        registered = f"; {self.version}, challenger" if self.version else ""
        return f"{what}: {self.reason}; policy {self.content_hash} in {self.artefact_uri}{registered}"


class OfflineTrainer:
    """Trains a policy from logged decisions.

    Example:
        >>> OfflineTrainer(TrainCortexJob(logs=["runs/executed/logs"], out="runs/cortex")).train()  # doctest: +SKIP
    """

    def __init__(self, job: TrainCortexJob) -> None:
        """Use these settings."""
        self.job = job

    def train(self) -> TrainingReport:
        """Train, choose and register; see `run_train_cortex`."""
        return run_train_cortex(self.job)


def run_train_cortex(job: TrainCortexJob) -> TrainingReport:
    """Train a policy, or finish a training that was interrupted.

    Raises:
        ConfigError: neither logs nor transitions were given, or both.
        InputError: the logs hold no usable episode.
        PolicyError: the transitions cannot be trained on, or the registry cannot be written.
        RunMismatchError: the folder holds a training with other data or settings.
    """
    if bool(job.logs) == (job.transitions is not None):
        raise ConfigError("give --logs (what agents did), or --transitions (a finished dataset), and not both")
    check_run_folder(job.out, must_exist=False)
    with run_lock(job.out):
        uri, reports = _make_dataset(job)
        found = read_dataset_record(uri)
        n_episodes = sum(found["episodes"].values())
        is_cold = n_episodes < job.train.min_trajectories
        if is_cold:
            _logger.warning(
                "%d logged episodes are fewer than %d (--train.min-trajectories): no reinforcement learning. The "
                "static heuristic is cloned instead; the policy will be as good as the heuristic, and no better.",
                n_episodes,
                job.train.min_trajectories,
            )
        data = TrialData(uri, job.out, job.name, found["data_hash"], _find_parent(job), job.train, job.escalation)
        trials = [Trial("bc", {}, seed) for seed in job.train.seeds[:1]] if is_cold else _list(job)
        open_stage(job.out, _plan(job, data, trials, is_cold=is_cold), overwrite=job.overwrite)
        train = _clone if is_cold else _train
        return train(job, data, trials, reports)


def _list(job: TrainCortexJob) -> list[Trial]:
    return list_trials(job.algorithm, job.train)


def _make_dataset(job: TrainCortexJob) -> tuple[str, list[StageReport]]:
    """Return the dataset's folder, made from the logs if there are any."""
    if job.transitions is not None:
        return job.transitions, []
    report = run_dataset(job.logs, job.out, job.dataset, job.ingest, job.runtime, overwrite=job.overwrite)
    _logger.warning("dataset: %s", describe_dataset(report))
    return job.out, [report]


def _find_parent(job: TrainCortexJob) -> str | None:
    return None if job.parent is None else load_policy(job.parent, registry=job.registry).content_hash


def _plan(job: TrainCortexJob, data: TrialData, trials: Sequence[Trial], *, is_cold: bool) -> StagePlan:
    settings = {
        "data": data.data_hash,
        "state_schema": SCHEMA_HASH,
        "algorithm": job.algorithm,
        "name": job.name,
        "parent": data.parent,
        "is_cold_start": is_cold,
        "train": job.train.model_dump(mode="json"),
        "escalation": job.escalation.model_dump(mode="json"),
    }
    return StagePlan("train", settings, [{"trial": trial.name} for trial in trials])


def _clone(job: TrainCortexJob, data: TrialData, trials: Sequence[Trial], reports: list[StageReport]) -> TrainingReport:
    """Clone the heuristic, and check that it is cloned."""
    artefact, curve = train_clone(data, seed=trials[0].seed)
    agreement = measure_agreement(LearnedPolicy(artefact), job.escalation, seed=trials[0].seed + 1)
    check_agreement(agreement)
    reason = f"it decides as the heuristic in {agreement:.2%} of fresh valid states"
    result = {"trial": {"algorithm": "bc"}, "content_hash": artefact.content_hash, "curve": curve}
    return _finish(job, artefact, [result], [], reason, {"agreement_with_heuristic": agreement}, reports, n_run=1)


def _train(job: TrainCortexJob, data: TrialData, trials: Sequence[Trial], reports: list[StageReport]) -> TrainingReport:
    """Run the trials and take the best on held-out tasks."""
    on_ray = uses_ray(job.runtime, is_large=_is_large(data.transitions))
    results, n_run = run_trials(trials, data, job.runtime, on_ray=on_ray)
    artefacts = [load_artefact(policy_uri(job.out, trial)) for trial in trials]
    policies = [LearnedPolicy(artefact) for artefact in artefacts]
    scores = _score(job, data, policies)
    choice = choose([trial.algorithm for trial in trials], scores, job.algorithm)
    taken = policies[choice.number]
    agreement = measure_agreement(taken, job.escalation, seed=job.runtime.seed)
    metrics = {"agreement_with_heuristic": agreement, **_read_metrics(scores[choice.number])}
    return _finish(
        job, artefacts[choice.number], results, scores, choice.reason, metrics, reports, n_run, choice.number
    )


def _is_large(uri: str) -> bool:
    n_episodes: int = sum(read_dataset_record(uri)["episodes"].values())
    return n_episodes > _LARGE_EPISODES


def _score(job: TrainCortexJob, data: TrialData, policies: Sequence[LearnedPolicy]) -> list[Score]:
    """Score the trials, and the heuristic to compare with, which comes last."""
    everyone: list[Policy] = [*policies, HeuristicPolicy(job.escalation)]
    return score_policies(data.transitions, everyone, job.runtime, min_ess=job.train.min_ess, seed=job.runtime.seed)


def _read_metrics(score: Score) -> dict[str, float]:
    named = {"validation_value": score.value, "validation_low": score.ci_low, "validation_high": score.ci_high}
    named |= {"validation_ess": score.ess, "behavior_value": score.behavior}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _finish(
    job: TrainCortexJob,
    artefact: Artefact,
    results: Sequence[dict[str, Any]],
    scores: Sequence[Score],
    reason: str,
    metrics: dict[str, float],
    reports: list[StageReport],
    n_run: int,
    taken: int = 0,
) -> TrainingReport:
    """Write the policy, the record and its page, and register the policy."""
    uri = storage.join(job.out, "policy")
    save_artefact(uri, artefact)
    algorithm = str(artefact.manifest.algorithm)
    is_cold = not scores
    record = {
        "name": job.name,
        "algorithm": algorithm,
        "content_hash": artefact.content_hash,
        "data_hash": artefact.manifest.data_hash,
        "is_cold_start": is_cold,
        "reason": reason,
        "taken": taken,
        "metrics": metrics,
        "heuristic": scores[-1].to_json() if scores else None,
        "trials": [
            {**result, "score": score.to_json() if score else None}
            for result, score in zip_longest(results, scores[:-1])
        ],
        "settings": job.model_dump(mode="json"),
    }
    storage.write_json(storage.join(job.out, "training", "training.json"), record)
    write_training_page(storage.join(job.out, "training", "index.html"), record)
    version = _register(job, uri, record, results[taken]["curve"])
    counts = {"trials": len(results), "trials_run": n_run}
    write_run_record(job.out, job.model_dump(mode="json"), [*reports, StageReport("train", counts=counts)])
    return TrainingReport(uri, artefact.content_hash, algorithm, is_cold, reason, version, len(results), n_run, record)


def _register(job: TrainCortexJob, uri: str, record: dict[str, Any], curve: Sequence[dict[str, float]]) -> str | None:
    """Log the training to MLflow and register the policy; None where that is not wanted or already done.

    Raises:
        PolicyError: the registry cannot be written.
    """
    if job.registry == NO_REGISTRY:
        return None
    registry = PolicyRegistry(job.registry)
    if (made := _find_version(registry, job.name, record["content_hash"])) is not None:
        return f"{job.name}@{made.version}"
    curves = {key: [point[key] for point in curve] for key in curve[0] if key != "step"} if curve else {}
    made = registry.log_training(
        job.name,
        uri,
        params={
            "algorithm": record["algorithm"],
            "data_hash": record["data_hash"],
            **job.train.model_dump(mode="json"),
        },
        metrics=record["metrics"],
        curves=curves,
        tags={"reason": record["reason"][:200]},
    )
    return f"{job.name}@{made.version}"


def _find_version(registry: PolicyRegistry, name: str, content_hash: str) -> PolicyVersion | None:
    """Return the version that the same training has made before."""
    try:
        versions = registry.history(name).versions
    except PolicyError:  # no registry or no such policy yet
        return None
    return next((version for version in versions if version.content_hash == content_hash), None)
