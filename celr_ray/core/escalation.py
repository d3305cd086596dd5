"""The static heuristic: escalate, verify, retry, stop or give up by fixed thresholds; and the plainest baselines.

The heuristic is CELR's: difficulty, budget and history against thresholds. It is the policy that a learned one
replaces, the anchor that every gate compares with, and what stands in where a learned one cannot judge. All policies
here read nothing but the state vector and the mask, so that live runs and replays use the same code.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from celr_ray.cortex.actions import N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.state import FEATURE_INDEX, SCHEMA_HASH

__all__ = [
    "AlwaysCheap",
    "AlwaysStrong",
    "EscalationConfig",
    "HeuristicPolicy",
    "apply_rules",
    "choose_target",
    "one_hot",
]


class EscalationConfig(BaseModel):
    """The thresholds of the heuristic; shares are of the task's budget and of the cap on retries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    abort_budget: float = Field(0.05, ge=0, le=1, description="give up below this share of the budget")
    hard_difficulty: float = Field(0.7, ge=0, le=1, description="from here, the first attempt is the strongest tier's")
    hard_budget: float = Field(0.10, ge=0, le=1, description="budget share that such a first attempt needs")
    medium_difficulty: float = Field(0.4, ge=0, le=1, description="from here, the first attempt is one tier up")
    escalate_difficulty: float = Field(0.8, ge=0, le=1, description="above it, a refuted answer may escalate")
    escalate_retries: float = Field(0.3, ge=0, le=1, description="… once more than this share of retries is used")
    compress_retries: float = Field(0.6, ge=0, le=1, description="above it, retries drop their history")
    abort_retries: float = Field(0.9, ge=0, le=1, description="above it, a refuted answer is given up")


def choose_target(
    tier: IntArray,
    n_tiers: int,
    is_first: BoolArray,
    difficulty: FloatArray,
    budget_left: FloatArray,
    config: EscalationConfig,
) -> IntArray:
    """Return the tier that ESCALATE leads to: one up; for a hard task without an answer, the strongest.

    Args:
        tier: [K] current tiers.
        n_tiers: length of the ladder.
        is_first: [K] no answer yet.
        difficulty: [K] estimates.
        budget_left: [K] shares of the budgets.
        config: `hard_difficulty` and `hard_budget` decide.
    """  # fmt: skip
    is_hard = is_first & (difficulty >= config.hard_difficulty) & (budget_left >= config.hard_budget)
    return np.where(is_hard, n_tiers - 1, np.minimum(tier + 1, n_tiers - 1))


def one_hot(actions: IntArray) -> FloatArray:
    """Return the probabilities [K, A] of a deterministic choice."""
    probabilities = np.zeros((len(actions), N_ACTIONS))
    probabilities[np.arange(len(actions)), actions] = 1.0
    return probabilities


def apply_rules(rules: list[tuple[BoolArray, Action]], mask: BoolArray) -> FloatArray:
    """Take for each state the first rule that holds and whose action its mask allows; ABORT where none does."""
    chosen = np.full(len(mask), int(Action.ABORT))
    is_open = np.ones(len(mask), dtype=bool)
    for holds, action in rules:
        hit = is_open & holds & mask[:, action]
        chosen[hit] = action
        is_open &= ~hit
    return one_hot(chosen)


class HeuristicPolicy:
    """CELR's static thresholds; an action that the mask forbids falls to the next rule."""

    start_tier = 0

    def __init__(self, config: EscalationConfig | None = None) -> None:
        """Use these thresholds; None = CELR's own."""
        self.config = config or EscalationConfig()
        self.name = "heuristic"
        text = json.dumps([self.name, self.config.model_dump(), SCHEMA_HASH], sort_keys=True)
        self.content_hash = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        config = self.config
        budget, difficulty, retries = (obs[:, FEATURE_INDEX[n]] for n in ("budget_left", "difficulty", "retries"))
        names = ("has_answer", "has_verifier", "is_unverified", "is_verified_passed", "is_verified_failed")
        answered, verifiable, unverified, passed, failed = (obs[:, FEATURE_INDEX[n]] > 0.5 for n in names)
        rules = [
            (budget < config.abort_budget, Action.ABORT),
            (
                ~answered & (difficulty >= config.hard_difficulty) & (budget >= config.hard_budget),
                Action.ESCALATE,
            ),
            (~answered & (difficulty >= config.medium_difficulty), Action.ESCALATE),
            (~answered, Action.RECURSE),
            (unverified & verifiable, Action.VERIFY),
            (unverified | passed, Action.STOP),
            (failed & (difficulty > config.escalate_difficulty) & (retries > config.escalate_retries), Action.ESCALATE),
            (failed & (retries > config.compress_retries), Action.RETRY_COMPRESSED),
            (failed & (retries > config.abort_retries), Action.ABORT),
            (failed, Action.RECURSE),
        ]
        return apply_rules(rules, mask)


class _OneAnswer:
    """Takes the first answer of one tier, unverified."""

    start_tier = 0
    name = ""

    def __init__(self) -> None:
        self.content_hash = hashlib.blake2b(f"{self.name} {SCHEMA_HASH}".encode(), digest_size=8).hexdigest()

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        answered = obs[:, FEATURE_INDEX["has_answer"]] > 0.5
        return apply_rules([(answered, Action.STOP), (~answered, Action.RECURSE)], mask)


class AlwaysCheap(_OneAnswer):
    """Takes the first answer of the cheapest tier."""

    name = "always-cheap"


class AlwaysStrong(_OneAnswer):
    """Takes the first answer of the strongest tier."""

    name = "always-strong"
    start_tier = -1
