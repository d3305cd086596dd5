"""What every suite shares: the settings of a call, the shape of a task row, and how rows become a file.

A row is a plain dict in the shape that `celr_ray.core.tasks.read_tasks` reads. Equal settings give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CODE_RULE = "Reply with one Python code block."
MAX_DRAWS = 10_000
"""Draws before a suite gives up: so many repeats mean that its templates cannot give that many different tasks."""


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite is made.

    Attributes:
        seed: equal seeds give equal files.
        per_level: tasks of each level.
        with_difficulty: also write `difficulty`, taken from the level.
        verifier: what may be run before the end; None = the tasks have no verifier.
    """

    seed: int
    per_level: int
    with_difficulty: bool
    verifier: Row | None


def make_row(task_id: str, prompt: str, checker: Row, verifier: Row | None, domain: str, level: int) -> Row:
    """Return one task row; what is not known is left out, not null."""
    row: Row = {"task_id": task_id, "prompt": prompt, "checker": checker}
    if verifier is not None:
        row["verifier"] = verifier
    return {**row, "domain": domain, "level": level}


def add_difficulty(rows: Iterable[Row], n_levels: int) -> list[Row]:
    """Return the rows with difficulty = (level − ½) / number of levels."""
    return [{**row, "difficulty": round((row["level"] - 0.5) / n_levels, 3)} for row in rows]


def number_check(answer: int) -> Row:
    """Return the checker of an exact whole number."""
    return {"kind": "numeric", "answer": answer, "tolerance": 0}


def draw_new(draw: Callable[[], tuple[str, int]], seen: set[str]) -> tuple[str, int]:
    """Draw a (text, answer) whose text is not in `seen`, and add it there.

    Raises:
        ValueError: MAX_DRAWS draws in a row were all known.
    """
    for _ in range(MAX_DRAWS):
        text, answer = draw()
        if text not in seen:
            seen.add(text)
            return text, answer
    raise ValueError(f"no new task in {MAX_DRAWS:,} draws; ask for fewer tasks a level")


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSONL and return how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
