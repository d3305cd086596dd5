"""Puts a finished training into the registry: one run with the policy, one child run for each trial, once.

`OUT/training/registered.json` says where a training was registered, so that the same command run again registers
nothing. Without it (a killed command) the version is found by its manifest's hash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from celr_ray import storage
from celr_ray.config import TrainCortexJob
from celr_ray.cortex.artefact import load_artefact
from celr_ray.cortex.champions import CHALLENGER
from celr_ray.cortex.registry import PolicyRegistry, PolicyVersion
from celr_ray.cortex.registry_place import import_client, store_errors
from celr_ray.cortex.registry_store import TAG, check_name, open_store
from celr_ray.errors import PolicyError

__all__ = ["NO_REGISTRY", "check_registry", "is_asked_for", "register_training"]

NO_REGISTRY = "none"
_PARENT = "mlflow.parentRunId"


def check_registry(job: TrainCortexJob) -> str | None:
    """Look before the training whether its policy can be registered after it.

    Returns:
        Why not, where MLflow is not installed; None = it can be, or nobody wants it.

    Raises:
        PolicyError: the name is none for a registry, or the registry does not answer.
    """
    check_name(job.name)
    if job.registry == NO_REGISTRY:
        return None
    try:
        import_client()
    except PolicyError as error:
        return str(error)
    open_store(job.registry, create=True)
    return None


def is_asked_for(job: TrainCortexJob) -> bool:
    """Tell whether a registry was named, by flag or environment; the default is used only where MLflow is there."""
    return bool(job.registry or os.environ.get("MLFLOW_TRACKING_URI"))


def register_training(
    job: TrainCortexJob, uri: str, record: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> PolicyVersion:
    """Register a policy as the newest version of its name, unless this training has done so before.

    Args:
        job: name, registry and settings.
        uri: folder of the policy.
        record: training.json.
        results: of the trials.

    Returns:
        The version, with the aliases that it has now.

    Raises:
        PolicyError: the registry cannot be written.
    """
    registry = PolicyRegistry(job.registry)
    mark = storage.join(job.out, "training", "registered.json")
    manifest_hash = load_artefact(uri).manifest.manifest_hash
    version = _find(registry, job.name, manifest_hash)
    stored = storage.read_json(mark) if storage.stat(mark) else {}
    if version is not None and stored == _describe(registry, version):
        return version
    if version is None:
        taken = results[record["taken"]]["curve"]
        version = registry.log_training(
            job.name,
            uri,
            params={
                "algorithm": record["algorithm"],
                "trial": record["trial"],
                "data_hash": record["data_hash"],
                "failure_penalty": record["failure_penalty"],
                **job.train.model_dump(mode="json"),
            },
            metrics=record["metrics"],
            curves={key: [point[key] for point in taken] for key in taken[0] if key != "step"},
            tags={"reason": record["reason"][:500]},
            alias=None,
        )
    _log_trials(registry, version, record)
    store = open_store(job.registry, create=False)
    store.set_alias(job.name, CHALLENGER, version.version)
    storage.write_json(mark, _describe(registry, version))
    return store.version(job.name, version.version)


def _describe(registry: PolicyRegistry, version: PolicyVersion) -> dict[str, Any]:
    """Return what identifies a registration; no password that a server's address may hold."""
    place = registry.uri.rsplit("@", 1)[-1]
    return {"registry": place, "version": str(version), "manifest_hash": version.manifest_hash}


def _find(registry: PolicyRegistry, name: str, manifest_hash: str) -> PolicyVersion | None:
    """Return the version that the same training has made before."""
    try:
        versions = registry.history(name).versions
    except PolicyError:  # no registry or no such policy yet
        return None
    return next((version for version in versions if version.manifest_hash == manifest_hash), None)


def _log_trials(registry: PolicyRegistry, version: PolicyVersion, record: Mapping[str, Any]) -> None:
    """Log every trial as a child of the version's run: parameters, curve, what held-out tasks say of it."""
    store = open_store(registry.uri, create=False)
    client = store.client
    with store_errors(store.uri, "write"):
        experiment = client.get_run(version.run_id).info.experiment_id
        there = client.search_runs([experiment], f"tags.`{_PARENT}` = '{version.run_id}'")
        names = {run.info.run_name for run in there if run.info.status == "FINISHED"}
        for trial in record["trials"]:
            if trial["name"] not in names:
                _log_trial(client, experiment, version, trial)


def _log_trial(client: Any, experiment: str, version: PolicyVersion, trial: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param

    tags = {_PARENT: version.run_id, f"{TAG}content_hash": trial["content_hash"], f"{TAG}policy": version.name}
    run = client.create_run(experiment, run_name=trial["name"], tags=tags).info.run_id
    now = int(time.time() * 1000)
    points = [
        Metric(key, float(value), now, int(point["step"]))
        for point in trial["curve"]
        for key, value in point.items()
        if key != "step"
    ]
    score = trial["score"] or {}
    points += [
        Metric(f"validation_{key}", float(value), now, 0)
        for key, value in score.items()
        if isinstance(value, int | float)
    ]
    inner = trial["trial"]
    settings = {"algorithm": inner["algorithm"], "seed": inner["seed"], **inner["params"]}
    client.log_batch(run, metrics=points, params=[Param(key, str(value)) for key, value in settings.items()])
    client.set_terminated(run, "FINISHED")
