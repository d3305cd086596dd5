"""What pairing found in a bucket: the task table, with the reason where a task has no pair, and the unit's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from celr_ray.runtime import Manifest
from celr_ray.schema import TASK_SCHEMA
from celr_ray.training.conversations import NO_SPLIT
from celr_ray.training.pairing import LEVELS, Paired, Pairs
from celr_ray.training.preference import SCORED_TYPES, Candidates, ScoredType, explain_no_pair
from celr_ray.training.spans import Bools, Ints


class Found(NamedTuple):
    """What pairing found in a bucket; runs by their place among the candidates.

    Attributes:
        runs: the candidates.
        paired: all choices, by pair type.
        pairs: those of them that became pairs.
        spin_runs: the run that each SPIN pair rejects.
        unpaired_runs: the runs that became single labelled rows.
    """

    runs: Candidates
    paired: Mapping[ScoredType, Paired]
    pairs: Pairs
    spin_runs: Ints
    unpaired_runs: Ints

    def count_runs(self) -> Ints:
        """Return how many runs each task has."""
        return np.bincount(self.runs.task, minlength=self.runs.n_tasks)

    def count_by_task(self, runs: Ints) -> Ints:
        """Return how many of the given runs each task has."""
        return np.bincount(self.runs.task[runs], minlength=self.runs.n_tasks)

    def count_pairs(self, name: ScoredType) -> Ints:
        """Return how many pairs of a type each task has."""
        return self.count_by_task(self.pairs.choices.chosen[self.pairs.kind == SCORED_TYPES.index(name)])


def make_task_table(found: Found, task_ids: pa.ChunkedArray, n_rows: Ints, *, has_sft: bool) -> pa.Table:
    """Return one row of TASK_SCHEMA for each task.

    Args:
        found: what pairing found.
        task_ids: id of each task.
        n_rows: rows of each task in the files, exact copies of runs included.
        has_sft: whether there is SFT data at all.
    """
    runs, pairs = found.runs, found.pairs
    n_spin = found.count_by_task(found.spin_runs)
    columns = {
        "task_id": task_ids,
        "n_runs": found.count_runs(),
        "n_duplicates": n_rows - found.count_runs(),
        "n_success": runs.count(runs.success == 1),
        "n_failure": runs.count(runs.success == 0),
        "n_unknown": runs.count(np.isnan(runs.success)),
        "n_judged": runs.count(~np.isnan(runs.judge_score)),
        **{f"n_{name}": found.count_pairs(name) for name in SCORED_TYPES},
        "n_spin": n_spin,
        "n_step": found.count_by_task(pairs.choices.chosen[pairs.cuts.is_step]) + n_spin,
        "n_trajectory": found.count_by_task(pairs.choices.chosen[~pairs.cuts.is_step]),
        "n_kto": found.count_by_task(found.unpaired_runs),
        **{f"{name}_reason": _explain(found, name) for name in SCORED_TYPES},
        "spin_reason": _mask(np.full(runs.n_tasks, "no_sft_for_prompt" if has_sft else "no_sft_data"), n_spin > 0),
    }
    return pa.table(columns, schema=TASK_SCHEMA)


def _explain(found: Found, name: ScoredType) -> pa.Array:
    """Say why each task has no pair of a type: by its scores, or by the texts of the best choice that they gave."""
    reasons = explain_no_pair(found.runs, name).astype(object)
    choices, cuts, _ = found.paired[name]
    tasks, first = np.unique(choices.task, return_index=True)
    reasons[tasks] = np.array(NO_SPLIT, dtype=object)[cuts.no_split[first]]
    return _mask(reasons, found.count_pairs(name) > 0)


def _mask(reasons: NDArray[np.generic], is_null: Bools) -> pa.Array:
    return pa.array(reasons.astype(object), pa.string(), mask=is_null)


def make_manifest(found: Found, tasks: pa.Table, duplicates: int) -> Manifest:
    """Count what became of every run: in a pair, a KTO row, or neither; duplicates apart."""
    choices, n_rows = found.pairs.choices, len(found.runs.task)
    in_pairs = np.unique(np.concatenate([choices.chosen, choices.rejected, found.spin_runs]))
    in_kto = np.setdiff1d(found.unpaired_runs, in_pairs)
    types = {name: int(pc.sum(tasks[f"n_{name}"]).as_py()) for name in (*SCORED_TYPES, "spin")}
    levels = {name: int(pc.sum(tasks[f"n_{name}"]).as_py()) for name in LEVELS}
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
        "tasks": tasks.num_rows,
        "pairs": sum(types.values()),
        "kto_rows": len(found.unpaired_runs),
        "pair_types": {name: n for name, n in types.items() if n},
        "levels": {name: n for name, n in levels.items() if n},
        **{f"no_{name}_pair": _count_values(tasks[f"{name}_reason"]) for name in SCORED_TYPES},
    }


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(row["values"]): int(row["counts"]) for row in pc.value_counts(column.drop_null()).to_pylist()}
