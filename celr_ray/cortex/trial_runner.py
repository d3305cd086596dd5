"""Runs trials: in a loop, or as Ray Tune trials; each result is a manifest, so that finished ones are not run again."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.cortex.cold_start import run_clone
from celr_ray.cortex.training_progress import TrainingProgress, show_training
from celr_ray.cortex.trials import Report, Trial, TrialData, run_trial
from celr_ray.errors import CelrRayError, ConfigError, PolicyError
from celr_ray.run_folder import manifest_uri, read_manifests
from celr_ray.runtime import connect

__all__ = ["run_trials"]

_STAGE = "train"
_MAX_FAILURES = 2
"""How often a Tune trial is tried again whose process or node died."""

Todo = Sequence[tuple[int, Trial]]


def run_trials(
    trials: Sequence[Trial], data: TrialData, runtime: RuntimeConfig, *, on_ray: bool
) -> tuple[list[dict[str, Any]], int]:
    """Run the trials that have no result yet: first those that others start from.

    Args:
        trials: all of them; the number of a trial is its place here.
        data: what they share.
        runtime: where Ray is.
        on_ray: as Ray Tune trials, several at a time; else one after the other in this process.

    Returns:
        The results [n], in the order of the trials, and how many were run now.

    Raises:
        ConfigError: the Ray cluster is too small for a trial.
        PolicyError: the transitions cannot be trained on, or a training diverged.
    """
    n_before = len(read_manifests(data.out, _STAGE))
    with show_training(trials, data.config, n_done=n_before) as progress:
        for is_start in (True, False):
            done = read_manifests(data.out, _STAGE)
            todo = [
                (n, trial) for n, trial in enumerate(trials) if n not in done and (trial.warm_start is None) == is_start
            ]
            if todo:
                run = _run_with_tune if on_ray else _run_in_loop
                run(todo, data, runtime, progress)
    done = read_manifests(data.out, _STAGE)
    return [done[number] for number in range(len(trials))], len(done) - n_before


def _run_one(number: int, trial: Trial, data: TrialData, report: Report | None = None) -> dict[str, Any]:
    started = time.monotonic()
    run = run_clone if trial.of_heuristic else run_trial
    result = {"index": number, **run(trial, data, report), "seconds": round(time.monotonic() - started, 3)}
    storage.write_json(manifest_uri(data.out, _STAGE, number), result)
    return result


def _run_in_loop(todo: Todo, data: TrialData, runtime: RuntimeConfig, progress: TrainingProgress) -> None:
    if data.config.num_learners:
        connect(runtime)
    for number, trial in todo:
        result = _run_one(number, trial, data, lambda losses, trial=trial: progress.point(trial, losses))  # type: ignore[misc]
        progress.finish(trial, result)


def _run_with_tune(todo: Todo, data: TrialData, runtime: RuntimeConfig, progress: TrainingProgress) -> None:
    """Run the trials as Ray Tune trials, each with one CPU and one more for each Learner.

    A trial's own error travels as a result: raised in the trial it would come back as an error of Tune's, its message
    lost in a traceback.
    """
    connect(runtime)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    n_cpus = 1 + data.config.num_learners
    _check_room(n_cpus)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)

    def train(config: dict[str, Any]) -> None:
        job = config["job"]
        try:
            _run_one(int(job["number"]), Trial(**job["trial"]), data, tune.report)
        except CelrRayError as error:
            tune.report({"error": str(error)})

    space = {"job": tune.grid_search([{"number": n, "trial": asdict(trial)} for n, trial in todo])}
    with tempfile.TemporaryDirectory(prefix="celr-ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, tune.PlacementGroupFactory([{"CPU": 1}] * n_cpus)),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True),  # importing RLlib takes longer than a small trial
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[_make_callback(data, progress)],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        results = tuner.fit()
    done = read_manifests(data.out, _STAGE)
    for number, trial in todo:
        if number not in done:
            raise _explain(trial, results)


def _check_room(n_cpus: int) -> None:
    """Refuse trials that no cluster of this size can hold; Tune would wait for ever.

    Raises:
        ConfigError: it is so.
    """
    import ray

    total = ray.cluster_resources().get("CPU", 0)
    if total < n_cpus:
        raise ConfigError(
            f"a trial needs {n_cpus} CPUs (one, and one for each of --train.num-learners), the Ray cluster has "
            f"{total:g}: use fewer Learners, or a larger --runtime.num-cpus"
        )


def _make_callback(data: TrialData, progress: TrainingProgress) -> Any:
    from ray import tune

    class Tell(tune.Callback):  # type: ignore[misc]
        """Passes on to the driver's progress what trials report; Tune stores its callbacks, this one as nothing."""

        def __reduce__(self) -> Any:
            return dict, ()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if "total" in result:
                progress.point(Trial(**trial.config["job"]["trial"]), result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            job = trial.config["job"]
            uri = manifest_uri(data.out, _STAGE, int(job["number"]))
            if storage.stat(uri) is not None:
                progress.finish(Trial(**job["trial"]), storage.read_json(uri))

    return Tell()


def _explain(trial: Trial, results: Any) -> CelrRayError:
    """Return the error of a trial that left no result."""
    again = "Finished trials are kept: run the same command again to go on"
    for result in results:
        if result.config["job"]["trial"] == asdict(trial):
            if result.metrics and "error" in result.metrics:
                return PolicyError(str(result.metrics["error"]))
            reason = " ".join(str(result.error).split())[-300:]
            return PolicyError(f"the trial {trial.name} failed: {reason}. {again}")
    return PolicyError(f"the trial {trial.name} left no result. {again}")
