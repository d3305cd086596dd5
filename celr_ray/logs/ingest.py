"""The ingest stage: a unit reads its byte ranges and writes scored trajectories and quarantine.

One pass: cut into values, parse, normalise, score, write. Quarantine is written before the data.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from celr_ray import storage
from celr_ray.buckets import pause_garbage_collection
from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
from celr_ray.errors import RecordError, RunMismatchError
from celr_ray.logs.base import ParsedMessage, ParsedRun, SourceContext
from celr_ray.logs.columns import TableBuilder
from celr_ray.logs.framing import FileRange, LineCounter, Value, iter_values
from celr_ray.logs.planning import make_plan
from celr_ray.logs.quarantine import Quarantine, number_lines, read_rejected
from celr_ray.logs.registry import READERS, RecordReader
from celr_ray.logs.unmapped import UnmappedFields, tell_unmapped
from celr_ray.page_cache import forget_pages
from celr_ray.redact import redact_row, redact_text
from celr_ray.run_folder import check_run_folder, part_name, read_manifests, read_plan
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.schema import QuarantineRow
from celr_ray.stage import StageReport, open_stage, run_stage
from celr_ray.training.scorer import score_table

_OPTIONAL_COLUMNS = ("model", "prompt", "success", "cost_usd", "budget_limit_usd", "duration_s", "n_retries")


def task_texts_uri(run: str) -> str:
    """Return where the task texts from definition files are kept."""
    return storage.join(run, "plans", "task_texts.json")


def make_trajectory_id(raw: bytes | memoryview, run: ParsedRun) -> str:
    """Return the id of a run that was read from a record's bytes; see `make_record_id`."""
    return make_record_id(raw, run.task_id, run.model, run.file_key)


def make_record_id(raw: bytes | memoryview, task_id: str, model: str | None, file_key: str = "") -> str:
    """Return 32 hex digits: the 128-bit XXH3 of the record's bytes, its task and its model, and its file key if any.

    Equal for exact copies of a record in other files; different for two runs that differ anywhere: the chance that any
    two of a thousand million records meet is about 10⁻²¹. XXH3 is fast, not cryptographic: it guards against chance,
    not against an author of logs who makes two records meet on purpose (one is then dropped, and counted, as a
    duplicate).
    """
    digest = xxhash.xxh3_128(raw)
    digest.update(f"\0{task_id}\0{model}".encode())
    if file_key:
        digest.update(f"\0{file_key}".encode())
    return digest.hexdigest()


class _UnitReader:
    """Reads the ranges of one unit into a table builder and a list of rejected records."""

    def __init__(self, config: IngestConfig, n_buckets: int, task_texts: dict[str, str]) -> None:
        self._config = config
        self._task_texts = task_texts
        self.builder = TableBuilder(n_buckets)
        self.rejected = Quarantine(redact=config.redact)
        self.redacted: Counter[str] = Counter()
        self.unmapped = UnmappedFields()
        self.n_lines: list[int] = []
        self.rows_in = 0
        self.rows_out = 0

    def read_range(self, part: FileRange) -> None:
        """Read every record that starts in a byte range."""
        reader = RecordReader(self._config.format)
        context = SourceContext.of_file(part.uri, self._task_texts)
        counter = LineCounter()
        for value in iter_values(part, self._config.max_record_bytes, counter):
            if value.damage is not None:
                self.rows_in += 1
                self.rejected.reject(part.uri, value.offset, counter.line, None, value.damage, value.raw, value.n_bytes)
                continue
            self._read_value(part.uri, value, counter.line, reader, context)
        self.n_lines.append(counter.line)
        forget_pages(part.uri, part.start, part.end)

    def _read_value(self, uri: str, value: Value, line: int, reader: RecordReader, context: SourceContext) -> None:
        try:
            items = reader.read(value.raw, context)
        except RecordError as error:
            self.rows_in += 1
            self.rejected.reject(uri, value.offset, line, None, str(error), value.raw, value.n_bytes)
            return
        self.rows_in += len(items)
        for name, item in items:
            if isinstance(item.result, RecordError):
                self.rejected.reject_item(uri, value, line, item)
                continue
            self.unmapped.look(READERS[name], item.raw)
            if self._config.redact:
                self._redact_run(item.result)
            self.builder.add(
                item.result,
                trajectory_id=make_trajectory_id(item.raw, item.result),
                uri=uri,
                format_name=name,
                offset=value.offset,
                index=item.position,
            )
            self.rows_out += 1

    def _redact_run(self, run: ParsedRun) -> None:
        row, found = redact_row({"prompt": run.prompt, "messages": [message._asdict() for message in run.messages]})
        run.prompt, run.messages = row["prompt"], [ParsedMessage(**message) for message in row["messages"]]
        self.redacted.update(found)


def _count_missing(table: pa.Table) -> dict[str, dict[str, int]]:
    """Count, for each format, the rows and the nulls in the columns that formats may lack."""
    counts: dict[str, dict[str, int]] = {"formats": {}, "missing": {}}
    table = table.select(["source_format", *_OPTIONAL_COLUMNS])
    names = pc.unique(table["source_format"]).to_pylist()
    for name in names:
        rows = table.filter(pc.equal(table["source_format"], name)) if len(names) > 1 else table
        counts["formats"][name] = rows.num_rows
        for column in _OPTIONAL_COLUMNS:
            if rows[column].null_count:
                counts["missing"][f"{name}.{column}"] = rows[column].null_count
    return counts


def ingest_unit(unit: Unit, *, ingest: dict[str, Any], score: dict[str, Any]) -> Manifest:
    """Read, score and write one unit; see `stage.run_stage` for the contract."""
    run, index = unit["run"], unit["index"]
    config = IngestConfig(**ingest)
    reader = _UnitReader(config, int(ingest["n_buckets"]), storage.read_json(task_texts_uri(run)))
    with pause_garbage_collection():
        for part in unit["ranges"]:
            reader.read_range(FileRange(**part))
        table, row_groups = reader.builder.build()
    table = score_table(table, ScoreConfig(**score))
    reader.rejected.write(run, "quarantine", index)
    storage.write_parquet(storage.join(run, "trajectories", part_name(index)), table, [size for _, size in row_groups])
    return {
        "rows_in": reader.rows_in,
        "rows_out": reader.rows_out,
        **reader.rejected.describe(),
        "row_groups": row_groups,
        "n_lines": reader.n_lines,
        "score": score,
        "redacted": dict(sorted((reader.redacted + reader.rejected.redacted).items())),
        **_count_missing(table),
        **reader.unmapped.describe(),
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
    plan, task_texts, total_bytes = make_plan(uris, ingest)
    check_run_folder(run, must_exist=False)
    _check_same_weights(run, score, overwrite=overwrite)
    if ingest.redact:
        task_texts = {task_id: redact_text(text)[0] for task_id, text in task_texts.items()}
    open_stage(run, plan, overwrite=overwrite)  # refuses before anything of another run is replaced
    storage.write_json(task_texts_uri(run), task_texts)  # also when there are none: another run may have left some
    factory = partial(_make_ingest_unit, dict(plan.settings["ingest"]), score.model_dump())
    on_ray = uses_ray(runtime, is_large=total_bytes > 256 * 2**20) if on_ray is None else on_ray
    report = run_stage(run, plan, Work(factory), runtime, on_ray=on_ray, overwrite=overwrite)
    number_lines(run, "ingest", "quarantine", plan.units)
    if report.units_run and (changed := warn_of_changes(plan.settings["inputs"])):
        report.counts["inputs_changed"] = changed
    if report.units_run and (told := tell_unmapped(report.counts)):
        print(told, file=sys.stderr)
    return report


def warn_of_changes(planned: Mapping[str, Sequence[int]]) -> int:
    """Name, on stderr, the inputs that changed while they were read; plain JSONL was read up to its planned size.

    Args:
        planned: [size in bytes, modification time in ns] of each input when the run was planned.

    Returns:
        How many changed or vanished.
    """
    changed = 0
    for uri, (size, modified) in planned.items():
        file = storage.stat(uri)
        if file is None or [file.size_bytes, file.modified_ns] != [size, modified]:
            changed += 1
            now = "is gone" if file is None else f"has {file.size_bytes:,} bytes"
            print(f"changed while it was read: {uri} had {size:,} bytes, now {now}", file=sys.stderr)
    return changed


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
    return read_rejected(run, "quarantine")
