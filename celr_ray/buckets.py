"""Reading the trajectories of a run one task bucket at a time.

Ingest orders the rows of each part by `bucket = crc32(task_id) mod n_buckets` and writes one row group a
bucket, so that all runs of a task can be read without a shuffle: the bucket's row groups of all parts.
Exact duplicates (equal `trajectory_id`) are dropped here, for every later stage alike. Files are read without Arrow's
threads: a worker has one CPU, and its threads would share it.
"""

from __future__ import annotations

import gc
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.run_folder import part_name, read_manifests
from celr_ray.schema import TRAJECTORY_SCHEMA


def assign_bucket(task_id: str, n_buckets: int) -> int:
    """Return the bucket of a task: crc32 of its UTF-8 id, modulo the number of buckets."""
    return zlib.crc32(task_id.encode()) % n_buckets


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Let no cycle collector run while a unit gathers its rows.

    The rows hold no cycles, and there are so many that looking through them again and again takes a tenth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def plan_bucket_units(run: str) -> list[dict[str, Any]]:
    """List one unit a non-empty bucket, from the manifests of ingest.

    Returns:
        Units `{"bucket": b, "row_groups": [[part, row_group], …], "n_rows": rows with duplicates}`, by bucket.
    """
    units: dict[int, dict[str, Any]] = {}
    for part, manifest in sorted(read_manifests(run, "ingest").items()):
        for row_group, (bucket, n_rows) in enumerate(manifest["row_groups"]):
            unit = units.setdefault(bucket, {"bucket": bucket, "row_groups": [], "n_rows": 0})
            unit["row_groups"].append([part, row_group])
            unit["n_rows"] += n_rows
    return [units[bucket] for bucket in sorted(units)]


_FOOTERS = 1024
"""Footers that a process keeps: of runs up to 128 GiB of logs all, where each bucket would read and parse them anew."""


@lru_cache(maxsize=_FOOTERS)
def _read_footer(uri: str, size_bytes: int, modified_ns: int) -> pq.FileMetaData:
    """Return the footer of a file; every bucket of a run needs those of all its parts."""
    with storage.open_input(uri) as source:
        return pq.ParquetFile(source).metadata


def open_part(run: str, part: int, source: pa.NativeFile) -> pq.ParquetFile:
    """Return a part of a run's trajectories as a Parquet file.

    Args:
        run: run folder.
        part: its number.
        source: the opened file.
    """
    uri = storage.join(run, "trajectories", part_name(part))
    file = storage.stat(uri)
    return pq.ParquetFile(source, metadata=_read_footer(uri, file.size_bytes, file.modified_ns) if file else None)


POSITION = "position"
"""Column with a row's number in its bucket, as the files hold it."""


def iter_row_groups(row_groups: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield (part, its row groups), parts ascending: the order in which rows have their positions."""
    for part in sorted({part for part, _ in row_groups}):
        yield part, [group for owner, group in row_groups if owner == part]


def read_bucket(
    run: str,
    row_groups: Sequence[Sequence[int]],
    columns: Sequence[str] | None = None,
    *,
    with_positions: bool = False,
) -> tuple[pa.Table, int]:
    """Read the distinct trajectories of one bucket.

    Args:
        run: run folder.
        row_groups: [part, row group] pairs of the bucket.
        columns: columns wanted, all if None; `task_id` and `trajectory_id` are always read.
        with_positions: add POSITION, by which `training.text_reader` finds a row again.

    Returns:
        The rows ordered by (task_id, trajectory_id), each id once, and the number of duplicates dropped.
    """
    wanted = None if columns is None else list(dict.fromkeys(["trajectory_id", "task_id", *columns]))
    tables = []
    for part, groups in iter_row_groups(row_groups):
        with storage.open_input(storage.join(run, "trajectories", part_name(part))) as source:
            tables.append(open_part(run, part, source).read_row_groups(groups, columns=wanted, use_threads=False))
    if not tables:
        schema = TRAJECTORY_SCHEMA if wanted is None else pa.schema([TRAJECTORY_SCHEMA.field(n) for n in wanted])
        return (schema.append(pa.field(POSITION, pa.int64())) if with_positions else schema).empty_table(), 0
    table = pa.concat_tables(tables)
    if with_positions:
        table = table.append_column(POSITION, pa.array(np.arange(table.num_rows)))
    n_duplicates = table.num_rows - pc.count_distinct(table["trajectory_id"]).as_py()
    if n_duplicates:
        ids = table["trajectory_id"].to_numpy(zero_copy_only=False).astype(str)
        _, first = np.unique(ids, return_index=True)
        table = table.take(pa.array(np.sort(first)))
    order = pc.sort_indices(table, sort_keys=[("task_id", "ascending"), ("trajectory_id", "ascending")])
    return table.take(order), n_duplicates


def read_rows(
    run: str, row_groups: Sequence[Sequence[int]], trajectory_ids: Collection[str], columns: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Read chosen rows of one bucket, one row group at a time, so that memory is bounded by what is chosen.

    Args:
        run: run folder.
        row_groups: [part, row group] pairs of the bucket.
        trajectory_ids: rows wanted; duplicates are read once.
        columns: columns wanted beside `trajectory_id`.

    Returns:
        Rows as dicts, by trajectory_id.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = pa.array(sorted(trajectory_ids), type=pa.string())
    names = ["trajectory_id", *columns]
    for part in sorted({part for part, _ in row_groups}) if len(wanted) else ():
        with storage.open_input(storage.join(run, "trajectories", part_name(part))) as source:
            file = open_part(run, part, source)
            for owner, group in row_groups:
                if owner != part:
                    continue
                ids = file.read_row_group(group, columns=["trajectory_id"], use_threads=False)["trajectory_id"]
                mask = pc.is_in(ids, value_set=wanted)
                if pc.any(mask).as_py():
                    table = file.read_row_group(group, columns=names, use_threads=False)
                    for row in table.filter(mask).to_pylist():
                        found.setdefault(row["trajectory_id"], row)
    return found
