"""Collects quarantine, exports and settings: everything that needs no statistics."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from celr_ray import storage
from celr_ray.redact import redact_text
from celr_ray.report.data import Capped, DataSet, ExportData, ExportFile, QuarantineData, RejectedRow, RejectionKind
from celr_ray.report.reading import count_lines, count_parquet_rows, iter_json_lines, list_done_parts
from celr_ray.run_folder import read_plan

MAX_REJECTED = 20
MAX_REASONS = 20
MAX_FILES = 100
MAX_SETTINGS = 60
MAX_QUARANTINE_BYTES = 64 * 2**20
MAX_COUNTED_BYTES = 64 * 2**20
_BEGINNING_CHARACTERS = 160
_SECRET = re.compile(r"(^|_|\.|-)(token|secret|password|api_?key|access_?key)$", re.IGNORECASE)


def collect_quarantine(run: str, n_rejected: int) -> QuarantineData:
    """Count the rejected records by reason, reading at most MAX_QUARANTINE_BYTES of them.

    Reasons are of one kind if they are equal up to the first colon: what follows differs from record to record.
    """
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    first: list[RejectedRow] = []
    left = MAX_QUARANTINE_BYTES
    for _, uri in list_done_parts(run, "ingest", "quarantine", "jsonl"):
        for row, n_bytes in iter_json_lines(uri, left):
            kind = row["reason"].split(":", 1)[0]
            kinds[kind] += 1
            if kind not in examples:
                examples[kind] = redact_text(row["reason"])[0]
            left -= n_bytes
            if len(first) < MAX_REJECTED:
                beginning = redact_text(row["raw"])[0][:_BEGINNING_CHARACTERS]
                reason = redact_text(row["reason"])[0]
                first.append(RejectedRow(row["file"], row["line"], row["offset"], reason, beginning))
        if left <= 0:
            break
    n_counted = kinds.total()
    n_rejected = max(n_rejected, n_counted)
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    reasons = [RejectionKind(kind, kinds[kind], examples[kind]) for kind in ordered[:MAX_REASONS]]
    return QuarantineData(n_rejected, n_counted, Capped(reasons, len(ordered)), Capped(first, n_rejected))


def collect_exports(run: str, counts: Mapping[str, int]) -> ExportData:
    """List the exported files with their rows, and the losses that the stage counted."""
    folder = storage.join(run, "exports")
    base = storage.resolve(folder)[1]
    stored = storage.list_files(folder, recursive=True)
    files = []
    for file in stored[:MAX_FILES]:
        path = storage.resolve(file.uri)[1].removeprefix(base).lstrip("/")
        files.append(ExportFile(path, file.size_bytes, _count_file_rows(file)))
    losses = _with_prefix(counts, "losses.")
    n_test = dict(_with_prefix(counts, "test_rows."))
    rows = _with_prefix(counts, "rows.")
    data_sets = [DataSet(name, n, n_test.get(name, 0) if n_test else None) for name, n in rows]
    return ExportData(data_sets, Capped(files, len(stored)), losses)


def _with_prefix(counts: Mapping[str, int], prefix: str) -> list[tuple[str, int]]:
    return [(name.removeprefix(prefix), n) for name, n in sorted(counts.items()) if name.startswith(prefix)]


def _count_file_rows(file: storage.StoredFile) -> int | None:
    if file.uri.endswith(".parquet"):
        return count_parquet_rows(file.uri)
    if file.uri.endswith(".jsonl") and file.size_bytes <= MAX_COUNTED_BYTES:
        return count_lines(file.uri)
    return None


def collect_settings(run: str, config: Mapping[str, Any] | None, stages: Sequence[str]) -> list[tuple[str, Capped]]:
    """List the settings by section, from run.json where it exists, else from the stages' plans.

    Values under names such as `hf_token` or `api_key` are not shown.
    """
    sections: dict[str, Any] = dict(config or {})
    if not sections:
        for stage in stages:
            plan = read_plan(run, stage)
            if plan is not None:
                sections[f"{stage} stage"] = plan["settings"]
    found = []
    for name, settings in sections.items():
        rows = _flatten(settings, "") if isinstance(settings, dict) else [("value", _show(name, settings))]
        found.append((name, Capped(rows[:MAX_SETTINGS], len(rows))))
    return found


def _flatten(settings: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows.extend(_flatten(value, f"{name}."))
        else:
            rows.append((name, _show(name, value)))
    return rows


def _show(name: str, value: Any) -> str:
    if _SECRET.search(name) and isinstance(value, str):
        return "(not shown)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + " …"
