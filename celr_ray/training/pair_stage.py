"""The pair stage: one task bucket a unit. Light columns first, choose, then read only the texts needed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray import storage
from celr_ray.buckets import POSITION, iter_row_groups, open_part, plan_bucket_units, read_bucket
from celr_ray.config import PairConfig, RuntimeConfig
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.run_folder import check_parts, is_complete, manifest_uri, part_name, read_manifests, read_plan
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.stage import StagePlan, StageReport, run_stage
from celr_ray.training.pair_summary import Found, make_manifest, make_task_table
from celr_ray.training.pairing import (
    LIGHT_COLUMNS,
    Texts,
    gather_pairs,
    make_candidates,
    make_pair_table,
    make_unpaired_table,
    pair_runs,
)
from celr_ray.training.preference import SCORED_TYPES, choose_unpaired
from celr_ray.training.spans import Floats, Ints
from celr_ray.training.spin import SftIndex, choose_answers, index_sft, pair_answers, read_sft
from celr_ray.training.text_reader import read_texts

_LARGE_ROWS = 200_000


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
        "score": read_score_settings(run),
        "judge": judge["fingerprint"] if judge else None,
        "pair": config.model_dump(),
        "sft": {file.uri: [file.size_bytes, file.modified_ns] for file in sft_files},
    }
    judgments: dict[int, list[int]] = defaultdict(list)
    for part, manifest in sorted(read_manifests(run, "judge").items()):
        judgments[manifest["bucket"]].append(part)
    units = [{**unit, "judgments": judgments.get(unit["bucket"], [])} for unit in plan_bucket_units(run)]
    return StagePlan("pair", settings, units)


def read_score_settings(run: str) -> list[dict[str, Any]]:
    """Return the weights with which the trajectories of a run were scored, in a list; it is empty if there are none.

    Raises:
        InputError: a manifest of ingest does not say it.
        RunMismatchError: a command that scores them again has not finished.
    """
    manifests = read_manifests(run, "ingest")
    for index, manifest in manifests.items():
        if "score" not in manifest:
            raise InputError(
                f"{manifest_uri(run, 'ingest', index)} does not say how its part was scored: delete it and run the "
                "command that ingested the logs again"
            )
    found = {json.dumps(manifest["score"], sort_keys=True) for manifest in manifests.values()}
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
        UsageError: an earlier stage is unfinished or has lost files, SFT data is missing, or other settings were used
            before.
    """
    plan = pair_plan(run, config)
    check_parts(run, "ingest", "trajectories")
    check_parts(run, "judge", "judgments")
    is_large = sum(unit["n_rows"] for unit in plan.units) > _LARGE_ROWS
    on_ray = uses_ray(runtime, is_large=is_large) if on_ray is None else on_ray
    work = Work(partial(_make_pair_unit, config.model_dump()))
    return run_stage(run, plan, work, runtime, on_ray=on_ray, overwrite=overwrite)


def _make_pair_unit(settings: dict[str, Any]) -> UnitFunction:
    config = PairConfig(**settings)
    return partial(pair_unit, config=config, sft=index_sft(read_sft(config.sft)))


def pair_unit(unit: Unit, *, config: PairConfig, sft: SftIndex) -> Manifest:
    """Pair the tasks of one bucket and write pairs, unpaired rows and the task table."""
    run, row_groups = unit["run"], unit["row_groups"]
    columns = [*LIGHT_COLUMNS, *(["prompt"] if sft else [])]
    light, duplicates = read_bucket(run, row_groups, columns, with_positions=True)
    runs = make_candidates(light, _read_judge_scores(run, unit["judgments"], light["trajectory_id"]))
    unpaired_runs = choose_unpaired(runs, config.max_kto_per_task)
    prompts = light["prompt"].to_pylist() if sft else ()
    answers = choose_answers(runs.task, prompts, sft, config.max_pairs_per_task)

    texts = Texts(light.num_rows, partial(read_texts, run, row_groups, light[POSITION].to_numpy()))
    paired = pair_runs(runs, SCORED_TYPES, config, texts, unpaired_runs, answers)
    pairs = gather_pairs(paired)
    spin = pair_answers(answers, runs.task[answers], light, texts, sft, config.max_pairs_per_task)
    unpaired_runs, unpaired = make_unpaired_table(unpaired_runs, runs, light, texts)

    found = Found(runs, paired, pairs, spin.runs, unpaired_runs)
    task_ids = light["task_id"].take(pa.array(np.unique(runs.task, return_index=True)[1]))
    n_rows = _count_rows(run, row_groups, task_ids) if duplicates else found.count_runs()
    tasks = make_task_table(found, task_ids, n_rows, has_sft=bool(sft))
    pair_table = _add_spin(make_pair_table(pairs, light, texts.conversations), found, spin.table)
    for folder, table in (("tasks", tasks), ("unpaired", unpaired), ("pairs", pair_table)):
        storage.write_parquet(storage.join(run, folder, part_name(unit["index"])), table)
    return make_manifest(found, tasks, duplicates)


def _read_judge_scores(run: str, parts: Sequence[int], ids: pa.ChunkedArray) -> Floats:
    """Return the judge score of each run, NaN where there is none."""
    if not parts:
        return np.full(len(ids), np.nan)
    uris = [storage.join(run, "judgments", part_name(part)) for part in parts]
    judged = pa.concat_tables([storage.read_parquet(uri, ["trajectory_id", "judge_score"]) for uri in uris])
    scores = judged["judge_score"].take(pc.index_in(ids, value_set=judged["trajectory_id"].combine_chunks()))
    return np.asarray(pc.fill_null(scores, np.nan).to_numpy())


def _count_rows(run: str, row_groups: Sequence[Sequence[int]], task_ids: pa.ChunkedArray) -> Ints:
    """Return how many rows each task has in the files, exact copies included."""
    tables = []
    for part, groups in iter_row_groups(row_groups):
        with storage.open_input(storage.join(run, "trajectories", part_name(part))) as source:
            tables.append(open_part(run, part, source).read_row_groups(groups, columns=["task_id"]))
    tasks = pc.index_in(pa.concat_tables(tables)["task_id"], value_set=task_ids.combine_chunks())
    return np.bincount(tasks.to_numpy(), minlength=len(task_ids))


def _add_spin(pairs: pa.Table, found: Found, spin: pa.Table) -> pa.Table:
    """Return the pairs of a bucket with its SPIN pairs among them, after the others of each task."""
    if not spin.num_rows:
        return pairs
    tasks = np.concatenate([found.pairs.choices.task, found.runs.task[found.spin_runs]])
    return pa.concat_tables([pairs, spin]).take(pa.array(np.argsort(tasks, kind="stable")))
