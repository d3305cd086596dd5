"""Estimates in a bank that are learned from it: difficulty of tasks, confidence of answers; from training tasks only.

A training task's own estimate comes out of fold: it has not seen its own outcome, and is as uncertain as one of the
gate. Folds go by the task's text, so equal texts share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celr_ray.config import BankConfig
from celr_ray.core.episodes import hash_text, mix_keys
from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.difficulty_model import load_difficulty
from celr_ray.cortex.evaluation.bank_rows import BankParts
from celr_ray.errors import ConfigError

__all__ = ["estimate_confidence", "estimate_difficulty"]

_NEUTRAL_DIFFICULTY = 0.5
_FOLDS = 5


def estimate_difficulty(
    parts: BankParts, ids: Sequence[str], splits: Sequence[str], config: BankConfig
) -> tuple[FloatArray, list[bool]]:
    """Return the difficulty of each task, [n], and whether it is an estimate.

    Args:
        parts: what the importer found.
        ids: [n] tasks.
        splits: [n] their splits.
        config: `difficulty` decides.

    Raises:
        InputError: there are too few training tasks, or of one outcome.
    """
    facts = [parts.tasks[task_id] for task_id in ids]
    given = np.array([_NEUTRAL_DIFFICULTY if fact.difficulty is None else fact.difficulty for fact in facts])
    texts = [fact.text or "" for fact in facts]
    if config.difficulty == "as-recorded":
        return given, [fact.is_difficulty_known for fact in facts]
    if config.difficulty != "train":
        model = load_difficulty(config.difficulty)
        return model.predict(texts), [model.is_trained] * len(facts)
    failed = _first_failures(parts, ids)
    return _cross_fit(texts, failed, np.array(splits), config.split_seed), [True] * len(facts)


def _first_failures(parts: BankParts, ids: Sequence[str]) -> FloatArray:
    """Return for each task the share of the cheapest tier's fresh attempts that failed, NaN = none."""
    cheapest = parts.tiers[0].name
    outcomes: dict[str, list[bool]] = {task_id: [] for task_id in ids}
    for row in parts.attempts:
        if row["tier"] == cheapest and row["kind"] == "fresh":
            outcomes[row["task_id"]].append(not row["success"])
    return np.array([np.mean(found) if found else np.nan for found in outcomes.values()])


def _cross_fit(texts: Sequence[str], failed: FloatArray, splits: Any, seed: int) -> FloatArray:
    """Estimate difficulty from texts with training tasks only, and theirs out of fold."""
    from celr_ray.cortex.difficulty import train_difficulty

    fold = _fold(texts, seed)
    is_train = (splits == "train") & ~np.isnan(failed)
    estimates = np.full(len(texts), _NEUTRAL_DIFFICULTY)

    def estimate(rows: Any, learned_from: Any) -> None:
        chosen = np.flatnonzero(learned_from)
        own = [texts[row] for row in chosen]
        model, _ = train_difficulty(own, failed[chosen] >= 0.5, own, seed=seed)
        estimates[rows] = model.predict([texts[row] for row in np.flatnonzero(rows)])

    estimate(splits != "train", is_train)
    for number in range(_FOLDS):
        rows = (splits == "train") & (fold == number)
        if rows.any():
            estimate(rows, is_train & (fold != number))
    return estimates


def _fold(texts: Sequence[str], seed: int) -> IntArray:
    keys = np.array([hash_text(text) for text in texts], dtype=np.uint64)
    return (mix_keys(seed, keys) % np.uint64(_FOLDS)).astype(np.int64)


def estimate_confidence(
    parts: BankParts, ids: Sequence[str], splits: Sequence[str], config: BankConfig
) -> list[dict[str, Any]]:
    """Return the attempts, their confidence as recorded or estimated from question and answer, one model for each tier.

    Args:
        parts: what the importer found, with the answers' texts.
        ids: [n] tasks.
        splits: [n] their splits.
        config: `confidence` decides.

    Raises:
        ConfigError: the source gives no texts of answers.
        InputError: there are too few training answers on a tier, or of one outcome.
    """
    if config.confidence == "as-recorded":
        return parts.attempts
    if not parts.answers:
        raise ConfigError(
            "--bank.confidence train needs the texts of questions and answers; of these sources only routellm's files "
            "with responses have them. Leave it as-recorded"
        )
    split_of = dict(zip(ids, splits, strict=True))
    confidence = np.full(len(parts.attempts), np.nan)
    for tier in parts.tiers:
        rows = np.array([row for row in parts.answers if parts.attempts[row]["tier"] == tier.name], dtype=np.int64)
        if len(rows):
            confidence[rows] = _estimate_tier(parts, rows, split_of, config.split_seed)
    return [
        attempt if np.isnan(value) else {**attempt, "confidence": float(value)}
        for attempt, value in zip(parts.attempts, confidence, strict=True)
    ]


def _estimate_tier(parts: BankParts, rows: IntArray, split_of: dict[str, str], seed: int) -> FloatArray:
    """Return P(right) of the answers of one tier, [K]."""
    from celr_ray.cortex.answer_confidence import estimate_out_of_fold, train_confidence

    attempts = [parts.attempts[row] for row in rows]
    questions = [parts.tasks[attempt["task_id"]].text or "" for attempt in attempts]
    answers = [parts.answers[row] for row in rows.tolist()]
    right = np.array([attempt["success"] for attempt in attempts], dtype=bool)
    is_train: BoolArray = np.array([split_of[attempt["task_id"]] == "train" for attempt in attempts])

    def take(texts: Sequence[str], chosen: BoolArray) -> list[str]:
        return [text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen]

    own = (take(questions, is_train), take(answers, is_train), right[is_train])
    estimates: NDArray[np.float64] = np.empty(len(rows))
    estimates[is_train] = estimate_out_of_fold(*own, _fold(own[0], seed), seed=seed)
    if not is_train.all():
        model, _ = train_confidence(*own, seed=seed)
        estimates[~is_train] = model.predict(take(questions, ~is_train), take(answers, ~is_train))
    return estimates
