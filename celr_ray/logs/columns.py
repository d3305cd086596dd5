"""From parsed runs to an Arrow table, column by column (a row-wise build is many times slower)."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from operator import attrgetter
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

_PIECE_ROWS = 256


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
        rows.append((run, trajectory_id, uri, format_name, offset, index, bucket))
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
