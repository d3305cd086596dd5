"""Reading single log records in Python, without files: what the front doors of the specification take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celr_ray.errors import RecordError
from celr_ray.logs.base import SourceContext
from celr_ray.logs.columns import TableBuilder
from celr_ray.logs.ingest import make_trajectory_id
from celr_ray.logs.registry import RecordReader
from celr_ray.schema import Trajectory


def normalise_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a log record as a row of `schema.Trajectory`.

    Args:
        record: such a row already (checked and returned), or one raw record of a known format.

    Raises:
        RecordError: the record has no known shape, or holds more than one run.
    """
    if "trajectory_id" in record and "messages" in record:
        return Trajectory.model_validate(dict(record)).model_dump()
    raw = json.dumps(record, ensure_ascii=False).encode()
    items = RecordReader("auto").read(raw, SourceContext())
    if len(items) != 1:
        raise RecordError(f"one record is expected, this holds {len(items)} runs")
    name, item = items[0]
    if isinstance(item.result, RecordError):
        raise item.result
    builder = TableBuilder(1)
    builder.add(
        item.result,
        trajectory_id=make_trajectory_id(item.raw, item.result),
        uri="",
        format_name=name,
        offset=0,
        index=0,
    )
    row: dict[str, Any] = builder.build()[0].to_pylist()[0]
    return row
