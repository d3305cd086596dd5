"""The decision process: many episodes side by side, their masks, states and what an outcome does to them.

One episode is one task under a budget and a time limit. All values are arrays with one entry for each episode, so
that a wave of thousands costs a few array operations, whether the outcomes come from live models or from records.
The runtime's caps live here; no policy can pass them. Neither Ray nor vLLM is known here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from celr_ray.core.escalation import EscalationConfig, choose_target
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.state import encode_state

__all__ = [
    "UNVERIFIED",
    "VERIFIED_FAILED",
    "VERIFIED_PASSED",
    "EndReason",
    "Episodes",
    "Limits",
    "Outcomes",
    "TaskColumns",
    "hash_text",
    "mix_keys",
]

KeyArray = NDArray[np.uint64]

UNVERIFIED, VERIFIED_FAILED, VERIFIED_PASSED = -1, 0, 1


class EndReason(IntEnum):
    """Why an episode ended."""

    RUNNING = 0
    STOPPED = 1
    """The answer was accepted."""
    ABORTED = 2
    """Given up."""
    REPEATED_STATE = 3
    """The same answer, verdict and context came back: nothing would change any more. A failure."""
    OVER_BUDGET = 4
    """A call cost more than its worst case and more than was left. A failure."""
    UNAFFORDABLE = 5
    """Nothing but ABORT was ever allowed: the budget is below the cheapest call that could begin, or no prompt fits."""
    CENSORED = 6
    """In replays only: the records ran out, so how it would have ended is not known."""


class Limits(BaseModel):
    """The caps that the runtime enforces on each episode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts_per_tier: int = Field(5, ge=1, description="most attempts on one tier")
    verifications_per_answer: int = Field(1, ge=1, description="most verifications of one answer")
    decisions: int = Field(32, ge=2, le=256, description="most decisions of an episode, STOP or ABORT included")


@dataclass(frozen=True)
class TaskColumns:
    """What is known of B tasks before the first call.

    Attributes:
        key: [B] 64-bit hash of the task id; seeds every draw of the task.
        budget_usd: [B] US$.
        time_limit_s: [B] seconds.
        difficulty: [B] probability that the cheapest tier fails.
        is_difficulty_known: [B] estimated, or the neutral constant.
        risk: [B] prior risk of an unsafe act, 0 to 1.
        is_coding: [B] flag.
        has_verifier: [B] flag.
        needs_code: [B] the verifier runs code: an answer without any cannot be verified.
        probe_agreement: [B] the cheapest tier's two samples agree, 0 or 1; NaN = not probed.
        probe_confidence: [B] exp of their mean token log-probability, 0 to 1; NaN = not probed.
        probe_usd: [B] US$ that the probe cost, charged to the budget.
        probe_s: [B] seconds that it took.
    """

    key: KeyArray
    budget_usd: FloatArray
    time_limit_s: FloatArray
    difficulty: FloatArray
    is_difficulty_known: BoolArray
    risk: FloatArray
    is_coding: BoolArray
    has_verifier: BoolArray
    needs_code: BoolArray
    probe_agreement: FloatArray
    probe_confidence: FloatArray
    probe_usd: FloatArray
    probe_s: FloatArray


@dataclass
class Outcomes:
    """What the actions of K episodes led to; zeros where an action calls nothing.

    Attributes:
        cost_usd: [K] US$ spent.
        seconds: [K] time taken.
        prompt_tokens: [K] tokens read.
        output_tokens: [K] tokens written.
        has_answer: [K] the attempt gave an answer; a failed call gives none and leaves an earlier one in place.
        has_code: [K] the answer holds code.
        answer_key: [K] 64-bit hash of the answer.
        confidence: [K] 0 to 1, NaN = unknown.
        context_used: [K] share of the context window that the prompt took.
        passed: [K] the verifier's verdict: 1, 0, or −1 where none was given.
        unsafe: [K] the monitor saw a forbidden act.
    """

    cost_usd: FloatArray
    seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    has_answer: BoolArray
    has_code: BoolArray
    answer_key: KeyArray
    confidence: FloatArray
    context_used: FloatArray
    passed: IntArray
    unsafe: BoolArray

    @classmethod
    def nothing(cls, n: int) -> Outcomes:
        """Return the outcomes of n actions that call nothing."""
        return cls(
            cost_usd=np.zeros(n),
            seconds=np.zeros(n),
            prompt_tokens=np.zeros(n, dtype=np.int64),
            output_tokens=np.zeros(n, dtype=np.int64),
            has_answer=np.zeros(n, dtype=bool),
            has_code=np.zeros(n, dtype=bool),
            answer_key=np.zeros(n, dtype=np.uint64),
            confidence=np.full(n, np.nan),
            context_used=np.zeros(n),
            passed=np.full(n, UNVERIFIED, dtype=np.int64),
            unsafe=np.zeros(n, dtype=bool),
        )


def mix_keys(*keys: KeyArray | IntArray | int) -> KeyArray:
    """Combine 64-bit keys into one, order counting (the finaliser of SplitMix64 after each)."""
    mixed = np.atleast_1d(np.uint64(0x9E3779B97F4A7C15))
    with np.errstate(over="ignore"):
        for key in keys:
            mixed = (mixed ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def hash_text(text: str) -> int:
    """Return 64 bits that identify a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Episodes:
    """B episodes under way. Every array has one entry for each episode; `live` arguments are row numbers [K]."""

    def __init__(
        self, tasks: TaskColumns, n_tiers: int, limits: Limits, escalation: EscalationConfig, *, start_tier: int = 0
    ) -> None:
        """Begin the episodes: nothing attempted, nothing spent but the probe.

        Args:
            tasks: what is known before the first call.
            n_tiers: length of the ladder.
            limits: the caps.
            escalation: decides where ESCALATE leads on a ladder of three tiers and more.
            start_tier: tier of a first RECURSE; negative counts from the strongest.
        """
        n = len(tasks.key)
        self.tasks = tasks
        self.n_tiers = n_tiers
        self.limits = limits
        self._escalation = escalation
        self.spent_usd = tasks.probe_usd.copy()
        self.elapsed_s = tasks.probe_s.copy()
        self.tier = np.full(n, range(n_tiers)[start_tier], dtype=np.int64)
        self.attempts = np.zeros((n, n_tiers), dtype=np.int64)
        self.verifications = np.zeros(n, dtype=np.int64)
        self.answer_verifications = np.zeros(n, dtype=np.int64)
        self.verification_failures = np.zeros(n, dtype=np.int64)
        self.decisions = np.zeros(n, dtype=np.int64)
        self.has_answer = np.zeros(n, dtype=bool)
        self.has_code = np.zeros(n, dtype=bool)
        self.verified = np.full(n, UNVERIFIED, dtype=np.int64)
        self.context_used = np.zeros(n)
        self.confidence = np.full(n, np.nan)
        self.previous_action = np.full(n, -1, dtype=np.int64)
        self.unsafe = np.zeros(n, dtype=bool)
        self.end_reason = np.full(n, int(EndReason.RUNNING), dtype=np.int64)
        self._answer_key = np.zeros(n, dtype=np.uint64)
        self._context_key = np.zeros(n, dtype=np.uint64)
        self._signatures = np.zeros((n, limits.decisions), dtype=np.uint64)

    @property
    def live(self) -> IntArray:
        """Row numbers of the episodes that have not ended."""
        return np.flatnonzero(self.end_reason == EndReason.RUNNING)

    def left_usd(self, live: IntArray) -> FloatArray:
        """Return what may still be spent, [K] US$."""
        return np.asarray(np.maximum(self.tasks.budget_usd[live] - self.spent_usd[live], 0.0))

    def target_tier(self, live: IntArray) -> IntArray:
        """Return the tier that ESCALATE would lead to, [K]."""
        left = self.left_usd(live) / self.tasks.budget_usd[live]
        return choose_target(
            self.tier[live],
            self.n_tiers,
            ~self.has_answer[live],
            self.tasks.difficulty[live],
            left,
            self._escalation,
        )

    def mask(self, live: IntArray, quotes_usd: FloatArray) -> BoolArray:
        """Return what each episode may do next, [K, A].

        Args:
            live: [K] rows.
            quotes_usd: [K, A] worst-case price of each action, US$; infinite where it cannot be done at all (the
                prompt is too long, the recorded attempts are used up).
        """
        rows = np.arange(len(live))
        tier, target = self.tier[live], self.target_tier(live)
        answered = self.has_answer[live]
        cap = self.limits.attempts_per_tier
        is_more_allowed = (self.decisions[live] < self.limits.decisions - 1) & (
            self.elapsed_s[live] < self.tasks.time_limit_s[live]
        )
        allowed = np.zeros((len(live), N_ACTIONS), dtype=bool)
        is_attempt_left = self.attempts[live][rows, tier] < cap
        allowed[:, Action.RECURSE] = is_attempt_left
        allowed[:, Action.ESCALATE] = (target > tier) & (self.attempts[live][rows, target] < cap)
        allowed[:, Action.RETRY_COMPRESSED] = is_attempt_left & (self.attempts[live].sum(axis=1) > 0)
        allowed[:, Action.VERIFY] = (
            answered
            & self.tasks.has_verifier[live]
            & (self.has_code[live] | ~self.tasks.needs_code[live])
            & (self.verified[live] == UNVERIFIED)
            & (self.answer_verifications[live] < self.limits.verifications_per_answer)
        )
        allowed &= is_more_allowed[:, None] & (quotes_usd <= self.left_usd(live)[:, None])
        allowed[:, Action.STOP] = answered
        allowed[:, Action.ABORT] = True
        return allowed

    def observe(self, live: IntArray) -> FloatArray:
        """Return the state vectors [K, D]."""
        tasks, caps = self.tasks, self.limits
        answered, verified = self.has_answer[live], self.verified[live]
        confidence = self.confidence[live]
        attempts = self.attempts[live][np.arange(len(live)), self.tier[live]]
        columns = {
            "budget_left": self.left_usd(live) / tasks.budget_usd[live],
            "time_left": 1 - self.elapsed_s[live] / tasks.time_limit_s[live],
            "plan_progress": np.where(answered, np.array([0.5, 0.0, 1.0])[verified + 1], 0.0),
            "attempts": attempts / caps.attempts_per_tier,
            "retries": np.maximum(attempts - 1, 0) / max(caps.attempts_per_tier - 1, 1),
            "verification_failures": self.verification_failures[live] / caps.decisions,
            "verifications": self.verifications[live] / caps.decisions,
            "decisions": self.decisions[live] / caps.decisions,
            "difficulty": tasks.difficulty[live],
            "is_difficulty_known": tasks.is_difficulty_known[live],
            "risk": tasks.risk[live],
            "tier": self.tier[live] / max(self.n_tiers - 1, 1),
            "is_strongest": self.tier[live] == self.n_tiers - 1,
            "has_answer": answered,
            "has_code": self.has_code[live],
            "has_verifier": tasks.has_verifier[live],
            "is_unverified": answered & (verified == UNVERIFIED),
            "is_verified_passed": verified == VERIFIED_PASSED,
            "is_verified_failed": verified == VERIFIED_FAILED,
            "context_used": self.context_used[live],
            "confidence": np.nan_to_num(confidence, nan=0.0),
            "is_confidence_known": ~np.isnan(confidence),
            "is_coding": tasks.is_coding[live],
            "is_probed": ~np.isnan(tasks.probe_agreement[live]),
            "probe_agreement": np.nan_to_num(tasks.probe_agreement[live], nan=0.0),
            "probe_confidence": np.nan_to_num(tasks.probe_confidence[live], nan=0.0),
        }
        return encode_state(columns, self.previous_action[live])

    def apply(self, live: IntArray, mask: BoolArray, actions: IntArray, outcomes: Outcomes) -> None:
        """Carry the outcomes of one wave over into the episodes and end those that are over.

        Args:
            live: [K] rows.
            mask: [K, A] what was allowed.
            actions: [K] what was done.
            outcomes: what each led to.
        """
        self._apply_attempts(live, actions, outcomes)
        self._apply_verdicts(live, actions, outcomes)
        self.spent_usd[live] += outcomes.cost_usd
        self.elapsed_s[live] += outcomes.seconds
        self.unsafe[live] |= outcomes.unsafe
        self.previous_action[live] = actions
        self._end_repeated(live, (outcomes.passed != UNVERIFIED) | outcomes.has_answer)
        is_hopeless = (self.decisions[live] == 0) & (mask.sum(axis=1) == 1)
        self.decisions[live] += 1
        is_over = self.spent_usd[live] > self.tasks.budget_usd[live] * (1 + 1e-9)
        self.end_reason[live[is_over]] = EndReason.OVER_BUDGET
        self.end_reason[live[actions == Action.STOP]] = EndReason.STOPPED
        self.end_reason[live[actions == Action.ABORT]] = EndReason.ABORTED
        self.end_reason[live[(actions == Action.ABORT) & is_hopeless]] = EndReason.UNAFFORDABLE

    def _apply_attempts(self, live: IntArray, actions: IntArray, outcomes: Outcomes) -> None:
        """Count attempts, move tiers, and take new answers over; what was tried before becomes their context."""
        is_attempt = np.isin(actions, ATTEMPTS)
        escalated = actions == Action.ESCALATE
        self.tier[live[escalated]] = self.target_tier(live[escalated])
        rows = live[is_attempt]
        self.attempts[rows, self.tier[rows]] += 1
        self.context_used[rows] = outcomes.context_used[is_attempt]
        self._context_key[rows] = self._next_context(rows, actions[is_attempt])
        is_new = is_attempt & outcomes.has_answer
        rows = live[is_new]
        self.has_answer[rows] = True
        self.has_code[rows] = outcomes.has_code[is_new]
        self.confidence[rows] = outcomes.confidence[is_new]
        self.verified[rows] = UNVERIFIED
        self.answer_verifications[rows] = 0
        self._answer_key[rows] = outcomes.answer_key[is_new]

    def _next_context(self, rows: IntArray, actions: IntArray) -> KeyArray:
        """Return what identifies the context of an attempt: all history, the last failure only, or nothing."""
        verdict = (self.verified[rows] + 1).astype(np.uint64)
        last = mix_keys(self._answer_key[rows], verdict)
        history = np.where(self.has_answer[rows], mix_keys(self._context_key[rows], last), self._context_key[rows])
        is_failure_kept = (actions == Action.RETRY_COMPRESSED) & (self.verified[rows] == VERIFIED_FAILED)
        compressed = np.where(is_failure_kept, last, np.uint64(0))
        return np.where(actions == Action.RECURSE, history, compressed)

    def _apply_verdicts(self, live: IntArray, actions: IntArray, outcomes: Outcomes) -> None:
        is_verify = actions == Action.VERIFY
        rows = live[is_verify]
        self.verifications[rows] += 1
        self.answer_verifications[rows] += 1
        self.verified[rows] = outcomes.passed[is_verify]
        self.verification_failures[rows] += outcomes.passed[is_verify] == VERIFIED_FAILED

    def _end_repeated(self, live: IntArray, is_news: BoolArray) -> None:
        """End episodes whose tier, answer, verdict and context are as they were after an earlier decision.

        Only decisions that brought an answer or a verdict count: a call that failed may work the next time.
        """
        verdict = (self.verified[live] + 1).astype(np.uint64)
        signature = mix_keys(
            self.tier[live].astype(np.uint64), self._answer_key[live], verdict, self._context_key[live]
        )
        is_earlier = np.arange(self.limits.decisions) < self.decisions[live][:, None]
        is_seen = ((self._signatures[live] == signature[:, None]) & is_earlier).any(axis=1) & self.has_answer[live]
        self._signatures[live[is_news], self.decisions[live[is_news]]] = signature[is_news]
        self.end_reason[live[is_seen & is_news]] = EndReason.REPEATED_STATE
