"""What importers hand over: attempts, facts of tasks, tiers and notes, in rows with defaults for what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celr_ray.core.episodes import hash_text
from celr_ray.cortex.evaluation.bank import BankTier
from celr_ray.schema import QuarantineRow

__all__ = ["CHARACTERS_PER_TOKEN", "BankParts", "TaskFacts", "estimate_tokens", "make_attempt"]

CHARACTERS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English text."""


@dataclass
class TaskFacts:
    """What a source says of a task; None = it does not.

    Attributes:
        domain, level: where it belongs.
        text: what was asked; for the difficulty estimate, and to put equal tasks into one split. Not stored.
        difficulty: an estimate that was known before the first call.
        is_difficulty_known: it is one, not a neutral constant.
        risk: prior risk of an unsafe act.
        is_coding, has_verifier, needs_code: flags.
        budget_usd, time_limit_s: what it might cost and take.
        probe: agreement, confidence, cost_usd and seconds of the probe.
    """

    domain: str | None = None
    level: str | None = None
    text: str | None = None
    difficulty: float | None = None
    is_difficulty_known: bool = False
    risk: float = 0.0
    is_coding: bool = False
    has_verifier: bool = False
    needs_code: bool = False
    budget_usd: float | None = None
    time_limit_s: float | None = None
    probe: Mapping[str, float] | None = None


@dataclass
class BankParts:
    """All that one importer found.

    Attributes:
        tiers: weak to strong.
        tasks: by task_id.
        attempts: rows of `BANK_ATTEMPT_SCHEMA`.
        answers: text of the answer by position in `attempts`, where the source has it; for estimates, not stored.
        rejected: records that could not be used.
        excluded: usable records that are no attempts of a bank, counted by reason.
        duplicates: attempts that were there already.
        rows_in: records read.
        notes: sources, licences and assumptions.
    """

    tiers: list[BankTier]
    tasks: dict[str, TaskFacts] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)
    rejected: list[QuarantineRow] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    rows_in: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def exclude(self, reason: str, rows: int = 1) -> None:
        """Count records that are left out on purpose."""
        self.excluded[reason] = self.excluded.get(reason, 0) + rows


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: one for every four characters, at least one."""
    return max(-(-len(text) // CHARACTERS_PER_TOKEN), 1)


def make_attempt(
    task_id: str, tier: str, *, success: bool, cost_usd: float, source: str, **more: Any
) -> dict[str, Any]:
    """Return a row of `BANK_ATTEMPT_SCHEMA`; without further columns, a fresh and safe attempt, never verified.

    Where `answer_key` is absent the answers are not known, and each counts as different from all others.
    """
    row = {
        "task_id": task_id,
        "tier": tier,
        "kind": "fresh",
        "depth": 0,
        "prior_success": None,
        "prior_refuted": False,
        "attempt": 0,
        "seed": None,
        "success": success,
        "correctness": float(success),
        "has_answer": True,
        "has_code": False,
        "confidence": None,
        "context_used": 0.0,
        "cost_usd": cost_usd,
        "quote_usd": None,
        "seconds": 0.0,
        "prompt_tokens": 0,
        "output_tokens": 0,
        "unsafe": False,
        "verifier_passed": None,
        "verifier_cost_usd": None,
        "verifier_seconds": None,
        "source": source,
        **more,
    }
    if "answer_key" not in row:
        made_from = [row[name] for name in ("task_id", "tier", "kind", "depth", "attempt", "seed", "source")]
        row["answer_key"] = hash_text(repr(made_from))
    return row
