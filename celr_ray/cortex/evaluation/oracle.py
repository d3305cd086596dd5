"""What could be had at best from a bank: the leave-one-out oracle, and the plain hindsight ceiling.

Neither is a policy: both look at recorded outcomes.

    leave-one-out   decides which tier to call from the *other* attempts of the task's cells, then is scored on the next
                    draw, which it has not seen. It knows the task, not its luck: the fair ceiling for a router. It
                    needs two attempts or more in every cell; elsewhere it is not defined. With few attempts it learns
                    little from the others, and a tier that is best for all tasks can do better.
    hindsight       sees the draws themselves: the cheapest way to a success that exists, else nothing is spent. It
                    picks the luckiest of noisy outcomes, so no policy can reach it, and more records raise it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.cells import FRESH, Cells
from celr_ray.cortex.evaluation.replay_run import ReplaySuite

__all__ = ["OracleResults", "find_hindsight_ceiling", "find_leave_one_out_oracle"]


@dataclass(frozen=True)
class OracleResults:
    """What the best choice gives: n tasks, R replays; NaN where it is not defined.

    Attributes:
        name: which of the two.
        success: [n, R] 0 or 1.
        cost_usd: [n, R] US$.
        is_defined: [n] there are attempts enough.
    """

    name: str
    success: FloatArray
    cost_usd: FloatArray
    is_defined: BoolArray


def find_leave_one_out_oracle(suite: ReplaySuite) -> OracleResults:
    """Call once the tier whose other attempts succeed most often; of equals, the one whose others cost least.

    It spends within the task's budget: a tier whose worst case does not fit is no choice. An unsafe attempt counts as a
    failure.
    """
    cells = suite.cells
    cell = _fresh_cells(cells, len(suite.columns.key))
    count = cells.count(cell)
    is_defined: BoolArray = np.asarray((count >= 2).all(axis=1))
    drawn = _nth_draws(suite, cell, 0)
    right, cost = _worth(cells), cells.cost_usd
    total_right, total_cost = (_sum_cells(cells, values)[cell] for values in (right, cost))
    others = np.maximum(count - 1, 1)[:, :, None]
    rate = (total_right[:, :, None] - right[drawn]) / others
    price = (total_cost[:, :, None] - cost[drawn]) / others
    fits = (cells.quote_usd[cell] <= suite.columns.budget_usd[:, None])[:, :, None]
    rate = np.where(fits, rate, -1.0)
    is_best = rate >= rate.max(axis=1, keepdims=True) - 1e-12
    chosen = np.argmin(np.where(is_best, price, np.inf), axis=1)
    own = np.take_along_axis(drawn, chosen[:, None, :], axis=1)[:, 0]
    is_affordable = fits.any(axis=1)
    success = np.where(is_affordable, right[own], 0.0)
    spent = np.where(is_affordable, cost[own], 0.0)
    success[~is_defined] = spent[~is_defined] = np.nan
    return OracleResults("leave-one-out oracle", success, spent, is_defined)


def find_hindsight_ceiling(suite: ReplaySuite) -> OracleResults:
    """Return the least cost of any success among the records, reached with the draws in their order.

    On a tier's fresh cell the attempts before the first success are paid for. A success in another cell counts with its
    own cost and the task's cheapest fresh attempt alone, which is less than any way to it: this stays a ceiling.
    """
    cells, replays = suite.cells, suite.config.replays
    n = len(suite.columns.key)
    budget = suite.columns.budget_usd[:, None]
    cell = _fresh_cells(cells, n)
    cap = suite.config.limits.attempts_per_tier
    best = np.full((n, replays), np.inf)
    for tier in range(cells.n_tiers):
        spent = np.zeros((n, replays))
        is_open = np.ones((n, replays), dtype=bool)
        for number in range(min(int(cells.count(cell[:, tier]).max()), cap)):
            has_one = (cells.count(cell[:, tier]) > number)[:, None]
            drawn = _nth_draws(suite, cell[:, tier : tier + 1], number)[:, 0]
            spent = spent + np.where(has_one & is_open, cells.cost_usd[drawn], 0.0)
            won = has_one & is_open & (_worth(cells)[drawn] > 0)
            best = np.where(won, np.minimum(best, spent), best)
            is_open &= has_one & ~won
    if cells.n_contexts > 1:
        best = np.minimum(best, _cheapest_otherwise(cells, n)[:, None])
    has_success = best <= budget * (1 + 1e-9)
    return OracleResults(
        "hindsight ceiling", has_success.astype(float), np.where(has_success, best, 0.0), np.ones(n, dtype=bool)
    )


def _cheapest_otherwise(cells: Cells, n: int) -> FloatArray:
    """Return for each task the least cost of a success in a cell that is not fresh, plus a fresh attempt's, [n]."""
    fresh_column = cells.column_of[FRESH]
    cell = np.repeat(np.arange(len(cells.start) - 1), np.diff(cells.start))
    task = cell // (cells.n_tiers * cells.n_contexts)
    is_fresh = cell % cells.n_contexts == fresh_column
    least, first = np.full(n, np.inf), np.full(n, np.inf)
    won = ~is_fresh & (_worth(cells) > 0)
    np.minimum.at(least, task[won], cells.cost_usd[won])
    np.minimum.at(first, task[is_fresh], cells.cost_usd[is_fresh])
    return np.asarray(least + first)


def _worth(cells: Cells) -> FloatArray:
    return np.where(cells.unsafe, 0.0, cells.success)


def _fresh_cells(cells: Cells, n: int) -> IntArray:
    """Return the fresh cell of each task and tier, [n, T]."""
    first = np.arange(n * cells.n_tiers).reshape(n, cells.n_tiers)
    return np.asarray(first * cells.n_contexts + cells.column_of[FRESH])


def _nth_draws(suite: ReplaySuite, cell: IntArray, number: int) -> IntArray:
    """Return the attempt that call `number` to each cell draws, [n, T, R]; where a cell is too small, any."""
    at = np.minimum(suite.cells.start[cell] + number, len(suite.cells.key) - 1)
    return np.moveaxis(suite.order[:, at], 0, -1).astype(np.int64)


def _sum_cells(cells: Cells, values: FloatArray) -> FloatArray:
    totals = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(totals[cells.start[1:]] - totals[cells.start[:-1]])
