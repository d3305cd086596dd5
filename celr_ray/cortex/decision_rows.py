"""Checks logged decisions against the rules of the decision process, and turns them into columns.

What is checked, each with its own reason: features finite and within their bounds; masks that allow ABORT; actions that
their mask allows; probabilities that sum to 1, are 0 where masked and positive for what was done; rewards that
`cortex.reward` can give, and that agree with the outcome and with their logged sum. An episode with one fault is
refused as a whole. An episode without an outcome is sound, but nothing can be learned from its reward: it is excluded,
and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.decision_documents import ACTION_COLUMNS, Decision, LoggedEpisode
from celr_ray.cortex.episode_rows import EpisodeRows, sum_to_go
from celr_ray.cortex.reward import total_reward
from celr_ray.cortex.state import FEATURES, N_FEATURES

__all__ = ["SOURCE", "check_episodes", "gather_rows"]

SOURCE = "celr_ray"
"""What `source` says of episodes whose decisions were logged."""

_TOLERANCE = 1e-6
_LOW = np.array([feature.low for feature in FEATURES])
_HIGH = np.array([feature.high for feature in FEATURES])


def gather_rows(episodes: Sequence[LoggedEpisode], eps_ids: Sequence[str]) -> EpisodeRows:
    """Return the columns of some episodes (at least one), unchecked; what is null becomes NaN.

    Args:
        episodes: [B].
        eps_ids: [B] their ids.
    """
    decisions = [decision for episode in episodes for decision in episode.decisions]
    obs = np.array(list(chain.from_iterable(d.obs for d in decisions)), dtype=float)
    mask = np.array(list(chain.from_iterable(d.mask for d in decisions)), dtype=bool)
    return EpisodeRows(
        eps_id=list(eps_ids),
        run_id=list(eps_ids),
        rank=[0] * len(episodes),
        task_id=[episode.task_id for episode in episodes],
        policy_hash=[episode.policy_hash for episode in episodes],
        source=[SOURCE] * len(episodes),
        is_cut=np.array([episode.is_cut for episode in episodes], dtype=bool),
        length=np.array([len(episode.decisions) for episode in episodes], dtype=np.int64),
        obs=obs.reshape(-1, N_FEATURES),
        mask=mask.reshape(-1, N_ACTIONS),
        action=np.array([ACTION_COLUMNS[d.action] for d in decisions], dtype=np.int64),
        reward=np.array([d.reward for d in decisions], dtype=float),
        behavior=np.array([_list_probabilities(d) for d in decisions], dtype=float),
    )


_UNKNOWN = (None,) * N_ACTIONS


def _list_probabilities(decision: Decision) -> tuple[float | None, ...]:
    p = decision.probabilities
    if p is None:
        return _UNKNOWN
    return p.RECURSE, p.ESCALATE, p.VERIFY, p.RETRY_COMPRESSED, p.STOP, p.ABORT


def check_episodes(episodes: Sequence[LoggedEpisode], rows: EpisodeRows) -> tuple[list[str | None], BoolArray]:
    """Check episodes against the rules.

    Args:
        episodes: [B] as read.
        rows: their columns.

    Returns:
        [B] what is wrong with each, None = nothing; and [B] whether it has no outcome.
    """
    success = np.array([e.success for e in episodes], dtype=float)
    unsafe = np.array([e.unsafe for e in episodes], dtype=bool)
    first = np.cumsum(rows.length) - rows.length
    last = first + rows.length - 1
    has_no_outcome = np.isnan(rows.reward[last]) & np.isnan(success) & ~rows.is_cut
    reasons: list[str | None] = [None] * len(episodes)
    given = np.array([d.probabilities is not None for e in episodes for d in e.decisions], dtype=bool)
    episode = np.repeat(np.arange(len(episodes)), rows.length)
    for reason, is_bad in (*_find_bad_states(rows), *_find_bad_probabilities(rows, given)):
        _note(reasons, reason, is_bad, episode, first)
    ends = np.zeros(len(episode), dtype=bool)
    ends[last] = ~rows.is_cut
    is_bad = ~((rows.reward >= -2 - _TOLERANCE) & (rows.reward <= _TOLERANCE)) & ~ends
    _note(reasons, "a reward that no step can have (it is between −2 and 0)", is_bad, episode, first)
    logged = np.array([e.total_reward for e in episodes], dtype=float)
    for number in np.flatnonzero(_find_bad_totals(rows, success, unsafe, logged, first) & ~has_no_outcome):
        reasons[number] = reasons[number] or _describe_total(rows, episodes[number], int(number), int(first[number]))
    return reasons, has_no_outcome


def _note(reasons: list[str | None], reason: str, is_bad: BoolArray, episode: IntArray, first: IntArray) -> None:
    """Give each episode that has no reason yet this one, with its first bad row."""
    rows = np.flatnonzero(is_bad)
    numbers, at = np.unique(episode[rows], return_index=True)
    for number, row in zip(numbers, rows[at], strict=True):
        reasons[number] = reasons[number] or f"decision {row - first[number]} has {reason}"


def _find_bad_states(rows: EpisodeRows) -> list[tuple[str, BoolArray]]:
    n = np.arange(len(rows.action))
    is_nan = ~np.isfinite(rows.obs)
    with np.errstate(invalid="ignore"):
        is_outside = (rows.obs < _LOW - _TOLERANCE) | (rows.obs > _HIGH + _TOLERANCE)
    found = [
        (f"no number as its feature {feature.name}", is_nan[:, column])
        for column, feature in enumerate(FEATURES)
        if is_nan[:, column].any()
    ]
    found += [
        (f"a feature {feature.name} outside of its bounds {feature.low:g} and {feature.high:g}", is_outside[:, column])
        for column, feature in enumerate(FEATURES)
        if is_outside[:, column].any()
    ]
    found.append(("a mask that forbids ABORT", ~rows.mask[:, Action.ABORT]))
    is_forbidden = ~rows.mask[n, rows.action]
    found += [
        (f"the action {ACTIONS[a]}, which its own mask forbids", is_forbidden & (rows.action == a))
        for a in np.unique(rows.action[is_forbidden])
    ]
    return found


def _find_bad_probabilities(rows: EpisodeRows, given: BoolArray) -> list[tuple[str, BoolArray]]:
    """Return the faults of probabilities, where any are given."""
    p = rows.behavior
    with np.errstate(invalid="ignore"):
        is_none = ~((p >= 0) & (p <= 1 + _TOLERANCE)).all(axis=1)
        is_sum_wrong = ~(np.abs(p.sum(axis=1) - 1) <= _TOLERANCE)
    done = p[np.arange(len(p)), rows.action]
    return [
        ("a probability that is none", is_none & given),
        ("probabilities that do not sum to 1", is_sum_wrong & given),
        ("a probability for an action that its mask forbids", (np.where(rows.mask, 0.0, p) > 0).any(axis=1) & given),
        ("a probability of 0 for what was done", ~(done > 0) & given),
    ]


def _find_bad_totals(
    rows: EpisodeRows, success: FloatArray, unsafe: BoolArray, logged: FloatArray, first: IntArray
) -> BoolArray:
    """Return [B] whether the sum of rewards is not one that the outcome allows, or not the logged sum."""
    total = sum_to_go(rows.reward, rows.length)[first]
    low = np.where(rows.is_cut, -2.0, total_reward(success, 0.0, 1.0, 1.0, unsafe))
    high = np.where(rows.is_cut, 0.0, total_reward(success, 1.0, 0.0, 0.0, unsafe))
    is_within = (total >= low - _TOLERANCE) & (total <= high + _TOLERANCE)
    is_as_logged = np.isnan(logged) | (np.abs(total - logged) <= _TOLERANCE) | rows.is_cut
    return ~(is_within & is_as_logged)


def _describe_total(rows: EpisodeRows, episode: LoggedEpisode, number: int, first: int) -> str:
    total = rows.reward[first : first + rows.length[number]].sum()
    if np.isnan(total):
        return "a reward is missing"
    outcome = "cut off" if episode.is_cut else "unsafe" if episode.unsafe else f"success {episode.success}"
    logged = "" if episode.total_reward is None else f", logged as {episode.total_reward:g}"
    return f"the rewards sum to {total:g}{logged}: no episode has that with the outcome {outcome}"
