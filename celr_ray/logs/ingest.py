"""The ingest stage: a unit reads its byte ranges and writes scored trajectories and quarantine.

One pass: cut into values, parse, normalise, score, write. Quarantine is written before the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from celr_ray import storage
from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
from celr_ray.errors import RecordError, RunMismatchError
from celr_ray.logs.base import ParsedRun, SourceContext
from celr_ray.logs.columns import TableBuilder
from celr_ray.logs.framing import FileRange, Value, count_lines_before, iter_values
from celr_ray.logs.planning import make_plan
from celr_ray.logs.registry import READERS, RecordReader
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work
from celr_ray.schema import QuarantineRow
from celr_ray.stage import StageReport, check_run_folder, part_name, read_manifests, read_plan, run_stage
from celr_ray.training.scorer import score_table

_RAW_LIMIT = 64 * 1024
_OPTIONAL_COLUMNS = ("model", "prompt", "success", "cost_usd", "budget_limit_usd", "duration_s", "n_retries")


def task_texts_uri(run: str) -> str:
    """Return where the task texts from definition files are kept."""
    return storage.join(run, "plans", "task_texts.json")


def make_trajectory_id(raw: bytes, run: ParsedRun) -> str:
    """Return 32 hex digits: a hash of the record's bytes, its task and its model.

    Equal for exact copies of a record in other files; different for two runs that differ anywhere.
    """
    digest = hashlib.blake2b(raw, digest_size=16)
    digest.update(f"\0{run.task_id}\0{run.model}".encode())
    return digest.hexdigest()


class _UnitReader:
    """Reads the ranges of one unit into a table builder and a list of rejected records."""

    def __init__(self, config: IngestConfig, n_buckets: int, task_texts: dict[str, str]) -> None:
        self._config = config
        self._task_texts = task_texts
        self.builder = TableBuilder(n_buckets)
        self.rejected: list[QuarantineRow] = []
        self.rows_in = 0
        self.rows_out = 0

    def read_range(self, part: FileRange) -> None:
        """Read every record that starts in a byte range."""
        reader = RecordReader(self._config.format)
        context = SourceContext(part.uri.rsplit("/", 1)[-1], self._task_texts)
        for value in iter_values(part, self._config.max_record_bytes):
            if value.damage is not None:
                self.rows_in += 1
                self._reject(part.uri, value.offset, None, value.damage, value.raw, value.n_bytes)
                continue
            self._read_value(part.uri, value, reader, context)

    def _read_value(self, uri: str, value: Value, reader: RecordReader, context: SourceContext) -> None:
        try:
            items = list(reader.read(value.raw, context))
        except RecordError as error:
            self.rows_in += 1
            self._reject(uri, value.offset, None, str(error), value.raw, value.n_bytes)
            return
        self.rows_in += len(items)
        for name, item in items:
            if isinstance(item.result, RecordError):
                inner = max(value.raw.find(item.raw), 0)
                self._reject(uri, value.offset + inner, item.position, str(item.result), item.raw, len(item.raw))
                continue
            self.builder.add(
                item.result,
                trajectory_id=make_trajectory_id(item.raw, item.result),
                uri=uri,
                format_name=name,
                offset=value.offset,
                index=item.position,
            )
            self.rows_out += 1

    def _reject(self, uri: str, offset: int, index: int | None, reason: str, raw: bytes, n_bytes: int) -> None:
        text = raw[:_RAW_LIMIT].decode("utf-8", errors="backslashreplace")
        line = count_lines_before(uri, offset)
        self.rejected.append(
            QuarantineRow(
                file=uri, offset=offset, line=line, index=index, reason=reason[:500], raw=text, raw_bytes=n_bytes
            )
        )


def _count_missing(table: pa.Table) -> dict[str, dict[str, int]]:
    """Count, for each format, the rows and the nulls in the columns that formats may lack."""
    counts: dict[str, dict[str, int]] = {"formats": {}, "missing": {}}
    for name in pc.unique(table["source_format"]).to_pylist():
        rows = table.filter(pc.equal(table["source_format"], name))
        counts["formats"][name] = rows.num_rows
        for column in _OPTIONAL_COLUMNS:
            if rows[column].null_count:
                counts["missing"][f"{name}.{column}"] = rows[column].null_count
    return counts


def ingest_unit(unit: Unit, *, ingest: dict[str, Any], score: dict[str, Any]) -> Manifest:
    """Read, score and write one unit; see `stage.run_stage` for the contract."""
    run, index = unit["run"], unit["index"]
    config = IngestConfig(**ingest)
    texts_uri = task_texts_uri(run)
    task_texts = storage.read_json(texts_uri) if storage.stat(texts_uri) else {}
    reader = _UnitReader(config, int(ingest["n_buckets"]), task_texts)
    for part in unit["ranges"]:
        reader.read_range(FileRange(**part))
    table, row_groups = reader.builder.build()
    table = score_table(table, ScoreConfig(**score))
    if reader.rejected:
        lines = "".join(row.model_dump_json() + "\n" for row in reader.rejected)
        storage.write_bytes(storage.join(run, "quarantine", part_name(index, "jsonl")), lines.encode())
    storage.write_parquet(storage.join(run, "trajectories", part_name(index)), table, [size for _, size in row_groups])
    return {
        "rows_in": reader.rows_in,
        "rows_out": reader.rows_out,
        "rejected": len(reader.rejected),
        "row_groups": row_groups,
        "score": score,
        **_count_missing(table),
    }


def _make_ingest_unit(ingest: dict[str, Any], score: dict[str, Any]) -> UnitFunction:
    return partial(ingest_unit, ingest=ingest, score=score)


def run_ingest(
    uris: Sequence[str],
    run: str,
    ingest: IngestConfig,
    score: ScoreConfig,
    runtime: RuntimeConfig,
    *,
    overwrite: bool = False,
    on_ray: bool | None = None,
) -> StageReport:
    """Ingest and score logs into a run folder, or finish a run that was interrupted.

    Args:
        uris: files, folders or globs.
        run: run folder.
        ingest: how to read.
        score: score weights.
        runtime: where to run.
        overwrite: replace what other inputs or settings left there.
        on_ray: force Ray or the loop; None = by `runtime.executor`, `auto` meaning Ray from 256 MiB of logs on.

    Raises:
        UsageError: inputs are missing, the folder is not ours, or it holds a run over other inputs.
    """
    from celr_ray.runtime import uses_ray

    plan, task_texts, total_bytes = make_plan(uris, ingest)
    check_run_folder(run, must_exist=False)
    _check_same_weights(run, score, overwrite=overwrite)
    if task_texts:
        storage.write_json(task_texts_uri(run), task_texts)
    factory = partial(_make_ingest_unit, dict(plan.settings["ingest"]), score.model_dump())
    on_ray = uses_ray(runtime, is_large=total_bytes > 256 * 2**20) if on_ray is None else on_ray
    return run_stage(run, plan, Work(factory), runtime, on_ray=on_ray, overwrite=overwrite)


def _check_same_weights(run: str, score: ScoreConfig, *, overwrite: bool) -> None:
    """Refuse to mix parts scored with different weights; with `overwrite` the caller scores them again."""
    if overwrite or read_plan(run, "ingest") is None:
        return
    for manifest in read_manifests(run, "ingest").values():
        if manifest["score"] != score.model_dump():
            raise RunMismatchError(
                f"{run} was scored with other settings: {manifest['score']}, now {score.model_dump()}. "
                f"Score it again with `celr-ray score --run {run} …`, or use --overwrite or another folder."
            )


def describe_lacks() -> dict[str, tuple[str, ...]]:
    """Return, for each format, the trajectory columns that it never fills."""
    return {name: reader.lacks for name, reader in READERS.items()}


def read_quarantine(run: str) -> list[QuarantineRow]:
    """Return all rejected records of a run, in the order of their units."""
    rows = []
    for file in storage.list_files(storage.join(run, "quarantine")):
        lines = storage.read_bytes(file.uri).splitlines()
        rows += [QuarantineRow(**json.loads(line)) for line in lines]
    return rows
