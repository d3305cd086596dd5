"""The first half of the dataset: a unit reads its byte ranges and writes the episodes that it finds, in buckets.

    DIR/decisions/part-00000.parquet   transitions with STAGED_COLUMNS, one row group a bucket, ordered by key
    DIR/refused/part-00000.jsonl       damaged records: file, line, reason, raw; absent if there are none

The key is a hash of the seed and the run: the order of the dataset. A bucket is a range of keys, so that all records of
a run meet in one bucket, and the buckets one after another are the whole dataset in order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from celr_ray import storage
from celr_ray.buckets import pause_garbage_collection
from celr_ray.config import DatasetConfig, IngestConfig
from celr_ray.core.monitor import Monitor, load_rules
from celr_ray.cortex.actions import IntArray
from celr_ray.cortex.decision_documents import LoggedEpisode, read_decisions
from celr_ray.cortex.decision_rows import check_episodes, gather_rows
from celr_ray.cortex.episode_rows import EpisodeRows, make_transition_table, take_episodes
from celr_ray.cortex.foreign_logs import ForeignRun, RefusedError, map_run
from celr_ray.cortex.foreign_play import play_runs
from celr_ray.cortex.state import SCHEMA_HASH
from celr_ray.errors import RecordError
from celr_ray.logs.base import ReadItem, SourceContext
from celr_ray.logs.framing import FileRange, LineCounter, Value, iter_values
from celr_ray.logs.ingest import make_record_id, make_trajectory_id, task_texts_uri
from celr_ray.logs.planning import make_plan
from celr_ray.logs.quarantine import Quarantine
from celr_ray.logs.registry import RecordReader
from celr_ray.run_folder import part_name
from celr_ray.runtime import Manifest, Unit, UnitFunction
from celr_ray.schema import TRANSITION_SCHEMA
from celr_ray.stage import StagePlan

__all__ = ["STAGED_COLUMNS", "decision_plan", "decision_unit", "make_decision_unit"]

STAGED_COLUMNS = {"run_id": pa.string(), "rank": pa.int64(), "key": pa.uint64()}
"""Columns of the staged rows beside those of a transition."""

_BATCH_EPISODES = 256
_BATCH_BYTES = 8 * 2**20
_BYTES_PER_BUCKET = 128 * 2**20
_MAX_BUCKETS = 4096


def decision_plan(
    uris: Sequence[str], dataset: DatasetConfig, ingest: IngestConfig
) -> tuple[StagePlan, dict[str, str], int]:
    """Plan the reading of logs, cut as ingest cuts them.

    Returns:
        The stage plan, the task texts found in definition files, and the estimated input size in bytes.

    Raises:
        ConfigError: the monitor's rules are wrong.
        InputError: a path does not exist or holds no logs.
    """
    plan, task_texts, total = make_plan(uris, ingest)
    n_buckets = dataset.n_buckets or min(max(-(-total // _BYTES_PER_BUCKET), 1), _MAX_BUCKETS)
    settings = {
        **plan.settings,
        "dataset": {**dataset.model_dump(mode="json", exclude={"validation_fraction"}), "n_buckets": n_buckets},
        "monitor": load_rules(dataset.monitor_rules).content_hash,
        "state_schema": SCHEMA_HASH,
    }
    return StagePlan("decisions", settings, plan.units), task_texts, total


class _Logged(NamedTuple):
    """A decision log that waits for its check."""

    uri: str
    line: int
    value: Value
    item: ReadItem
    episode: LoggedEpisode


class _UnitReader:
    """Reads the ranges of one unit into batches of staged rows, and counts what gives none."""

    def __init__(self, dataset: DatasetConfig, ingest: IngestConfig, task_texts: dict[str, str]) -> None:
        self._dataset = dataset
        self._ingest = ingest
        self._task_texts = task_texts
        self._logged: list[_Logged] = []
        self._logged_bytes = 0
        self._foreign: dict[int, list[ForeignRun]] = defaultdict(list)
        self.tables: list[pa.Table] = []
        self.rejected = Quarantine(redact=ingest.redact)
        self.excluded: Counter[str] = Counter()
        self.assumed: Counter[str] = Counter()
        self.n_lines: list[int] = []
        self.rows_in = 0
        self.rows_out = 0

    @cached_property
    def _monitor(self) -> Monitor:
        """The rules for foreign logs; reading them takes longer than many a unit of decision logs."""
        return load_rules(self._dataset.monitor_rules)

    def read_range(self, part: FileRange) -> None:
        """Read every record that starts in a byte range."""
        reader = RecordReader(self._ingest.format)
        context = SourceContext.of_file(part.uri, self._task_texts)
        counter = LineCounter()
        for value in iter_values(part, self._ingest.max_record_bytes, counter):
            if value.damage is not None:
                self.rows_in += 1
                self.rejected.reject(part.uri, value.offset, counter.line, None, value.damage, value.raw, value.n_bytes)
            elif not self._take_decisions(part.uri, counter.line, value, ReadItem(0, value.raw, RecordError())):
                self._read_foreign(part.uri, counter.line, value, reader, context)
        self.n_lines.append(counter.line)

    def _take_decisions(self, uri: str, line: int, value: Value, item: ReadItem) -> bool:
        """Keep a record for the next check if it is a log of decisions, and tell whether it is."""
        if b'"celr"' not in bytes(item.raw):
            return False
        try:
            episode = read_decisions(item.raw)
        except RecordError as error:
            self.rows_in += 1
            self.rejected.reject_item(uri, value, line, item._replace(result=error))
            return True
        if episode is None:
            return False
        self.rows_in += 1
        self._logged.append(_Logged(uri, line, value, item, episode))
        self._logged_bytes += len(item.raw)
        if len(self._logged) >= _BATCH_EPISODES or self._logged_bytes >= _BATCH_BYTES:
            self._check_logged()
        return True

    def _check_logged(self) -> None:
        """Check the decision logs that wait, and keep the rows of the lawful ones."""
        logged, self._logged, self._logged_bytes = self._logged, [], 0
        if not logged:
            return
        episodes = [one.episode for one in logged]
        ids = [make_record_id(one.item.raw, one.episode.task_id, one.episode.model) for one in logged]
        rows = gather_rows(episodes, ids)
        reasons, has_no_outcome = check_episodes(episodes, rows)
        for one, reason in zip(logged, reasons, strict=True):
            if reason is not None:
                error = RecordError(reason)
                self.rejected.reject_item(one.uri, one.value, one.line, one.item._replace(result=error))
        is_sound = np.array([reason is None for reason in reasons])
        self.excluded["no_outcome"] += int((is_sound & has_no_outcome).sum())
        self._keep(take_episodes(rows, np.flatnonzero(is_sound & ~has_no_outcome)))

    def _read_foreign(self, uri: str, line: int, value: Value, reader: RecordReader, context: SourceContext) -> None:
        """Read a value that is no decision log; elements of a list may still be some."""
        try:
            items = reader.read(value.raw, context)
        except RecordError as error:
            self.rows_in += 1
            self.rejected.reject(uri, value.offset, line, None, str(error), value.raw, value.n_bytes)
            return
        for name, item in items:
            if len(items) > 1 and self._take_decisions(uri, line, value, item):
                continue
            self.rows_in += 1
            if isinstance(item.result, RecordError):
                self.rejected.reject_item(uri, value, line, item)
            else:
                self._map(uri, name, item)

    def _map(self, uri: str, name: str, item: ReadItem) -> None:
        run = item.result
        assert not isinstance(run, RecordError)
        try:
            mapped = map_run(run, item.raw, uri, make_trajectory_id(item.raw, run), name, self._dataset, self._monitor)
        except RefusedError as error:
            self.excluded[error.reason] += 1
            return
        waiting = self._foreign[mapped.n_tiers]
        waiting.append(mapped)
        if len(waiting) >= _BATCH_EPISODES:
            self._play(self._foreign.pop(mapped.n_tiers))

    def _play(self, runs: list[ForeignRun]) -> None:
        rows, refused = play_runs(runs, self._dataset)
        self.excluded["beyond_caps"] += len(refused)
        too_long = {id(run) for run in refused}
        self.assumed.update(what for run in runs if id(run) not in too_long for what in run.assumed)
        if rows is not None:
            self._keep(rows)

    def _keep(self, rows: EpisodeRows) -> None:
        if rows.length.size:
            self.rows_out += len(rows.length)
            self.tables.append(_stage(rows, self._dataset))

    def finish(self) -> pa.Table:
        """Check and play what still waits, and return all staged rows ordered by key."""
        self._check_logged()
        for n_tiers in sorted(self._foreign):
            self._play(self._foreign[n_tiers])
        if not self.tables:
            return _empty_stage()
        table = pa.concat_tables(self.tables)
        return table.take(pa.array(np.argsort(table["key"].to_numpy(), kind="stable")))


def _empty_stage() -> pa.Table:
    fields = [*TRANSITION_SCHEMA, *(pa.field(name, kind) for name, kind in STAGED_COLUMNS.items())]
    return pa.schema(fields).empty_table()


def _stage(rows: EpisodeRows, dataset: DatasetConfig) -> pa.Table:
    """Return the transitions of some episodes with STAGED_COLUMNS."""
    episode = pa.array(np.repeat(np.arange(len(rows.length)), rows.length))
    keys = [xxhash.xxh3_64_intdigest(f"order\0{dataset.seed}\0{run_id}".encode()) for run_id in rows.run_id]
    staged = {"run_id": rows.run_id, "rank": rows.rank, "key": keys}
    table = make_transition_table(rows, failure_penalty=dataset.failure_penalty)
    for name, kind in STAGED_COLUMNS.items():
        table = table.append_column(name, pa.array(staged[name], type=kind).take(episode))
    return table


def _assign_buckets(keys: Any, n_buckets: int) -> IntArray:
    """Return the bucket of each key: equal ranges of keys, ascending."""
    return np.asarray(((keys >> np.uint64(32)) * np.uint64(n_buckets)) >> np.uint64(32)).astype(np.int64)


def decision_unit(unit: Unit, *, dataset: DatasetConfig, ingest: IngestConfig) -> Manifest:
    """Read one unit and write its episodes; see `stage.run_stage` for the contract."""
    run, index = unit["run"], unit["index"]
    reader = _UnitReader(dataset, ingest, storage.read_json(task_texts_uri(run)))
    with pause_garbage_collection():
        for part in unit["ranges"]:
            reader.read_range(FileRange(**part))
        table = reader.finish()
    buckets = _assign_buckets(table["key"].to_numpy(), dataset.n_buckets or 1)
    starts = table["t"].to_numpy() == 0
    row_groups = [
        [int(bucket), int((buckets == bucket).sum()), int(starts[buckets == bucket].sum())]
        for bucket in np.unique(buckets)
    ]
    reader.rejected.write(run, "refused", index)
    sizes = [n_rows for _, n_rows, _ in row_groups]
    storage.write_parquet(storage.join(run, "decisions", part_name(index)), table, sizes)
    return {
        "rows_in": reader.rows_in,
        "rows_out": reader.rows_out,
        **reader.rejected.describe(),
        "excluded": reader.excluded.total(),
        "excluded_as": {name: count for name, count in sorted(reader.excluded.items()) if count},
        "assumed": dict(sorted(reader.assumed.items())),
        "row_groups": row_groups,
        "n_lines": reader.n_lines,
    }


def make_decision_unit(dataset: dict[str, Any], ingest: dict[str, Any]) -> UnitFunction:
    """Return the function that runs a unit."""
    return partial(decision_unit, dataset=DatasetConfig(**dataset), ingest=IngestConfig(**ingest))
