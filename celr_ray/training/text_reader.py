"""Reading the texts of chosen runs of a bucket: in small batches, so that memory is bounded by what is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.buckets import iter_row_groups, open_part
from celr_ray.run_folder import part_name
from celr_ray.training.conversations import TEXT_SCHEMA
from celr_ray.training.pairing import ROW
from celr_ray.training.spans import Ints

_BATCH_ROWS = 2048


def read_texts(run: str, row_groups: Sequence[Sequence[int]], positions: Ints, places: Ints) -> pa.Table:
    """Read the texts of some runs of a bucket.

    A row group is decoded and thinned out in batches: the texts that nobody asked for cost their decompression, no
    memory.

    Args:
        run: run folder.
        row_groups: [part, row group] pairs of the bucket.
        positions: POSITION of all its runs, as `buckets.read_bucket` gave it.
        places: which of them are wanted.

    Returns:
        Columns ROW (the place) and TEXT_SCHEMA.
    """
    places = places[np.argsort(positions[places])]
    wanted = positions[places]
    batches: list[pa.RecordBatch] = []
    start = 0
    for part, groups in iter_row_groups(row_groups):
        with _open(storage.join(run, "trajectories", part_name(part))) as source:
            file = open_part(run, part, source)
            for group in groups:
                stop = start + file.metadata.row_group(group).num_rows
                own = slice(*np.searchsorted(wanted, [start, stop]))
                batches += _read_group(file, group, wanted[own] - start, places[own])
                start = stop
    return pa.Table.from_batches(batches, pa.schema([*TEXT_SCHEMA, (ROW, pa.int64())]))


def _open(uri: str) -> pa.NativeFile:
    """Open a file; a local one is mapped, which spares a copy of what is read."""
    return pa.memory_map(storage.resolve(uri)[1]) if storage.is_local(uri) else storage.open_input(uri)


def _read_group(file: pq.ParquetFile, group: int, rows: Ints, places: Ints) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows (ascending) of a row group, with their places."""
    if not len(rows):
        return
    start = 0
    for batch in file.iter_batches(_BATCH_ROWS, [group], TEXT_SCHEMA.names, use_threads=False):
        stop = start + batch.num_rows
        own = slice(*np.searchsorted(rows, [start, stop]))
        columns = [column.take(pa.array(rows[own] - start)) for column in batch.select(TEXT_SCHEMA.names).columns]
        yield pa.record_batch([*columns, pa.array(places[own])], names=[*TEXT_SCHEMA.names, ROW])
        start = stop
