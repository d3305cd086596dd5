"""Which files are read, and how they are cut into units. Deterministic: equal inputs give equal units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from celr_ray import storage
from celr_ray.config import IngestConfig
from celr_ray.errors import InputError, RecordError
from celr_ray.logs.framing import FileRange, is_splittable, iter_values, split_extension
from celr_ray.logs.tau2_bench import read_task_definitions
from celr_ray.runtime import Unit
from celr_ray.stage import StagePlan, hash_json
from celr_ray.storage import StoredFile

_LOG_EXTENSIONS = (".json", ".jsonl", ".ndjson", ".log", ".traj", "")
_RUN_MARK = "/plans/ingest.json"
_GZIP_RATIO = 6
_BYTES_PER_BUCKET = 256 * 2**20
_MIN_BUCKETS, _MAX_BUCKETS = 4, 64
_MIN_SPLIT_BYTES = 64 * 2**20
_WANTED_UNITS = 64


def find_files(uris: Sequence[str]) -> list[StoredFile]:
    """Find all input files, each once, sorted by URI.

    Run folders of this package below a given folder are left out. In folders and globs only files with a log's
    extension count (.json, .jsonl, .ndjson, .log, .traj, none; with .gz or .zst); a file that is named itself always
    counts.

    Raises:
        InputError: a path does not exist, or there is no log file at all.
    """
    found: dict[str, StoredFile] = {}
    for uri in uris:
        for file in storage.expand(uri):
            if file.uri == uri or split_extension(file.uri)[0] in _LOG_EXTENSIONS:
                found[file.uri] = file
    runs = [uri.removesuffix(_RUN_MARK) for uri in found if uri.endswith(_RUN_MARK)]
    for uri in [uri for uri in found if any(uri.startswith(f"{run}/") for run in runs)]:
        del found[uri]
    if not found:
        raise InputError(
            f"no log files in {', '.join(uris)}: looked for .json, .jsonl, .ndjson, .traj, also .gz and .zst"
        )
    return [found[uri] for uri in sorted(found)]


def take_task_definitions(
    files: Sequence[StoredFile], limit: int
) -> tuple[list[StoredFile], dict[str, str], list[str]]:
    """Separate task definition files (tau2-bench `tasks*.json`) from logs.

    Returns:
        The log files, the task texts by task_id, and the URIs of the definition files.
    """
    logs, texts, taken = [], {}, []
    for file in files:
        name = file.uri.rsplit("/", 1)[-1]
        if name.startswith("tasks") and split_extension(file.uri)[0] == ".json":
            try:
                value = next(iter_values(FileRange(file.uri), limit))
                texts.update(read_task_definitions(bytes(value.raw)))
                taken.append(file.uri)
                continue
            except RecordError:
                pass  # not task definitions after all: it is read as a log, and rejected there if it is none
        logs.append(file)
    return logs, texts, taken


def estimate_bytes(files: Sequence[StoredFile]) -> int:
    """Estimate the uncompressed size of the inputs, bytes."""
    return sum(file.size_bytes * (_GZIP_RATIO if split_extension(file.uri)[1] else 1) for file in files)


def choose_n_buckets(total_bytes: int) -> int:
    """Choose the number of task buckets for an input size: about 256 MiB of logs each, between 4 and 64.

    Fewer buckets mean larger row groups and fewer footers to read; more mean smaller units of pairing.
    """
    return min(max(-(-total_bytes // _BYTES_PER_BUCKET), _MIN_BUCKETS), _MAX_BUCKETS)


def choose_split_bytes(total_bytes: int, limit: int) -> int:
    """Choose the size of a unit: a 64th of the input, between 64 MiB and the limit that is set.

    Many units keep all workers busy to the end, large ones have large row groups. The number of CPUs has no part in it:
    a run may be finished on another machine, where its units must be the same.

    Args:
        total_bytes: estimated input size.
        limit: `ingest.split_bytes`; a smaller one than 64 MiB is taken as it is.
    """
    return min(limit, max(_MIN_SPLIT_BYTES, -(-total_bytes // _WANTED_UNITS)))


def plan_units(files: Sequence[StoredFile], config: IngestConfig) -> list[Unit]:
    """Cut the files into units: byte ranges of large plain JSONL, other files whole, small ones together."""
    units: list[Unit] = []
    ranges: list[FileRange] = []
    size = 0

    def flush() -> None:
        nonlocal ranges, size
        if ranges:
            units.append({"ranges": [asdict(part) for part in ranges]})
        ranges, size = [], 0

    for file in files:
        for part, n_bytes in _cut(file, config.split_bytes):
            if ranges and (size + n_bytes > config.split_bytes or len(ranges) >= config.files_per_unit):
                flush()
            ranges.append(part)
            size += n_bytes
    flush()
    return units


def _cut(file: StoredFile, split_bytes: int) -> list[tuple[FileRange, int]]:
    if not is_splittable(file.uri) or file.size_bytes == 0:
        return [(FileRange(file.uri), file.size_bytes)]
    n_parts = -(-file.size_bytes // split_bytes)
    step = -(-file.size_bytes // n_parts)
    starts = range(0, file.size_bytes, step)
    return [(FileRange(file.uri, start, min(start + step, file.size_bytes)), step) for start in starts]


def make_plan(uris: Sequence[str], config: IngestConfig) -> tuple[StagePlan, dict[str, str], int]:
    """Plan the ingest of logs.

    Returns:
        The stage plan, the task texts found in definition files, and the estimated input size in bytes.

    Raises:
        InputError: a path does not exist or holds no logs.
    """
    files, task_texts, definitions = take_task_definitions(find_files(uris), config.max_record_bytes)
    if not files:
        raise InputError(f"only task definitions and no logs in {', '.join(uris)}")
    total = estimate_bytes(files)
    n_buckets = config.n_buckets or choose_n_buckets(total)
    config = config.model_copy(update={"split_bytes": choose_split_bytes(total, config.split_bytes)})
    settings: dict[str, Any] = {
        "inputs": {file.uri: [file.size_bytes, file.modified_ns] for file in files},
        "task_definitions": definitions,
        "task_texts": hash_json(task_texts),
        "ingest": {**config.model_dump(), "n_buckets": n_buckets},
    }
    return StagePlan("ingest", settings, plan_units(files, config)), task_texts, total
