"""The second half of the dataset: a unit is one bucket of episodes; it writes their transitions, split and in order.

    DIR/transitions/train/part-00000.parquet        schema.TRANSITION_SCHEMA; absent where a bucket has none
    DIR/transitions/validation/part-00000.parquet

Of equal records one is kept, and of the records of one run the one that tells all of it. The order of the episodes is
that of their keys: random, the same for every cut into units, and rows of an episode stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from celr_ray import storage
from celr_ray.buckets import iter_row_groups
from celr_ray.config import DatasetConfig
from celr_ray.cortex.actions import BoolArray, IntArray
from celr_ray.cortex.decision_stage import STAGED_COLUMNS
from celr_ray.run_folder import part_name, read_manifests
from celr_ray.runtime import Manifest, Unit, UnitFunction
from celr_ray.stage import StagePlan

__all__ = ["SPLITS", "add_digests", "is_validation", "make_transition_unit", "transition_plan", "transition_unit"]

SPLITS = ("train", "validation")
_ROW_GROUP_ROWS = 65_536
_DIGEST_BYTES = 32
_HASHED = ("obs", "actions", "rewards_raw", "behavior", "terminateds")
"""Columns that the others follow from, beside those that name the episode."""


def transition_plan(run: str, fingerprint: str, dataset: DatasetConfig) -> StagePlan:
    """List one unit a bucket that holds episodes, from the manifests of the first half.

    Args:
        run: run folder, its first half finished.
        fingerprint: of the first half's plan.
        dataset: seed and share of the split, and what the rewards charge for a failure.
    """
    units: dict[int, dict[str, Any]] = {}
    for part, manifest in sorted(read_manifests(run, "decisions").items()):
        for row_group, (bucket, _, n_episodes) in enumerate(manifest["row_groups"]):
            unit = units.setdefault(bucket, {"bucket": bucket, "row_groups": [], "n_episodes": 0})
            unit["row_groups"].append([part, row_group])
            unit["n_episodes"] += n_episodes
    settings = {
        "decisions": fingerprint,
        "seed": dataset.seed,
        "validation_fraction": dataset.validation_fraction,
        "failure_penalty": dataset.failure_penalty,
    }
    return StagePlan("dataset", settings, [units[bucket] for bucket in sorted(units)])


def is_validation(task_id: str, dataset: DatasetConfig) -> bool:
    """Tell whether a task belongs to the validation split: by a hash of the seed and its id."""
    hashed = xxhash.xxh3_64_intdigest(f"split\0{dataset.seed}\0{task_id}".encode())
    return hashed < dataset.validation_fraction * 2**64


def _read_bucket(run: str, row_groups: Sequence[Sequence[int]]) -> pa.Table:
    """Read the staged rows of one bucket, parts ascending."""
    tables = []
    for part, groups in iter_row_groups(row_groups):
        with storage.open_input(storage.join(run, "decisions", part_name(part))) as source:
            tables.append(pq.ParquetFile(source).read_row_groups(groups, use_threads=False))
    return pa.concat_tables(tables)


def _choose(table: pa.Table) -> tuple[IntArray, IntArray, int, int]:
    """Choose the episodes to keep, in the order of their keys.

    Returns:
        First row and number of rows of each, [K]; how many were copies; and how many were parts of a longer record.
    """
    first = np.flatnonzero(table["t"].to_numpy() == 0)
    length = np.diff(np.append(first, table.num_rows))
    episodes = table.select(["key", "run_id", "rank", "eps_id"]).take(pa.array(first))
    keys = episodes["key"].to_numpy()
    order = np.argsort(keys, kind="stable")
    is_alone = np.ones(len(order), dtype=bool)
    is_repeat = keys[order][1:] == keys[order][:-1]
    is_alone[1:] &= ~is_repeat
    is_alone[:-1] &= ~is_repeat
    kept, n_copies, n_superseded = _settle(episodes, order[~is_alone])
    chosen = np.concatenate([order[is_alone], kept])
    chosen = chosen[np.argsort(keys[chosen], kind="stable")]
    return first[chosen], length[chosen], n_copies, n_superseded


def _settle(episodes: pa.Table, doubtful: IntArray) -> tuple[IntArray, int, int]:
    """Decide between records that share a key: equal ones, records of one run, or (hardly ever) a chance meeting.

    Returns:
        Those kept, ordered by run; how many were copies; how many were superseded.
    """
    by_run: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    n_copies = 0
    for number, row in zip(doubtful, episodes.take(pa.array(doubtful)).to_pylist(), strict=True):
        records = by_run[row["run_id"]]
        n_copies += row["eps_id"] in records
        records.setdefault(row["eps_id"], (row["rank"], int(number)))
    kept = []
    for _, records in sorted(by_run.items()):
        best = max(records, key=lambda eps_id: (records[eps_id][0], eps_id))
        kept.append(records[best][1])
    n_superseded = sum(len(records) - 1 for records in by_run.values())
    return np.array(kept, dtype=np.int64), n_copies, n_superseded


def transition_unit(unit: Unit, *, dataset: DatasetConfig) -> Manifest:
    """Write the transitions of one bucket; see `stage.run_stage` for the contract."""
    staged = _read_bucket(unit["run"], unit["row_groups"])
    first, length, n_copies, n_superseded = _choose(staged)
    starts = np.cumsum(length) - length
    rows = np.repeat(first - starts, length) + np.arange(length.sum())
    table = staged.drop_columns(list(STAGED_COLUMNS)).take(pa.array(rows)).combine_chunks()
    del staged
    heads = table.select(["eps_id", "task_id", "policy_hash", "source"]).take(pa.array(starts)).to_pylist()
    tasks = {head["task_id"] for head in heads}
    validation = {task_id for task_id in tasks if is_validation(task_id, dataset)}
    held_out = np.array([head["task_id"] in validation for head in heads], dtype=bool)
    is_held_out = np.repeat(held_out, length)
    counts: dict[str, dict[str, int]] = {"episodes": {}, "transitions": {}}
    for split, episodes, chosen in zip(SPLITS, (~held_out, held_out), (~is_held_out, is_held_out), strict=True):
        counts["episodes"][split] = int(episodes.sum())
        counts["transitions"][split] = int(chosen.sum())
        _write(storage.join(unit["run"], "transitions", split, part_name(unit["index"])), table, chosen)
    return {
        "bucket": unit["bucket"],
        "rows_in": unit["n_episodes"],
        "rows_out": len(length),
        "duplicates": n_copies,
        "excluded": n_superseded,
        "excluded_as": {"superseded": n_superseded} if n_superseded else {},
        **counts,
        "sources": dict(Counter(head["source"] for head in heads)),
        "policies": dict(Counter(head["policy_hash"] or "unknown" for head in heads)),
        "without_propensities": int((table["action_prob"].take(pa.array(starts)).is_null()).to_numpy().sum()),
        "truncated": int(table["truncateds"].to_numpy().sum()),
        "digest": f"{_digest(table, heads, starts, length, held_out):064x}",
    }


def _write(uri: str, table: pa.Table, chosen: BoolArray) -> None:
    """Write the chosen rows, if there are any, in row groups small enough to stream."""
    if not chosen.any():
        return
    part = table.filter(pa.array(chosen))
    sizes = [_ROW_GROUP_ROWS] * (part.num_rows // _ROW_GROUP_ROWS)
    if rest := part.num_rows % _ROW_GROUP_ROWS:
        sizes.append(rest)
    storage.write_parquet(uri, part, sizes)


def _digest(
    table: pa.Table, heads: Sequence[dict[str, Any]], starts: IntArray, length: IntArray, held_out: BoolArray
) -> int:
    """Return the sum of the episodes' 256-bit hashes: it depends on what they hold, not on order or parts."""
    n = table.num_rows
    columns = [_flat(table[name]).reshape(n, -1) for name in _HASHED]
    packed = np.concatenate([np.ascontiguousarray(column).view(np.uint8).reshape(n, -1) for column in columns], axis=1)
    total = 0
    for head, start, size, is_out in zip(heads, starts, length, held_out, strict=True):
        name = f"{head['eps_id']}\0{head['task_id']}\0{head['policy_hash']}\0{head['source']}\0{is_out}\0"
        digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES)
        digest.update(packed[start : start + size].data)
        total += int.from_bytes(digest.digest(), "little")
    return int(total % 2 ** (8 * _DIGEST_BYTES))


def _flat(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return array.to_numpy(zero_copy_only=False)


def add_digests(manifests: Sequence[Manifest]) -> str:
    """Return what identifies the episodes of all units together, 64 hex digits."""
    total = sum(int(manifest["digest"], 16) for manifest in manifests)
    return f"{total % 2 ** (8 * _DIGEST_BYTES):064x}"


def make_transition_unit(dataset: dict[str, Any]) -> UnitFunction:
    """Return the function that runs a unit."""
    return partial(transition_unit, dataset=DatasetConfig(**dataset))
