"""From logs to a policy: dataset, trials, choice on held-out tasks, artefact, registry.

    OUT/transitions/…               the dataset (unless --transitions names another)
    OUT/training/TRIAL/…            the artefact of every trial
    OUT/training/training.json      settings, curves, scores, and why which was taken
    OUT/training/index.html         the same to look at
    OUT/training/registered.json    which version of which registry it became
    OUT/policy/…                    the artefact that was taken

The same command goes on where an interrupted one stopped: finished trials are kept. Training decides nothing about
deployment: the new version is the registry's `challenger` until a gate has passed it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celr_ray import storage
from celr_ray.config import TrainCortexJob
from celr_ray.core.escalation import HeuristicPolicy
from celr_ray.cortex.artefact import Artefact, load_artefact, save_artefact
from celr_ray.cortex.dataset import describe_dataset, read_dataset_record, run_dataset
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.manifest import clean_numbers
from celr_ray.cortex.policy import Policy, load_policy
from celr_ray.cortex.selection import Choice, Score, choose, describe_states, score_policies, unevaluable
from celr_ray.cortex.state import SCHEMA_HASH
from celr_ray.cortex.training_log import NO_REGISTRY, check_registry, is_asked_for, register_training
from celr_ray.cortex.training_page import write_training_page
from celr_ray.cortex.transition_check import SplitFacts, check_transitions
from celr_ray.cortex.transitions import find_failure_penalty
from celr_ray.cortex.trial_runner import run_trials
from celr_ray.cortex.trials import Trial, TrialData, list_trials, policy_uri
from celr_ray.errors import ConfigError, InputError, PolicyError
from celr_ray.lock import run_lock
from celr_ray.run_folder import check_run_folder
from celr_ray.runtime import uses_ray
from celr_ray.stage import StagePlan, StageReport, open_stage, write_run_record

__all__ = ["OfflineTrainer", "TrainingReport", "run_train_cortex"]

_logger = logging.getLogger(__name__)

_LARGE_EPISODES = 200_000
_MAX_FALLBACK_RATE = 0.02
"""A gate fails a policy that leaves more decisions to the heuristic; said here already."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to.

    Attributes:
        artefact_uri: folder of the policy.
        content_hash: identifies it.
        algorithm: what trained it.
        is_cold_start: the heuristic was cloned, for want of logs.
        reason: why this trial was taken.
        version: NAME@VERSION in the registry with its aliases; None = not registered.
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
        of = f", chosen from {self.n_trials} trials" if self.n_trials > 1 else ""
        what = "cold start" if self.is_cold_start else f"{self.record['trial']}{of}"
        registered = f"; {self.version}" if self.version else "; not registered"
        return f"{what}: {self.reason}; policy {self.content_hash} in {self.artefact_uri}{registered}"


@dataclass(frozen=True)
class _Training:
    """What is to be done.

    Attributes:
        data: what the trials share.
        trials: the trials.
        facts: what the splits hold.
        is_cold: too few logs: the heuristic is cloned.
        blind: why no trial can be evaluated; empty = one may be.
        failure_penalty: what the rewards charge for a failure.
    """

    data: TrialData
    trials: list[Trial]
    facts: dict[str, SplitFacts]
    is_cold: bool
    blind: str
    failure_penalty: float


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
        ConfigError: neither logs nor transitions were given, or both; settings of logs with transitions; or nothing to
            try for the algorithm.
        InputError: the logs hold no usable episode, or the transitions are damaged.
        PolicyError: the transitions cannot be trained on, or the registry cannot be used; a policy that was trained
            before stands in OUT/policy.
        RunMismatchError: the folder holds a training with other data or settings.
    """
    started = time.monotonic()
    if bool(job.logs) == (job.transitions is not None):
        raise ConfigError("give --logs (what agents did), or --transitions (a finished dataset), and not both")
    _check_sections(job)
    check_run_folder(job.out, must_exist=False)
    with run_lock(job.out):
        unregistered = check_registry(job)
        uri, reports = _make_dataset(job)
        training = _plan_training(job, uri)
        plan = _make_plan(job, training)
        open_stage(job.out, plan, overwrite=job.overwrite)
        on_ray = not training.is_cold and uses_ray(job.runtime, is_large=_is_large(training.facts))
        results, n_run = run_trials(training.trials, training.data, job.runtime, on_ray=on_ray)
        record, artefact = _choose(job, training, results)
        _write(job, record, artefact)
        report = StageReport("train", time.monotonic() - started, len(results), n_run, fingerprint=plan.fingerprint)
        write_run_record(job.out, _settings(job), [*reports, report])
        version = _register(job, record, results, unregistered)
    return TrainingReport(
        storage.join(job.out, "policy"),
        artefact.content_hash,
        record["algorithm"],
        training.is_cold,
        record["reason"],
        version,
        len(results),
        n_run,
        record,
    )


def _check_sections(job: TrainCortexJob) -> None:
    """Refuse settings of the reading of logs where none are read: they would be ignored.

    Raises:
        ConfigError: there is one.
    """
    if job.transitions is None:
        return
    for section, settings in (("dataset", job.dataset), ("ingest", job.ingest)):
        for name in sorted(settings.model_fields_set):
            raise ConfigError(
                f"--{section}.{name.replace('_', '-')} says how logs become transitions, and those of --transitions "
                "are made already: leave it out, or set it where they are made (--logs, or celr-ray bank replay)"
            )


def _settings(job: TrainCortexJob) -> dict[str, Any]:
    """Return the job as JSON, without the registry's address, which may hold a password, and what is not used."""
    unused = set() if job.transitions is None else {"dataset", "ingest"}
    return job.model_dump(mode="json", exclude={"registry", *unused})


def _make_dataset(job: TrainCortexJob) -> tuple[str, list[StageReport]]:
    """Return the dataset's folder, made from the logs if there are any."""
    if job.transitions is not None:
        return job.transitions, []
    report = run_dataset(job.logs, job.out, job.dataset, job.ingest, job.runtime, overwrite=job.overwrite)
    _logger.warning("dataset   %s", describe_dataset(report))
    return job.out, [report]


def _plan_training(job: TrainCortexJob, uri: str) -> _Training:
    """Look at the data and decide what to train.

    Raises:
        InputError: there is nothing to train on.
        PolicyError: the data are damaged.
    """
    found = read_dataset_record(uri)
    facts = check_transitions(uri, found)
    n_episodes = sum(split.n_episodes for split in facts.values())
    is_cold = n_episodes < job.train.min_trajectories
    blind = _find_blindness(facts)
    if is_cold:
        trials = [Trial("bc", {}, job.train.seeds[0], of_heuristic=True)]
        _logger.warning("%s", _explain_cold_start(job, n_episodes))
    elif not facts["train"].n_rows:
        raise InputError(
            f"the train split of {uri} has no transitions: give logs of more tasks, or make the dataset with a smaller "
            "--dataset.validation-fraction"
        )
    elif blind and job.algorithm == "auto":
        trials = list_trials("bc", job.train)
        _logger.warning("train     only BC is trained, since no other trial could be chosen: %s", blind)
    else:
        trials = list_trials(job.algorithm, job.train)
    parent = None if job.parent is None else load_policy(job.parent, registry=job.registry).content_hash
    data = TrialData(
        uri, job.out, job.name, found["data_hash"], parent, found["reward_scale"], job.train, job.escalation
    )
    return _Training(data, trials, facts, is_cold, blind, find_failure_penalty(uri, found))


def _find_blindness(facts: Mapping[str, SplitFacts]) -> str:
    """Return why the validation episodes can tell nothing of any policy; empty = they may."""
    validation = facts["validation"]
    if not validation.n_episodes:
        return "there are no validation episodes"
    if not validation.n_known:
        return (
            f"none of the {validation.n_episodes:,} validation episodes says with which probabilities it was decided "
            "(logs of other agents never do)"
        )
    return ""


def _explain_cold_start(job: TrainCortexJob, n_episodes: int) -> str:
    refused = f" --algorithm {job.algorithm} is refused." if job.algorithm in ("cql", "iql") else ""
    return (
        f"train     cold start: {n_episodes:,} logged episodes are too few for reinforcement learning, which needs "
        f"{job.train.min_trajectories} (--train.min-trajectories).{refused} The static heuristic is cloned instead; "
        "the policy will be as good as the heuristic, and no better."
    )


def _make_plan(job: TrainCortexJob, training: _Training) -> StagePlan:
    facts = {name: vars(split) for name, split in training.facts.items()}
    settings = {
        "data": training.data.data_hash,
        "splits": None if training.is_cold else facts,
        "state_schema": SCHEMA_HASH,
        "algorithm": job.algorithm,
        "name": job.name,
        "parent": training.data.parent,
        "is_cold_start": training.is_cold,
        "train": job.train.model_dump(mode="json"),
        "escalation": job.escalation.model_dump(mode="json"),
    }
    return StagePlan("train", settings, [{"trial": trial.name} for trial in training.trials])


def _is_large(facts: Mapping[str, SplitFacts]) -> bool:
    return sum(split.n_episodes for split in facts.values()) > _LARGE_EPISODES


def _choose(
    job: TrainCortexJob, training: _Training, results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], Artefact]:
    """Take one of the trials, and say why.

    Returns:
        training.json, and the artefact with what was found on held-out tasks in its manifest.
    """
    artefacts = [load_artefact(policy_uri(job.out, trial)) for trial in training.trials]
    metrics: dict[str, float]
    if training.is_cold:
        scores: list[Score] = []
        agreement = results[0]["agreement"]
        metrics = {"agreement_with_heuristic": agreement["overall"], "fallback_rate": agreement["fallback_rate"]}
        choice = Choice(0, _describe_clone(job, training, agreement))
    else:
        policies = [LearnedPolicy(artefact) for artefact in artefacts]
        scores = _score(job, training, policies)
        choice = choose(training.trials, scores[:-1], job.algorithm)
        metrics = _measure(job, training, policies[choice.number], scores[choice.number])
    artefact = _note(artefacts[choice.number], choice, metrics)
    trial = training.trials[choice.number]
    shown: Sequence[Any] = [score.to_json() for score in scores[:-1]] or [None] * len(results)
    record = {
        "name": job.name,
        "algorithm": trial.algorithm,
        "trial": trial.name,
        "content_hash": artefact.content_hash,
        "data_hash": training.data.data_hash,
        "failure_penalty": training.failure_penalty,
        "splits": {name: vars(split) for name, split in training.facts.items()},
        "is_cold_start": training.is_cold,
        "reason": choice.reason,
        "taken": choice.number,
        "metrics": metrics,
        "heuristic": scores[-1].to_json() if scores else None,
        "trials": [{**result, "score": score} for result, score in zip(results, shown, strict=True)],
        "settings": _settings(job),
    }
    return record, artefact


def _describe_clone(job: TrainCortexJob, training: _Training, agreement: Mapping[str, Any]) -> str:
    n_episodes = sum(split.n_episodes for split in training.facts.values())
    refused = f", {job.algorithm} refused" if job.algorithm in ("cql", "iql") else ""
    return (
        f"{n_episodes} episodes are fewer than {job.train.min_trajectories}{refused}, the static heuristic is cloned; "
        f"the clone decides as it does in {agreement['own']:.2%} of {agreement['n']:,} fresh states"
    )


def _score(job: TrainCortexJob, training: _Training, policies: Sequence[LearnedPolicy]) -> list[Score]:
    """Score the trials, and the heuristic to compare with, which comes last."""
    everyone: list[Policy] = [*policies, HeuristicPolicy(job.escalation)]
    if training.blind:
        return [unevaluable(training.blind) for _ in everyone]
    uri, seed = training.data.transitions, job.runtime.seed
    return score_policies(uri, everyone, job.runtime, min_ess=job.train.min_ess, seed=seed)


def _measure(job: TrainCortexJob, training: _Training, policy: LearnedPolicy, score: Score) -> dict[str, float]:
    """Return the figures of the policy that was taken."""
    named = {"validation_value": score.value, "validation_low": score.ci_low, "validation_high": score.ci_high}
    named |= {"validation_ess": score.ess, "behavior_value": score.behavior}
    if training.facts["validation"].n_rows:
        named |= describe_states(training.data.transitions, policy, HeuristicPolicy(job.escalation))
    if named.get("fallback_rate", 0.0) > _MAX_FALLBACK_RATE:
        _logger.warning(
            "train     the policy leaves %.1f %% of the validation decisions to the heuristic, because they are unlike "
            "the training states; a gate allows 2 %%. Train on logs of more tasks.",
            100 * named["fallback_rate"],
        )
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _note(artefact: Artefact, choice: Choice, metrics: Mapping[str, float]) -> Artefact:
    """Return the artefact with reason and figures in its manifest; what it decides stays the same."""
    told = {**artefact.manifest.training, "reason": choice.reason, "metrics": clean_numbers(dict(metrics))}
    return replace(artefact, manifest=artefact.manifest.model_copy(update={"training": told}).with_hashes())


def _write(job: TrainCortexJob, record: Mapping[str, Any], artefact: Artefact) -> None:
    save_artefact(storage.join(job.out, "policy"), artefact)
    storage.write_json(storage.join(job.out, "training", "training.json"), record)
    write_training_page(storage.join(job.out, "training", "index.html"), record)


def _register(
    job: TrainCortexJob, record: Mapping[str, Any], results: Sequence[Mapping[str, Any]], unregistered: str | None
) -> str | None:
    """Log the training to MLflow and register the policy; None where that is not wanted or not possible.

    Raises:
        PolicyError: the registry that was asked for cannot be used; the policy is there all the same.
    """
    uri = storage.join(job.out, "policy")
    if job.registry == NO_REGISTRY:
        return None
    try:
        if unregistered is not None:
            raise PolicyError(unregistered)
        made = register_training(job, uri, record, results)
    except PolicyError as error:
        told = (
            f"the policy is in {uri}, but it is not registered: {error}. Run the same command again once that is "
            "mended (nothing is trained again), or with --registry none"
        )
        if is_asked_for(job):
            raise PolicyError(told) from error
        _logger.warning("train     %s", told)
        return None
    return ", ".join([f"{job.name}@{made.version}", *made.aliases])
