"""Plays the scripts of foreign runs through the executor's own state machine, for the states and masks it would show.

The caps are `DatasetConfig.limits`. A script that they do not allow is given back, never bent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from celr_ray.config import DatasetConfig
from celr_ray.core.episodes import Episodes, Outcomes, TaskColumns, mix_keys
from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.episode_rows import EpisodeRows
from celr_ray.cortex.foreign_logs import ForeignRun
from celr_ray.cortex.reward import final_reward, step_reward

__all__ = ["play_runs"]


def play_runs(runs: Sequence[ForeignRun], config: DatasetConfig) -> tuple[EpisodeRows | None, list[ForeignRun]]:
    """Play scripts through the decision process, to get the states and masks that the executor would have shown.

    Args:
        runs: all with ladders of one length.
        config: the caps.

    Returns:
        The episodes, None if there are none, and the runs that the caps do not allow.
    """
    episodes = _begin(runs, config)
    lengths = np.array([len(run.actions) for run in runs])
    is_allowed = lengths <= config.limits.decisions
    waves = []
    for t in range(int(lengths[is_allowed].max(initial=0))):
        live = np.flatnonzero(is_allowed & (lengths > t))
        mask = episodes.mask(live, np.zeros((len(live), N_ACTIONS)))
        actions = np.array([int(runs[row].actions[t]) for row in live], dtype=np.int64)
        fits = mask[np.arange(len(live)), actions]
        is_allowed[live[~fits]] = False
        live, mask, actions = live[fits], mask[fits], actions[fits]
        obs = episodes.observe(live)
        outcomes = _tell_outcomes(runs, live, actions, t)
        episodes.apply(live, mask, actions, outcomes)
        shares = step_reward(outcomes.cost_usd, outcomes.seconds)
        waves.append((live, np.full(len(live), t), obs, mask, actions, shares))
    refused = [run for run, ok in zip(runs, is_allowed, strict=True) if not ok]
    return (_gather(runs, is_allowed, waves) if is_allowed.any() else None), refused


def _begin(runs: Sequence[ForeignRun], config: DatasetConfig) -> Episodes:
    """Begin the episodes: budgets and limits are 1, so that cost and seconds are shares of them."""
    n = len(runs)
    tasks = TaskColumns(
        key=np.zeros(n, dtype=np.uint64),
        budget_usd=np.ones(n),
        time_limit_s=np.ones(n),
        difficulty=np.full(n, 0.5),
        is_difficulty_known=np.zeros(n, dtype=bool),
        risk=np.array([run.risk for run in runs]),
        is_coding=np.zeros(n, dtype=bool),
        has_verifier=np.array([Action.VERIFY in run.actions for run in runs]),
        needs_code=np.zeros(n, dtype=bool),
        probe_agreement=np.full(n, np.nan),
        probe_confidence=np.full(n, np.nan),
        probe_usd=np.zeros(n),
        probe_s=np.zeros(n),
    )
    episodes = Episodes(tasks, runs[0].n_tiers, config.limits, EscalationConfig())
    episodes.tier[:] = [run.tier for run in runs]
    return episodes


def _tell_outcomes(runs: Sequence[ForeignRun], live: IntArray, actions: IntArray, t: int) -> Outcomes:
    """Return what the scripts say of one wave; attempts share cost and time in equal parts."""
    outcomes = Outcomes.nothing(len(live))
    for k, row in enumerate(live):
        run = runs[row]
        outcomes.passed[k] = run.passed[t]
        if actions[k] not in ATTEMPTS:
            continue
        attempts = [at for at, action in enumerate(run.actions) if action in ATTEMPTS]
        outcomes.cost_usd[k] = run.cost_share / len(attempts)
        outcomes.seconds[k] = run.time_share / len(attempts)
        outcomes.has_answer[k] = run.has_answer or t != attempts[-1]
        outcomes.has_code[k] = run.has_code and t == attempts[-1]
        outcomes.answer_key[k] = mix_keys(t)[0]
    return outcomes


_Wave = tuple[IntArray, IntArray, FloatArray, BoolArray, IntArray, FloatArray]


def _gather(runs: Sequence[ForeignRun], is_allowed: BoolArray, waves: Sequence[_Wave]) -> EpisodeRows:
    """Put the waves together, ordered by episode and time, and add what the end is worth to each last decision."""
    row, t, obs, mask, actions, reward = (np.concatenate(columns) for columns in zip(*waves, strict=True))
    order = np.lexsort((t, row))
    order = order[is_allowed[row[order]]]
    kept = [run for run, ok in zip(runs, is_allowed, strict=True) if ok]
    length = np.array([len(run.actions) for run in kept], dtype=np.int64)
    reward = reward[order]
    success = np.array([run.success and not run.unsafe for run in kept], dtype=float)
    correctness = np.array([run.correctness if run.actions[-1] == Action.STOP else 0.0 for run in kept])
    reward[np.cumsum(length) - 1] += final_reward(success, correctness, [run.unsafe for run in kept])
    return EpisodeRows(
        eps_id=[run.eps_id for run in kept],
        run_id=[run.run_id for run in kept],
        rank=[run.rank for run in kept],
        task_id=[run.task_id for run in kept],
        policy_hash=[None] * len(kept),
        source=[run.source for run in kept],
        is_cut=np.zeros(len(kept), dtype=bool),
        length=length,
        obs=obs[order],
        mask=mask[order],
        action=actions[order],
        reward=reward,
        behavior=np.full((len(order), N_ACTIONS), np.nan),
    )
