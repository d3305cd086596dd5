"""The export stage: the pairs, unpaired runs and best runs of a run folder, written as each trainer reads them.

    RUN/exports/trl/{dpo,self_reward,spin}/         train-00000-of-00016.parquet, test-…
    RUN/exports/axolotl/{dpo,self_reward,sharegpt}/ the same, and the YAML that loads each
    RUN/exports/spin/                               train_prefs-…, test_prefs-…
    RUN/exports/sft/, RUN/exports/kto/              train-…, test-…

One unit a task bucket, one file a unit, only where there are rows: a Parquet file or a split without rows makes
`datasets.load_dataset` fail. The split is by task. The row rules are in `convert`; this module only moves rows.
Secrets are taken out before the conversion, so that a pair which they alone told apart counts as identical there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from celr_ray import storage
from celr_ray.buckets import plan_bucket_units, read_bucket, read_rows
from celr_ray.config import ExportConfig, RuntimeConfig
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.redact import redact_row
from celr_ray.run_folder import check_parts, is_complete, part_name, read_manifests, read_plan
from celr_ray.runtime import Manifest, Unit, Work
from celr_ray.schema import PreferencePair
from celr_ray.stage import StagePlan, StageReport, run_stage
from celr_ray.training import convert, export_notes
from celr_ray.training.convert import Converted
from celr_ray.training.pair_stage import read_score_settings
from celr_ray.training.render import Row

_BATCH_ROWS = 1000
_SFT_COLUMNS = ("task_id", "prompt", "messages")
_CHAT = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
_SHAREGPT = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
JSON_MESSAGES = pa.list_(pa.json_(pa.string()))
"""Messages as JSON texts: `datasets` gives them back as dictionaries with just the keys they were written with."""

TRL_SCHEMA = pa.schema([(name, JSON_MESSAGES) for name in ("prompt", "chosen", "rejected")])
SFT_SCHEMA = pa.schema([("messages", JSON_MESSAGES)])
KTO_SCHEMA = pa.schema([("prompt", JSON_MESSAGES), ("completion", JSON_MESSAGES), ("label", pa.bool_())])
AXOLOTL_SCHEMA = pa.schema([("messages", pa.list_(_CHAT)), ("chosen", _CHAT), ("rejected", _CHAT)])
SHAREGPT_SCHEMA = pa.schema([("conversations", pa.list_(_SHAREGPT))])
SHAREGPT_DPO_SCHEMA = pa.schema(
    [("conversations", pa.list_(_SHAREGPT)), ("chosen", _SHAREGPT), ("rejected", _SHAREGPT)]
)
SPIN_SCHEMA = pa.schema([("real", pa.list_(_CHAT)), ("generated", pa.list_(_CHAT))])


@dataclass(frozen=True)
class Target:
    """One folder of training files.

    Attributes:
        format: the name in `ExportConfig.formats`.
        folder: below `RUN/exports`.
        schema: columns of the files.
        prefix: what stands after `train` and `test` in file names.
    """

    format: str
    folder: str
    schema: pa.Schema
    prefix: str = ""

    @property
    def name(self) -> str:
        """Return the key of the target in manifests, such as `trl_dpo`."""
        return self.folder.replace("/", "_")

    def path(self, split: str, index: int, n_units: int) -> str:
        """Return where in a run a unit's rows of a split are kept; `datasets` finds the split in the name."""
        return f"exports/{self.folder}/{split}{self.prefix}-{index:05d}-of-{n_units:05d}.parquet"

    def file(self, run: str, split: str, index: int, n_units: int) -> str:
        """Return the URI of `path`."""
        return storage.join(run, self.path(split, index, n_units))


TARGETS = {
    target.folder: target
    for target in (
        Target("trl", "trl/dpo", TRL_SCHEMA),
        Target("trl", "trl/self_reward", TRL_SCHEMA),
        Target("trl", "trl/spin", TRL_SCHEMA),
        Target("axolotl", "axolotl/dpo", AXOLOTL_SCHEMA),
        Target("axolotl", "axolotl/self_reward", AXOLOTL_SCHEMA),
        Target("axolotl", "axolotl/sharegpt", SHAREGPT_SCHEMA),
        Target("spin", "spin", SPIN_SCHEMA, "_prefs"),
        Target("sft", "sft", SFT_SCHEMA),
        Target("kto", "kto", KTO_SCHEMA),
    )
}
_Converter = Callable[[Mapping[str, Any]], Converted]
_PAIR_CONVERTERS: dict[str, tuple[tuple[str, _Converter], ...]] = {
    "dpo": (("trl/dpo", convert.to_trl), ("axolotl/dpo", convert.to_axolotl)),
    "self_reward": (("trl/self_reward", convert.to_trl), ("axolotl/self_reward", convert.to_axolotl)),
    "spin": (("trl/spin", convert.to_trl), ("spin", convert.to_spin)),
}
_KTO_CONVERTERS: tuple[tuple[str, _Converter], ...] = (("kto", convert.to_kto),)
_SFT_CONVERTERS: tuple[tuple[str, _Converter], ...] = (
    ("sft", convert.to_sft),
    ("axolotl/sharegpt", convert.to_sharegpt),
)


def _hash(salt: str, text: str) -> int:
    """Return 32 bits that depend on all of the text; crc32 would repeat the order of the buckets."""
    return int.from_bytes(hashlib.blake2b(f"{salt}/{text}".encode(), digest_size=4).digest(), "big")


def is_test_task(task_id: str, test_fraction: float) -> bool:
    """Tell whether a task belongs to the test split: a hash of its id is below the fraction."""
    return _hash("split", task_id) < test_fraction * 2**32


def build_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build the Arrow table of training rows; messages of JSON columns become JSON texts."""
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        columns.append(_json_array(values) if field.type == JSON_MESSAGES else pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _json_array(conversations: Sequence[Sequence[Row]]) -> pa.ListArray:
    texts = [json.dumps(message, ensure_ascii=False) for messages in conversations for message in messages]
    offsets = [0]
    for messages in conversations:
        offsets.append(offsets[-1] + len(messages))
    storage_type = JSON_MESSAGES.value_type
    items = pa.ExtensionArray.from_storage(storage_type, pa.array(texts, pa.string()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, type=JSON_MESSAGES)


def write_rows(rows: Sequence[Mapping[str, Any]], path: str, schema: pa.Schema) -> int:
    """Write training rows to one file, JSON lines if its name ends in `.jsonl`, else Parquet.

    Returns:
        The number of rows.
    """
    if path.endswith(".jsonl"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_bytes(path, lines.encode())
    else:
        storage.write_parquet(path, build_table(rows, schema))
    return len(rows)


def _convert_all(pairs: Iterable[PreferencePair], converter: _Converter, redact: bool) -> list[Row]:
    rows = (pair.model_dump() for pair in pairs)
    converted = (converter(redact_row(row)[0] if redact else row).row for row in rows)
    return [row for row in converted if row is not None]


def write_trl(pairs: Iterable[PreferencePair], path: str, *, redact: bool = True) -> int:
    """Write pairs as TRL preference rows; returns how many had a place in them (see `convert.to_trl`)."""
    return write_rows(_convert_all(pairs, convert.to_trl, redact), path, TRL_SCHEMA)


def write_sharegpt_dpo(pairs: Iterable[PreferencePair], path: str, *, redact: bool = True) -> int:
    """Write pairs as ShareGPT preference rows; returns how many had a place in them (see `convert.to_axolotl`)."""
    return write_rows(_convert_all(pairs, convert.to_sharegpt_dpo, redact), path, SHAREGPT_DPO_SCHEMA)


def write_spin(pairs: Iterable[PreferencePair], path: str, *, redact: bool = True) -> int:
    """Write pairs as SPIN rows; returns how many had a place in them (see `convert.to_spin`)."""
    return write_rows(_convert_all(pairs, convert.to_spin, redact), path, SPIN_SCHEMA)


class ExportUnit:
    """Converts one bucket; see `stage.run_stage` for the contract."""

    def __init__(self, config: ExportConfig, n_units: int) -> None:
        self._config = config
        self._n_units = n_units

    def __call__(self, unit: Unit) -> Manifest:
        run, index = unit["run"], unit["index"]
        self._rows: dict[tuple[str, str], list[tuple[int, str, Row]]] = defaultdict(list)
        self._losses: Counter[str] = Counter()
        self._redacted: Counter[str] = Counter()
        read = {"pairs": 0, "unpaired": 0}
        n_written = 0
        for folder, id_column in (("pairs", "pair_id"), ("unpaired", "trajectory_id")):
            for row in _read_rows(storage.join(run, folder, part_name(index))):
                converters = _PAIR_CONVERTERS[row["pair_type"]] if folder == "pairs" else _KTO_CONVERTERS
                read[folder] += 1
                is_written = self._add(row, row[id_column], converters)
                n_written += is_written
                self._losses[f"{folder}_in_no_format"] += not is_written
        if {"sft", "axolotl"} & set(self._config.formats):
            self._add_best_runs(run, unit["row_groups"])
        counts = self._write(run, index)
        n_read = sum(read.values())
        return {
            "rows_in": n_read,
            "rows_out": n_written,
            "rejected": n_read - n_written,
            "n_pairs": read["pairs"],
            "n_unpaired": read["unpaired"],
            **counts,
            "losses": {name: count for name, count in sorted(self._losses.items()) if count},
            "redacted": dict(sorted(self._redacted.items())),
        }

    def _add(self, row: Mapping[str, Any], row_id: str, converters: Iterable[tuple[str, _Converter]]) -> bool:
        """Convert one input for all requested formats; tell whether any of them took it."""
        is_written = False
        formats = self._config.formats
        wanted = [(folder, converter) for folder, converter in converters if TARGETS[folder].format in formats]
        if wanted and self._config.redact:
            row, found = redact_row(row)
            self._redacted.update(found)
        split = "test" if is_test_task(row["task_id"], self._config.test_fraction) else "train"
        for folder, converter in wanted:
            converted, losses = converter(row)
            self._losses.update(losses)
            if converted is not None:
                self._rows[folder, split].append((_hash("order", row_id), row_id, converted))
                is_written = True
        return is_written

    def _add_best_runs(self, run: str, row_groups: Sequence[Sequence[int]]) -> None:
        """Add the best usable successful runs of each task; where one is not usable, its next best takes its place."""
        light, _ = read_bucket(run, row_groups, ["success", "composite_score"])
        waiting = rank_successes(light.to_pylist())
        wanted = dict.fromkeys(waiting, self._config.sft_per_task)
        while waiting:
            tried = {task_id: ids[: wanted[task_id]] for task_id, ids in waiting.items()}
            texts = read_rows(run, row_groups, {id_ for ids in tried.values() for id_ in ids}, _SFT_COLUMNS)
            for task_id, ids in tried.items():
                wanted[task_id] -= sum(self._add(texts[id_], id_, _SFT_CONVERTERS) for id_ in ids)
            rest = {task_id: ids[len(tried[task_id]) :] for task_id, ids in waiting.items()}
            waiting = {task_id: ids for task_id, ids in rest.items() if ids and wanted[task_id]}

    def _write(self, run: str, index: int) -> dict[str, dict[str, int]]:
        """Write the rows in an order that mixes tasks, and count them."""
        rows: Counter[str] = Counter()
        test_rows: Counter[str] = Counter()
        for (folder, split), found in sorted(self._rows.items()):
            target = TARGETS[folder]
            ordered = [row for _, _, row in sorted(found, key=lambda item: item[:2])]
            write_rows(ordered, target.file(run, split, index, self._n_units), target.schema)
            rows[target.name] += len(ordered)
            test_rows[target.name] += len(ordered) if split == "test" else 0
        return {"rows": dict(rows), "test_rows": dict(test_rows)}


def _read_rows(uri: str) -> Iterator[Row]:
    for batch in storage.read_parquet(uri).to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


def rank_successes(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the ids of the successful runs of each task, best composite score first, ties by id, unscored last."""
    tasks: dict[str, list[tuple[bool, float, str]]] = defaultdict(list)
    for run in runs:
        if run["success"]:
            score = run["composite_score"]
            tasks[run["task_id"]].append((score is None, -(score or 0.0), run["trajectory_id"]))
    return {task_id: [trajectory_id for _, _, trajectory_id in sorted(tasks[task_id])] for task_id in sorted(tasks)}


def export_plan(run: str, config: ExportConfig) -> StagePlan:
    """Plan the export: one unit a bucket, the same list as the pair stage's.

    Raises:
        InputError: the run holds no finished pair stage.
        RunMismatchError: the pairs were made of other buckets or scores than the run has now.
    """
    pair_plan = read_plan(run, "pair")
    if pair_plan is None or not is_complete(run, "pair"):
        raise InputError(f"{run} holds no finished pairs; run `celr-ray pair --run {run}` first")
    units = plan_bucket_units(run)
    if len(units) != pair_plan["n_units"]:
        raise RunMismatchError(
            f"{run}: pairs were made of {pair_plan['n_units']} buckets, the trajectories have {len(units)}; "
            f"run `celr-ray pair --run {run} --overwrite` first"
        )
    if pair_plan["settings"].get("score") != read_score_settings(run):
        raise RunMismatchError(
            f"{run}: the trajectories were scored again after the pairs were made; run "
            f"`celr-ray pair --run {run} --overwrite` first"
        )
    return StagePlan("export", {"pair": pair_plan["fingerprint"], **config.model_dump(mode="json")}, units)


def run_export(
    run: str, config: ExportConfig, runtime: RuntimeConfig, *, on_ray: bool, overwrite: bool = False
) -> StageReport:
    """Write all requested formats, then the YAML and README files that say how to load them.

    Args:
        run: run folder with a finished pair stage.
        config: formats, test fraction, SFT runs a task.
        runtime: where to run.
        on_ray: Ray Data instead of a plain loop.
        overwrite: replace an export made with other settings.

    Raises:
        UsageError: the pairs are unfinished, older than the scores or have lost files, or there is another export.
    """
    plan = export_plan(run, config)
    check_parts(run, "ingest", "trajectories")
    check_parts(run, "pair", "pairs", "unpaired")
    work = Work(factory=partial(ExportUnit, config, len(plan.units)))
    find_missing = partial(_find_missing, n_units=len(plan.units))
    report = run_stage(run, plan, work, runtime, on_ray=on_ray, overwrite=overwrite, find_missing=find_missing)
    _finish(run, config, report)
    return report


def _find_missing(manifest: Manifest, names: Collection[str], *, n_units: int) -> list[str]:
    """Return the files of a finished unit that are gone; test rows stand under train where all of a folder are such."""
    missing = []
    for target in TARGETS.values():
        n_test = manifest["test_rows"].get(target.name, 0)
        n_train = manifest["rows"].get(target.name, 0) - n_test
        train, test = (target.path(split, manifest["index"], n_units) for split in ("train", "test"))
        if n_train and train not in names:
            missing.append(train)
        if n_test and test not in names and (n_train or train not in names):
            missing.append(test)
    return missing


def _finish(run: str, config: ExportConfig, report: StageReport) -> None:
    """Give every folder a train split and write the notes; the same files whenever it is repeated."""
    manifests = read_manifests(run, "export")
    folders = [target for target in TARGETS.values() if target.format in config.formats]
    summaries = []
    for target in folders:
        n_rows = report.counts.get(f"rows.{target.name}", 0)
        n_test = report.counts.get(f"test_rows.{target.name}", 0)
        is_moved = n_rows > 0 and n_test == n_rows
        if is_moved:
            _move_test_to_train(run, target, manifests)
        summaries.append(export_notes.FolderSummary(target.folder, n_rows, 0 if is_moved else n_test, is_moved))
    export_notes.write_notes(run, config.formats, summaries, report.counts)


def _move_test_to_train(run: str, target: Target, manifests: Mapping[int, Manifest]) -> None:
    """Rename the files of a folder whose few tasks all fell into the test split: no trainer starts without train."""
    for index, manifest in manifests.items():
        if not manifest["test_rows"].get(target.name):
            continue
        old = target.file(run, "test", index, len(manifests))
        if storage.stat(old) is not None:
            storage.write_bytes(target.file(run, "train", index, len(manifests)), storage.read_bytes(old))
            storage.delete_file(old)
