"""Bounded reading of a run folder: light columns of finished units, single rows with their texts.

A part file counts only if its unit has a manifest, as for every later stage. Statistics read light columns
(about 200 bytes a run); messages are read for single rows, a few hundred rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.errors import InputError
from celr_ray.report.data import StageState
from celr_ray.run_folder import add_counts, explain_lost, is_owed, part_name, read_manifests, read_plan

_ROWS_AT_ONCE = 128


def read_stage_state(run: str, stage: str) -> StageState:
    """Return how far a stage came and the counts of its finished units."""
    plan = read_plan(run, stage)
    manifests = read_manifests(run, stage)
    return StageState(stage, None if plan is None else plan["n_units"], len(manifests), add_counts(manifests.values()))


def list_done_parts(run: str, stage: str, folder: str, extension: str = "parquet") -> list[tuple[int, str]]:
    """Return (unit number, URI) of the files in `folder` whose unit is finished, by unit number.

    Raises:
        InputError: the file of a finished unit is gone, unless the unit had nothing to write there.
    """
    manifests = read_manifests(run, stage)  # before the listing: a run at work finishes units meanwhile
    files = {file.uri.rsplit("/", 1)[-1]: file.uri for file in storage.list_files(storage.join(run, folder))}
    found, lost = [], []
    for index in sorted(manifests):
        name = part_name(index, extension)
        if name in files:
            found.append((index, files[name]))
        elif is_owed(stage, folder, manifests[index]):
            lost.append(f"{folder}/{name}")
    if lost:
        raise InputError(explain_lost(run, stage, lost))
    return found


def read_light(run: str, stage: str, folder: str, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Read some columns of all finished parts of a folder, with the row's part and its place there.

    Returns:
        The columns, then `part` and `row` (int64), in the order of parts and rows.
    """
    tables = []
    for part, uri in list_done_parts(run, stage, folder):
        table = storage.read_parquet(uri, columns)
        table = table.append_column("part", pa.array(np.full(table.num_rows, part, dtype=np.int64)))
        tables.append(table.append_column("row", pa.array(np.arange(table.num_rows, dtype=np.int64))))
    if not tables:
        place = [pa.field("part", pa.int64()), pa.field("row", pa.int64())]
        return pa.schema([*(schema.field(name) for name in columns), *place]).empty_table()
    return pa.concat_tables(tables)


def count_rows(run: str, stage: str, folder: str) -> int:
    """Count the rows of all finished parts of a folder from their footers."""
    return sum(count_parquet_rows(uri) for _, uri in list_done_parts(run, stage, folder))


def count_parquet_rows(uri: str) -> int:
    """Return the number of rows of a Parquet file, from its footer."""
    with storage.open_input(uri) as source:
        return int(pq.ParquetFile(source).metadata.num_rows)


def drop_duplicates(table: pa.Table) -> tuple[pa.Table, int]:
    """Keep the first row of each `trajectory_id`.

    Returns:
        The rows in their order, and how many were dropped.
    """
    if table.num_rows == 0:
        return table, 0
    codes = table["trajectory_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    return table.take(pa.array(np.sort(first))), table.num_rows - len(first)


def find_rows(ids: pa.ChunkedArray, wanted: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, for each wanted id, its position in `ids`, −1 where it is absent."""
    import pyarrow.compute as pc

    found = pc.index_in(wanted, value_set=ids.combine_chunks())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)


def read_row(run: str, folder: str, part: int, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Read one row of a part file without loading the row group around it at once."""
    with storage.open_input(storage.join(run, folder, part_name(part))) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row >= n_rows:
                row -= n_rows
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                if row < batch.num_rows:
                    found: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
                    return found
                row -= batch.num_rows
    raise IndexError(f"{folder}/{part_name(part)} has no row {row}")


def iter_json_lines(uri: str, max_bytes: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the JSON lines of a file with their length, stopping after about `max_bytes`."""
    n_read = 0
    with storage.open_input(uri) as source:
        rest = b""
        while n_read < max_bytes and (block := source.read(1 << 20)):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line:
                    yield json.loads(line), len(line) + 1
                n_read += len(line) + 1
        if rest and n_read + len(rest) <= max_bytes:
            yield json.loads(rest), len(rest)


def count_lines(uri: str) -> int:
    """Count the lines of a file, a block at a time."""
    total, last = 0, b"\n"
    with storage.open_input(uri) as source:
        while block := source.read(1 << 20):
            total += block.count(b"\n")
            last = block[-1:]
    return total + (last != b"\n")
