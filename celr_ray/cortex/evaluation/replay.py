"""Replay: the executor's own loop on the recorded attempts of a bank instead of live models.

A call to a tier returns the next attempt of its cell in a shuffled order, without replacement; all its figures come
together. That is unbiased if the attempts of a cell are exchangeable. Orders and noise depend on the seed, the task,
the tier and the number of the attempt alone, so all policies meet the same luck (common random numbers).

Where the records run out there is nothing to return, and no record is ever used twice in an episode:

    mask     (default) the action is masked, as if a cap on attempts had been reached: all policies are compared under
             the same caps. An episode that only then has nothing left but ABORT is censored.
    censor   the action stays allowed; who takes it ends there, censored: the policy is followed as far as it can be

A mask never tells whether the last answer is right, which no policy sees and on which an attempt's cell depends: an
attempt is masked, and quoted, as if the answer could be either. Who takes one that was recorded for the other case
only is censored. Else, where only wrong answers were reflected on, "RECURSE is masked" would be a perfect verifier.

A censored episode has no outcome (NaN), only bounds. A kind of attempt that a tier never recorded for any task is not
evaluable at all and masked in both cases.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from celr_ray.core.episodes import VERIFIED_FAILED, EndReason, Episodes, Limits, Outcomes, mix_keys
from celr_ray.core.escalation import EscalationConfig
from celr_ray.core.executor import Verdicts, draw_uniform
from celr_ray.cortex.actions import N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.cells import (
    FRESH,
    Cells,
    compressed_context,
    depth_of,
    kind_of,
    reflective_context,
    twin_context,
)

__all__ = ["ReplayConfig", "ReplayWorld", "SyntheticVerifier"]

_SLOTS = (Action.RECURSE, Action.ESCALATE, Action.RETRY_COMPRESSED)
_SLOT_OF = np.array([0, 1, -1, 2, -1, -1])
"""Column of an attempt's action among the three."""
_VERIFIER_STREAM = 0x5645524946494552


class SyntheticVerifier(BaseModel):
    """A verifier that answers by chance, for banks without recorded verdicts; a declared assumption, to be swept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    true_positive_rate: float = Field(ge=0, le=1, description="P(passes | the answer is right)")
    false_positive_rate: float = Field(ge=0, le=1, description="P(passes | the answer is wrong)")
    cost_usd: float = Field(0.0, ge=0, description="price of one verification, US$")
    seconds: float = Field(0.0, ge=0, description="time of one verification")


class ReplayConfig(BaseModel):
    """Under which rules a bank is replayed; everything that moves a result but the bank and the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="of the suite: orders of draws, verifier noise, draws of the policy")
    replays: int = Field(1, ge=1, description="episodes of each task, each with its own orders and noise")
    exhausted: Literal["mask", "censor"] = Field("mask", description="what happens where the records run out")
    is_context_free: bool = Field(
        False,
        description="assume that reflective and compressed attempts turn out like fresh ones, and draw all from the "
        "fresh attempts; for logs of independent trials",
    )
    verifier: SyntheticVerifier | None = Field(
        None, description="instead of the recorded verdicts; null = the recorded ones, and no VERIFY without one"
    )
    limits: Limits = Field(default_factory=Limits, description="the runtime's caps")
    escalation: EscalationConfig = Field(default_factory=EscalationConfig, description="where ESCALATE leads")


class ReplayWorld:
    """Carries out the actions of B episodes from the attempts of a bank; a `World` of the executor."""

    def __init__(
        self, cells: Cells, order: NDArray[np.int32], task: IntArray, replay: IntArray, config: ReplayConfig
    ) -> None:
        """Begin with all attempts unused.

        Args:
            cells: the bank's attempts.
            order: [R, N] draws, from `Cells.shuffle`.
            task: [B] rows of the tasks in the bank.
            replay: [B] number of the replay, below R.
            config: the rules.
        """
        n = len(task)
        self._cells = cells
        self._order = order.ravel()
        self._first = replay * order.shape[1]
        self._replay = replay
        self._row_of_task = task * cells.n_tiers
        self._config = config
        self._verifier = config.verifier
        self._used = np.zeros((n, cells.n_tiers * cells.n_contexts), dtype=np.int16)
        self._context = np.full(n, -1, dtype=np.int64)
        self._is_call_failed = np.zeros(n, dtype=bool)
        self._attempt = np.full(n, -1, dtype=np.int64)
        self._missing = np.zeros((0, N_ACTIONS), dtype=bool)
        self._masked = np.zeros((0, N_ACTIONS), dtype=bool)
        self._quotes = np.zeros((0, N_ACTIONS))
        self._drawn = np.zeros((0, len(_SLOTS)), dtype=np.int64)
        self.censored = np.zeros(n, dtype=bool)
        """[B] the records ran out; the outcome is not known."""

    def quote_usd(self, episodes: Episodes, live: IntArray) -> FloatArray:
        """Return the worst case of each action, [K, A] US$; infinite where nothing was recorded, or all is used up."""
        cells, n = self._cells, len(live)
        tier = episodes.tier[live]
        target = episodes.target_tier(live)
        contexts = self._next_contexts(episodes, live)
        prices = np.zeros((n, N_ACTIONS))
        is_missing = np.zeros((n, N_ACTIONS), dtype=bool)
        self._drawn = np.zeros((n, len(_SLOTS)), dtype=np.int64)
        is_masked = np.zeros((n, N_ACTIONS), dtype=bool)
        for slot, (action, at) in enumerate(zip(_SLOTS, (tier, target, tier), strict=True)):
            context = contexts[slot]
            cell, is_left, price, is_recorded = self._look(live, at, context)
            is_missing[:, action] = is_masked[:, action] = ~is_left
            if cells.n_contexts > 1 and action != Action.ESCALATE:
                _, is_other_left, other_price, is_other_recorded = self._look(live, at, twin_context(context))
                is_masked[:, action] &= ~is_other_left
                higher = np.maximum(price, other_price)
                price = np.where(is_recorded == is_other_recorded, higher, np.where(is_recorded, price, other_price))
            is_known = True if self._config.is_context_free else cells.is_evaluable[at, kind_of(context)]
            prices[:, action] = np.where(is_known, price, np.inf)
            self._drawn[:, slot] = cell
        prices[:, Action.VERIFY], is_missing[:, Action.VERIFY] = self._quote_verification(live)
        is_masked[:, Action.VERIFY] = is_missing[:, Action.VERIFY]
        self._missing, self._masked, self._quotes = is_missing, is_masked, prices
        if self._config.exhausted == "mask":
            prices = np.where(is_masked, np.inf, prices)
        return prices

    def _look(
        self, live: IntArray, at: IntArray, context: IntArray
    ) -> tuple[IntArray, BoolArray, FloatArray, BoolArray]:
        """Return of a context's cells, [K] each: number, attempts are left, worst case, attempts were recorded."""
        cells = self._cells
        column = cells.column_of[context]
        cell = (self._row_of_task[live] + at) * cells.n_contexts + column
        count = np.where(column >= 0, cells.count(cell), 0)
        is_left = self._used[live, at * cells.n_contexts + column] < count
        price = np.where(column >= 0, cells.quote_usd[cell], self._fresh_quote(live, at))
        return cell, is_left, price, count > 0

    def _fresh_quote(self, live: IntArray, tier: IntArray) -> FloatArray:
        cell = (self._row_of_task[live] + tier) * self._cells.n_contexts + self._cells.column_of[FRESH]
        return np.asarray(self._cells.quote_usd[cell])

    def _next_contexts(self, episodes: Episodes, live: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Return what RECURSE, ESCALATE and RETRY_COMPRESSED would be made from; the same rules as `build_chat`'s."""
        fresh = np.zeros(len(live), dtype=np.int64)
        if self._config.is_context_free:
            return fresh, fresh, fresh
        attempt, last = self._attempt[live], self._context[live]
        truth = self._cells.success[attempt].astype(np.int64)
        is_refuted = (episodes.verified[live] == VERIFIED_FAILED) & (attempt >= 0)
        improve = reflective_context(depth_of(last) + 1, truth, is_refuted)
        recurse = np.where(last < 0, FRESH, np.where(self._is_call_failed[live], last, improve))
        return recurse, fresh, np.where(is_refuted, compressed_context(truth), FRESH)

    def _quote_verification(self, live: IntArray) -> tuple[FloatArray, BoolArray]:
        """Return the price of VERIFY, [K], and where no verification was recorded, [K]."""
        attempt = self._attempt[live]
        if self._verifier is not None:
            return np.full(len(live), self._verifier.cost_usd), np.zeros(len(live), dtype=bool)
        price = self._cells.verification_usd[self._cells.tier[attempt]]
        is_missing = ~self._cells.is_verified[attempt] | (attempt < 0)
        return np.where(np.isnan(price), np.inf, price), is_missing

    def act(self, episodes: Episodes, live: IntArray, actions: IntArray) -> Outcomes:
        """Draw for each episode that attempts or verifies; one whose records have run out ends here, censored."""
        outcomes = Outcomes.nothing(len(live))
        is_missing = self._missing[np.arange(len(live)), actions]
        if is_missing.any():
            self.censored[live[is_missing]] = True
            episodes.end_reason[live[is_missing]] = EndReason.CENSORED
        slot = _SLOT_OF[actions]
        self._draw_attempts(live, np.flatnonzero((slot >= 0) & ~is_missing), slot, outcomes)
        self._verify(episodes, live, np.flatnonzero((actions == Action.VERIFY) & ~is_missing), outcomes)
        if self._config.exhausted == "mask":
            self._find_forced(episodes, live, np.flatnonzero(actions == Action.ABORT))
        return outcomes

    def _draw_attempts(self, live: IntArray, at: IntArray, slot: IntArray, outcomes: Outcomes) -> None:
        """Return the next attempt of the cells of the episodes at positions `at`."""
        if not len(at):
            return
        cells, rows = self._cells, live[at]
        cell = self._drawn[at, slot[at]]
        counter = cell - self._row_of_task[rows] * cells.n_contexts
        used = self._used[rows, counter]
        self._used[rows, counter] = used + 1
        drawn = self._order[self._first[rows] + cells.start[cell] + used].astype(np.int64)
        outcomes.cost_usd[at] = cells.cost_usd[drawn]
        outcomes.seconds[at] = cells.seconds[drawn]
        outcomes.prompt_tokens[at] = cells.prompt_tokens[drawn]
        outcomes.output_tokens[at] = cells.output_tokens[drawn]
        outcomes.has_answer[at] = cells.has_answer[drawn]
        outcomes.has_code[at] = cells.has_code[drawn]
        outcomes.answer_key[at] = cells.answer_key[drawn]
        outcomes.confidence[at] = cells.confidence[drawn]
        outcomes.context_used[at] = cells.context_used[drawn]
        outcomes.unsafe[at] = cells.unsafe[drawn]
        is_answer = cells.has_answer[drawn]
        self._is_call_failed[rows] = ~is_answer
        self._attempt[rows[is_answer]] = drawn[is_answer]
        self._context[rows] = cells.codes[cell % cells.n_contexts]

    def _verify(self, episodes: Episodes, live: IntArray, at: IntArray, outcomes: Outcomes) -> None:
        if not len(at):
            return
        rows = live[at]
        attempt = self._attempt[rows]
        if self._verifier is None:
            outcomes.passed[at] = self._cells.verdict[attempt]
            outcomes.cost_usd[at] = self._cells.verifier_cost_usd[attempt]
            outcomes.seconds[at] = self._cells.verifier_seconds[attempt]
            return
        right = self._cells.success[attempt] > 0
        rate = np.where(right, self._verifier.true_positive_rate, self._verifier.false_positive_rate)
        number = episodes.answer_verifications[rows]
        key = mix_keys(self._cells.key[attempt], self._replay[rows], number, _VERIFIER_STREAM)
        outcomes.passed[at] = draw_uniform(self._config.seed, key) < rate
        outcomes.cost_usd[at] = self._verifier.cost_usd
        outcomes.seconds[at] = self._verifier.seconds

    def _find_forced(self, episodes: Episodes, live: IntArray, at: IntArray) -> None:
        """Censor those that ABORT because missing records have left them nothing else."""
        at = at[self._masked[at].any(axis=1)]
        if not len(at):
            return
        rows, quotes = live[at], self._quotes[at]
        left = episodes.mask(rows, np.where(self._masked[at], np.inf, quotes))
        own = episodes.mask(rows, quotes)
        is_forced = ~left[:, : Action.ABORT].any(axis=1) & own[:, : Action.ABORT].any(axis=1)
        self.censored[rows[is_forced]] = True

    def check(self, episodes: Episodes) -> Verdicts:
        """Return whether the last answers are right, as recorded; NaN for the censored."""
        episodes.end_reason[self.censored] = EndReason.CENSORED
        has_answer = self._attempt >= 0
        success = np.where(has_answer, self._cells.success[self._attempt], 0.0)
        correctness = np.where(has_answer, self._cells.correctness[self._attempt], 0.0)
        success[self.censored] = correctness[self.censored] = np.nan
        return Verdicts(success, correctness, np.zeros(len(success), dtype=bool))
