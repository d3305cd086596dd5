"""Which two runs of a task make a preference pair, and which of them is chosen. Pure logic on light columns.

Outcome outranks rule scores, rule scores outrank the judge; a tie makes no pair, and a run without the score
that a pair type needs takes no part in it. No failed run is ever chosen over another failed run by its
cost or efficiency: that would teach an agent to fail cheaply.

All tasks of a bucket are decided at once, on numpy columns. Array sizes: `R` runs, `T` tasks, `C` choices, `N` two runs
being compared. A missing number is NaN here: it makes every comparison with it false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from celr_ray.config import PairConfig
from celr_ray.training.spans import Bools, Floats, Ints, count_before, join_rows, take_rows

ScoredType = Literal["dpo", "self_reward"]

SCORED_TYPES: tuple[ScoredType, ...] = ("dpo", "self_reward")

_EQUAL = 1e-9
_TRIES_PER_PAIR = 64
_COMPARISONS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Candidates:
    """The light columns of the runs of many tasks, ordered by task and trajectory_id; a run's place breaks ties.

    Attributes:
        task: number of the task, from 0, never falling; shape (R,).
        success: outcome as 1 or 0; NaN = unknown.
        success_score: 0–1; NaN = unknown.
        composite_score: 0–1; NaN = not scored.
        judge_score: 0–1; NaN = not judged, or the judge failed.
        n_tasks: T.
    """

    task: Ints
    success: Floats
    success_score: Floats
    composite_score: Floats
    judge_score: Floats
    n_tasks: int

    def is_usable(self, pair_type: ScoredType) -> Bools:
        """Tell which runs have the scores that a pair type needs."""
        if pair_type == "self_reward":
            return np.asarray(~np.isnan(self.judge_score))
        return np.asarray(~np.isnan(self.success_score) & ~np.isnan(self.composite_score))

    def count(self, mask: Bools) -> Ints:
        """Return how many of the marked runs each task has, shape (T,)."""
        return np.bincount(self.task[mask], minlength=self.n_tasks)


class Choices(NamedTuple):
    """Ordered pairs of runs with the scores that decided, by task, best first; runs by their place, all shapes (C,)."""

    task: Ints
    chosen: Ints
    rejected: Ints
    chosen_score: Floats
    rejected_score: Floats


class _Verdict(NamedTuple):
    """Who of two runs is better: 1 the first, −1 the second, 0 neither; and whether the judge decided; shapes (N,)."""

    lead: Ints
    is_judged: Bools


def prefer_by_outcome(runs: Candidates, a: Ints, b: Ints, config: PairConfig) -> _Verdict:
    """Order two runs for a `dpo` pair: by outcome; if both succeeded, by composite, then by judge."""
    won = runs.success == 1
    by_success = won[a].astype(np.int64) - won[b]
    gap = np.where(by_success != 0, by_success, runs.success_score[a] - runs.success_score[b])
    is_tied, both_won = np.abs(gap) <= _EQUAL, won[a] & won[b]
    by_composite = runs.composite_score[a] - runs.composite_score[b]
    is_apart = np.abs(by_composite) >= max(config.margin, _EQUAL)
    by_judge = _compare_judged(runs, a, b, config)
    among_won = np.where(is_apart, np.sign(by_composite), by_judge) * both_won
    return _Verdict(np.where(is_tied, among_won, np.sign(gap)).astype(np.int64), is_tied & ~is_apart)


def prefer_by_judge(runs: Candidates, a: Ints, b: Ints, config: PairConfig) -> _Verdict:
    """Order two runs for a `self_reward` pair: by the judge, unless the outcomes say the opposite."""
    lead = _compare_judged(runs, a, b, config)
    won, lost = np.where(lead > 0, a, b), np.where(lead > 0, b, a)
    is_opposed = (runs.success[lost] == 1) & (runs.success[won] == 0)
    is_opposed |= runs.success_score[won] < runs.success_score[lost] - _EQUAL
    return _Verdict(np.where(is_opposed, 0, lead), np.ones(len(a), dtype=np.bool_))


def _compare_judged(runs: Candidates, a: Ints, b: Ints, config: PairConfig) -> Ints:
    gap = runs.judge_score[a] - runs.judge_score[b]
    is_apart = np.abs(gap) >= max(config.judge_margin, _EQUAL)
    return np.where(is_apart, np.where(gap > 0, 1, -1), 0)


_PREFER = {"dpo": prefer_by_outcome, "self_reward": prefer_by_judge}


class _Ranking(NamedTuple):
    """The usable runs of each task from worst to best: `order[first[k] : first[k] + size[k]]`."""

    order: Ints
    first: Ints
    size: Ints


def choose_pairs(
    runs: Candidates, pair_type: ScoredType, config: PairConfig, n_choices: int, tasks: Bools | None = None
) -> Choices:
    """Return the pairs to try for each task, widest apart first: best against worst, then inwards.

    The number of comparisons is bounded by 64 times the cap, so a task with 20,000 runs costs no more than its sort.

    Args:
        runs: distinct runs.
        pair_type: `dpo` or `self_reward`.
        config: margins and the cap.
        n_choices: the most pairs of a task.
        tasks: which tasks, shape (T,); None = all.
    """
    ranking = _rank(runs, pair_type, tasks)
    n_tries = _count_tries(runs, ranking, pair_type, config)
    n_found = np.zeros(len(n_tries), dtype=np.int64)
    found: list[Choices] = []
    for start, stop, group in _iter_rounds(n_tries, n_found, n_choices):
        member, low, high = _list_tries(group, start, np.minimum(n_tries[group], stop))
        best = ranking.order[ranking.first[member] + ranking.size[member] - 1 - high]
        worst = ranking.order[ranking.first[member] + low]
        lead, is_judged = _PREFER[pair_type](runs, best, worst, config)
        is_pair = lead != 0
        n_found += np.bincount(member[is_pair], minlength=len(n_found))
        found.append(_make_choices(runs, best[is_pair], worst[is_pair], lead[is_pair], is_judged[is_pair]))
    return join_choices(found, n_choices)


def _rank(runs: Candidates, pair_type: ScoredType, tasks: Bools | None) -> _Ranking:
    usable = np.flatnonzero(runs.is_usable(pair_type) & (True if tasks is None else tasks[runs.task]))
    success = (runs.success == 1)[usable]
    success_score, composite, judge = (
        np.nan_to_num(column[usable], nan=missing)
        for column, missing in ((runs.success_score, 0.0), (runs.composite_score, 0.0), (runs.judge_score, -1.0))
    )
    keys = (judge, composite, success_score, success) if pair_type == "dpo" else (composite, success_score, judge)
    order = usable[np.lexsort((*keys, runs.task[usable]))]
    _, first, size = np.unique(runs.task[order], return_index=True, return_counts=True)
    return _Ranking(order, first, size)


def _count_tries(runs: Candidates, ranking: _Ranking, pair_type: ScoredType, config: PairConfig) -> Ints:
    """Return how many comparisons each ranked task may cost; none where all failed alike, for `dpo`."""
    tries: Ints = np.minimum(ranking.size * (ranking.size - 1) // 2, _TRIES_PER_PAIR * config.max_pairs_per_task)
    if pair_type == "dpo":
        worst, best = ranking.order[ranking.first], ranking.order[ranking.first + ranking.size - 1]
        is_alike = np.abs(runs.success_score[best] - runs.success_score[worst]) <= _EQUAL
        tries[is_alike & (runs.success[best] != 1)] = 0
    return tries


def _iter_rounds(n_tries: Ints, n_found: Ints, n_choices: int) -> Iterator[tuple[int, int, Ints]]:
    """Yield (first try, end of tries, tasks that still need one): the first tries alone, then more at a time."""
    start, size = 0, 1
    while len(group := np.flatnonzero((n_tries > start) & (n_found < n_choices))):
        stop = start + min(size, max(_COMPARISONS_AT_ONCE // len(group), 1))
        yield start, stop, group
        start, size = stop, 16 * size


def _list_tries(group: Ints, start: int, stop: Ints) -> tuple[Ints, Ints, Ints]:
    """Return (task, places from the worst, places from the best) of the tries `start` … `stop[k]` of each task k.

    Try n takes the n-th of (0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), …: the distance from the ends grows.
    """
    size = stop - start
    nth = start + np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    total = ((np.sqrt(8.0 * nth + 1) - 1) / 2).astype(np.int64)
    low = nth - total * (total + 1) // 2
    return np.repeat(group, size), low, total - low


def _make_choices(runs: Candidates, a: Ints, b: Ints, lead: Ints, is_judged: Bools) -> Choices:
    chosen, rejected = np.where(lead > 0, a, b), np.where(lead > 0, b, a)
    scores = (np.where(is_judged, runs.judge_score[i], runs.composite_score[i]) for i in (chosen, rejected))
    return Choices(runs.task[chosen], chosen, rejected, *scores)


def join_choices(found: Sequence[Choices], n_choices: int) -> Choices:
    """Join choices, ordered by task and then as given, at most `n_choices` of a task."""
    if not found:
        none = np.zeros(0, dtype=np.int64)
        return Choices(none, none, none, none.astype(np.float64), none.astype(np.float64))
    joined = join_rows(found)
    order = np.argsort(joined.task, kind="stable")
    return take_rows(joined, order[count_before(joined.task[order]) < n_choices])


def is_one_sided(runs: Candidates) -> Bools:
    """Tell which tasks have known outcomes that are all alike, shape (T,)."""
    has_success, has_failure = (runs.count(runs.success == x) > 0 for x in (1, 0))
    return np.asarray(has_success != has_failure)


def choose_unpaired(runs: Candidates, limit: int) -> Ints:
    """Return the runs of one-sided tasks that become single labelled rows: those of known outcome, at most `limit`."""
    known = np.flatnonzero(is_one_sided(runs)[runs.task] & ~np.isnan(runs.success))
    return known[count_before(runs.task[known]) < limit]


def explain_no_pair(runs: Candidates, pair_type: ScoredType) -> NDArray[np.str_]:
    """Say why the scores of each task would give no pair of a type.

    Returns:
        One of: single_run, no_judgment, outcome_unknown, all_failed, all_succeeded_alike, judge_tied,
        judge_contradicts_outcome; shape (T,).
    """
    usable = runs.is_usable(pair_type)
    is_single, is_short = runs.count(runs.task >= 0) < 2, runs.count(usable) < 2
    has_success, has_failure = (runs.count(usable & (runs.success == x)) > 0 for x in (1, 0))
    if pair_type == "dpo":
        reasons = np.where(has_success, "all_succeeded_alike", "all_failed")
        return np.select([is_single, is_short], ["single_run", "outcome_unknown"], reasons)
    is_opposed = has_success & has_failure & (_spread(runs, usable, runs.judge_score) > _EQUAL)
    reasons = np.where(is_opposed, "judge_contradicts_outcome", "judge_tied")
    return np.select([is_single, is_short], ["single_run", "no_judgment"], reasons)


def _spread(runs: Candidates, mask: Bools, column: Floats) -> Floats:
    """Return the difference of the largest and the least value of each task's marked runs, shape (T,); 0 for none."""
    spread = np.zeros(runs.n_tasks)
    tasks, first = np.unique(runs.task[mask], return_index=True)
    if len(first):
        values = column[mask]
        spread[tasks] = np.maximum.reduceat(values, first) - np.minimum.reduceat(values, first)
    return spread
