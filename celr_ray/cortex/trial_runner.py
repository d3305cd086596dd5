"""Runs trials: in a loop, or as Ray Tune trials; each result is a manifest, so that finished ones are not run again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.cortex.trials import Trial, TrialData, run_trial
from celr_ray.errors import CelrRayError, PolicyError
from celr_ray.runtime import connect, progress
from celr_ray.stage import manifest_uri, read_manifests

__all__ = ["run_trials"]

_STAGE = "train"


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
        PolicyError: the transitions cannot be trained on, or a training diverged.
    """
    done = read_manifests(data.out, _STAGE)
    n_before = len(done)
    with progress("train", len(trials), done=n_before) as advance:
        for is_start in (True, False):
            todo = [n for n, trial in enumerate(trials) if n not in done and (trial.warm_start is None) == is_start]
            run = _run_with_tune if on_ray else _run_in_loop
            for number, result in run([(n, trials[n]) for n in todo], data, runtime):
                done[number] = result
                advance(result)
    return [done[number] for number in range(len(trials))], len(done) - n_before


def _run_one(number: int, trial: Trial, data: TrialData, report: Callable[..., Any] | None = None) -> dict[str, Any]:
    result = {"index": number, **run_trial(trial, data, report)}
    storage.write_json(manifest_uri(data.out, _STAGE, number), result)
    return result


def _run_in_loop(
    todo: Sequence[tuple[int, Trial]], data: TrialData, runtime: RuntimeConfig
) -> Iterator[tuple[int, dict[str, Any]]]:
    if todo and data.config.num_learners:
        connect(runtime)
    for number, trial in todo:
        yield number, _run_one(number, trial, data)


def _run_with_tune(
    todo: Sequence[tuple[int, Trial]], data: TrialData, runtime: RuntimeConfig
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run the trials as Ray Tune trials, each with one CPU and one more for each Learner."""
    if not todo:
        return
    connect(runtime)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        number = int(config["number"])
        try:
            _run_one(number, Trial(**config["trial"]), data, tune.report)
        except CelrRayError as error:  # raised here it would come back as an error of Tune's, its message lost
            tune.report({"error": str(error)})

    bundles = [{"CPU": 1}] * (1 + data.config.num_learners)
    space = {"job": tune.grid_search([{"number": n, "trial": asdict(trial)} for n, trial in todo])}
    with tempfile.TemporaryDirectory(prefix="celr-ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(lambda config: train(config["job"]), tune.PlacementGroupFactory(bundles)),
            param_space=space,
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
    done = read_manifests(data.out, _STAGE)
    for number, trial in todo:
        if number not in done:
            raise _explain(trial, results)
        yield number, done[number]


def _explain(trial: Trial, results: Any) -> CelrRayError:
    """Return the error of a trial that left no result."""
    for result in results:
        if result.config["job"]["trial"] == asdict(trial):
            if result.metrics and "error" in result.metrics:
                return PolicyError(str(result.metrics["error"]))
            return PolicyError(f"the trial {trial.name} failed: {result.error}. Run the command again to go on")
    return PolicyError(f"the trial {trial.name} left no result; run the command again to go on")
