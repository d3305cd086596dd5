"""From parsed runs to an Arrow table, column by column (a row-wise build is many times slower)."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

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

_PIECE_ROWS = 2048
"""Rows that become Arrow columns together: fewer cost calls, more have left the processor's cache by then."""


def _to_array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    """Build a column; one without any value, as a format leaves several, is made at once."""
    if values and values[0] is None and values.count(None) == len(values):
        return pa.nulls(len(values), kind)
    return pa.array(values, type=kind)


def _empty_lists(n_rows: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.zeros(n_rows + 1, dtype=np.int32)), pa.array([], type=pa.string()))


def build_messages(conversations: list[list[ParsedMessage]]) -> pa.Array:
    """Build the Arrow array of conversations, shape (n,) of `schema.MESSAGES`."""
    lengths = np.fromiter((len(messages) for messages in conversations), dtype=np.int64, count=len(conversations))
    offsets = np.zeros(len(conversations) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    columns = list(zip(*chain.from_iterable(conversations), strict=True)) or [()] * len(MESSAGE_FIELDS)
    arrays = [_to_array(values, field.type) for values, field in zip(columns, MESSAGE_FIELDS, strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=MESSAGE_FIELDS)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=MESSAGES)


_Row = tuple[ParsedRun, str, str, str, int, int, int]
"""One run and where it came from: `run` first, then the order of `_PLACE_FIELDS`."""
_get_bucket = itemgetter(_PLACE_FIELDS.index("bucket") + 1)


class TableBuilder:
    """Gathers runs and builds the unscored trajectory table of one unit, ordered by bucket.

    Rows become Arrow columns a few at a time, ordered by bucket, and are then cut by bucket without a copy: their texts
    are still in the processor's cache, and the memory of the rows before them can be used again. To gather each
    bucket's rows apart, to gather all first, or to order the finished table, costs more.
    """

    def __init__(self, n_buckets: int) -> None:
        self._n_buckets = n_buckets
        self._waiting: list[_Row] = []
        self._pieces: defaultdict[int, list[pa.Table]] = defaultdict(list)

    def add(self, run: ParsedRun, *, trajectory_id: str, uri: str, format_name: str, offset: int, index: int) -> None:
        """Append one run and where it came from."""
        bucket = assign_bucket(run.task_id, self._n_buckets)
        self._waiting.append((run, trajectory_id, uri, format_name, offset, index, bucket))
        if len(self._waiting) == _PIECE_ROWS:
            self._build_waiting()

    def build(self) -> tuple[pa.Table, list[list[int]]]:
        """Return the rows ordered by bucket, else as they were added, and [bucket, rows] of each row group."""
        self._build_waiting()
        buckets = sorted(self._pieces)
        pieces = [piece for bucket in buckets for piece in self._pieces[bucket]]
        table = pa.concat_tables([TRAJECTORY_SCHEMA.empty_table(), *pieces])
        return table, [[bucket, sum(piece.num_rows for piece in self._pieces[bucket])] for bucket in buckets]

    def _build_waiting(self) -> None:
        rows = sorted(self._waiting, key=_get_bucket)
        self._waiting.clear()
        piece = _build_piece(rows) if rows else TRAJECTORY_SCHEMA.empty_table()
        start = 0
        for bucket, n_rows in Counter(map(_get_bucket, rows)).items():
            self._pieces[bucket].append(piece.slice(start, n_rows))
            start += n_rows


def _build_piece(rows: list[_Row]) -> pa.Table:
    parsed, *places = zip(*rows, strict=True)
    runs = zip(*map(_get_run_fields, parsed), strict=True)
    arrays: dict[str, pa.Array] = {
        name: _to_array(values, TRAJECTORY_SCHEMA.field(name).type)
        for name, values in zip((*_RUN_FIELDS, *_PLACE_FIELDS), (*runs, *places), strict=True)
    }
    arrays["messages"] = build_messages([run.messages for run in parsed])
    for name in SCORE_COLUMNS:
        arrays[name] = pa.nulls(len(rows), pa.float64())
    arrays["missing_scores"] = _empty_lists(len(rows))
    return pa.Table.from_arrays([arrays[name] for name in TRAJECTORY_SCHEMA.names], schema=TRAJECTORY_SCHEMA)
