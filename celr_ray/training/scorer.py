"""Rule scores of trajectories: success, efficiency, cost, completion, and their weighted composite.

Pure: Arrow tables in, Arrow tables out, no files and no Ray. `TrajectoryScorer` is the row front door of the
specification (phase 7, scorer.py) and calls the same vectorised function on one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from celr_ray.config import ScoreConfig
from celr_ray.schema import SCORE_COLUMNS, TRAJECTORY_SCHEMA, TrajectoryScore

Floats = npt.NDArray[np.float64]

PARTS = ("success", "efficiency", "cost", "completion")
_MISSING_NAMES = pa.array(PARTS, type=pa.string())


def _floats(table: pa.Table, name: str) -> Floats:
    """Return a column as float64, shape (n,), null = NaN."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def compute_parts(table: pa.Table, config: ScoreConfig) -> Floats:
    """Compute the four rule scores.

    success = the source's reward if it lies in [0, 1], else 1 or 0 by the outcome; efficiency = 1 / (1 + retries);
    cost = clip(1 − cost / budget, 0, 1); completion = completed steps / steps, clipped to [0, 1].

    Args:
        table: columns success, reward, n_retries, cost_usd, budget_limit_usd, n_steps, n_steps_completed; n rows.
        config: gives the budget of runs that have none.

    Returns:
        Shape (4, n), in the order of PARTS; NaN where the log lacks what a score needs.
    """
    reward, success = _floats(table, "reward"), _floats(table, "success")
    graded = (reward >= 0) & (reward <= 1)
    cost, budget = _floats(table, "cost_usd"), _floats(table, "budget_limit_usd")
    if config.default_budget_usd is not None:
        budget = np.where(np.isnan(budget), config.default_budget_usd, budget)
    steps, completed = _floats(table, "n_steps"), _floats(table, "n_steps_completed")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.stack(
            [
                np.where(graded, reward, success),
                1 / (1 + _floats(table, "n_retries")),
                np.where(budget > 0, np.clip(1 - cost / budget, 0, 1), np.nan),
                np.where(steps > 0, np.clip(completed / steps, 0, 1), np.nan),
            ]
        )


def combine_parts(parts: Floats, weights: Sequence[float]) -> Floats:
    """Combine scores into the composite: Σ w s / Σ w over the parts that exist.

    Args:
        parts: shape (4, n), NaN = missing.
        weights: 4 weights that sum to 1.

    Returns:
        Shape (n,), in [0, 1]; NaN where no part with a weight exists.
    """
    weight = np.where(np.isnan(parts), 0.0, np.asarray(weights, dtype=np.float64)[:, None])
    total = weight.sum(axis=0)
    summed = (weight * np.nan_to_num(parts)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, np.clip(summed / total, 0, 1), np.nan)


def _list_missing(parts: Floats) -> pa.Array:
    """Return, for each row, the names of the parts that are NaN: list<string>, shape (n,)."""
    missing = np.isnan(parts).T
    offsets = np.concatenate([[0], np.cumsum(missing.sum(axis=1))]).astype(np.int32)
    names = _MISSING_NAMES.take(pa.array(np.nonzero(missing)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names)


def score_table(table: pa.Table, config: ScoreConfig) -> pa.Table:
    """Fill the score columns of a trajectory table; all other columns stay as they are.

    Args:
        table: TRAJECTORY_SCHEMA.
        config: weights and the default budget.
    """
    weights = (config.weight_success, config.weight_efficiency, config.weight_cost, config.weight_completion)
    parts = compute_parts(table, config)
    columns = [*parts, combine_parts(parts, weights)]
    for name, values in zip(SCORE_COLUMNS, columns, strict=True):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, from_pandas=True))
    position = table.schema.get_field_index("missing_scores")
    return table.set_column(position, table.schema.field("missing_scores"), _list_missing(parts))


class TrajectoryScorer:
    """Scores single trajectories: the specification's front door to `score_table`.

    Departs from CELR: a cost score without a budget, or any part whose figures the log lacks, is null and
    left out of the composite, where CELR counted it as 0 or 1.
    """

    def __init__(self, config: ScoreConfig | None = None) -> None:
        self.config = config or ScoreConfig()

    def score(self, trajectory: Mapping[str, Any]) -> TrajectoryScore:
        """Score one run.

        Args:
            trajectory: a row of `schema.Trajectory` as a dict, or one raw log record of any known format.

        Raises:
            RecordError: it is neither.
        """
        return self._score_rows([self._normalise(trajectory)])[0]

    def rank(self, trajectories: Sequence[Mapping[str, Any]]) -> list[TrajectoryScore]:
        """Score runs and order them by composite, best first; ties by id, unscored runs last."""
        scores = self._score_rows([self._normalise(trajectory) for trajectory in trajectories])
        return sorted(
            scores,
            key=lambda s: (s.composite_score is None, -(s.composite_score or 0.0), s.trajectory_id),
        )

    @staticmethod
    def _normalise(trajectory: Mapping[str, Any]) -> dict[str, Any]:
        from celr_ray.logs.api import normalise_record

        return normalise_record(trajectory)

    def _score_rows(self, rows: list[dict[str, Any]]) -> list[TrajectoryScore]:
        table = score_table(pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA), self.config)
        names = ("trajectory_id", *SCORE_COLUMNS, "missing_scores")
        return [TrajectoryScore(**{name: row[name] for name in names}, trajectory=row) for row in table.to_pylist()]
