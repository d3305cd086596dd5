"""Banks for tests: of recorded shapes, with random outcomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from celr_ray.config import BankConfig
from celr_ray.cortex.evaluation.bank import Bank, BankTier
from celr_ray.cortex.evaluation.bank_build import assemble_bank
from celr_ray.cortex.evaluation.bank_rows import BankParts, TaskFacts, make_attempt

ALL_TRAIN = BankConfig(validation_fraction=0.0, gate_fraction=0.0)


def make_parts(n_tiers: int = 1) -> BankParts:
    return BankParts(tiers=[BankTier(f"tier{number}") for number in range(n_tiers)])


def add_fresh(parts: BankParts, task: str, tier: int, outcomes: Sequence[int], cost: float = 1.0, **more: Any) -> None:
    """Add fresh attempts of a task on a tier."""
    parts.tasks.setdefault(task, TaskFacts())
    for number, success in enumerate(outcomes):
        parts.attempts.append(
            make_attempt(
                task, f"tier{tier}", success=bool(success), cost_usd=cost, source="test", attempt=number, **more
            )
        )


def random_bank(seed: int, n_tasks: int = 30, n_tiers: int = 3) -> Bank:
    """Make a bank with every kind of attempt, verdicts, failed calls, unsafe and repeated answers, and holes."""
    random = np.random.default_rng(seed)
    parts = make_parts(n_tiers)
    for i in range(n_tasks):
        task = f"task/{i}"
        is_coding = bool(random.random() < 0.3)
        parts.tasks[task] = TaskFacts(
            domain="even" if i % 2 == 0 else "odd",
            difficulty=float(random.random()),
            is_difficulty_known=True,
            risk=float(random.random()),
            is_coding=is_coding,
            has_verifier=bool(random.random() < 0.8),
            needs_code=is_coding,
            budget_usd=float(random.choice([0.02, 0.5, 3.0])),
            time_limit_s=float(random.choice([20.0, 1000.0])),
            probe={"agreement": 1.0, "confidence": 0.5, "cost_usd": 0.001, "seconds": 1.0} if i % 3 == 0 else None,
        )
        for tier in range(n_tiers):
            _add_cells(parts, random, task, tier)
    return assemble_bank(parts, ALL_TRAIN)


def _add_cells(parts: BankParts, random: np.random.Generator, task: str, tier: int) -> None:
    contexts: list[dict[str, Any]] = [{}]
    for prior in (False, True):
        for refuted in (False, True):
            made_from = {"kind": "reflective", "prior_success": prior, "prior_refuted": refuted}
            contexts += [{**made_from, "depth": depth} for depth in (1, 2)]
        contexts.append({"kind": "compressed", "prior_success": prior, "prior_refuted": True})
    for number, made_from in enumerate(contexts):
        for attempt in range(int(random.integers(1 if number == 0 else 0, 4))):
            has_answer = bool(random.random() < 0.85)
            is_verified = has_answer and bool(random.random() < 0.7)
            verdict = None if random.random() < 0.1 else bool(random.random() < 0.5)
            parts.attempts.append(
                make_attempt(
                    task,
                    f"tier{tier}",
                    success=has_answer and bool(random.random() < 0.3 + 0.2 * tier),
                    cost_usd=float(random.uniform(0, 0.01)) * 5**tier,
                    source="test",
                    attempt=attempt,
                    seconds=float(random.uniform(0, 10)),
                    has_answer=has_answer,
                    has_code=bool(random.random() < 0.5),
                    confidence=float(random.random()) if random.random() < 0.8 else None,
                    context_used=float(random.uniform(0, 0.5)),
                    unsafe=bool(random.random() < 0.05),
                    answer_key=int(random.integers(0, 4)),
                    quote_usd=0.02 * 5**tier if random.random() < 0.5 else None,
                    verifier_passed=verdict if is_verified else None,
                    verifier_cost_usd=0.001 * (1 + tier) if is_verified else None,
                    verifier_seconds=1.0 if is_verified else None,
                    **made_from,
                )
            )


def tau_bench_bank(data: Path) -> Bank:
    """Make a bank of the 50 × 4 rewards of gpt-4o on tau-bench's airline tasks."""
    parts = make_parts()
    for line in (data / "tau_bench_airline_rewards.jsonl").read_text().splitlines():
        row = json.loads(line)
        task = f"tau_bench/airline/{row['task_id']}"
        parts.tasks.setdefault(task, TaskFacts(domain="airline"))
        parts.attempts.append(
            make_attempt(
                task, "tier0", success=row["reward"] == 1, cost_usd=1.0, source="tau_bench", attempt=row["trial"]
            )
        )
    return assemble_bank(parts, ALL_TRAIN)
