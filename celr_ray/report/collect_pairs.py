"""Collects the preference pairs: counts, pairs of each task, reasons for none, and ten pairs to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray.report.data import PairsData, PairView, ReasonRow, TaskBar
from celr_ray.report.excerpts import make_pair_view
from celr_ray.report.reading import count_rows, find_rows, read_light, read_row
from celr_ray.schema import PAIR_SCHEMA, TASK_SCHEMA

N_SAMPLES = 10
MAX_BARS = 40
_CANDIDATES = 500
_PAIR_COLUMNS = ("pair_id", "task_id", "pair_type", "level")
_TASK_COLUMNS = ("task_id", "dpo_reason", "self_reward_reason", "spin_reason")
_TYPES = ("dpo", "self_reward", "spin")
_LEVELS = ("step", "trajectory")
REASON_TEXTS = {
    "single_run": "only one run of the task",
    "outcome_unknown": "fewer than two runs have a known outcome",
    "all_failed": "all runs failed, so none is worth learning from",
    "all_succeeded_alike": "all runs succeeded and score alike",
    "no_judgment": "fewer than two runs have a verdict of the judge",
    "judge_tied": "the judge scores the runs alike",
    "judge_contradicts_outcome": "the judge prefers a failed run to one that succeeded",
    "equal_texts": "the runs to compare are the same text",
    "empty_answer": "one of the runs to compare has no words of the agent",
    "no_task_text": "the runs share no prompt, and the log does not hold the task's text",
    "different_system_texts": "the runs to compare worked under different system texts",
    "different_task_texts": "runs with one task id were given different tasks",
    "no_sft_data": "no SFT data was given",
    "no_sft_for_prompt": "the SFT data has no response to this prompt",
}
"""What the reasons in the task table mean; a reason that is not listed is shown as it stands."""

_RUN_FACTS = ("success", "cost_usd", "n_steps")


def collect_pairs(run: str, runs: pa.Table) -> PairsData:
    """Read the pairs' light columns and the texts of ten of them.

    Args:
        run: run folder.
        runs: distinct runs, with `trajectory_id`, `success`, `cost_usd` and `n_steps`.
    """
    pairs = read_light(run, "pair", "pairs", PAIR_SCHEMA, _PAIR_COLUMNS)
    tasks = read_light(run, "pair", "tasks", TASK_SCHEMA, _TASK_COLUMNS)
    bars = count_by_task(pairs)
    rest = bars[MAX_BARS:]
    return PairsData(
        n_pairs=pairs.num_rows,
        n_tasks=max(tasks.num_rows, len(bars)),
        n_tasks_with_pair=len(bars),
        n_unpaired_rows=count_rows(run, "pair", "unpaired"),
        levels=_LEVELS,
        by_type=_count_by_type(pairs),
        top_tasks=bars[:MAX_BARS],
        n_rest_tasks=len(rest),
        n_rest_pairs=int(sum(sum(bar.counts.values()) for bar in rest)),
        rest=_mean_bar(rest),
        reasons=_count_reasons(tasks),
        samples=[_read_view(run, row, runs) for row in pick_samples(pairs)],
    )


def _count_by_type(pairs: pa.Table) -> list[tuple[str, Mapping[str, int]]]:
    """Count pairs by type and level; types without a pair are kept, so that a zero is visible."""
    counts: dict[str, dict[str, int]] = {kind: dict.fromkeys(_LEVELS, 0) for kind in _TYPES}
    for group in _group(pairs, ["pair_type", "level"]):
        counts[group["pair_type"]][group["level"]] = group["pair_id_count"]
    return list(counts.items())


def count_by_task(pairs: pa.Table) -> list[TaskBar]:
    """Count the pairs of each task by type, the task with most pairs first."""
    counts: dict[str, dict[str, float]] = {}
    for group in _group(pairs, ["task_id", "pair_type"]):
        counts.setdefault(group["task_id"], {})[group["pair_type"]] = group["pair_id_count"]
    return [
        TaskBar(task, counts[task])
        for task in sorted(counts, key=lambda task: (-sum(counts[task].values()), _natural_order(task), task))
    ]


def _natural_order(task_id: str) -> list[tuple[str, int]]:
    """Order by text, but numbers inside by their value: task 9 before task 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", task_id)]


def _group(pairs: pa.Table, keys: list[str]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = pairs.group_by(keys, use_threads=False).aggregate([("pair_id", "count")]).to_pylist()
    return groups


def _mean_bar(rest: list[TaskBar]) -> TaskBar | None:
    if not rest:
        return None
    totals: Counter[str] = Counter()
    for bar in rest:
        totals.update(bar.counts)
    return TaskBar(f"mean of {len(rest):,} other tasks", {kind: n / len(rest) for kind, n in totals.items()})


def _count_reasons(tasks: pa.Table) -> list[ReasonRow]:
    """Count the tasks without a pair by reason and pair type, the most frequent reason first."""
    counts: dict[str, dict[str, int]] = {}
    for kind in _TYPES:
        for row in tasks[f"{kind}_reason"].drop_null().value_counts().to_pylist():
            counts.setdefault(row["values"], dict.fromkeys(_TYPES, 0))[kind] = row["counts"]
    ordered = sorted(counts, key=lambda reason: (-max(counts[reason].values()), reason))
    return [ReasonRow(REASON_TEXTS.get(reason, reason), counts[reason]) for reason in ordered]


def pick_samples(pairs: pa.Table, n: int = N_SAMPLES) -> list[dict[str, Any]]:
    """Choose pairs to read, spread over types, levels and tasks; the same pairs give the same choice.

    Types and levels take turns; at its turn each gives the pair whose task was shown least, then by
    `pair_id`, which is a hash, so that the choice does not follow the order of tasks.
    """
    light = pairs.select([*_PAIR_COLUMNS, "part", "row"])
    strata = []
    for key in sorted(_group(light, ["pair_type", "level"]), key=lambda group: (group["pair_type"], group["level"])):
        mask = pc.and_(pc.equal(light["pair_type"], key["pair_type"]), pc.equal(light["level"], key["level"]))
        rows = light.filter(mask)
        order = pc.sort_indices(rows, sort_keys=[("pair_id", "ascending")])
        strata.append(_spread_tasks(rows.take(order)).to_pylist())
    shown: Counter[str] = Counter()
    picked: list[dict[str, Any]] = []
    while len(picked) < n and any(strata):
        for rows_left in strata:
            if rows_left and len(picked) < n:
                best = min(range(len(rows_left)), key=lambda i: (shown[rows_left[i]["task_id"]], i))
                row = rows_left.pop(best)
                shown[row["task_id"]] += 1
                picked.append(row)
    return picked


def _spread_tasks(rows: pa.Table) -> pa.Table:
    """Keep at most _CANDIDATES rows: the first of each task, then the others."""
    codes = rows["task_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    first.sort()
    others = np.setdiff1d(np.arange(rows.num_rows), first)
    return rows.take(pa.array(np.concatenate([first, others])[:_CANDIDATES]))


def _read_view(run: str, row: Mapping[str, Any], runs: pa.Table) -> PairView:
    pair = read_row(run, "pairs", row["part"], row["row"], PAIR_SCHEMA.names)
    ids = [pair["chosen_id"], pair["rejected_id"]]
    facts: list[Mapping[str, Any]] = [{}, {}]
    if runs.num_rows:
        places = find_rows(runs["trajectory_id"], pa.chunked_array([pa.array(ids, pa.string())]))
        facts = [
            {name: runs[name][int(place)].as_py() for name in _RUN_FACTS} if place >= 0 else {} for place in places
        ]
    return make_pair_view(pair, facts[0], facts[1])
