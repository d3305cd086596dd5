"""What the difficulty estimator learns from: first attempts of one model in an ingested run, with their outcomes.

Only the text that stands before the first answer is read; answers, tool results and scores cannot get into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from celr_ray import storage
from celr_ray.errors import InputError

__all__ = ["DifficultyRows", "difficulty_rows", "rows_from_trajectories"]

_COLUMNS = ("trajectory_id", "task_id", "model", "prompt", "messages", "success", "status", "n_retries")


@dataclass
class DifficultyRows:
    """Rows for `train_difficulty`; rows in = rows here + excluded.

    Attributes:
        texts: [B] task texts.
        failed: [B] outcomes.
        groups: [B] task ids.
        excluded: why rows are not here, and how many: `other_model`, `no_outcome`, `gave_up`, `retried`, `no_text` or
            `duplicate`.
    """

    texts: list[str] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)


def difficulty_rows(run: str, tier_model: str) -> DifficultyRows:
    """Read the first attempts of one model from a run.

    Args:
        run: run folder, or a folder of Parquet parts of trajectories (path or URI).
        tier_model: name of the cheapest tier's model, as the logs have it.

    Raises:
        InputError: there are no trajectories, or none of this model.
    """
    inner = storage.join(run, "trajectories")
    place = inner if storage.is_directory(inner) else run
    files = [file.uri for file in storage.list_files(place) if file.uri.endswith(".parquet")]
    if not files:
        raise InputError(f"no trajectories in {run}: neither a run folder nor a folder of Parquet parts")
    rows, seen, models = DifficultyRows(), set[str](), set[str]()
    for file in files:
        table = storage.read_parquet(file, _COLUMNS)
        models |= {str(name) for name in table["model"].unique().to_pylist()}
        _add_rows(rows, table, tier_model, seen)
    if tier_model not in models:
        raise InputError(f"{run} has no runs of the model {tier_model!r}, but of: {', '.join(sorted(models))}")
    return rows


def rows_from_trajectories(table: pa.Table, tier_model: str) -> DifficultyRows:
    """Take the first attempts of one model from trajectories.

    A run with retries is left out: its outcome is not that of its first attempt. (So the share of failures comes out
    low where failed attempts were retried.) Logs that say nothing of retries are taken as first attempts.

    Args:
        table: rows of `schema.TRAJECTORY_SCHEMA`; other columns than `_COLUMNS` are not looked at.
        tier_model: name of the model.
    """
    rows = DifficultyRows()
    _add_rows(rows, table, tier_model, set())
    return rows


def _add_rows(rows: DifficultyRows, table: pa.Table, tier_model: str, seen: set[str]) -> None:
    light = table.select([name for name in _COLUMNS if name != "messages"])
    for index, row in enumerate(light.to_pylist()):
        reason = _exclude(row, tier_model, seen)
        text = "" if reason else row["prompt"] or first_text(table["messages"][index].as_py())
        if not reason and not text.strip():
            reason = "no_text"
        if reason:
            rows.excluded[reason] += 1
            continue
        seen.add(row["trajectory_id"])
        rows.texts.append(text)
        rows.failed.append(not row["success"])
        rows.groups.append(row["task_id"])


def _exclude(row: Mapping[str, Any], tier_model: str, seen: set[str]) -> str | None:
    if row["model"] != tier_model:
        return "other_model"
    if row["trajectory_id"] in seen:
        return "duplicate"
    if row["success"] is None:
        return "no_outcome"
    if row["status"] == "STUCK":
        return "gave_up"
    return "retried" if row["n_retries"] else None


def first_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the first user message if it stands before any answer, else an empty text."""
    for message in messages:
        if message["role"] == "user":
            return message["content"] or ""
        if message["role"] == "assistant":
            break
    return ""
