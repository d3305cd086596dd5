"""The attempts of a bank as arrays, sorted into cells, so that a wave of draws is a few array look-ups.

A cell holds the attempts of one task, tier and context; within it they are exchangeable. The context is all that an
attempt was made from, as far as it moves the outcome:

    fresh                      the task alone was sent; also an ESCALATE, and a RETRY_COMPRESSED without known failure
    reflective, d, right, r    the talk with its d answers; the last one was right or wrong, refuted (r) or not
    compressed, right          the task and the last failure; the refuted answer was right or wrong

Depth and the earlier answer's truth matter: a second reflection was recorded only where the first had failed, so
drawing from all reflections of a task alike would find successes too early. The truth is the world's own knowledge; no
policy sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from celr_ray.core.episodes import KeyArray, mix_keys
from celr_ray.core.executor import draw_uniform
from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.bank import KINDS, Bank

__all__ = [
    "FRESH",
    "MAX_DEPTH",
    "Cells",
    "compressed_context",
    "depth_of",
    "index_bank",
    "kind_of",
    "reflective_context",
    "twin_context",
]

FRESH = 0
MAX_DEPTH = 255
"""Talks with more answers count as this deep."""

_UNKNOWN = 2
_COMPRESSED = 1 + 6 * (MAX_DEPTH + 1)
_N_CODES = _COMPRESSED + 3
_CODES = np.arange(_N_CODES)
_KINDS: IntArray = np.where(_CODES == FRESH, 0, np.where(_CODES < _COMPRESSED, 1, 2))
_TWINS: IntArray = np.where(
    _KINDS == 1,
    np.where((_CODES - 1) // 2 % 3 == _UNKNOWN, _CODES, np.where((_CODES - 1) // 2 % 3 == 0, _CODES + 2, _CODES - 2)),
    np.where(_CODES == _COMPRESSED, _CODES + 1, np.where(_CODES == _COMPRESSED + 1, _CODES - 1, _CODES)),
)
_DEPTHS: IntArray = np.where(_KINDS == 1, (_CODES - 1) // 6, 0)


def reflective_context(depth: IntArray, prior_success: IntArray, prior_refuted: BoolArray) -> IntArray:
    """Return the code of a request to improve, [K].

    Args:
        depth: [K] answers in the talk, 1 and more.
        prior_success: [K] the last one is right: 0, 1, or 2 = unknown.
        prior_refuted: [K] the verifier refuted it.
    """
    return np.asarray(1 + (np.minimum(depth, MAX_DEPTH) * 3 + prior_success) * 2 + prior_refuted)


def compressed_context(prior_success: IntArray) -> IntArray:
    """Return the code of an attempt from the last failure alone, [K]."""
    return _COMPRESSED + prior_success


def depth_of(context: IntArray) -> IntArray:
    """Return how many answers were in the talk that was sent, [K]."""
    return _DEPTHS[context]


def twin_context(context: IntArray) -> IntArray:
    """Return the contexts in which an earlier answer's truth is the other one, [K]; itself where there is none."""
    return _TWINS[context]


def kind_of(context: IntArray) -> IntArray:
    """Return the kind, [K], as a position in `bank.KINDS`."""
    return _KINDS[context]


@dataclass(frozen=True)
class Cells:
    """A bank's attempts [N], sorted by cell, and where each cell begins. T tiers, C contexts that occur, n tasks.

    Attributes:
        n_tiers: T.
        column_of: by context code, its column among the C, −1 = it occurs nowhere.
        n_contexts: C.
        codes: [C] the contexts' codes.
        start: [n·T·C + 1] first row of each cell; cell = (task · T + tier) · C + column.
        quote_usd: [n·T·C] worst-case price of a draw; that of the tier where the cell is empty.
        is_evaluable: [T, 3] the bank has attempts of this kind on this tier at all.
        verification_usd: [T] worst-case price of a verification; NaN = none was recorded on the tier.
        key: [N] identify the attempts, whatever else the bank holds.
        tier, success, correctness, …: [N] columns of the attempts; `verdict` is 1, 0 or −1 = none was given.
    """

    n_tiers: int
    column_of: IntArray
    n_contexts: int
    codes: IntArray
    start: IntArray
    quote_usd: FloatArray
    is_evaluable: BoolArray
    verification_usd: FloatArray
    key: KeyArray
    tier: IntArray
    success: FloatArray
    correctness: FloatArray
    cost_usd: FloatArray
    seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    has_answer: BoolArray
    has_code: BoolArray
    answer_key: KeyArray
    confidence: FloatArray
    context_used: FloatArray
    unsafe: BoolArray
    verdict: IntArray
    is_verified: BoolArray
    verifier_cost_usd: FloatArray
    verifier_seconds: FloatArray

    def count(self, cell: IntArray) -> IntArray:
        """Return how many attempts cells hold."""
        return np.asarray(self.start[cell + 1] - self.start[cell])

    def shuffle(self, seed: int, replays: int) -> NDArray[np.int32]:
        """Return the order of draws, [replays, N]: rows, shuffled within their cells.

        A row's place depends on the seed, the task, the tier, the context and the replay, on nothing that a policy
        does: all policies meet the same draws.
        """
        n_rows = len(self.key)
        cell = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        order = np.empty((replays, n_rows), dtype=np.int32)
        for replay in range(replays):
            order[replay] = np.lexsort((draw_uniform(seed, self.key, replay), cell))
        return order


def index_bank(bank: Bank) -> Cells:
    """Sort the attempts of a bank into cells."""
    attempts, n_tiers = bank.attempts, len(bank.tiers)
    task = _codes(attempts["task_id"], bank.task_ids)
    tier = _codes(attempts["tier"], [tier.name for tier in bank.tiers])
    kind = _codes(attempts["kind"], list(KINDS))
    context = _contexts(bank, kind)
    contexts = np.unique(context)
    column_of = np.full(_N_CODES, -1)
    column_of[contexts] = np.arange(len(contexts))
    cell = (task * n_tiers + tier) * len(contexts) + column_of[context]
    order = np.argsort(cell, kind="stable")
    n_cells = len(bank.task_ids) * n_tiers * len(contexts)
    start = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=n_cells))])
    is_evaluable = np.zeros((n_tiers, len(KINDS)), dtype=bool)
    is_evaluable[tier, kind] = True
    number = np.arange(len(order)) - start[cell[order]]
    key = mix_keys(bank.task_keys[task[order]], tier[order], context[order], number)
    columns: dict[str, Any] = {name: _column(bank, name)[order] for name in _FLOATS}
    flags: dict[str, Any] = {name: _column(bank, name)[order] > 0 for name in ("has_answer", "has_code", "unsafe")}
    tokens: dict[str, Any] = {name: _column(bank, name)[order].astype(np.int64) for name in _TOKENS}
    return Cells(
        n_tiers=n_tiers,
        column_of=column_of,
        n_contexts=len(contexts),
        start=start,
        quote_usd=_quotes(bank, cell, n_cells, len(contexts)),
        is_evaluable=is_evaluable,
        verification_usd=_verification_prices(bank, tier),
        key=key,
        tier=tier[order],
        codes=contexts,
        answer_key=_answer_keys(bank)[order],
        verdict=_verdicts(bank)[order],
        is_verified=attempts["verifier_cost_usd"].is_valid().to_numpy()[order],
        verifier_cost_usd=np.nan_to_num(_column(bank, "verifier_cost_usd"))[order],
        verifier_seconds=np.nan_to_num(_column(bank, "verifier_seconds"))[order],
        **flags,
        **tokens,
        **columns,
    )


_FLOATS = ("success", "correctness", "cost_usd", "seconds", "confidence", "context_used")
_TOKENS = ("prompt_tokens", "output_tokens")


def _column(bank: Bank, name: str) -> FloatArray:
    return bank.attempt_column(name)


def _codes(column: Any, values: list[str]) -> IntArray:
    return np.asarray(pc.index_in(column, value_set=pa.array(values, pa.string())).to_numpy(), dtype=np.int64)


def _contexts(bank: Bank, kind: IntArray) -> IntArray:
    prior = bank.attempt_column("prior_success")
    truth = np.where(np.isnan(prior), _UNKNOWN, prior).astype(np.int64)
    depth = bank.attempts["depth"].to_numpy()
    refuted = bank.attempt_column("prior_refuted") > 0
    reflective = reflective_context(depth, truth, refuted)
    return np.where(kind == 0, FRESH, np.where(kind == 1, reflective, compressed_context(truth)))


def _answer_keys(bank: Bank) -> KeyArray:
    return np.asarray(bank.attempts["answer_key"].to_numpy(), dtype=np.uint64)


def _verdicts(bank: Bank) -> IntArray:
    passed = bank.attempt_column("verifier_passed")
    return np.where(np.isnan(passed), -1, passed).astype(np.int64)


def _quotes(bank: Bank, cell: IntArray, n_cells: int, n_contexts: int) -> FloatArray:
    """Return the worst case of each cell: the highest recorded quote or cost in it, the tier's where quotes miss."""
    caps = np.array([tier.max_attempt_usd for tier in bank.tiers])
    by_cell = np.tile(np.repeat(caps, n_contexts), len(bank.task_ids))
    recorded = bank.attempt_column("quote_usd")
    tier = (cell // n_contexts) % len(bank.tiers)
    own = np.maximum(np.where(np.isnan(recorded), caps[tier], recorded), bank.attempt_column("cost_usd"))
    highest = np.full(n_cells, -np.inf)
    np.maximum.at(highest, cell, own)
    return np.where(np.isfinite(highest), highest, by_cell)


def _verification_prices(bank: Bank, tier: IntArray) -> FloatArray:
    is_verified = bank.attempts["verifier_cost_usd"].is_valid().to_numpy()
    has_any = np.bincount(tier[is_verified], minlength=len(bank.tiers)) > 0
    return np.where(has_any, [one.max_verification_usd for one in bank.tiers], np.nan)
