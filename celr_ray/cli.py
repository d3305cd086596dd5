"""The command line: `celr-ray COMMAND …`; the scripts in `jobs/` call the same `main`.

Exit codes: 0 done, 1 a failure on the way, 2 the call cannot be carried out as given, 130 interrupted; of `gate` also 3
FAIL and 4 INCONCLUSIVE.
Progress and errors go to stderr; stdout gets one final line that a person can quote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import celr_ray.allocator  # noqa: F401 - first of all: pyarrow reads what it sets
from celr_ray.config import (
    BankBuildJob,
    BankReplayJob,
    ConvertJob,
    EvaluatePolicyJob,
    ExecuteJob,
    ExportJob,
    GateJob,
    JudgeJob,
    PairJob,
    PipelineJob,
    PolicyListJob,
    PolicyPromoteJob,
    PolicyRollbackJob,
    PolicyShowJob,
    ReportJob,
    ScoreJob,
    TrainCortexJob,
    TrainDifficultyJob,
    load_job,
)
from celr_ray.errors import CelrRayError, ConfigError


@dataclass(frozen=True)
class Command:
    """One sub-command: its settings class, and the function that returns the final line and perhaps an exit code."""

    job: Any
    run: Callable[[Any], str | tuple[str, int]]
    example: str


def _pipeline(job: PipelineJob) -> str:
    from celr_ray.training.pipeline import run_pipeline

    return str(run_pipeline(job))


def _finish(run: str, job: Any, report: Any) -> None:
    """Announce a stage that ran alone and put it into run.json."""
    from celr_ray.stage import write_run_record
    from celr_ray.training.pipeline import announce_stage

    announce_stage(report)
    write_run_record(run, job.model_dump(mode="json"), [report])


def _score(job: ScoreJob) -> str:
    from celr_ray.logs.ingest import run_ingest
    from celr_ray.run_folder import check_run_folder
    from celr_ray.training.pipeline import run_rescore

    if job.logs:
        report = run_ingest(job.logs, job.run, job.ingest, job.score, job.runtime, overwrite=job.overwrite)
    else:
        check_run_folder(job.run, must_exist=True)
        _check_ingest_settings("score", job)
        report = run_rescore(job.run, job.score, job.runtime)
    _finish(job.run, job, report)
    counts = report.counts
    line = f"{counts.get('rows_out', 0):,} trajectories scored, {counts.get('rejected', 0):,} rejected"
    return line + _stale_pairs(job.run, report)


def _check_ingest_settings(command: str, job: ScoreJob | ConvertJob) -> None:
    """Refuse settings of reading logs where none are read, unless the run's trajectories were read with the same.

    Raises:
        ConfigError: one differs.
    """
    from celr_ray.run_folder import read_plan

    plan = read_plan(job.run, "ingest")
    stored = plan["settings"].get("ingest", {}) if plan else {}
    for name in sorted(job.ingest.model_fields_set & set(stored)):
        given, used = getattr(job.ingest, name), stored[name]
        is_met = given is None or (used <= given if name == "split_bytes" else used == given)
        if not is_met:
            raise ConfigError(
                f"--ingest.{name.replace('_', '-')} {json.dumps(given)} is of no effect without --logs: the "
                f"trajectories of {job.run} were read with {json.dumps(used)}. To read the logs again: celr-ray "
                f"{command} --run {job.run} --logs … --overwrite with this flag, or with another --run folder"
            )


def _stale_pairs(run: str, report: Any) -> str:
    """Say so if the run's pairs were made before what has just been done."""
    from celr_ray.run_folder import read_plan

    if not report.units_run or read_plan(run, "pair") is None:
        return ""
    return f"; the pairs there are older: celr-ray pair --run {run} --overwrite, then export and report"


def _convert(job: ConvertJob) -> str:
    from celr_ray.config import ScoreConfig
    from celr_ray.logs.convert import run_convert
    from celr_ray.logs.ingest import run_ingest
    from celr_ray.run_folder import check_run_folder
    from celr_ray.storage import join

    rejected = ""
    if job.logs:
        ingested = run_ingest(job.logs, job.run, job.ingest, ScoreConfig(), job.runtime, overwrite=job.overwrite)
        rejected = f", {ingested.counts.get('rejected', 0):,} records rejected"
        _finish(job.run, job, ingested)
    else:
        check_run_folder(job.run, must_exist=True)
        _check_ingest_settings("convert", job)
    report = run_convert(job.run, job.runtime, overwrite=job.overwrite)
    _finish(job.run, job, report)
    return f"{report.counts.get('rows_out', 0):,} ATIF files in {join(job.run, 'atif')}{rejected}"


def _judge(job: JudgeJob) -> str:
    from celr_ray.run_folder import check_run_folder
    from celr_ray.training.judge import run_judge
    from celr_ray.training.pipeline import uses_ray_for_judge

    if not job.judge.is_enabled:
        raise ConfigError("--judge.model-source: name a model (a name or folder that vLLM loads, or smollm2)")
    check_run_folder(job.run, must_exist=True)
    on_ray = uses_ray_for_judge(job.runtime, job.judge)
    report = run_judge(job.run, job.judge, job.runtime, on_ray=on_ray, overwrite=job.overwrite)
    _finish(job.run, job, report)
    counts = report.counts
    line = f"{counts.get('rows_out', 0):,} judgments, {counts.get('status.ok', 0):,} ok"
    return line + _stale_pairs(job.run, report)


def _pair(job: PairJob) -> str:
    from celr_ray.run_folder import check_run_folder
    from celr_ray.training.pair_stage import run_pair

    check_run_folder(job.run, must_exist=True)
    report = run_pair(job.run, job.pair, job.runtime, overwrite=job.overwrite)
    _finish(job.run, job, report)
    counts = report.counts
    return (
        f"{counts.get('pairs', 0):,} pairs of {counts.get('tasks', 0):,} tasks, {counts.get('kto_rows', 0):,} KTO rows"
    )


def _export(job: ExportJob) -> str:
    from celr_ray.run_folder import check_run_folder
    from celr_ray.runtime import uses_ray
    from celr_ray.storage import join
    from celr_ray.training.export import run_export

    check_run_folder(job.run, must_exist=True)
    on_ray = uses_ray(job.runtime, is_large=False)
    report = run_export(job.run, job.export, job.runtime, on_ray=on_ray, overwrite=job.overwrite)
    _finish(job.run, job, report)
    rows = ", ".join(f"{k.removeprefix('rows.')} {v:,}" for k, v in report.counts.items() if k.startswith("rows."))
    return f"exported to {join(job.run, 'exports')}: {rows or 'no rows'}"


def _execute(job: ExecuteJob) -> str:
    from celr_ray.core.execute_stage import run_execute
    from celr_ray.core.execute_summary import describe, write_summary
    from celr_ray.storage import join
    from celr_ray.training.pipeline import shorten_path

    report = run_execute(job)
    _finish(job.out, job, report)
    line = describe(write_summary(job.out))
    if rejected := report.counts.get("rejected", 0):
        line += f", {rejected:,} task lines rejected"
    return f"{line}; logs in {shorten_path(join(job.out, 'logs'))}"


def _train_cortex(job: TrainCortexJob) -> str:
    from celr_ray.cortex.trainer import run_train_cortex

    return str(run_train_cortex(job))


def _train_difficulty(job: TrainDifficultyJob) -> str:
    from celr_ray import storage
    from celr_ray.cortex.difficulty import difficulty_rows, train_difficulty

    rows = difficulty_rows(job.run, job.model)
    model, report = train_difficulty(rows.texts, rows.failed, rows.groups, seed=job.runtime.seed)
    model.save(job.out)
    storage.write_json(f"{job.out.removesuffix('.json')}.report.json", {**report.to_dict(), "excluded": rows.excluded})
    auc = report.auc
    held_out = "one outcome only" if auc is None else f"AUC {auc.value:.3f} [{auc.ci_low:.3f}, {auc.ci_high:.3f}]"
    trained = f"{report.n_train_tasks:,} tasks; on {report.n_tasks:,} others"
    return f"{trained} {held_out}, ECE {report.ece.value:.3f}: {job.out}"


def _bank_build(job: BankBuildJob) -> str:
    from celr_ray.cortex.evaluation.bank_build import run_bank_build

    return run_bank_build(job).describe(job.out)


def _bank_replay(job: BankReplayJob) -> str:
    from celr_ray.cortex.evaluation.replay_dataset import run_bank_replay

    return run_bank_replay(job)


def _evaluate_policy(job: EvaluatePolicyJob) -> str:
    from celr_ray.cortex.evaluation.evaluation_text import run_evaluate_policy

    return run_evaluate_policy(job)


def _gate(job: GateJob) -> tuple[str, int]:
    from celr_ray.cortex.gate.command import run_gate

    return run_gate(job)


def _policy_list(job: PolicyListJob) -> str:
    from celr_ray.cortex.policy_commands import list_policies

    return list_policies(job.registry)


def _policy_show(job: PolicyShowJob) -> str:
    from celr_ray.cortex.policy_commands import show_policy

    return show_policy(job.policy, job.registry)


def _policy_promote(job: PolicyPromoteJob) -> str:
    from celr_ray.cortex.policy_commands import promote_policy

    return promote_policy(job.policy, job.registry, evidence=job.evidence, force=job.force)


def _policy_rollback(job: PolicyRollbackJob) -> str:
    from celr_ray.cortex.policy_commands import roll_back_policy

    return roll_back_policy(job.policy, job.registry, reason=job.reason)


def _report(job: ReportJob) -> str:
    from celr_ray.report import run_report
    from celr_ray.run_folder import check_run_folder
    from celr_ray.training.pipeline import shorten_path

    check_run_folder(job.run, must_exist=True)
    return f"report: {shorten_path(run_report(job.run))}"


COMMANDS: dict[str, Command] = {
    "pipeline": Command(PipelineJob, _pipeline, "--logs logs/ --out runs/first --judge.model-source smollm2"),
    "score": Command(ScoreJob, _score, "--logs logs/ --run runs/first"),
    "convert": Command(ConvertJob, _convert, "--logs logs/ --run runs/atif"),
    "judge": Command(
        JudgeJob, _judge, "--run runs/first --judge.model-source Qwen/Qwen2.5-7B-Instruct --judge.num-gpus 1"
    ),
    "pair": Command(PairJob, _pair, "--run runs/first --pair.strategy all"),
    "export": Command(ExportJob, _export, "--run runs/first --export.formats trl axolotl"),
    "execute": Command(
        ExecuteJob, _execute, "--tasks tasks.jsonl --tiers tiers.yaml --policy heuristic --out runs/executed"
    ),
    "train-difficulty": Command(
        TrainDifficultyJob, _train_difficulty, "--run runs/cheap --model smollm2 --out difficulty.json"
    ),
    "train-cortex": Command(
        TrainCortexJob, _train_cortex, "--logs runs/executed/logs --algorithm auto --out runs/cortex --name router"
    ),
    "bank build": Command(BankBuildJob, _bank_build, "--logs runs/executed/logs --tiers tiers.yaml --out bank"),
    "bank replay": Command(
        BankReplayJob, _bank_replay, "--bank bank --policy heuristic --epsilon 0.3 --out runs/replay"
    ),
    "evaluate-policy": Command(
        EvaluatePolicyJob, _evaluate_policy, "--transitions runs/dataset --policy heuristic --champion always-cheap"
    ),
    "gate": Command(GateJob, _gate, "--candidate router@challenger --suite bank --out gates/first --promote"),
    "policy list": Command(PolicyListJob, _policy_list, "--registry sqlite:///mlflow.db"),
    "policy show": Command(PolicyShowJob, _policy_show, "router@champion"),
    "policy promote": Command(PolicyPromoteJob, _policy_promote, "router@challenger --evidence gate/gate_report.json"),
    "policy rollback": Command(PolicyRollbackJob, _policy_rollback, "router --reason 'dearer than it was in the gate'"),
    "report": Command(ReportJob, _report, "--run runs/first"),
}


def _hold_run(job: Any) -> AbstractContextManager[Any]:
    """Hold the lock of the run that a command writes; a report may be made of a run at work."""
    from celr_ray.lock import run_lock

    if isinstance(job, PipelineJob | ExecuteJob | GateJob):
        return run_lock(job.out)
    is_stage = isinstance(job, ScoreJob | ConvertJob | JudgeJob | PairJob | ExportJob)
    return run_lock(job.run) if is_stage else nullcontext()


def _usage(group: str = "") -> str:
    """Return the help of all commands, or of those of one group, such as `policy`."""
    commands = {name: command for name, command in COMMANDS.items() if name.startswith(f"{group} " if group else "")}
    lines = [
        f"usage: celr-ray {group or 'COMMAND'}{' COMMAND' if group else ''} [--config FILE.yaml] [flags]",
        "",
        "Turns the execution logs of LLM agents into training data for better agents.",
        "",
        "commands:",
    ]
    lines += [f"  {name:18}{(command.job.__doc__ or '').splitlines()[0]}" for name, command in commands.items()]
    lines += [
        "",
        "Every command: celr-ray COMMAND --help. Flags win over the environment (CELR_RAY_JUDGE__CONCURRENCY=4),",
        "which wins over the YAML file of --config, whose keys are the flags' names.",
        "",
        "examples:",
        *(f"  celr-ray {name} {command.example}" for name, command in commands.items()),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"celr-ray {metadata.version('celr-ray')}")
        return 0
    if any(name.startswith(f"{words[0]} ") for name in COMMANDS) and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_usage(words[0]))
        return 0 if len(words) > 1 else 2
    n_words = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, flags = " ".join(words[:n_words]), words[n_words:]
    command = COMMANDS.get(name)
    if command is None:
        print(f"celr-ray: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        job = load_job(command.job, flags, program=f"celr-ray {name}")
        with _hold_run(job):
            said = command.run(job)
    except CelrRayError as error:
        print(f"celr-ray {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"celr-ray {name}: interrupted; finished units are kept, run it again to go on", file=sys.stderr)
        return 130
    line, exit_code = said if isinstance(said, tuple) else (said, 0)
    print(line, flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
