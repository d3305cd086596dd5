"""Front door to the training formats: rows in memory to one training file.

The same converters that the export stage runs at scale. A path that ends in `.jsonl` is written as JSON
lines, any other as Parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celr_ray.redact import redact_row
from celr_ray.schema import PreferencePair, Trajectory
from celr_ray.training.convert import to_sharegpt
from celr_ray.training.export import SHAREGPT_SCHEMA, write_rows, write_spin, write_trl

__all__ = ["export_to_dpo", "export_to_sharegpt", "export_to_spin"]


def export_to_sharegpt(rows: Iterable[Trajectory | Mapping[str, Any]], path: str) -> int:
    """Write runs as ShareGPT conversations for supervised fine-tuning; runs known to have failed are left out.

    Args:
        rows: runs: `Trajectory` models, such rows as dicts, or raw log records of any known format.
        path: file to write.

    Returns:
        The number of conversations; runs without a task text or an answer have none.

    Raises:
        RecordError: a dict is neither.
        OutputError: the file cannot be written.
    """
    from celr_ray.logs.api import normalise_record

    runs = (row.model_dump() if isinstance(row, Trajectory) else normalise_record(row) for row in rows)
    converted = (to_sharegpt(redact_row(run)[0]).row for run in runs if run["success"] is not False)
    return write_rows([row for row in converted if row is not None], path, SHAREGPT_SCHEMA)


def export_to_dpo(pairs: Iterable[PreferencePair], path: str) -> int:
    """Write pairs as TRL preference rows: prompt, chosen, rejected.

    Returns:
        The number of rows; pairs without prompt or answer, or alike on both sides, have none.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_trl(pairs, path)


def export_to_spin(pairs: Iterable[PreferencePair], path: str) -> int:
    """Write pairs as SPIN rows: real and generated, each [user, assistant].

    Returns:
        The number of rows; pairs with tool or user turns in an answer have none.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_spin(pairs, path)
