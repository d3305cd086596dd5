"""Reader of Reflexion trial results (noahshinn/reflexion): records of {name, memory, is_success, trial?}.

A record is the state of one environment after one trial. It holds no conversation, so `messages` is empty.
`memory` is no substitute: its texts are written after failed trials and say that they failed. A solved
environment is not run again; its records in later trials repeat the success, and their `n_retries` is null.
"""

from __future__ import annotations

import re

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import Count, LogReader, ParsedRun, SourceContext, make_task_id, single_record_reader

_DOMAINS = ("alfworld", "webshop", "hotpotqa", "hotpot")
_TRIAL = re.compile(r"trial_(\d{1,9})\b")


class _Trial(msgspec.Struct, gc=False):
    name: str
    memory: list[str]
    is_success: bool
    trial: Count | None = None
    domain: str | None = None
    source_domain: str | None = msgspec.field(default=None, name="_domain")


def _find_domain(record: _Trial, context: SourceContext) -> str:
    """Return the environments' family: every family has its own env_0.

    Raises:
        RecordError: neither the record nor the file's path tells it.
    """
    own = record.domain or record.source_domain
    if own and own.strip():
        return own.strip().removesuffix("_runs")
    for part in reversed(f"{context.folder}/{context.file_name}".lower().split("/")):
        for domain in _DOMAINS:
            if domain in part:
                return domain
    raise RecordError(
        f"no domain: {record.name[:40]!r} exists in several; put alfworld, webshop or hotpotqa into the file's name or "
        'folder, or "domain" into the record'
    )


def _parse(record: _Trial, context: SourceContext) -> ParsedRun:
    domain = _find_domain(record, context)
    named = _TRIAL.search(context.file_name)
    trial = record.trial if record.trial is not None else int(named[1]) if named else None
    is_repeat = record.is_success and trial != len(record.memory)
    return ParsedRun(
        task_id=make_task_id("reflexion", domain, record.name),
        messages=[],
        status="SUCCESS" if record.is_success else "FAILED",
        domain=domain,
        success=record.is_success,
        n_retries=None if is_repeat else trial,
        file_key="" if record.trial is not None or trial is None else f"trial-{trial}",
    )


REFLEXION = LogReader(
    "reflexion",
    lambda keys: {"name", "memory", "is_success"} <= keys,
    single_record_reader(msgspec.json.Decoder(_Trial), _parse),
    lacks=(
        "model",
        "prompt",
        "reward",
        "cost_usd",
        "budget_limit_usd",
        "duration_s",
        "n_steps",
        "n_steps_completed",
    ),
    unmapped=("memory",),
)
