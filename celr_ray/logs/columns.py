"""From parsed runs to an Arrow table, column by column (a row-wise build is many times slower)."""

from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from celr_ray.buckets import assign_bucket
from celr_ray.logs.base import ParsedMessage, ParsedRun
from celr_ray.schema import MESSAGE_FIELDS, MESSAGES, SCORE_COLUMNS, TRAJECTORY_SCHEMA

_RUN_FIELDS = (
    "task_id",
    "domain",
    "model",
    "prompt",
    "status",
    "success",
    "reward",
    "cost_usd",
    "budget_limit_usd",
    "duration_s",
    "n_steps",
    "n_steps_completed",
    "n_retries",
    "n_hidden_messages",
)
_get_run_fields = attrgetter(*_RUN_FIELDS)
_PLACE_FIELDS = ("trajectory_id", "source_uri", "source_format", "source_offset", "source_index", "bucket")

_PIECE_ROWS = 256


def build_messages(conversations: list[list[ParsedMessage]]) -> pa.Array:
    """Build the Arrow array of conversations, shape (n,) of `schema.MESSAGES`."""
    lengths = np.fromiter((len(messages) for messages in conversations), dtype=np.int64, count=len(conversations))
    offsets = np.zeros(len(conversations) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    columns = list(zip(*(message for messages in conversations for message in messages), strict=True))
    arrays = [pa.array(columns[i] if columns else [], type=field.type) for i, field in enumerate(MESSAGE_FIELDS)]
    structs = pa.StructArray.from_arrays(arrays, fields=MESSAGE_FIELDS)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=MESSAGES)


class _Row(NamedTuple):
    """One run and where it came from; `run` first, then the order of `_PLACE_FIELDS`."""

    run: ParsedRun
    trajectory_id: str
    source_uri: str
    source_format: str
    source_offset: int
    source_index: int
    bucket: int


class TableBuilder:
    """Gathers runs and builds the unscored trajectory table of one unit, ordered by bucket.

    A bucket's rows become Arrow columns a few at a time, while their texts are still in the processor's cache and the
    memory of the rows before them can be used again. To gather all first, or to order the finished table, costs more.
    """

    def __init__(self, n_buckets: int) -> None:
        self._n_buckets = n_buckets
        self._waiting: defaultdict[int, list[_Row]] = defaultdict(list)
        self._pieces: defaultdict[int, list[pa.Table]] = defaultdict(list)

    def add(self, run: ParsedRun, *, trajectory_id: str, uri: str, format_name: str, offset: int, index: int) -> None:
        """Append one run and where it came from."""
        bucket = assign_bucket(run.task_id, self._n_buckets)
        rows = self._waiting[bucket]
        rows.append(_Row(run, trajectory_id, uri, format_name, offset, index, bucket))
        if len(rows) == _PIECE_ROWS:
            self._pieces[bucket].append(_build_piece(rows))
            rows.clear()

    def build(self) -> tuple[pa.Table, list[list[int]]]:
        """Return the rows ordered by bucket, else as they were added, and [bucket, rows] of each row group."""
        for bucket, rows in self._waiting.items():
            if rows:
                self._pieces[bucket].append(_build_piece(rows))
        self._waiting.clear()
        buckets = sorted(self._pieces)
        pieces = [piece for bucket in buckets for piece in self._pieces[bucket]]
        table = pa.concat_tables([TRAJECTORY_SCHEMA.empty_table(), *pieces])
        return table, [[bucket, sum(piece.num_rows for piece in self._pieces[bucket])] for bucket in buckets]


def _build_piece(rows: list[_Row]) -> pa.Table:
    runs = zip(*(_get_run_fields(row.run) for row in rows), strict=True)
    _, *places = zip(*rows, strict=True)
    arrays: dict[str, pa.Array] = {
        name: pa.array(values, type=TRAJECTORY_SCHEMA.field(name).type)
        for name, values in zip((*_RUN_FIELDS, *_PLACE_FIELDS), (*runs, *places), strict=True)
    }
    arrays["messages"] = build_messages([row.run.messages for row in rows])
    for name in SCORE_COLUMNS:
        arrays[name] = pa.nulls(len(rows), pa.float64())
    arrays["missing_scores"] = pa.array([[]] * len(rows), type=pa.list_(pa.string()))
    return pa.Table.from_arrays([arrays[name] for name in TRAJECTORY_SCHEMA.names], schema=TRAJECTORY_SCHEMA)
