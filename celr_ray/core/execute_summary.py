"""What an execution came to: success, cost and seconds with intervals, over all its episodes."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.cortex.actions import FloatArray
from celr_ray.report.statistics import Estimate, estimate_proportion
from celr_ray.schema import EPISODE_SCHEMA

__all__ = ["describe", "estimate_mean", "read_episodes", "summarise_episodes", "write_summary"]


def read_episodes(out: str) -> pa.Table:
    """Return the table of episodes of an execution folder, `schema.EPISODE_SCHEMA`."""
    files = storage.list_files(storage.join(out, "episodes"))
    tables = [storage.read_parquet(file.uri) for file in files]
    return pa.concat_tables(tables) if tables else EPISODE_SCHEMA.empty_table()


def estimate_mean(values: FloatArray) -> Estimate | None:
    """Return the mean of [N] values with its 95 % t interval; None without values.

    With one value the interval is the whole line. Source: Student (1908).
    """
    from scipy import stats

    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def summarise_episodes(episodes: pa.Table) -> dict[str, Any]:
    """Return the figures of one execution as JSON values; an unknown success is counted, never taken for a failure."""
    success = episodes["success"].drop_null().to_numpy(zero_copy_only=False)
    actions = episodes["actions"].combine_chunks().flatten().value_counts().to_pylist()
    reasons = episodes["end_reason"].value_counts().to_pylist()
    return {
        "policy": episodes["policy"][0].as_py() if episodes.num_rows else None,
        "policy_hash": episodes["policy_hash"][0].as_py() if episodes.num_rows else None,
        "tasks": episodes.num_rows,
        "without_checker": episodes["success"].null_count,
        "success": _to_json(estimate_proportion(int(success.sum()), len(success))),
        "cost_usd": _to_json(estimate_mean(episodes["cost_usd"].to_numpy())),
        "seconds": _to_json(estimate_mean(episodes["seconds"].to_numpy())),
        "total_cost_usd": float(np.sum(episodes["cost_usd"].to_numpy())),
        "unsafe": int(np.sum(episodes["unsafe"].to_numpy(zero_copy_only=False))),
        "failed_calls": int(np.sum(episodes["n_failed_calls"].to_numpy())),
        "actions": {item["values"]: item["counts"] for item in sorted(actions, key=lambda item: item["values"])},
        "ended": {item["values"]: item["counts"] for item in sorted(reasons, key=lambda item: item["values"])},
    }


def _to_json(estimate: Estimate | None) -> dict[str, float | None] | None:
    """Return an estimate as JSON values; an open end of the interval is null."""
    if estimate is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in asdict(estimate).items()}


def describe(summary: dict[str, Any]) -> str:
    """Return the figures in one line for people."""
    success, cost = summary["success"], summary["cost_usd"]
    parts = [f"{summary['tasks']:,} tasks by {summary['policy']}"]
    if success is not None:
        parts.append(f"success {success['value']:.3f} [{success['ci_low']:.3f}, {success['ci_high']:.3f}]")
    if summary["without_checker"]:
        parts.append(f"{summary['without_checker']:,} without a checker")
    if cost is not None:
        parts.append(f"cost ${cost['value']:.3g} a task")
    parts.append(f"unsafe {summary['unsafe']:,}")
    if summary["failed_calls"]:
        parts.append(f"{summary['failed_calls']:,} failed calls")
    if unaffordable := summary["ended"].get("UNAFFORDABLE"):
        parts.append(f"{unaffordable:,} that could not afford a first call")
    return ", ".join(parts)


def write_summary(out: str) -> dict[str, Any]:
    """Write `summary.json` of an execution folder and return it."""
    summary = summarise_episodes(read_episodes(out))
    storage.write_json(storage.join(out, "summary.json"), summary)
    return summary
