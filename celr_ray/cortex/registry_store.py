"""MLflow as a store of policies: names with tags and aliases, versions with artefacts, runs.

Everything that the registry needs of MLflow is here; what a champion is, is not. MLflow is imported only when a store
is opened.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celr_ray.cortex.artefact import Artefact, load_artefact, save_artefact
from celr_ray.cortex.registry_place import SQLITE, check_place, find_registry, import_client, store_errors
from celr_ray.errors import PolicyError

__all__ = ["EXPERIMENT", "TAG", "PolicyVersion", "Store", "check_name", "open_store"]

EXPERIMENT = "celr-ray"
TAG = "celr."
"""Prefix of all our tags."""

_FOLDER = "policy"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BATCH = 500


@dataclass(frozen=True)
class PolicyVersion:
    """One version of a policy in the registry.

    Attributes:
        name: of the policy.
        version: counts from 1.
        content_hash: identifies what it decides.
        manifest_hash: identifies its whole manifest.
        kind: network or heuristic.
        run_id: MLflow run that holds parameters, curves and the artefact.
        aliases: names that point to it.
        created_ms: when it was registered, milliseconds since 1970.
        tags: all tags of the version.
    """

    name: str
    version: int
    content_hash: str
    manifest_hash: str
    kind: str
    run_id: str
    aliases: tuple[str, ...] = ()
    created_ms: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return what a person can type and compare."""
        return f"{self.name}@{self.version} ({self.content_hash})"


def check_name(name: str) -> None:
    """Check the name of a policy.

    Raises:
        PolicyError: it is not usable in the registry.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{name!r} is no name of a policy: letters, digits, dot, dash and underscore, at most 100")


def open_store(registry: str | None, *, create: bool) -> Store:
    """Open the registry.

    Args:
        registry: see `find_registry`.
        create: make the embedded one if it does not exist.

    Raises:
        PolicyError: there is none, it does not answer, or MLflow is not installed.
    """
    uri = find_registry(registry)
    check_place(uri, create=create)
    client_class = import_client()
    with store_errors(uri, "open"):
        return Store(uri, client_class(tracking_uri=uri, registry_uri=uri))


class Store:
    """The few operations of MLflow that a registry of policies is made of."""

    def __init__(self, uri: str, client: Any) -> None:
        """Use a client that is open."""
        self.uri = uri
        self.client = client

    # Names and their tags

    def names(self) -> dict[str, dict[str, int]]:
        """Return the policies, each with its aliases and their versions."""
        found: dict[str, dict[str, int]] = {}
        token: str | None = None
        with store_errors(self.uri, "read"):
            while True:
                page = self.client.search_registered_models(max_results=200, page_token=token)
                found |= {
                    m.name: {a: int(v) for a, v in m.aliases.items()} for m in page if f"{TAG}kind" in (m.tags or {})
                }
                token = page.token
                if not token:
                    return dict(sorted(found.items()))

    def read(self, name: str) -> tuple[dict[str, int], dict[str, str]]:
        """Return a policy's aliases with their versions, and its tags.

        Raises:
            PolicyError: there is none of that name.
        """
        model = self._find(name)
        if model is None or f"{TAG}kind" not in model.tags:
            there = ", ".join(self.names()) or "none"
            raise PolicyError(f"no policy {name!r} in the registry {self.uri}; there are: {there}")
        return {alias: int(version) for alias, version in model.aliases.items()}, dict(model.tags)

    def _find(self, name: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        check_name(name)
        with store_errors(self.uri, "read"):
            try:
                return self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def create(self, name: str) -> None:
        """Make a policy without versions, unless it is there.

        Raises:
            PolicyError: another kind of model has the name.
        """
        from mlflow.exceptions import MlflowException

        model = self._find(name)
        if model is None:
            with store_errors(self.uri, "write"):
                try:
                    self.client.create_registered_model(name, tags={f"{TAG}kind": "policy"})
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
        elif f"{TAG}kind" not in model.tags:
            raise PolicyError(f"the registry {self.uri} has a model {name!r} that is no policy; take another name")

    def set_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a policy."""
        with store_errors(self.uri, "write"):
            self.client.set_registered_model_tag(name, f"{TAG}{key}", value)

    def delete_tag(self, name: str, key: str) -> None:
        """Delete a tag of a policy."""
        with store_errors(self.uri, "write"):
            self.client.delete_registered_model_tag(name, f"{TAG}{key}")

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let an alias point to a version."""
        with store_errors(self.uri, "write"):
            self.client.set_registered_model_alias(name, alias, str(version))

    def delete_alias(self, name: str, alias: str) -> None:
        """Delete an alias, if it is there."""
        with store_errors(self.uri, "write"):
            self.client.delete_registered_model_alias(name, alias)

    # Versions

    def versions(self, name: str) -> list[PolicyVersion]:
        """Return all versions of a policy, oldest first."""
        aliases, _ = self.read(name)
        found = []
        token: str | None = None
        with store_errors(self.uri, "read"):
            while True:
                page = self.client.search_model_versions(f"name='{name}'", max_results=200, page_token=token)
                found += [self._describe(version, aliases) for version in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: version.version)

    def version(self, name: str, version: int) -> PolicyVersion:
        """Return one version.

        Raises:
            PolicyError: there is none of that number.
        """
        from mlflow.exceptions import MlflowException

        aliases, _ = self.read(name)
        with store_errors(self.uri, "read"):
            try:
                return self._describe(self.client.get_model_version(name, str(version)), aliases)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise PolicyError(
            f"{name} has no version {version} in the registry {self.uri}; see celr-ray policy show {name}"
        )

    def _describe(self, entity: Any, aliases: Mapping[str, int]) -> PolicyVersion:
        tags = dict(entity.tags)
        number = int(entity.version)
        return PolicyVersion(
            name=entity.name,
            version=number,
            content_hash=tags.get(f"{TAG}content_hash", ""),
            manifest_hash=tags.get(f"{TAG}manifest_hash", ""),
            kind=tags.get(f"{TAG}kind", ""),
            run_id=entity.run_id or "",
            aliases=tuple(sorted(alias for alias, at in aliases.items() if at == number)),
            created_ms=int(entity.creation_timestamp),
            tags=tags,
        )

    def load(self, version: PolicyVersion) -> Artefact:
        """Return the artefact of a version, checked against the hashes that the version was registered with.

        Raises:
            PolicyError: it is gone, or not what was registered.
        """
        with tempfile.TemporaryDirectory(prefix="celr-ray-policy-") as folder:
            with store_errors(self.uri, f"read the artefact of {version} from"):
                place = self.client.download_artifacts(version.run_id, _FOLDER, folder)
            try:
                artefact = load_artefact(str(place))
            except PolicyError as error:
                with store_errors(self.uri, "read"):
                    kept = f"{self.client.get_run(version.run_id).info.artifact_uri}/{_FOLDER}"
                told = str(error).replace(str(place), kept)  # not the copy, which is gone when this is read
                raise PolicyError(f"{version} of the registry {self.uri} cannot be used: {told}") from None
        found = (artefact.content_hash, artefact.manifest.manifest_hash)
        if found != (version.content_hash, version.manifest_hash):
            raise PolicyError(
                f"{version} of the registry {self.uri} is not what was registered: its artefact has the content hash "
                f"{found[0]} and the manifest hash {found[1]}, not {version.manifest_hash}"
            )
        return artefact

    # Runs

    def add_version(
        self,
        name: str,
        artefact: Artefact,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[float]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> PolicyVersion:
        """Log a run that holds an artefact, and register it as a new version; see `PolicyRegistry.log_training`."""
        manifest = artefact.manifest
        marks = {
            f"{TAG}content_hash": manifest.content_hash,
            f"{TAG}manifest_hash": manifest.manifest_hash,
            f"{TAG}kind": manifest.kind,
            f"{TAG}algorithm": manifest.algorithm or "",
            f"{TAG}data_hash": manifest.data_hash or "",
            f"{TAG}schema_hash": manifest.schema_hash,
        }
        with (
            store_errors(self.uri, "write"),
            self._run(EXPERIMENT, f"{name} {manifest.algorithm or manifest.kind}") as run,
        ):
            run_tags = {f"{TAG}policy": name, **marks, **(tags or {})}
            self._log(run.info.run_id, params or {}, metrics or {}, curves or {}, run_tags)
            with tempfile.TemporaryDirectory(prefix="celr-ray-policy-") as folder:
                save_artefact(folder, artefact)
                self.client.log_artifacts(run.info.run_id, folder, _FOLDER)
            made = self.client.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/{_FOLDER}",
                run_id=run.info.run_id,
                tags={**marks, **(tags or {})},
            )
            return self._describe(made, {})

    @contextmanager
    def _run(self, experiment: str, run_name: str) -> Iterator[Any]:
        """Begin a run and end it: FINISHED, or FAILED after an error."""
        run = self.client.create_run(self._experiment_id(experiment), run_name=run_name)
        try:
            yield run
        except BaseException:
            self.client.set_terminated(run.info.run_id, "FAILED")
            raise
        self.client.set_terminated(run.info.run_id, "FINISHED")

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None
        if self.uri.startswith(SQLITE):  # MLflow's default is relative to wherever the process was started
            place = os.path.join(os.path.dirname(self.uri.removeprefix(SQLITE)), "mlflow-artifacts", name)
        try:
            return str(self.client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = self.client.get_experiment_by_name(name)  # made by another process just now
            if found is None:
                raise
            return str(found.experiment_id)

    def _log(
        self,
        run_id: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, Sequence[float]],
        tags: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        points = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        points += [Metric(key, float(y), now, step) for key, curve in curves.items() for step, y in enumerate(curve)]
        for start in range(0, len(points), _BATCH):
            self.client.log_batch(run_id, metrics=points[start : start + _BATCH])
        all_params = [Param(key, str(value)) for key, value in _flatten(params).items()]
        for start in range(0, len(all_params), 100):
            self.client.log_batch(run_id, params=all_params[start : start + 100])
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def add_event(self, experiment: str, run_name: str, tags: Mapping[str, str], document: Mapping[str, Any]) -> None:
        """Log a run that holds nothing but tags and one JSON file."""
        from mlflow.entities import RunTag

        with store_errors(self.uri, "write"), self._run(experiment, run_name) as run:
            self.client.log_dict(run.info.run_id, dict(document), "event.json")
            self.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def find_events(self, experiment: str, condition: str) -> list[dict[str, str]]:
        """Return the tags of the finished runs of an experiment that meet a condition, oldest first."""
        found: list[dict[str, str]] = []
        token: str | None = None
        with store_errors(self.uri, "read"):
            place = self.client.get_experiment_by_name(experiment)
            while place is not None:
                page = self.client.search_runs(
                    [place.experiment_id], condition, order_by=["attributes.start_time ASC"], page_token=token
                )
                found += [dict(run.data.tags) for run in page if run.info.status == "FINISHED"]
                token = page.token
                if not token:
                    break
        return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
