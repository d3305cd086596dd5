"""Makes a bank of what an importer found: split, estimates, budgets, notes; and writes it.

BANK/…                   see bank.py
BANK/rejected.jsonl      records that could not be used: file, line, reason; absent if there are none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.config import BankBuildJob, BankConfig
from celr_ray.core.episodes import hash_text
from celr_ray.core.executor import draw_uniform
from celr_ray.core.models import load_tiers
from celr_ray.cortex.evaluation.bank import SPLITS, Bank, Split, make_bank, write_bank
from celr_ray.cortex.evaluation.bank_estimates import estimate_confidence, estimate_difficulty
from celr_ray.cortex.evaluation.bank_logs import import_logs
from celr_ray.cortex.evaluation.bank_rows import BankParts, TaskFacts
from celr_ray.cortex.evaluation.bank_sources import import_reflexion, import_routellm, import_runs
from celr_ray.errors import ConfigError, OutputError
from celr_ray.schema import BANK_ATTEMPT_SCHEMA, BANK_TASK_SCHEMA

__all__ = ["BankReport", "assemble_bank", "build_bank", "run_bank_build"]

_BUDGET_CALLS = 4
"""As in the executor: a task without a budget gets so many worst cases of the strongest tier."""
_FREE_BUDGET_USD = 1.0


@dataclass(frozen=True)
class BankReport:
    """What a build did: records read = attempts of the bank's sources + excluded + rejected + duplicates, by source."""

    bank: Bank
    rows_in: int
    excluded: Mapping[str, int]
    duplicates: int
    rejected: int

    def describe(self, out: str) -> str:
        """Return one line for people."""
        record = self.bank.to_json()
        tiers = ", ".join(tier.name for tier in self.bank.tiers)
        splits = ", ".join(f"{name} {count:,}" for name, count in record["splits"].items())
        line = f"{record['attempts']:,} attempts of {record['tasks']:,} tasks ({splits}) on {tiers}"
        if holes := record["tasks"] - record["complete_tasks"]:
            line += f"; {holes:,} tasks lack a fresh attempt on some tier and cannot be replayed"
        if self.rejected:
            line += f"; {self.rejected:,} of {self.rows_in:,} records rejected"
        return f"{line}; bank {self.bank.content_hash} in {out}"


def split_tasks(keys: Sequence[str], config: BankConfig) -> list[str]:
    """Return the split of each task, by a hash of the seed and what identifies it; equal texts fall into one split."""
    hashed = np.array([hash_text(key) for key in keys], dtype=np.uint64)
    uniform = draw_uniform(config.split_seed, hashed)
    edges = [1 - config.gate_fraction - config.validation_fraction, 1 - config.gate_fraction]
    return [SPLITS[position] for position in np.searchsorted(edges, uniform, side="right")]


def assemble_bank(parts: BankParts, config: BankConfig, *, splits: Mapping[str, Split] | None = None) -> Bank:
    """Put together what an importer found.

    Args:
        parts: attempts, facts, tiers.
        config: split, estimates, defaults.
        splits: of each task by its id, as for cross-validation; None = by hashes of the texts.

    Raises:
        InputError: the rows are not what a bank holds, or too few to train an estimate on.
        ConfigError: confidence cannot be estimated from this source.
    """
    attempted = {row["task_id"] for row in parts.attempts}
    ids = sorted(task_id for task_id in parts.tasks if task_id in attempted)
    facts = [parts.tasks[task_id] for task_id in ids]
    keys = [fact.text or task_id for task_id, fact in zip(ids, facts, strict=True)]
    split = split_tasks(keys, config) if splits is None else [splits[task_id] for task_id in ids]
    difficulty, is_known = estimate_difficulty(parts, ids, split, config)
    attempts = pa.Table.from_pylist(estimate_confidence(parts, ids, split, config), schema=BANK_ATTEMPT_SCHEMA)
    budget = config.default_budget_usd or _default_budget(parts)
    tasks = pa.table(
        {
            "task_id": ids,
            "domain": [fact.domain for fact in facts],
            "level": [fact.level for fact in facts],
            "split": split,
            "difficulty": difficulty,
            "is_difficulty_known": is_known,
            **{name: [getattr(f, name) for f in facts] for name in ("risk", "is_coding", "has_verifier", "needs_code")},
            "budget_usd": [fact.budget_usd or budget for fact in facts],
            "time_limit_s": [fact.time_limit_s or config.default_time_limit_s for fact in facts],
            "probe_agreement": [_probe(fact, "agreement", None) for fact in facts],
            "probe_confidence": [_probe(fact, "confidence", None) for fact in facts],
            "probe_usd": [_probe(fact, "cost_usd", 0.0) for fact in facts],
            "probe_s": [_probe(fact, "seconds", 0.0) for fact in facts],
        },
        schema=BANK_TASK_SCHEMA,
    )
    notes = {
        **parts.notes,
        "rows": _count(parts),
        "split_seed": config.split_seed if splits is None else "given",
        "difficulty": config.difficulty,
        "confidence": config.confidence,
    }
    return make_bank(parts.tiers, tasks, attempts, notes)


def _probe(fact: TaskFacts, name: str, default: float | None) -> float | None:
    return default if fact.probe is None else fact.probe[name]


def _default_budget(parts: BankParts) -> float:
    """Return some worst cases of the strongest tier, US$."""
    strongest = parts.tiers[-1].name
    worst = max(
        (max(row["cost_usd"], row["quote_usd"] or 0.0) for row in parts.attempts if row["tier"] == strongest),
        default=0.0,
    )
    return _BUDGET_CALLS * worst or _FREE_BUDGET_USD


def _count(parts: BankParts) -> dict[str, Any]:
    return {
        "in": parts.rows_in,
        "attempts": len(parts.attempts),
        "excluded": dict(sorted(parts.excluded.items())),
        "duplicates": parts.duplicates,
        "rejected": len(parts.rejected),
    }


def build_bank(job: BankBuildJob) -> tuple[Bank, BankParts]:
    """Import and assemble; nothing is written.

    Raises:
        ConfigError: the flags do not fit together.
        InputError: nothing usable was found.
    """
    parts = _import(job)
    return assemble_bank(parts, job.bank), parts


def _import(job: BankBuildJob) -> BankParts:
    if bool(job.logs) == bool(job.files):
        raise ConfigError("give either --logs (of celr-ray execute), or --source and --files")
    if job.logs:
        return import_logs(job.logs, load_tiers(job.tiers) if job.tiers else None)
    config = job.bank
    if job.source == "routellm":
        prices = {name: (float(pair[0]), float(pair[1])) for name, pair in config.prices.items()}
        return import_routellm(job.files, prices)
    if job.source == "reflexion":
        return import_reflexion(job.files, trial_usd=1.0 if config.trial_usd is None else config.trial_usd)
    if job.source == "runs":
        return import_runs(job.files, config.models or None, trial_usd=config.trial_usd)
    raise ConfigError("--files needs --source: routellm, runs or reflexion")


def run_bank_build(job: BankBuildJob) -> BankReport:
    """Build a bank and write it.

    Raises:
        OutputError: the folder holds something else, or another bank and no --overwrite.
    """
    bank, parts = build_bank(job)
    _prepare_folder(job, bank)
    rejected_uri = storage.join(job.out, "rejected.jsonl")
    if parts.rejected:
        lines = "".join(row.model_dump_json() + "\n" for row in parts.rejected)
        storage.write_bytes(rejected_uri, lines.encode())
    write_bank(job.out, bank)
    return BankReport(bank, parts.rows_in, parts.excluded, parts.duplicates, len(parts.rejected))


def _prepare_folder(job: BankBuildJob, bank: Bank) -> None:
    record = storage.join(job.out, "bank.json")
    if storage.stat(record) is None:
        if storage.list_files(job.out, recursive=True) and not job.overwrite:
            raise OutputError(f"{job.out} is not empty and holds no bank; choose a new folder")
        storage.check_writable(job.out)
        return
    if storage.read_json(record).get("content_hash") == bank.content_hash:
        return
    if not job.overwrite:
        raise OutputError(f"{job.out} holds another bank; choose a new folder, or --overwrite to replace it")
    storage.delete_file(record)
    storage.delete_file(storage.join(job.out, "rejected.jsonl"))
