"""A simulated bank on which live gates try the loopholes: real calls for policies that must fail would be wasted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.evaluation.bank import Bank, BankTier, make_bank
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.suites import BankSuite
from celr_ray.schema import BANK_ATTEMPT_SCHEMA, BANK_TASK_SCHEMA

__all__ = ["make_practice_bank", "make_practice_suite"]

_TASKS = 300
_ATTEMPTS = 4
_PRICES = (0.002, 0.02)


def make_practice_bank(seed: int, n_tasks: int = _TASKS) -> Bank:
    """Return a bank of two tiers: the strong one is better and ten times dearer; the verifier is right in nine of ten.

    Attempts of a task succeed with a chance that falls with its difficulty; all kinds of attempts are recorded.
    """
    random = np.random.default_rng(seed)
    difficulty = random.random(n_tasks)
    tasks = [_make_task(number, float(value)) for number, value in enumerate(difficulty)]
    attempts = [
        _make_attempt(random, f"practice/{number:04d}", tier, attempt, float(1 - value * (0.9, 0.4)[tier]), context)
        for number, value in enumerate(difficulty)
        for tier in range(len(_PRICES))
        for context in _CONTEXTS
        for attempt in range(_ATTEMPTS)
    ]
    tiers = [BankTier("cheap"), BankTier("strong")]
    notes = {"origin": "simulated", "seed": seed}
    return make_bank(
        tiers,
        pa.Table.from_pylist(tasks, BANK_TASK_SCHEMA),
        pa.Table.from_pylist(attempts, BANK_ATTEMPT_SCHEMA),
        notes,
    )


_CONTEXTS: tuple[dict[str, object], ...] = (
    {"kind": "fresh", "depth": 0, "prior_success": None, "prior_refuted": False},
    {"kind": "reflective", "depth": 1, "prior_success": False, "prior_refuted": False},
    {"kind": "reflective", "depth": 1, "prior_success": False, "prior_refuted": True},
    {"kind": "reflective", "depth": 1, "prior_success": True, "prior_refuted": False},
    {"kind": "reflective", "depth": 1, "prior_success": True, "prior_refuted": True},
    {"kind": "compressed", "depth": 0, "prior_success": False, "prior_refuted": True},
    {"kind": "compressed", "depth": 0, "prior_success": True, "prior_refuted": True},
)


def _make_task(number: int, difficulty: float) -> dict[str, object]:
    return {
        "task_id": f"practice/{number:04d}",
        "domain": "practice",
        "level": None,
        "split": "gate",
        "difficulty": difficulty,
        "is_difficulty_known": True,
        "risk": 0.0,
        "is_coding": False,
        "has_verifier": True,
        "needs_code": False,
        "budget_usd": 4 * _PRICES[-1],
        "time_limit_s": 3600.0,
        "probe_agreement": None,
        "probe_confidence": None,
        "probe_usd": 0.0,
        "probe_s": 0.0,
    }


def _make_attempt(
    random: np.random.Generator, task_id: str, tier: int, attempt: int, chance: float, context: dict[str, object]
) -> dict[str, object]:
    is_right = bool(random.random() < chance)
    return {
        **context,
        "task_id": task_id,
        "tier": ("cheap", "strong")[tier],
        "attempt": attempt,
        "seed": None,
        "success": is_right,
        "correctness": float(is_right),
        "has_answer": True,
        "has_code": False,
        "answer_key": int(random.integers(2**63)),
        "confidence": float(random.random()),
        "context_used": 0.1,
        "cost_usd": float(_PRICES[tier] * random.uniform(0.5, 1.0)),
        "quote_usd": _PRICES[tier],
        "seconds": 1.0,
        "prompt_tokens": 100,
        "output_tokens": 100,
        "unsafe": False,
        "verifier_passed": bool(is_right == (random.random() < 0.9)),
        "verifier_cost_usd": _PRICES[0] / 10,
        "verifier_seconds": 0.1,
        "source": "simulated",
    }


def make_practice_suite(config: GateConfig) -> BankSuite:
    """Return the simulated tasks under a gate's replays, seed and rules."""
    rules = config.model_copy(
        update={"split": "all", "cap_usd": None, "strict_cost": False, "verifier": None, "is_context_free": False}
    )
    return BankSuite(make_practice_bank(config.seed), rules, EscalationConfig())
