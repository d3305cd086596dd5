"""The pair stage: one task bucket a unit. Light columns first, choose, then read only the texts needed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.buckets import pause_garbage_collection, plan_bucket_units, read_bucket, read_rows
from celr_ray.config import PairConfig, RuntimeConfig
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.schema import KTO_SCHEMA, PAIR_SCHEMA, TASK_SCHEMA, KtoRow, PreferencePair, TaskSummary
from celr_ray.stage import StagePlan, StageReport, is_complete, part_name, read_manifests, read_plan, run_stage
from celr_ray.training.data_generator import (
    index_sft,
    make_kto_rows,
    make_pairs,
    make_spin_pairs,
    normalise_prompt,
    split_rows,
    take_choices,
)
from celr_ray.training.preference import Candidate, Choice, ScoredType, explain_no_pair, is_one_sided

_CANDIDATE = ("success", "success_score", "composite_score", "model")
_LIGHT = ("task_id", *_CANDIDATE)
_TEXTS = ("messages", "prompt", "model")
_SCORED_TYPES: tuple[ScoredType, ...] = ("dpo", "self_reward")
_LARGE_ROWS = 200_000


@dataclass(slots=True)
class _Task:
    """One task on its way through a unit."""

    task_id: str
    candidates: list[Candidate]
    choices: dict[ScoredType, list[Choice]] = field(default_factory=dict)
    text_reasons: dict[ScoredType, str] = field(default_factory=dict)
    kto_ids: list[str] = field(default_factory=list)
    spin_ids: list[str] = field(default_factory=list)


def read_sft(uris: Sequence[str]) -> list[dict[str, Any]]:
    """Read SFT data: JSONL of {"prompt", "response"} or {"messages"}.

    Raises:
        InputError: a file is missing, or a line is not a JSON object.
    """
    rows = []
    for uri in uris:
        for file in storage.expand(uri):
            for number, line in enumerate(storage.read_bytes(file.uri).splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{file.uri}, line {number}: not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise InputError(f'{file.uri}, line {number}: expected {{"prompt", "response"}} or {{"messages"}}')
                rows.append(row)
    return rows


def pair_plan(run: str, config: PairConfig) -> StagePlan:
    """Plan pairing: one unit for each non-empty bucket.

    Raises:
        InputError: SFT data is missing.
        RunMismatchError: ingest or the judge is unfinished.
    """
    ingest = read_plan(run, "ingest")
    judge = (
        read_plan(run, "judge") if read_manifests(run, "judge") else None
    )  # a plan alone is a judge that never began
    if ingest is None or not is_complete(run, "ingest"):
        raise RunMismatchError(
            f"{run}: ingest is not finished; run `celr-ray pipeline` or `celr-ray score` again first"
        )
    if judge is not None and not is_complete(run, "judge"):
        raise RunMismatchError(f"{run}: the judge has not finished; run `celr-ray judge --run {run} …` again first")
    sft_files = [file for uri in config.sft for file in storage.expand(uri)]
    settings = {
        "ingest": ingest["fingerprint"],
        "score": _score_settings(run),
        "judge": judge["fingerprint"] if judge else None,
        "pair": config.model_dump(),
        "sft": {file.uri: [file.size_bytes, file.modified_ns] for file in sft_files},
    }
    judgments: dict[int, list[int]] = defaultdict(list)
    for part, manifest in sorted(read_manifests(run, "judge").items()):
        judgments[manifest["bucket"]].append(part)
    units = [{**unit, "judgments": judgments.get(unit["bucket"], [])} for unit in plan_bucket_units(run)]
    return StagePlan("pair", settings, units)


def _score_settings(run: str) -> list[dict[str, Any]]:
    found = {json.dumps(m["score"], sort_keys=True) for m in read_manifests(run, "ingest").values()}
    if len(found) > 1:
        raise RunMismatchError(
            f"{run}: its parts were scored with different weights; finish `celr-ray score --run {run}`"
        )
    return [json.loads(text) for text in sorted(found)]


def run_pair(
    run: str,
    config: PairConfig,
    runtime: RuntimeConfig,
    *,
    overwrite: bool = False,
    on_ray: bool | None = None,
) -> StageReport:
    """Build the preference pairs, KTO rows and task table of a run.

    Raises:
        UsageError: an earlier stage is unfinished, SFT data is missing, or other settings were used before.
    """
    plan = pair_plan(run, config)
    is_large = sum(unit["n_rows"] for unit in plan.units) > _LARGE_ROWS
    on_ray = uses_ray(runtime, is_large=is_large) if on_ray is None else on_ray
    work = Work(partial(_make_pair_unit, config.model_dump()))
    return run_stage(run, plan, work, runtime, on_ray=on_ray, overwrite=overwrite)


def _make_pair_unit(settings: dict[str, Any]) -> UnitFunction:
    config = PairConfig(**settings)
    return partial(pair_unit, config=config, sft=index_sft(read_sft(config.sft)))


@pause_garbage_collection()
def pair_unit(unit: Unit, *, config: PairConfig, sft: dict[str, list[str]]) -> Manifest:
    """Pair the tasks of one bucket and write pairs, unpaired rows and the task table."""
    run, index = unit["run"], unit["index"]
    columns = [*_LIGHT, *(["prompt"] if sft else [])]
    light, duplicates = read_bucket(run, unit["row_groups"], columns)
    tasks = _group_tasks(light, _read_judge_scores(run, unit["judgments"]))
    for task in tasks.values():
        _choose(task, config)
    if sft:
        _choose_spin(light, tasks, sft, config)
    built = _build_all(tasks.values(), partial(read_rows, run, unit["row_groups"], columns=_TEXTS), sft, config)
    copies = _count_copies(run, unit["row_groups"]) if duplicates else {}
    pairs: list[PreferencePair] = []
    kto: list[KtoRow] = []
    summaries: list[TaskSummary] = []
    for task in tasks.values():
        own_pairs, own_kto = built[task.task_id]
        pairs += own_pairs
        kto += own_kto
        summaries.append(_summarise(task, own_pairs, own_kto, copies.get(task.task_id, 0), has_sft=bool(sft)))
    _write(run, index, pairs, kto, summaries)
    return _make_manifest(light.num_rows, duplicates, pairs, kto, summaries)


def _read_judge_scores(run: str, parts: Sequence[int]) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for part in parts:
        uri = storage.join(run, "judgments", part_name(part))
        table = storage.read_parquet(uri, ["trajectory_id", "judge_score"])
        scores.update(zip(table["trajectory_id"].to_pylist(), table["judge_score"].to_pylist(), strict=True))
    return scores


def _group_tasks(light: pa.Table, judge_scores: dict[str, float | None]) -> dict[str, _Task]:
    tasks: dict[str, _Task] = {}
    columns = [light[name].to_pylist() for name in ("task_id", "trajectory_id", *_CANDIDATE)]
    for task_id, trajectory_id, success, success_score, composite_score, model in zip(*columns, strict=True):
        task = tasks.get(task_id)
        if task is None:
            task = tasks[task_id] = _Task(task_id, [])
        judge_score = judge_scores.get(trajectory_id)
        task.candidates.append(Candidate(trajectory_id, success, success_score, composite_score, judge_score, model))
    return tasks


def _choose(task: _Task, config: PairConfig) -> None:
    for pair_type in _SCORED_TYPES:
        task.choices[pair_type] = take_choices(task.candidates, pair_type, config)
    if is_one_sided(task.candidates):
        known = [c.trajectory_id for c in task.candidates if c.success is not None]
        task.kto_ids = known[: config.max_kto_per_task]


def _choose_spin(light: pa.Table, tasks: dict[str, _Task], sft: dict[str, list[str]], config: PairConfig) -> None:
    """Mark runs whose task text has an SFT response; runs without a task text are joined by their own messages."""
    columns = (light["task_id"], light["trajectory_id"], light["prompt"])
    for task_id, trajectory_id, prompt in zip(*(column.to_pylist() for column in columns), strict=True):
        ids = tasks[task_id].spin_ids
        if (prompt is None or normalise_prompt(prompt) in sft) and len(ids) < config.max_pairs_per_task:
            ids.append(trajectory_id)


def _build_all(
    tasks: Collection[_Task],
    read_texts: Callable[[Collection[str]], dict[str, dict[str, Any]]],
    sft: dict[str, list[str]],
    config: PairConfig,
) -> dict[str, tuple[list[PreferencePair], list[KtoRow]]]:
    """Build the rows of each task, by task_id.

    The texts of spare choices are read only for the few tasks in which a better choice fell away for its texts.
    """
    cap = 1 if config.strategy == "best_worst" else config.max_pairs_per_task
    texts = read_texts(_needed_ids(tasks, cap))
    built = {task.task_id: _build(task, texts, sft, config, cap) for task in tasks}
    short = [task for task in tasks if _is_short(task, built[task.task_id][0], cap)]
    if short:
        texts = read_texts(_needed_ids(short, None))
        built.update((task.task_id, _build(task, texts, sft, config, None)) for task in short)
    return built


def _is_short(task: _Task, pairs: Sequence[PreferencePair], cap: int) -> bool:
    """Tell whether a task has spare choices and fewer pairs of a type than it may have."""
    types = Counter(pair.pair_type for pair in pairs)
    return any(len(choices) > cap > types[pair_type] for pair_type, choices in task.choices.items())


def _needed_ids(tasks: Collection[_Task], n_choices: int | None) -> set[str]:
    """Return the runs whose texts the first `n_choices` choices of each pair type need; None = all choices."""
    needed: set[str] = set()
    for task in tasks:
        needed.update(task.kto_ids, task.spin_ids)
        for choices in task.choices.values():
            for choice in choices[:n_choices]:
                needed.update((choice.chosen.trajectory_id, choice.rejected.trajectory_id))
    return needed


def _count_copies(run: str, row_groups: Sequence[Sequence[int]]) -> dict[str, int]:
    """Return how many exact copies each task has beyond the first of each run."""
    tables = []
    for part, group in row_groups:
        with storage.open_input(storage.join(run, "trajectories", part_name(part))) as source:
            file = pq.ParquetFile(source)
            tables.append(file.read_row_group(group, columns=["task_id", "trajectory_id"]))
    rows = pa.concat_tables(tables).to_pydict()
    n_rows = Counter(rows["task_id"])
    n_distinct = Counter(task for task, _ in set(zip(rows["task_id"], rows["trajectory_id"], strict=True)))
    return {task: n_rows[task] - n_distinct[task] for task in n_rows}


def _build(
    task: _Task,
    texts: dict[str, dict[str, Any]],
    sft: dict[str, list[str]],
    config: PairConfig,
    n_choices: int | None,
) -> tuple[list[PreferencePair], list[KtoRow]]:
    pairs: list[PreferencePair] = []
    for pair_type in _SCORED_TYPES:
        choices = task.choices[pair_type][:n_choices]
        made = make_pairs(task.task_id, pair_type, choices, texts, config)
        if choices and not made:
            best = choices[0]
            reason = split_rows(texts[best.chosen.trajectory_id], texts[best.rejected.trajectory_id])
            task.text_reasons[pair_type] = str(reason)
        pairs += made
    pairs += make_spin_pairs(task.task_id, [texts[i] for i in task.spin_ids], sft, config)
    kto_texts = {i: texts[i] for i in task.kto_ids}
    return pairs, make_kto_rows(task.task_id, task.candidates, kto_texts, config.max_kto_per_task)


def _summarise(
    task: _Task, pairs: Sequence[PreferencePair], kto: Sequence[KtoRow], copies: int, *, has_sft: bool
) -> TaskSummary:
    types = Counter(pair.pair_type for pair in pairs)
    levels = Counter(pair.level for pair in pairs)
    outcomes = Counter(candidate.success for candidate in task.candidates)
    reasons = {
        pair_type: None
        if types[pair_type]
        else task.text_reasons.get(pair_type) or explain_no_pair(task.candidates, pair_type)
        for pair_type in _SCORED_TYPES
    }
    return TaskSummary(
        task_id=task.task_id,
        n_runs=len(task.candidates),
        n_duplicates=copies,
        n_success=outcomes[True],
        n_failure=outcomes[False],
        n_unknown=outcomes[None],
        n_judged=sum(candidate.judge_score is not None for candidate in task.candidates),
        n_dpo=types["dpo"],
        n_self_reward=types["self_reward"],
        n_spin=types["spin"],
        n_step=levels["step"],
        n_trajectory=levels["trajectory"],
        n_kto=len(kto),
        dpo_reason=reasons["dpo"],
        self_reward_reason=reasons["self_reward"],
        spin_reason=None if types["spin"] else "no_sft_for_prompt" if has_sft else "no_sft_data",
    )


def _write(
    run: str, index: int, pairs: Sequence[PreferencePair], kto: Sequence[KtoRow], tasks: Sequence[TaskSummary]
) -> None:
    for folder, rows, schema in (
        ("tasks", tasks, TASK_SCHEMA),
        ("unpaired", kto, KTO_SCHEMA),
        ("pairs", pairs, PAIR_SCHEMA),
    ):
        table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema)
        storage.write_parquet(storage.join(run, folder, part_name(index)), table)


def _make_manifest(
    n_rows: int,
    duplicates: int,
    pairs: Sequence[PreferencePair],
    kto: Sequence[KtoRow],
    tasks: Sequence[TaskSummary],
) -> Manifest:
    """Count what became of every run: in a pair, a KTO row, or neither; duplicates apart."""
    in_pairs = {i for pair in pairs for i in (pair.chosen_id, pair.rejected_id) if not i.startswith("sft-")}
    in_kto = {row.trajectory_id for row in kto} - in_pairs
    return {
        "rows_in": n_rows + duplicates,
        "rows_out": n_rows,
        "rejected": 0,
        "duplicates": duplicates,
        "runs": {
            "in_pairs": len(in_pairs),
            "in_kto_only": len(in_kto),
            "in_neither": n_rows - len(in_pairs) - len(in_kto),
        },
        "tasks": len(tasks),
        "pairs": len(pairs),
        "kto_rows": len(kto),
        "pair_types": dict(Counter(pair.pair_type for pair in pairs)),
        "levels": dict(Counter(pair.level for pair in pairs)),
        "no_dpo_pair": dict(Counter(task.dpo_reason for task in tasks if task.dpo_reason)),
        "no_self_reward_pair": dict(Counter(task.self_reward_reason for task in tasks if task.self_reward_reason)),
    }
