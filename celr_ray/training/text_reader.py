"""Reading the texts of chosen runs of a bucket: in small batches, so that memory is bounded by what is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.stage import part_name
from celr_ray.training.conversations import TEXT_SCHEMA
from celr_ray.training.pairing import ROW
from celr_ray.training.spans import Bools, Ints

_BATCH_ROWS = 1024


def read_texts(run: str, row_groups: Sequence[Sequence[int]], ids: pa.ChunkedArray, places: Ints) -> pa.Table:
    """Read the texts of some runs of a bucket.

    A row group is decoded and thinned out in batches: the texts that nobody asked for cost their decompression, no
    memory.

    Args:
        run: run folder.
        row_groups: [part, row group] pairs of the bucket.
        ids: trajectory_id of all its runs.
        places: which of them are wanted.

    Returns:
        Columns ROW (the place) and TEXT_SCHEMA; each run once, however many copies of it there are.
    """
    wanted = ids.take(pa.array(places)).combine_chunks()
    is_new = np.ones(len(places), dtype=np.bool_)
    batches: list[pa.RecordBatch] = []
    for part in sorted({part for part, _ in row_groups}):
        with _open(storage.join(run, "trajectories", part_name(part))) as source:
            file = pq.ParquetFile(source)
            for group in (group for owner, group in row_groups if owner == part):
                batches += _read_group(file, group, places, wanted, is_new)
    return pa.Table.from_batches(batches, pa.schema([*TEXT_SCHEMA, (ROW, pa.int64())]))


def _open(uri: str) -> pa.NativeFile:
    """Open a file; a local one is mapped, which spares a copy of what is read."""
    return pa.memory_map(storage.resolve(uri)[1]) if storage.is_local(uri) else storage.open_input(uri)


def _read_group(
    file: pq.ParquetFile, group: int, places: Ints, wanted: pa.Array, is_new: Bools
) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows of a row group, and strike them off the list."""
    ids = file.read_row_group(group, columns=["trajectory_id"], use_threads=False)["trajectory_id"]
    found = pc.fill_null(pc.index_in(ids, value_set=wanted), -1).to_numpy()
    numbers, first = np.unique(found, return_index=True)
    is_taken = (numbers >= 0) & is_new[numbers]
    is_new[numbers[is_taken]] = False
    rows = np.sort(first[is_taken])
    if not len(rows):
        return
    start = 0
    for batch in file.iter_batches(_BATCH_ROWS, [group], TEXT_SCHEMA.names, use_threads=False):
        stop = start + batch.num_rows
        own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        columns = [column.take(pa.array(own - start)) for column in batch.select(TEXT_SCHEMA.names).columns]
        yield pa.record_batch([*columns, pa.array(places[found[own]])], names=[*TEXT_SCHEMA.names, ROW])
        start = stop
