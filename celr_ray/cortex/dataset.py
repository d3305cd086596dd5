"""The dataset: logs in, transitions out, as two batch stages that resume, and one record of what they hold.

    DIR/decisions/…                    the episodes found, in buckets (`decision_stage`)
    DIR/refused/part-*.jsonl           damaged records: file, line, reason
    DIR/transitions/train/…            rows to learn from, episodes in random order (`transition_stage`)
    DIR/transitions/validation/…       rows of other tasks, to choose settings on
    DIR/transitions/dataset.json       what is in them, and `data_hash`; written last

Logs of `celr-ray execute` hold every decision with its probabilities (`decision_rows` says what is checked). Logs of
other agents are mapped as far as that is honest (`foreign_logs` says by which rules).

rows_in = rows_out + rejected + excluded + duplicates, counted in log records and episodes: rejected records are
damaged; excluded ones are sound, but have no outcome or cannot be mapped; duplicates are equal records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from celr_ray import storage
from celr_ray.config import DatasetConfig, IngestConfig, RuntimeConfig
from celr_ray.cortex.actions import ACTIONS
from celr_ray.cortex.decision_stage import decision_plan, make_decision_unit
from celr_ray.cortex.foreign_logs import REFUSALS
from celr_ray.cortex.reward import find_reward_scale
from celr_ray.cortex.state import FEATURES, SCHEMA_HASH
from celr_ray.cortex.transition_stage import add_digests, make_transition_unit, transition_plan
from celr_ray.cortex.transitions import (
    Transitions,
    dataset_record_uri,
    iter_transitions,
    load_transitions,
    read_dataset_record,
    to_logged_episodes,
)
from celr_ray.errors import InputError
from celr_ray.lock import run_lock
from celr_ray.logs.ingest import task_texts_uri, warn_of_changes
from celr_ray.logs.quarantine import number_lines, read_rejected
from celr_ray.redact import redact_text
from celr_ray.run_folder import check_run_folder, read_manifests
from celr_ray.runtime import Work, uses_ray
from celr_ray.schema import QuarantineRow
from celr_ray.stage import StagePlan, StageReport, check_conserved, hash_json, open_stage, run_stage

__all__ = [
    "Transitions",
    "describe_dataset",
    "iter_transitions",
    "load_transitions",
    "read_dataset_record",
    "read_refused",
    "run_dataset",
    "to_logged_episodes",
]

_LARGE_BYTES = 256 * 2**20


def run_dataset(
    uris: Sequence[str],
    run: str,
    dataset: DatasetConfig | None = None,
    ingest: IngestConfig | None = None,
    runtime: RuntimeConfig | None = None,
    *,
    overwrite: bool = False,
    on_ray: bool | None = None,
) -> StageReport:
    """Make the transitions of logs, or finish a run that was interrupted.

    Args:
        uris: files, folders or globs of logs.
        run: folder to create or to resume, local or s3://.
        dataset: split, order, and how foreign logs are mapped.
        ingest: how files are found, cut and read.
        runtime: where to run.
        overwrite: replace what other inputs or settings left there.
        on_ray: force Ray or the loop; None = by `runtime.executor`, `auto` meaning Ray from 256 MiB of logs on.

    Returns:
        The counts of both stages together: rows_in are log records, rows_out episodes.

    Raises:
        InputError: a path does not exist, or no record of the logs gives an episode.
        RunMismatchError: the folder holds a dataset of other inputs or settings.
        UsageError: the folder is not ours, or another command is at work on it.
    """
    dataset, ingest, runtime = dataset or DatasetConfig(), ingest or IngestConfig(), runtime or RuntimeConfig()
    plan, task_texts, total_bytes = decision_plan(uris, dataset, ingest)
    check_run_folder(run, must_exist=False)
    on_ray = uses_ray(runtime, is_large=total_bytes > _LARGE_BYTES) if on_ray is None else on_ray
    with run_lock(run):
        if ingest.redact:
            task_texts = {task_id: redact_text(text)[0] for task_id, text in task_texts.items()}
        open_stage(run, plan, overwrite=overwrite)
        storage.write_json(task_texts_uri(run), task_texts)
        first = _read_logs(run, plan, runtime, on_ray=on_ray, overwrite=overwrite)
        if not first.counts["rows_out"]:
            raise InputError(_explain_nothing(run, uris, first))
        work = Work(partial(make_transition_unit, dataset.model_dump()))
        plan = transition_plan(run, plan.fingerprint, dataset)
        second = run_stage(run, plan, work, runtime, on_ray=on_ray, overwrite=overwrite)
        _write_record(run, plan)
    return _join(first, second)


def _read_logs(run: str, plan: StagePlan, runtime: RuntimeConfig, *, on_ray: bool, overwrite: bool) -> StageReport:
    """Run the first stage: logs to episodes in buckets."""
    work = Work(partial(make_decision_unit, dict(plan.settings["dataset"]), _ingest_settings(plan)))
    report = run_stage(run, plan, work, runtime, on_ray=on_ray, overwrite=overwrite)
    number_lines(run, "decisions", "refused", plan.units)
    if report.units_run and (changed := warn_of_changes(plan.settings["inputs"])):
        report.counts["inputs_changed"] = changed
    return report


def _ingest_settings(plan: StagePlan) -> dict[str, Any]:
    settings: dict[str, Any] = dict(plan.settings["ingest"])
    return settings


def _explain_nothing(run: str, uris: Sequence[str], report: StageReport) -> str:
    """Say why no record of the logs gave an episode."""
    counts = report.counts
    told = [f"{n:,} records excluded: {why}" for why, n in _excluded(counts).items()]
    if refused := read_refused(run)[:1]:
        row = refused[0]
        told.append(f"{counts['rejected']:,} damaged, first {row.file} line {row.line}: {row.reason}")
    return f"no usable episode in {', '.join(uris)}: {'; '.join(told) or 'there are no records'}"


def _excluded(counts: dict[str, int]) -> dict[str, int]:
    """Return how many records each reason excluded, by its text."""
    prefix = "excluded_as."
    return {REFUSALS[name.removeprefix(prefix)]: n for name, n in counts.items() if name.startswith(prefix)}


def _join(first: StageReport, second: StageReport) -> StageReport:
    """Return one report of both stages: the episodes between them are neither in nor out."""
    counts: Counter[str] = Counter(first.counts)
    counts.update(second.counts)
    counts["rows_in"], counts["rows_out"] = first.counts["rows_in"], second.counts["rows_out"]
    report = StageReport(
        "dataset",
        first.seconds + second.seconds,
        first.units + second.units,
        first.units_run + second.units_run,
        dict(sorted(counts.items())),
        second.fingerprint,
    )
    check_conserved(report)
    return report


def _write_record(run: str, plan: StagePlan) -> None:
    """Write dataset.json, from the manifests of the second stage."""
    manifests = list(read_manifests(run, "dataset").values())
    totals: dict[str, Counter[str]] = {
        name: Counter() for name in ("episodes", "transitions", "sources", "policies", "behavior")
    }
    for manifest in manifests:
        for name, total in totals.items():
            total.update(manifest.get(name, {}))
        n_unknown = manifest["without_propensities"]
        totals["behavior"].update(known=manifest["rows_out"] - n_unknown, unknown=n_unknown)
    settings = {key: plan.settings[key] for key in ("seed", "validation_fraction", "failure_penalty")}
    identity = [add_digests(manifests), SCHEMA_HASH, list(ACTIONS), settings]
    record = {
        "format": "celr-ray transitions",
        "version": 1,
        "data_hash": hash_json(identity),
        **{name: dict(sorted(total.items())) for name, total in totals.items()},
        "truncated": sum(manifest["truncated"] for manifest in manifests),
        "schema_hash": SCHEMA_HASH,
        "features": [feature.name for feature in FEATURES],
        "actions": list(ACTIONS),
        "reward_scale": find_reward_scale(settings["failure_penalty"]),
        **settings,
    }
    storage.write_json(dataset_record_uri(run), record)


def read_refused(run: str) -> list[QuarantineRow]:
    """Return the damaged records of a dataset's logs, in the order of their units."""
    return read_rejected(run, "refused")


def describe_dataset(report: StageReport) -> str:
    """Return one line about a finished dataset, for people."""
    counts = report.counts
    line = f"{counts['rows_out']:,} episodes, {counts.get('transitions.train', 0):,} transitions to train on and "
    line += f"{counts.get('transitions.validation', 0):,} to validate"
    if rejected := counts.get("rejected", 0):
        line += f"; {rejected:,} damaged records refused"
    if duplicates := counts.get("duplicates", 0):
        line += f"; {duplicates:,} copies dropped"
    for why, n in _excluded(counts).items():
        line += f"; {n:,} left out: {why}"
    return line
