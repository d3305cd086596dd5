"""From parsed runs to an Arrow table, column by column (a row-wise build is many times slower)."""

from __future__ import annotations

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
_PLACE_FIELDS = ("trajectory_id", "source_uri", "source_format", "source_offset", "source_index", "bucket")


def build_messages(conversations: list[list[ParsedMessage]]) -> pa.Array:
    """Build the Arrow array of conversations, shape (n,) of `schema.MESSAGES`."""
    lengths = np.fromiter((len(messages) for messages in conversations), dtype=np.int64, count=len(conversations))
    offsets = np.zeros(len(conversations) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    columns = list(zip(*(message for messages in conversations for message in messages), strict=True))
    arrays = [pa.array(columns[i] if columns else [], type=field.type) for i, field in enumerate(MESSAGE_FIELDS)]
    structs = pa.StructArray.from_arrays(arrays, fields=MESSAGE_FIELDS)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=MESSAGES)


class TableBuilder:
    """Gathers runs and builds the unscored trajectory table of one unit, ordered by bucket."""

    def __init__(self, n_buckets: int) -> None:
        self._n_buckets = n_buckets
        self._messages: list[list[ParsedMessage]] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in (*_RUN_FIELDS, *_PLACE_FIELDS)}

    def add(self, run: ParsedRun, *, trajectory_id: str, uri: str, format_name: str, offset: int, index: int) -> None:
        """Append one run and where it came from."""
        for name in _RUN_FIELDS:
            self._columns[name].append(getattr(run, name))
        bucket = assign_bucket(run.task_id, self._n_buckets)
        place = (trajectory_id, uri, format_name, offset, index, bucket)
        for name, value in zip(_PLACE_FIELDS, place, strict=True):
            self._columns[name].append(value)
        self._messages.append(run.messages)

    def build(self) -> tuple[pa.Table, list[list[int]]]:
        """Return the rows ordered by bucket (stable), and [bucket, rows] of each row group."""
        arrays: dict[str, pa.Array] = {
            name: pa.array(values, type=TRAJECTORY_SCHEMA.field(name).type) for name, values in self._columns.items()
        }
        n_rows = len(self._messages)
        arrays["messages"] = build_messages(self._messages)
        for name in SCORE_COLUMNS:
            arrays[name] = pa.nulls(n_rows, pa.float64())
        arrays["missing_scores"] = pa.array([[]] * n_rows, type=pa.list_(pa.string()))
        table = pa.Table.from_arrays([arrays[name] for name in TRAJECTORY_SCHEMA.names], schema=TRAJECTORY_SCHEMA)
        buckets = np.asarray(self._columns["bucket"], dtype=np.int64)
        order = np.argsort(buckets, kind="stable")
        values, counts = np.unique(buckets, return_counts=True)
        return table.take(pa.array(order)), [[int(b), int(n)] for b, n in zip(values, counts, strict=True)]
