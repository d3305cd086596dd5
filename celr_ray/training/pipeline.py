"""The training pipeline: ingest and score → judge → pair → export → report, on one run folder.

`run_pipeline` is the job. `TrainingPipeline` is the specification's front door (phase 7, pipeline.py) to it.
Every stage can be run alone; running the same command again finishes what is missing and repeats nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from celr_ray import storage
from celr_ray.config import JudgeConfig, PipelineJob, RuntimeConfig, ScoreConfig
from celr_ray.errors import RunMismatchError
from celr_ray.lock import run_lock
from celr_ray.logs.ingest import run_ingest
from celr_ray.report import run_report
from celr_ray.run_folder import add_counts, is_complete, manifest_uri, part_name, read_manifests, read_plan
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, run_units, uses_ray
from celr_ray.stage import StageReport, delete_from, open_stage, write_run_record
from celr_ray.training.export import run_export
from celr_ray.training.judge import JudgeLLM, judge_plan, run_judge
from celr_ray.training.pair_stage import pair_plan, run_pair
from celr_ray.training.scorer import score_table


@dataclass
class TrainingReport:
    """What a pipeline run did.

    Attributes:
        run: the run folder.
        stages: the report of each stage, in order.
        report_uri: the HTML report; None if it was not written.
        seconds: wall time of this call.
    """

    run: str
    stages: list[StageReport] = field(default_factory=list)
    report_uri: str | None = None
    seconds: float = 0.0

    def count(self, stage: str, key: str) -> int:
        """Return one count of one stage; 0 if the stage did not run or has no such count."""
        return next((report.counts.get(key, 0) for report in self.stages if report.name == stage), 0)

    def __str__(self) -> str:
        """Return the line a person can quote."""
        rows_in, rejected = self.count("ingest", "rows_in"), self.count("ingest", "rejected")
        parts = [f"{rows_in:,} runs in, {rejected:,} rejected"]
        judged = self.count("judge", "rows_out")
        if judged:
            parts.append(f"{judged:,} judged ({self.count('judge', 'status.ok'):,} ok)")
        parts.append(
            f"{self.count('pair', 'pairs'):,} pairs of {self.count('pair', 'tasks'):,} tasks "
            f"({self.count('pair', 'levels.step'):,} step, {self.count('pair', 'levels.trajectory'):,} trajectory)"
        )
        parts.append(f"{self.count('pair', 'kto_rows'):,} KTO rows")
        where = f"; report: {shorten_path(self.report_uri)}" if self.report_uri else ""
        return f"{'; '.join(parts)}; {self.seconds:.0f} s{where}"


def shorten_path(uri: str) -> str:
    """Return a local path below the working folder relative to it, anything else unchanged."""
    here = os.getcwd() + os.sep
    return uri.removeprefix(here)


Announce = Callable[[StageReport], None]


def announce_stage(report: StageReport) -> None:
    """Print one line about a finished stage to stderr."""
    counts = report.counts
    parts = [f"{report.name:8}"]
    if "rows_in" in counts:
        parts.append(
            f"{counts['rows_in']:,} in, {counts.get('rows_out', 0):,} out, {counts.get('rejected', 0):,} rejected"
        )
    if counts.get("duplicates"):
        parts.append(f"{counts['duplicates']:,} duplicates")
    state = f"{report.units_run} of {report.units} units run now" if report.units else ""
    print("  ".join([*parts, state, f"{report.seconds:.1f} s"]).rstrip(), file=sys.stderr, flush=True)


def rescore_unit(unit: Unit, *, score: Mapping[str, Any]) -> Manifest:
    """Score one part again and note the weights in its ingest manifest."""
    uri = storage.join(unit["run"], "trajectories", part_name(unit["index"]))
    table = score_table(storage.read_parquet(uri), ScoreConfig(**score))
    manifest = storage.read_json(manifest_uri(unit["run"], "ingest", unit["index"]))
    storage.write_parquet(uri, table, [size for _, size in manifest["row_groups"]])
    storage.write_json(manifest_uri(unit["run"], "ingest", unit["index"]), {**manifest, "score": dict(score)})
    return {"index": unit["index"], "rows_in": table.num_rows, "rows_out": table.num_rows, "rejected": 0}


def _make_rescore_unit(score: dict[str, Any]) -> UnitFunction:
    return partial(rescore_unit, score=score)


def run_rescore(run: str, score: ScoreConfig, runtime: RuntimeConfig) -> StageReport:
    """Score the trajectories of a run again; parts that have these weights already are left alone.

    Raises:
        RunMismatchError: ingest has not finished.
    """
    started = time.monotonic()
    if not is_complete(run, "ingest"):
        raise RunMismatchError(f"{run}: ingest is not finished; run the command that made it again first")
    settings = score.model_dump()
    manifests = read_manifests(run, "ingest")
    todo = [{"run": run, "index": i} for i, m in sorted(manifests.items()) if m["score"] != settings]
    work = Work(partial(_make_rescore_unit, settings))
    list(run_units(todo, work, runtime, on_ray=uses_ray(runtime, is_large=len(todo) > 4)))
    counts = add_counts(read_manifests(run, "ingest").values())
    return StageReport("ingest", time.monotonic() - started, len(manifests), len(todo), counts)


def _run_ingest_and_score(job: PipelineJob) -> StageReport:
    report = run_ingest(job.logs, job.out, job.ingest, job.score, job.runtime, overwrite=job.overwrite)
    settings = job.score.model_dump()
    if any(manifest["score"] != settings for manifest in read_manifests(job.out, "ingest").values()):
        run_rescore(job.out, job.score, job.runtime)
    return report


def uses_ray_for_judge(runtime: RuntimeConfig, judge: JudgeConfig) -> bool:
    """Decide where the judge runs: `auto` means Ray as soon as there are several engines or a GPU."""
    return uses_ray(runtime, is_large=judge.concurrency > 1 or judge.num_gpus > 0)


def run_pipeline(
    job: PipelineJob, *, llm: JudgeLLM | None = None, announce: Announce = announce_stage
) -> TrainingReport:
    """Run all stages on `job.out`.

    Args:
        job: the settings.
        llm: a judge to use in this process instead of a vLLM engine.
        announce: called with the report of each stage as it ends.

    Raises:
        UsageError: inputs, settings or the folder do not fit, or another command is at work on it; nothing of another
            run is touched.
    """
    with run_lock(job.out):
        return _run_stages(job, llm, announce)


def _run_stages(job: PipelineJob, llm: JudgeLLM | None, announce: Announce) -> TrainingReport:
    started = time.monotonic()
    result = TrainingReport(job.out)

    def finish(report: StageReport) -> None:
        result.stages.append(report)
        announce(report)

    judge = (
        job.judge if llm is None or job.judge.is_enabled else job.judge.model_copy(update={"model_source": llm.name})
    )
    _check_later_stages(job, judge)
    finish(_run_ingest_and_score(job))
    if judge.is_enabled:
        on_ray = llm is None and uses_ray_for_judge(job.runtime, judge)
        finish(run_judge(job.out, judge, job.runtime, on_ray=on_ray, overwrite=job.overwrite, llm=llm))
    finish(run_pair(job.out, job.pair, job.runtime, overwrite=job.overwrite))
    on_ray = uses_ray(job.runtime, is_large=result.count("pair", "pairs") > 100_000)
    finish(run_export(job.out, job.export, job.runtime, on_ray=on_ray, overwrite=job.overwrite))
    result.report_uri = run_report(job.out)
    result.seconds = time.monotonic() - started
    write_run_record(job.out, job.model_dump(mode="json"), result.stages)
    return result


def _check_later_stages(job: PipelineJob, judge: JudgeConfig) -> None:
    """Refuse changed settings of any later stage before work starts, not after hours of it.

    With `overwrite`, a judge stage that is no longer wanted is deleted with what was made of it.
    """
    if read_plan(job.out, "ingest") is None or not is_complete(job.out, "ingest"):
        return
    judged = read_manifests(job.out, "judge")
    if job.overwrite:
        if judged and not judge.is_enabled:
            delete_from(job.out, "judge")
        return
    if judged and not judge.is_enabled:
        raise RunMismatchError(
            f"{job.out} was judged, and --judge.model-source is none now: give the same judge, or --overwrite to drop "
            "the judgments, or another folder"
        )
    wanted = judge_plan(job.out, judge) if judge.is_enabled else None
    if wanted is not None and judged:
        open_stage(job.out, wanted, overwrite=False)
    paired = read_plan(job.out, "pair")
    if paired is None or not read_manifests(job.out, "pair"):
        return
    if paired["settings"]["judge"] != (wanted.fingerprint if wanted else None):
        raise RunMismatchError(
            f"{job.out} holds pairs made {'with another' if paired['settings']['judge'] else 'without a'} judge: use "
            "--overwrite to make them again (the trajectories stay), or another folder"
        )
    if is_complete(job.out, "judge") or wanted is None:
        open_stage(job.out, pair_plan(job.out, job.pair), overwrite=False)


class TrainingPipeline:
    """Runs the self-improvement cycle: collect, score, pair, export, report.

    Departs from CELR: failed runs are collected too (they are the rejected sides), and results are Parquet
    files in a run folder instead of lists in memory.
    """

    def __init__(self, config: PipelineJob | Mapping[str, Any], llm: JudgeLLM | None = None) -> None:
        """Take the settings (`config.PipelineJob`, or the same as a dict) and, if wanted, a judge.

        Raises:
            pydantic.ValidationError: a setting is wrong.
        """
        self.config = config if isinstance(config, PipelineJob) else PipelineJob(**config)
        self.llm = llm

    def run(self) -> TrainingReport:
        """Run all stages; see `run_pipeline`."""
        return run_pipeline(self.config, llm=self.llm, announce=lambda report: None)
