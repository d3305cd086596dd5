"""The preference pairs of many tasks at once, as Arrow tables: choose, read the chosen texts, cut, assemble.

The pair stage runs this on the bucket of a run, the front door (data_generator.py) on rows in memory. Neither reads nor
writes files: whoever calls it brings a function that reads the texts of given runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray.config import PairConfig
from celr_ray.schema import KTO_SCHEMA, PAIR_SCHEMA
from celr_ray.training.conversations import TEXT_SCHEMA, Conversations, PairCuts
from celr_ray.training.preference import SCORED_TYPES, Candidates, Choices, ScoredType, choose_pairs, join_choices
from celr_ray.training.spans import Bools, Floats, Ints, count_before, join_rows, take_rows

SPARE_CHOICES = 8
"""Choices tried beyond the cap, because some fall away when their texts are equal or have no common prompt."""

LIGHT_COLUMNS = ("task_id", "trajectory_id", "success", "success_score", "composite_score", "model")
ROW = "row"
LEVELS = ("trajectory", "step")

ReadTexts = Callable[[Ints], pa.Table]
"""Reads the texts of runs: places among the candidates → columns ROW (the place) and TEXT_SCHEMA, in any order."""


class Paired(NamedTuple):
    """The choices of one pair type, where their texts are cut, and which of them become pairs."""

    choices: Choices
    cuts: PairCuts
    is_kept: Bools


class Pairs(NamedTuple):
    """Choices that became pairs; `kind` is the place of the pair type in SCORED_TYPES."""

    kind: Ints
    choices: Choices
    cuts: PairCuts


class Texts:
    """The texts read so far, and where those of each run stand in them."""

    def __init__(self, n_runs: int, read: ReadTexts) -> None:
        self._read = read
        self._place: Ints = np.full(n_runs, -1, dtype=np.int64)
        self._table = TEXT_SCHEMA.empty_table()
        self.conversations = Conversations(self._table)

    def fetch(self, *runs: Ints) -> None:
        """Read the texts of runs that were not read before."""
        wanted = np.unique(np.concatenate(runs))
        wanted = wanted[self._place[wanted] < 0]
        if len(wanted):
            found = self._read(wanted)
            self._place[found[ROW].to_numpy()] = self._table.num_rows + np.arange(found.num_rows)
            self._table = pa.concat_tables([self._table, found.select(TEXT_SCHEMA.names)]).combine_chunks()
            self.conversations = Conversations(self._table)

    def locate(self, runs: Ints) -> Ints:
        """Return the rows of `conversations` that hold these runs."""
        return self._place[runs]


def make_candidates(light: pa.Table, judge_scores: Floats) -> Candidates:
    """Return the light columns of runs as arrays.

    Args:
        light: LIGHT_COLUMNS, ordered by (task_id, trajectory_id).
        judge_scores: one for each row, NaN where there is none.
    """
    tasks = light["task_id"].combine_chunks().dictionary_encode()
    success, success_score, composite_score = (
        np.asarray(pc.fill_null(light[name].cast(pa.float64()), np.nan).to_numpy())
        for name in ("success", "success_score", "composite_score")
    )
    numbers = tasks.indices.to_numpy().astype(np.int64)
    return Candidates(numbers, success, success_score, composite_score, judge_scores, len(tasks.dictionary))


def pair_runs(
    runs: Candidates, types: Sequence[ScoredType], config: PairConfig, texts: Texts, *also: Ints
) -> dict[ScoredType, Paired]:
    """Choose the pairs of each type and cut their texts; a choice without usable texts gives way to the next.

    The texts of spare choices are read only for the few tasks in which a better choice fell away for its texts.

    Args:
        runs: the candidates.
        types: pair types wanted.
        config: strategy, margins and cap.
        texts: where the texts are read.
        also: more runs whose texts are wanted, read with the others.
    """
    cap = 1 if config.strategy == "best_worst" else config.max_pairs_per_task
    choices = {name: choose_pairs(runs, name, config, cap) for name in types}
    texts.fetch(*also, *_list_runs(choices.values()))
    paired = {name: _cut(choices[name], texts, cap) for name in types}
    short = {name: _is_short(paired[name], runs.n_tasks, cap) for name in types}
    if not any(tasks.any() for tasks in short.values()):
        return paired
    for name, tasks in short.items():
        spare = choose_pairs(runs, name, config, cap + SPARE_CHOICES, tasks)
        rest = take_rows(choices[name], ~tasks[choices[name].task])
        choices[name] = join_choices([rest, spare], cap + SPARE_CHOICES)
    texts.fetch(*_list_runs(choices.values()))
    return {name: _cut(choices[name], texts, cap) for name in types}


def _list_runs(choices: Iterable[Choices]) -> list[Ints]:
    return [runs for one in choices for runs in (one.chosen, one.rejected)]


def _cut(choices: Choices, texts: Texts, cap: int) -> Paired:
    cuts = texts.conversations.split_pairs(texts.locate(choices.chosen), texts.locate(choices.rejected))
    usable = np.flatnonzero(cuts.no_split < 0)
    is_kept = np.zeros(len(choices.task), dtype=np.bool_)
    is_kept[usable[count_before(choices.task[usable]) < cap]] = True
    return Paired(choices, cuts, is_kept)


def _is_short(paired: Paired, n_tasks: int, cap: int) -> Bools:
    """Tell which tasks lost a choice to its texts and may have further ones, shape (T,)."""
    tasks = paired.choices.task
    n_choices, n_kept = (np.bincount(chosen, minlength=n_tasks) for chosen in (tasks, tasks[paired.is_kept]))
    return np.asarray((n_choices == cap) & (n_kept < cap))


def gather_pairs(paired: dict[ScoredType, Paired]) -> Pairs:
    """Return the pairs of all types: by task, then type, best first."""
    parts = [
        take_rows(Pairs(np.full(len(is_kept), SCORED_TYPES.index(name)), choices, cuts), is_kept)
        for name, (choices, cuts, is_kept) in paired.items()
    ]
    joined = join_rows(parts)
    return take_rows(joined, np.lexsort((joined.kind, joined.choices.task)))


def make_pair_table(pairs: Pairs, light: pa.Table, conversations: Conversations) -> pa.Table:
    """Return pairs as rows of PAIR_SCHEMA.

    Args:
        pairs: what `gather_pairs` returned.
        light: LIGHT_COLUMNS of the candidates.
        conversations: their texts.
    """
    runs = [pa.array(rows) for rows in (pairs.choices.chosen, pairs.choices.rejected)]
    task_ids, types = light["task_id"].take(runs[0]), pa.array(SCORED_TYPES).take(pa.array(pairs.kind))
    ids = [light["trajectory_id"].take(rows) for rows in runs]
    columns = [
        make_pair_ids(task_ids, types, *ids),
        task_ids,
        types,
        pa.array(LEVELS).take(pa.array(pairs.cuts.is_step.astype(np.int8))),
        conversations.take_prompts(pairs.cuts.prompt),
        conversations.take_spans(pairs.cuts.chosen),
        conversations.take_spans(pairs.cuts.rejected),
        *ids,
        pa.array(pairs.choices.chosen_score),
        pa.array(pairs.choices.rejected_score),
        *(light["model"].take(rows) for rows in runs),
    ]
    return pa.table(columns, schema=PAIR_SCHEMA)


def make_pair_ids(*columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a pair_id for each row of (task_id, pair_type, chosen_id, rejected_id): their hash."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return pa.array([hashlib.blake2b("\0".join(row).encode(), digest_size=12).hexdigest() for row in rows], pa.string())


def make_unpaired_table(rows: Ints, runs: Candidates, light: pa.Table, texts: Texts) -> tuple[Ints, pa.Table]:
    """Return those of the runs that can be cut, and their rows of KTO_SCHEMA."""
    cuts = texts.conversations.split_runs(texts.locate(rows))
    rows, cuts = rows[cuts.is_usable], take_rows(cuts, cuts.is_usable)
    columns = [
        light["trajectory_id"].take(pa.array(rows)),
        light["task_id"].take(pa.array(rows)),
        texts.conversations.take_prompts(cuts.prompt),
        texts.conversations.take_spans(cuts.completion),
        pa.array(runs.success[rows] == 1),
    ]
    return rows, pa.table(columns, schema=KTO_SCHEMA)
