"""Which files are read, and how they are cut into units. Deterministic: equal inputs give equal units."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from celr_ray import storage
from celr_ray.config import IngestConfig
from celr_ray.errors import InputError, RecordError
from celr_ray.logs.framing import FileRange, is_splittable, iter_values, split_extension
from celr_ray.logs.tau2_bench import read_task_definitions
from celr_ray.run_folder import STAGE_ORDER
from celr_ray.runtime import Unit
from celr_ray.stage import StagePlan, hash_json
from celr_ray.storage import StoredFile

_LOG_EXTENSIONS = (".json", ".jsonl", ".ndjson", ".log", ".traj", "")
_ROTATED = re.compile(r"(\.\d+)+$")
_PLAN = re.compile(r"(?P<run>.*)/plans/(?P<stage>[^/]+)\.json")
_PACKED_EXTENSIONS = (".gz", ".zst")
_MAX_NAMED = 3
_GZIP_RATIO = 6
_BYTES_PER_BUCKET = 512 * 2**20
_MIN_BUCKETS, _MAX_BUCKETS = 4, 64
_MIN_SPLIT_BYTES = 64 * 2**20
_WANTED_UNITS = 64


def find_files(uris: Sequence[str]) -> list[StoredFile]:
    """Find all input files, each once, sorted by URI; name, on stderr, those in folders and globs that are left out.

    In folders and globs only files with a log's extension count (.json, .jsonl, .ndjson, .log, .traj, none; with .gz or
    .zst), where numbers at the end are none (app.jsonl.1); a file that is named itself always counts. Of run folders of
    this package only what is in their folders `logs` counts. A local file with several names, by links or as path and
    URI, counts once, under the shortest.

    Raises:
        InputError: a path does not exist, or there is no log file at all.
    """
    found: dict[str, StoredFile] = {}
    left_out: set[str] = set()
    for uri in uris:
        files, underscored = storage.expand_all(uri)
        found |= {file.uri: file for file in files}
        left_out |= {file.uri for file in underscored}
    runs = _find_runs(found)
    left_out |= {uri for uri in found if uri not in uris and _log_extension(uri) not in _LOG_EXTENSIONS}
    left_out = {uri for uri in left_out - set(uris) if not _is_of_run(uri, runs)}
    logs = _drop_other_names(file for uri, file in found.items() if uri not in left_out and not _is_of_run(uri, runs))
    if left_out:
        print(_describe_left_out(sorted(left_out)), file=sys.stderr)
    if not logs:
        raise InputError(f"no log files in {', '.join(uris)}: looked for {_describe_extensions()}")
    return logs


def _log_extension(uri: str) -> str:
    """Return the extension below any compression's and any numbers that a rotation appended."""
    name = uri.rsplit("/", 1)[-1].lower()
    for packed in _PACKED_EXTENSIONS:
        name = name.removesuffix(packed)
    return split_extension(_ROTATED.sub("", name))[0]


def _find_runs(uris: Iterable[str]) -> list[str]:
    """Return the run folders of this package among what was found: those with a stage's plan and its manifests."""
    folders = {uri.rpartition("/")[0] for uri in uris}
    plans = [match for match in map(_PLAN.fullmatch, uris) if match and match["stage"] in STAGE_ORDER]
    return sorted(
        {m["run"] for m in plans if m["stage"] == "ingest" or f"{m['run']}/manifests/{m['stage']}" in folders}
    )


def _is_of_run(uri: str, runs: Sequence[str]) -> bool:
    """Tell whether a file was written by a run as anything but logs."""
    return any(uri.startswith(f"{run}/") and "/logs/" not in uri.removeprefix(run) for run in runs)


def _drop_other_names(files: Iterable[StoredFile]) -> list[StoredFile]:
    """Keep each file once, under its shortest name; sorted by URI."""
    kept: dict[str, StoredFile] = {}
    for file in sorted(files, key=lambda file: (len(file.uri), file.uri)):
        path = os.path.realpath(storage.resolve(file.uri)[1]) if storage.is_local(file.uri) else file.uri
        kept.setdefault(path, file)
    return sorted(kept.values(), key=lambda file: file.uri)


def _describe_extensions() -> str:
    return f"{', '.join(filter(None, _LOG_EXTENSIONS))} or none, also with {' or '.join(_PACKED_EXTENSIONS)}"


def _describe_left_out(uris: Sequence[str]) -> str:
    more = ", …" if len(uris) > _MAX_NAMED else ""
    files = "file" if len(uris) == 1 else "files"
    return (
        f"{len(uris):,} {files} left out: {', '.join(uris[:_MAX_NAMED])}{more} (extensions read: "
        f"{_describe_extensions()}; names that begin with _ are not read)"
    )


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
    """Choose the number of task buckets for an input size: about 512 MiB of logs each, between 4 and 64.

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
