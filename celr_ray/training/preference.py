"""Which two runs of a task make a preference pair, and which of them is chosen. Pure logic on light rows.

Outcome outranks rule scores, rule scores outrank the judge; a tie makes no pair, and a run without the score
that a pair type needs takes no part in it. No failed run is ever chosen over another failed run by its
cost or efficiency: that would teach an agent to fail cheaply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from celr_ray.config import PairConfig

ScoredType = Literal["dpo", "self_reward"]

_EQUAL = 1e-9
_TRIES_PER_PAIR = 64


class Candidate(NamedTuple):
    """The light columns of one run of a task.

    Attributes:
        trajectory_id: breaks ties.
        success: outcome; None = unknown.
        success_score: 0–1; None = unknown.
        composite_score: 0–1; None = not scored.
        judge_score: 0–1; None = not judged, or the judge failed.
        model: who made the run.
    """

    trajectory_id: str
    success: bool | None
    success_score: float | None
    composite_score: float | None
    judge_score: float | None
    model: str | None = None


class Choice(NamedTuple):
    """One ordered pair of runs with the scores that decided."""

    chosen: Candidate
    rejected: Candidate
    chosen_score: float
    rejected_score: float


Prefer = Callable[[Candidate, Candidate], Choice | None]


def prefer_by_outcome(a: Candidate, b: Candidate, config: PairConfig) -> Choice | None:
    """Order two runs for a `dpo` pair: by outcome; if both succeeded, by composite, then by judge."""
    if a.success_score is None or b.success_score is None or a.composite_score is None or b.composite_score is None:
        return None
    gap = float(bool(a.success) - bool(b.success)) or a.success_score - b.success_score
    if abs(gap) <= _EQUAL:
        if not (a.success and b.success):
            return None
        gap = a.composite_score - b.composite_score
        if abs(gap) < max(config.margin, _EQUAL):
            return _order_by_judge(a, b, config)
    chosen, rejected = (a, b) if gap > 0 else (b, a)
    return _make_choice(chosen, rejected, chosen.composite_score, rejected.composite_score)


def prefer_by_judge(a: Candidate, b: Candidate, config: PairConfig) -> Choice | None:
    """Order two runs for a `self_reward` pair: by the judge, unless the outcomes say the opposite."""
    choice = _order_by_judge(a, b, config)
    if choice is None:
        return None
    won, lost = choice.chosen, choice.rejected
    if lost.success and won.success is False:
        return None
    if (
        won.success_score is not None
        and lost.success_score is not None
        and won.success_score < lost.success_score - _EQUAL
    ):
        return None
    return choice


def _order_by_judge(a: Candidate, b: Candidate, config: PairConfig) -> Choice | None:
    if a.judge_score is None or b.judge_score is None:
        return None
    if abs(a.judge_score - b.judge_score) < max(config.judge_margin, _EQUAL):
        return None
    chosen, rejected = (a, b) if a.judge_score > b.judge_score else (b, a)
    return _make_choice(chosen, rejected, chosen.judge_score, rejected.judge_score)


def _make_choice(chosen: Candidate, rejected: Candidate, high: float | None, low: float | None) -> Choice | None:
    return None if high is None or low is None else Choice(chosen, rejected, high, low)


def iter_choices(candidates: Sequence[Candidate], pair_type: ScoredType, config: PairConfig) -> Iterator[Choice]:
    """Yield the pairs of one task, widest apart first: best against worst, then inwards.

    The number of comparisons is bounded by 64 times the cap, so a task with 20,000 runs costs no more than its sort.

    Args:
        candidates: distinct runs of one task.
        pair_type: `dpo` or `self_reward`.
        config: margins and the cap; the caller stops at the cap.
    """
    rank, prefer = _RULES[pair_type]
    usable = _take_usable(candidates, pair_type)
    if pair_type == "dpo" and _all_failed_alike(usable):
        return
    ordered = sorted(usable, key=lambda c: (rank(c), c.trajectory_id))
    tries = _TRIES_PER_PAIR * config.max_pairs_per_task
    for low, high in _inwards(len(ordered)):
        if tries == 0:
            return
        tries -= 1
        choice = prefer(ordered[high], ordered[low], config)
        if choice is not None:
            yield choice


def _inwards(n: int) -> Iterator[tuple[int, int]]:
    """Yield index pairs (i, j), i < j, of a sorted list by falling distance from its ends: (0, n−1) first."""
    for total in range(2 * n):
        for from_low in range(min(total, n - 1) + 1):
            i, j = from_low, n - 1 - (total - from_low)
            if i < j:
                yield i, j


def _take_usable(candidates: Sequence[Candidate], pair_type: ScoredType) -> list[Candidate]:
    """Return the runs that have the scores which a pair type needs."""
    if pair_type == "self_reward":
        return [c for c in candidates if c.judge_score is not None]
    return [c for c in candidates if c.success_score is not None and c.composite_score is not None]


def _all_failed_alike(usable: Sequence[Candidate]) -> bool:
    """Tell whether no two runs can make a `dpo` pair, so that none of them need be compared."""
    return not any(c.success for c in usable) and len({c.success_score for c in usable}) < 2


def _rank_by_outcome(c: Candidate) -> tuple[float, ...]:
    judge = -1.0 if c.judge_score is None else c.judge_score
    return (float(bool(c.success)), c.success_score or 0.0, c.composite_score or 0.0, judge)


def _rank_by_judge(c: Candidate) -> tuple[float, ...]:
    return (c.judge_score or 0.0, c.success_score or 0.0, c.composite_score or 0.0)


_RULES = {
    "dpo": (_rank_by_outcome, prefer_by_outcome),
    "self_reward": (_rank_by_judge, prefer_by_judge),
}


def is_one_sided(candidates: Sequence[Candidate]) -> bool:
    """Tell whether all known outcomes of a task are alike (and at least one is known)."""
    return len({c.success for c in candidates if c.success is not None}) == 1


def explain_no_pair(candidates: Sequence[Candidate], pair_type: ScoredType) -> str:
    """Say why the scores of a task gave no pair of a type.

    Returns:
        One of: single_run, no_judgment, outcome_unknown, all_failed, all_succeeded_alike, judge_tied,
        judge_contradicts_outcome.
    """
    if len(candidates) < 2:
        return "single_run"
    usable = _take_usable(candidates, pair_type)
    if pair_type == "self_reward":
        if len(usable) < 2:
            return "no_judgment"
        scores = [c.judge_score or 0.0 for c in usable]
        return "judge_contradicts_outcome" if max(scores) - min(scores) > _EQUAL and _has_both(usable) else "judge_tied"
    if len(usable) < 2:
        return "outcome_unknown"
    return "all_succeeded_alike" if any(c.success for c in usable) else "all_failed"


def _has_both(candidates: Sequence[Candidate]) -> bool:
    return len({c.success for c in candidates if c.success is not None}) == 2
