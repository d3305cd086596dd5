"""Replays a policy on a bank: many episodes of each task, the figures per task, and transitions to train from.

Episodes run in chunks that fit into the processor's caches; chunks change nothing, since every draw is keyed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from celr_ray.core.episodes import EndReason, Episodes, TaskColumns, mix_keys
from celr_ray.core.executor import Decisions, Results, join_decisions, run_episodes
from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.bank import Bank, Split
from celr_ray.cortex.evaluation.cells import Cells, index_bank
from celr_ray.cortex.evaluation.replay import ReplayConfig, ReplayWorld
from celr_ray.cortex.policy import Policy
from celr_ray.errors import InputError

__all__ = ["FallbackPolicy", "ReplayResults", "ReplaySuite", "prepare_replay", "run_replay"]

_CHUNK = 4096
"""Episodes side by side: their states and masks take about 2 MB."""


@runtime_checkable
class FallbackPolicy(Protocol):
    """A policy that leaves some decisions to a simpler one, and tells which."""

    def is_fallback(self, obs: FloatArray) -> BoolArray:
        """Return for states [K, D] whether the simpler policy decides."""
        ...


@dataclass(frozen=True)
class ReplayResults:
    """How a policy did: n tasks, R replays of each; arrays are [n, R].

    Attributes:
        policy, policy_hash: who decided.
        bank_hash: the bank.
        split: part of the bank; None = all of it.
        config: the rules.
        task_ids: [n].
        n_incomplete: tasks of the split left out because a tier has no fresh attempt.
        success: 0 or 1; NaN = censored. An unsafe run is a failure, censored or not.
        correctness: the score of the accepted answer, 0 to 1; NaN = censored.
        cost_usd: US$ spent; of a censored episode, up to where it ended.
        budget_usd: [n] US$ that each might spend.
        time_limit_s: [n] what each might take.
        seconds: time taken.
        unsafe: flag.
        fallback: some decision was left to a simpler policy.
        n_fallbacks: decisions so left.
        n_decisions: decisions.
        censored: the records ran out.
        end_reason: `EndReason`.
        total_reward: sum of rewards; NaN = censored.
        decisions: every decision, ordered by episode (task · R + replay) and time; None unless asked for.
    """

    policy: str
    policy_hash: str
    bank_hash: str
    split: Split | None
    config: ReplayConfig
    task_ids: list[str]
    n_incomplete: int
    success: FloatArray
    correctness: FloatArray
    cost_usd: FloatArray
    budget_usd: FloatArray
    time_limit_s: FloatArray
    seconds: FloatArray
    unsafe: BoolArray
    fallback: BoolArray
    n_fallbacks: IntArray
    n_decisions: IntArray
    censored: BoolArray
    end_reason: IntArray
    total_reward: FloatArray
    decisions: Decisions | None = None

    @property
    def timed_out(self) -> BoolArray:
        """Tell which episodes took longer than their time limits, [n, R]."""
        return np.asarray(self.seconds > self.time_limit_s[:, None])

    def success_bounds(self) -> tuple[FloatArray, FloatArray]:
        """Return success [n, R] with the censored as failures, and with the censored as successes."""
        return np.nan_to_num(self.success, nan=0.0), np.nan_to_num(self.success, nan=1.0)

    def cost_bounds(self) -> tuple[FloatArray, FloatArray]:
        """Return cost [n, R], US$, with the censored at what they had spent, and at their whole budgets."""
        return self.cost_usd, np.where(self.censored, self.budget_usd[:, None], self.cost_usd)


@dataclass(frozen=True)
class ReplaySuite:
    """A part of a bank made ready for replays: do it once, then run many policies on the same draws.

    Attributes:
        bank: the complete tasks of the split.
        split: which part.
        config: the rules.
        n_incomplete: tasks left out.
        cells: its attempts.
        order: [R, N] draws.
        columns: [n] tasks' columns.
    """

    bank: Bank
    split: Split | None
    config: ReplayConfig
    n_incomplete: int
    cells: Cells
    order: NDArray[np.int32]
    columns: TaskColumns


def prepare_replay(bank: Bank, split: Split | None = None, config: ReplayConfig | None = None) -> ReplaySuite:
    """Choose the tasks and shuffle their attempts.

    Args:
        bank: a bank.
        split: part of it; None = all tasks.
        config: the rules.

    Raises:
        InputError: no task of the split has a fresh attempt on every tier.
    """
    config = config or ReplayConfig()
    part = bank.select(split)
    whole = part.complete()
    if not whole.tasks.num_rows:
        raise InputError(
            f"none of the {part.tasks.num_rows} tasks of the bank's split {split or 'all'} has a fresh attempt on "
            f"every tier ({', '.join(tier.name for tier in bank.tiers)}): record always-cheap and always-strong runs"
        )
    cells = index_bank(whole)
    columns = whole.task_columns()
    if config.verifier is not None:
        columns = TaskColumns(**{**vars(columns), "has_verifier": np.ones(len(columns.key), dtype=bool)})
    n_incomplete = part.tasks.num_rows - whole.tasks.num_rows
    order = cells.shuffle(config.seed, config.replays)
    return ReplaySuite(whole, split, config, n_incomplete, cells, order, columns)


def run_replay(
    bank: Bank | ReplaySuite,
    policy: Policy,
    *,
    split: Split | None = None,
    config: ReplayConfig | None = None,
    rows: IntArray | None = None,
    keep_decisions: bool = False,
) -> ReplayResults:
    """Replay a policy.

    Args:
        bank: a bank, or a suite made of one; a suite has its split and rules already.
        policy: decides.
        split: part of the bank; None = all tasks.
        config: the rules.
        rows: [m] numbers of the tasks to replay, in the order of the suite's; None = all. Each comes out as with all.
        keep_decisions: return all decisions too (about 600 bytes each).

    Raises:
        InputError: no task can be replayed.
        PolicyError: the policy gave no probabilities, or chose what is not allowed.
    """
    suite = bank if isinstance(bank, ReplaySuite) else prepare_replay(bank, split, config)
    rows = np.arange(len(suite.columns.key)) if rows is None else rows
    chunks = [_run_chunk(suite, policy, task, replay, keep_decisions) for task, replay in _chunks(suite, rows)]
    results = [chunk.results for chunk in chunks]
    shape = (len(rows), suite.config.replays)

    def gather(name: str) -> Any:
        return np.concatenate([getattr(result, name) for result in results]).reshape(shape)

    n_fallbacks = np.concatenate([chunk.n_fallbacks for chunk in chunks]).reshape(shape)
    end_reason = gather("end_reason")
    figures = {name: gather(name) for name in _FIGURES}
    censored = end_reason == EndReason.CENSORED
    figures["total_reward"] = np.where(censored, np.nan, figures["total_reward"])
    return ReplayResults(
        policy=policy.name,
        policy_hash=policy.content_hash,
        bank_hash=suite.bank.content_hash,
        split=suite.split,
        config=suite.config,
        task_ids=[suite.bank.task_ids[row] for row in rows],
        n_incomplete=suite.n_incomplete,
        budget_usd=suite.columns.budget_usd[rows],
        time_limit_s=suite.columns.time_limit_s[rows],
        fallback=n_fallbacks > 0,
        n_fallbacks=n_fallbacks,
        n_decisions=gather("n_decisions"),
        censored=censored,
        end_reason=end_reason,
        decisions=_join(results) if keep_decisions else None,
        **figures,
    )


def _join(results: list[Results]) -> Decisions:
    firsts = np.cumsum([0, *(len(result.success) for result in results)])[:-1]
    return join_decisions([result.decisions for result in results], shift=firsts.tolist())


_FIGURES = ("success", "correctness", "cost_usd", "seconds", "unsafe", "total_reward")


def _chunks(suite: ReplaySuite, rows: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield rows of tasks and replay numbers of the episodes of each chunk."""
    replays = suite.config.replays
    n = len(rows) * replays
    for start in range(0, n, _CHUNK):
        episode = np.arange(start, min(start + _CHUNK, n))
        yield rows[episode // replays], episode % replays


@dataclass(frozen=True)
class _Chunk:
    results: Results
    n_fallbacks: IntArray


class _Watch:
    """A policy as it is, with a note of the decisions that it leaves to a simpler one."""

    def __init__(self, policy: Policy, episodes: Episodes) -> None:
        self.name = policy.name
        self.content_hash = policy.content_hash
        self.start_tier = policy.start_tier
        self._policy = policy
        self._episodes = episodes
        self.n_fallbacks = np.zeros(len(episodes.tier), dtype=np.int64)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return what the policy returns."""
        if isinstance(self._policy, FallbackPolicy):
            self.n_fallbacks[self._episodes.live] += self._policy.is_fallback(obs)
        return self._policy.probabilities(obs, mask)


def _run_chunk(suite: ReplaySuite, policy: Policy, task: IntArray, replay: IntArray, keep_decisions: bool) -> _Chunk:
    columns = {name: column[task] for name, column in vars(suite.columns).items()}
    columns["key"] = mix_keys(columns["key"], replay)
    config = suite.config
    episodes = Episodes(
        TaskColumns(**columns), suite.cells.n_tiers, config.limits, config.escalation, start_tier=policy.start_tier
    )
    world = ReplayWorld(suite.cells, suite.order, task, replay, config)
    watch = _Watch(policy, episodes)
    results = run_episodes(episodes, watch, world, seed=config.seed, keep_decisions=keep_decisions)
    return _Chunk(results, watch.n_fallbacks)
