"""Rows of judge units: the same whatever the memory, and in as few passes over the bucket as it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_judge import make_trajectory, write_run

from celr_ray.buckets import read_bucket, read_rows
from celr_ray.config import JudgeConfig
from celr_ray.training.judge import judge_plan
from celr_ray.training.judge_rows import UnitRows

COLUMNS = ("task_id", "prompt", "messages")


class Counting(UnitRows):
    """Counts its passes, and notes the most that it kept."""

    n_passes = 0
    peak_bytes = 0

    def _pass_over_bucket(self, wanted: range) -> None:
        super()._pass_over_bucket(wanted)
        self.n_passes += 1
        self.peak_bytes = max(self.peak_bytes, sum(table.nbytes for _, table in self._pieces))


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Units of 7 rows of a run of three parts, two buckets, rows of very different size, and exact duplicates."""
    rows = [make_trajectory(i, task=f"s/d/{i % 5}", words=(i * 37) % 211) for i in range(90)]
    parts = [rows[:40], rows[40:75] + rows[3:9] + rows[3:5], rows[75:] + rows[10:20]]
    run = write_run(tmp_path_factory.mktemp("rows"), parts)
    plan = judge_plan(run, JudgeConfig(model_source="m", max_unit_rows=7))
    return [{**unit, "run": run} for unit in plan.units]


def read_naively(unit: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Read one unit by itself."""
    table, n_duplicates = read_bucket(unit["run"], unit["row_groups"], ())
    ids = table["trajectory_id"].to_pylist()[unit["start"] : unit["stop"]]
    found = read_rows(unit["run"], unit["row_groups"], ids, COLUMNS)
    return [found[trajectory_id] for trajectory_id in ids], n_duplicates


@pytest.mark.parametrize("max_bytes", [0, 1, 5_000, 20_000, 2**30])
def test_units_hold_the_same_rows_whatever_the_memory(units: list[dict[str, Any]], max_bytes: int) -> None:
    expected = [read_naively(unit) for unit in units]
    assert sum(len(rows) for rows, _ in expected) == 90
    forward, backward = UnitRows(COLUMNS, max_bytes=max_bytes), UnitRows(COLUMNS, max_bytes=max_bytes)
    assert [forward.read(unit) for unit in units] == expected
    assert [backward.read(unit) for unit in units[::-1]] == expected[::-1]


def test_one_pass_serves_as_many_units_as_fit_the_memory(units: list[dict[str, Any]]) -> None:
    def read_all(max_bytes: int) -> Counting:
        reader = Counting(COLUMNS, max_bytes=max_bytes)
        for unit in units:
            reader.read(unit)
        return reader

    n_units = sum(unit["start"] < len(read_naively({**unit, "start": 0})[0]) for unit in units)
    whole, tight, middle = read_all(2**30), read_all(0), read_all(20_000)
    assert whole.n_passes == len({unit["bucket"] for unit in units}) == 2
    assert tight.n_passes == n_units > 10
    assert whole.n_passes < middle.n_passes < tight.n_passes
    assert middle.peak_bytes <= 20_000 < whole.peak_bytes


def test_a_bucket_of_another_run_is_not_taken_for_the_same(tmp_path: Path, units: list[dict[str, Any]]) -> None:
    other_run = write_run(tmp_path, [[make_trajectory(7, task="s/d/1")]])
    other = {**judge_plan(other_run, JudgeConfig(model_source="m")).units[0], "run": other_run}
    reader = UnitRows(COLUMNS)
    assert len(reader.read(units[0])[0]) == 7
    assert [row["trajectory_id"] for row in reader.read(other)[0]] == [f"{7:032x}"]
