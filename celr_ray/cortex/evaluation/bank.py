"""The outcome bank: recorded attempts of tasks on model tiers, from which policies are replayed at no cost.

    BANK/bank.json          tiers, prices, sources, licences, counts, content hash
    BANK/tasks.parquet      schema.BANK_TASK_SCHEMA: what is known of a task before its first call, and its split
    BANK/attempts.parquet   schema.BANK_ATTEMPT_SCHEMA: success, cost, time, tokens, verdict and unsafe flag of one call

All figures of an attempt come from the same call: they are drawn together, never mixed. Attempts lie in cells: one for
each task, tier and context, where a context is all that an attempt was made from (nothing, or an earlier answer).
This module keeps and checks banks; `bank_build` makes them, `replay` plays them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray import storage
from celr_ray.core.episodes import KeyArray, TaskColumns, hash_text
from celr_ray.cortex.actions import FloatArray
from celr_ray.errors import InputError
from celr_ray.schema import BANK_ATTEMPT_SCHEMA, BANK_TASK_SCHEMA

__all__ = ["KINDS", "SPLITS", "Bank", "BankTier", "load_bank", "make_bank", "write_bank"]

FORMAT, VERSION = "celr-ray bank", 1

Split = Literal["train", "validation", "gate"]
SPLITS: tuple[Split, ...] = ("train", "validation", "gate")
KINDS = ("fresh", "reflective", "compressed")

_ATTEMPT_ORDER = (
    "task_id",
    "tier",
    "kind",
    "depth",
    "prior_success",
    "prior_refuted",
    "seed",
    "attempt",
    "answer_key",
    "cost_usd",
    "seconds",
    "success",
    "source",
)


@dataclass(frozen=True)
class BankTier:
    """One tier of the ladder that the attempts were recorded on.

    Attributes:
        name: as in the attempts.
        model: what it was.
        input_usd_per_mtok: price of a million prompt tokens, US$; None = the costs were recorded as such.
        output_usd_per_mtok: the same of generated tokens.
        max_attempt_usd: most that an attempt cost or was quoted at; the worst case where none was recorded.
        max_verification_usd: most that a verification of its answers cost.
    """

    name: str
    model: str | None = None
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    max_attempt_usd: float = 0.0
    max_verification_usd: float = 0.0


@dataclass(frozen=True)
class Bank:
    """A bank in memory; rows are in one order whatever they were built from.

    Attributes:
        tiers: weak to strong.
        tasks: [n] rows, by task_id.
        attempts: [N] rows.
        content_hash: of tiers, tasks and attempts of the whole bank; a part keeps the hash of the whole.
        notes: sources, licences and what was assumed, for people.
    """

    tiers: tuple[BankTier, ...]
    tasks: pa.Table
    attempts: pa.Table
    content_hash: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def task_ids(self) -> list[str]:
        """Ids of the tasks, in order."""
        ids: list[str] = self.tasks["task_id"].to_pylist()
        return ids

    @cached_property
    def task_keys(self) -> KeyArray:
        """[n] 64-bit hashes of the task ids, the same as live runs use."""
        return np.array([hash_text(task_id) for task_id in self.task_ids], dtype=np.uint64)

    def select(self, split: Split | None = None, *, task_ids: Sequence[str] | None = None) -> Bank:
        """Return the part of some tasks.

        Args:
            split: those of this split; None = of all.
            task_ids: of these only those.

        Raises:
            InputError: there is no such split, or an id is not in the bank.
        """
        keep = pa.array(np.ones(self.tasks.num_rows, dtype=bool))
        if split is not None:
            if split not in SPLITS:
                raise InputError(f"no split {split!r} in a bank; there are {', '.join(SPLITS)}")
            keep = pc.and_(keep, pc.equal(self.tasks["split"], split).combine_chunks())
        if task_ids is not None:
            if unknown := sorted(set(task_ids) - set(self.task_ids)):
                raise InputError(f"the bank has no task {unknown[0]!r} ({len(unknown)} of {len(task_ids)} are unknown)")
            keep = pc.and_(keep, pc.is_in(self.tasks["task_id"], value_set=pa.array(task_ids, pa.string())))
        tasks = self.tasks.filter(keep).combine_chunks()
        inside = pc.is_in(self.attempts["task_id"], value_set=tasks["task_id"].combine_chunks())
        return replace(self, tasks=tasks, attempts=self.attempts.filter(inside).combine_chunks())

    def complete(self) -> Bank:
        """Return the part of the tasks that have a fresh attempt on every tier.

        A policy that meets a hole in the records cannot be followed further there.
        """
        fresh = self.attempts.filter(pc.equal(self.attempts["kind"], "fresh")).select(["task_id", "tier"])
        tiers = fresh.group_by("task_id").aggregate([("tier", "count_distinct")])
        whole = tiers.filter(pc.equal(tiers["tier_count_distinct"], len(self.tiers)))["task_id"]
        if len(whole) == self.tasks.num_rows:
            return self
        return self.select(task_ids=whole.to_pylist())

    def task_columns(self, replays: int = 1) -> TaskColumns:
        """Return what episodes begin with, each task `replays` times in a row."""
        columns = {name: self.tasks[name].to_numpy() for name in BANK_TASK_SCHEMA.names[4:]}
        return TaskColumns(
            **{name: np.repeat(column, replays) for name, column in columns.items()},
            key=np.repeat(self.task_keys, replays),
        )

    def attempt_column(self, name: str) -> FloatArray:
        """Return a numeric or flag column of the attempts as [N] floats; null = NaN."""
        column = pc.cast(self.attempts[name], pa.float64())
        return np.asarray(column.to_numpy(), dtype=float)

    def to_json(self) -> dict[str, Any]:
        """Return what `bank.json` holds."""
        splits = self.tasks["split"].value_counts().to_pylist()
        return {
            "format": FORMAT,
            "version": VERSION,
            "content_hash": self.content_hash,
            "tiers": [asdict(tier) for tier in self.tiers],
            "tasks": self.tasks.num_rows,
            "complete_tasks": self.complete().tasks.num_rows,
            "splits": {name: next((s["counts"] for s in splits if s["values"] == name), 0) for name in SPLITS},
            "attempts": self.attempts.num_rows,
            "cells": _describe_cells(self),
            "notes": dict(self.notes),
        }


def _describe_cells(bank: Bank) -> list[dict[str, Any]]:
    """Count attempts by tier and kind."""
    grouped = bank.attempts.group_by(["tier", "kind"]).aggregate(
        [("task_id", "count_distinct"), ("success", "count"), ("verifier_passed", "count")]
    )
    rows = [
        {
            "tier": row["tier"],
            "kind": row["kind"],
            "tasks": row["task_id_count_distinct"],
            "attempts": row["success_count"],
            "with_verdict": row["verifier_passed_count"],
        }
        for row in grouped.to_pylist()
    ]
    names = [tier.name for tier in bank.tiers]
    return sorted(rows, key=lambda row: (names.index(row["tier"]), KINDS.index(row["kind"])))


def make_bank(
    tiers: Sequence[BankTier], tasks: pa.Table, attempts: pa.Table, notes: Mapping[str, Any] | None = None
) -> Bank:
    """Put a bank together: check it, order it, and find worst cases and content hash.

    Args:
        tiers: weak to strong; their worst cases are found here.
        tasks: rows of `BANK_TASK_SCHEMA`.
        attempts: rows of `BANK_ATTEMPT_SCHEMA`.
        notes: sources, licences and assumptions, JSON values.

    Raises:
        InputError: the rows are not what a bank holds; the message says which.
    """
    tasks = _cast(tasks, BANK_TASK_SCHEMA, "task").sort_by("task_id").combine_chunks()
    order = [(name, "ascending") for name in _ATTEMPT_ORDER]
    attempts = _cast(attempts, BANK_ATTEMPT_SCHEMA, "an attempt on").sort_by(order).combine_chunks()
    _check(tiers, tasks, attempts)
    priced = tuple(_price(tier, attempts) for tier in tiers)
    return Bank(priced, tasks, attempts, _hash_content(priced, tasks, attempts), notes or {})


def _cast(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """Return a table in the bank's columns.

    Raises:
        InputError: a column is missing, unknown or of another type, or a value is.
    """
    if odd := sorted(set(table.column_names) ^ set(schema.names)):
        raise InputError(f"not the columns of a bank: {', '.join(odd)} are missing or unknown")
    for column in schema:
        if not column.nullable:
            _refuse(pc.is_null(table[column.name]), table, what, f"has no {column.name}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise InputError(f"not the columns of a bank: {error}") from error


def _price(tier: BankTier, attempts: pa.Table) -> BankTier:
    own = attempts.filter(pc.equal(attempts["tier"], tier.name))
    cost, quote = pc.max(own["cost_usd"]).as_py() or 0.0, pc.max(own["quote_usd"]).as_py() or 0.0
    verification = pc.max(own["verifier_cost_usd"]).as_py() or 0.0
    return replace(tier, max_attempt_usd=max(cost, quote), max_verification_usd=verification)


def _check(tiers: Sequence[BankTier], tasks: pa.Table, attempts: pa.Table) -> None:
    """Raise InputError where rows contradict each other or cannot be meant."""
    names = [tier.name for tier in tiers]
    if not names or len(set(names)) != len(names):
        raise InputError(f"a bank needs tiers with different names, not {names}")
    for table, what in ((tasks, "task"), (attempts, "attempt")):
        if not table.num_rows:
            raise InputError(f"a bank needs at least one {what}")
    ids = tasks["task_id"].to_pylist()
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise InputError(f"task {twice!r} stands twice in the bank")
    problems = [
        (
            pc.invert(pc.is_in(attempts["task_id"], value_set=tasks["task_id"].combine_chunks())),
            "is of an unknown task",
        ),
        (pc.invert(pc.is_in(attempts["tier"], value_set=pa.array(names))), f"is on none of the tiers {names}"),
        (pc.invert(pc.is_in(attempts["kind"], value_set=pa.array(KINDS))), f"has a kind that is none of {KINDS}"),
        (pc.less(attempts["depth"], 0), "has a negative depth"),
        (_is_off(attempts["cost_usd"], 0, np.inf), "has no cost, or a negative one"),
        (_is_off(attempts["quote_usd"], 0, np.inf), "has a negative quote"),
        (_is_off(attempts["seconds"], 0, np.inf), "has no duration, or a negative one"),
        (_is_off(attempts["verifier_cost_usd"], 0, np.inf), "has a verification of negative cost"),
        (_is_off(attempts["verifier_seconds"], 0, np.inf), "has a verification of negative duration"),
        (_is_off(attempts["correctness"], 0, 1), "has a correctness outside of [0, 1]"),
        (_is_off(attempts["confidence"], 0, 1), "has a confidence outside of [0, 1]"),
        (_is_off(attempts["context_used"], 0, np.inf), "uses a negative share of its context window"),
        (pc.and_(attempts["success"], pc.invert(attempts["has_answer"])), "succeeds without an answer"),
        (
            pc.and_(pc.is_valid(attempts["verifier_passed"]), pc.is_null(attempts["verifier_cost_usd"])),
            "has a verdict but no cost of the verification (0 = free)",
        ),
    ]
    for wrong, text in problems:
        _refuse(wrong, attempts, "an attempt on", text)
    task_problems = [
        (pc.invert(pc.is_in(tasks["split"], value_set=pa.array(SPLITS))), f"has a split that is none of {SPLITS}"),
        (pc.invert(pc.greater(tasks["budget_usd"], 0)), "has no budget above 0"),
        (pc.invert(pc.greater(tasks["time_limit_s"], 0)), "has no time limit above 0"),
        (_is_off(tasks["difficulty"], 0, 1), "has a difficulty outside of [0, 1]"),
        (_is_off(tasks["risk"], 0, 1), "has a risk outside of [0, 1]"),
    ]
    for wrong, text in task_problems:
        _refuse(wrong, tasks, "task", text)


def _is_off(column: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    """Tell where a number is NaN, infinite or outside of its bounds; null is neither."""
    inside = pc.and_(pc.is_finite(column), pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))
    return pc.fill_null(pc.invert(inside), False)


def _refuse(wrong: pa.ChunkedArray, table: pa.Table, what: str, text: str) -> None:
    rows = np.flatnonzero(wrong.to_numpy())
    if len(rows):
        shown = table.slice(int(rows[0]), 1)["task_id"][0].as_py()
        raise InputError(f"{len(rows)} rows of the bank are wrong; first: {what} {shown!r} {text}")


def _hash_content(tiers: Sequence[BankTier], tasks: pa.Table, attempts: pa.Table) -> str:
    """Hash values, not bytes of files: the same bank has the same hash under every version of Parquet."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([asdict(tier) for tier in tiers], sort_keys=True).encode())
    for table in (tasks, attempts):
        for name in table.column_names:
            column = table[name].combine_chunks()
            digest.update(f"\n{name} {len(column)}\n".encode())
            digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
            if pa.types.is_string(column.type):
                values = [value or "" for value in column.to_pylist()]
                digest.update(np.array([len(v.encode()) for v in values], dtype="<i8").tobytes())
                digest.update("".join(values).encode())
            else:
                plain = pc.fill_null(column, 0) if column.type != pa.bool_() else pc.fill_null(column, False)
                values_array = plain.to_numpy(zero_copy_only=False)
                digest.update(np.ascontiguousarray(values_array).astype(values_array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def write_bank(uri: str, bank: Bank) -> None:
    """Write a whole bank to a folder; `bank.json` comes last and marks it as whole."""
    storage.write_parquet(storage.join(uri, "tasks.parquet"), bank.tasks)
    storage.write_parquet(storage.join(uri, "attempts.parquet"), bank.attempts)
    storage.write_json(storage.join(uri, "bank.json"), bank.to_json())


def load_bank(uri: str) -> Bank:
    """Read a bank and check that it is what was written.

    Raises:
        InputError: there is none, its files are damaged, or they were changed after it was made.
    """
    record_uri = storage.join(uri, "bank.json")
    if storage.stat(record_uri) is None:
        raise InputError(f"{uri} holds no bank: no bank.json there. Make one with `celr-ray bank build`.")
    record = storage.read_json(record_uri)
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise InputError(f"{record_uri} is no record of a {FORMAT}, version {VERSION}")
    try:
        tiers = tuple(BankTier(**tier) for tier in record["tiers"])
        stored = record["content_hash"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{record_uri} is damaged: {error}") from error
    tasks = _read_table(storage.join(uri, "tasks.parquet"), BANK_TASK_SCHEMA)
    attempts = _read_table(storage.join(uri, "attempts.parquet"), BANK_ATTEMPT_SCHEMA)
    bank = make_bank(tiers, tasks, attempts, record.get("notes"))
    if bank.content_hash != stored:
        raise InputError(f"the bank {uri} was changed after it was made: hash {bank.content_hash}, record {stored}")
    return bank


def _read_table(uri: str, schema: pa.Schema) -> pa.Table:
    try:
        return _cast(storage.read_parquet(uri), schema, "row of")
    except InputError as error:
        raise InputError(f"{uri}: {error}") from error
