"""What a run folder holds: its names, plans, manifests and record, and which files of finished units are gone.

`celr_ray.stage` tells how a stage writes them. Everything here only reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celr_ray import storage
from celr_ray.errors import InputError, OutputError
from celr_ray.runtime import Manifest

_READERS = 16

STAGE_ORDER = (
    "execute",
    "ingest",
    "judge",
    "pair",
    "export",
    "report",
    "convert",
    "decisions",
    "dataset",
    "train",
    "gate",
)
STAGE_FOLDERS = {
    "execute": ("logs", "episodes", "rejected"),
    "ingest": ("trajectories", "quarantine"),
    "judge": ("judgments",),
    "pair": ("pairs", "unpaired", "tasks"),
    "export": ("exports",),
    "report": ("report",),
    "convert": ("atif",),
    "decisions": ("decisions", "refused"),
    "dataset": ("transitions",),
    "train": ("training", "policy"),
    "gate": ("results", "live"),
}
PART_FILES = {
    "execute": (("logs", "jsonl", None), ("episodes", "parquet", None)),
    "ingest": (("trajectories", "parquet", None), ("quarantine", "jsonl", "rejected")),
    "judge": (("judgments", "parquet", None),),
    "pair": (("pairs", "parquet", None), ("unpaired", "parquet", None), ("tasks", "parquet", None)),
    "decisions": (("decisions", "parquet", None), ("refused", "jsonl", "rejected")),
    "dataset": (
        ("transitions/train", "parquet", "transitions.train"),
        ("transitions/validation", "parquet", "transitions.validation"),
    ),
    "gate": (("results", "parquet", None),),
}
"""What a finished unit has written: folder, extension, and the count of its manifest that is 0 where there is no file
(None = there always is one). Exports and ATIF files have names of their own: their stages bring a FindMissing."""

FindMissing = Callable[[Manifest, Collection[str]], list[str]]
"""Returns the files of a finished unit that are not among the given ones, all named relative to the run."""

REPAIR = {
    "ingest": "celr-ray pipeline, score or convert, with its --logs",
    "judge": "celr-ray judge or pipeline",
    "pair": "celr-ray pair or pipeline",
}
"""The commands that make a stage of which a later one misses files."""


def part_name(index: int, extension: str = "parquet") -> str:
    """Return the file name of unit `index`."""
    return f"part-{index:05d}.{extension}"


def plan_uri(run: str, stage: str) -> str:
    """Return where a stage's plan is kept."""
    return storage.join(run, "plans", f"{stage}.json")


def manifest_uri(run: str, stage: str, index: int) -> str:
    """Return where the manifest of unit `index` is kept."""
    return storage.join(run, "manifests", stage, part_name(index, "json"))


def check_run_folder(run: str, *, must_exist: bool) -> None:
    """Refuse a folder that is not ours to write in.

    Raises:
        InputError: its run.json is damaged.
        OutputError: it holds files but no run, or it is a file, or (must_exist) there is no run.
    """
    if storage.stat(run) is not None:
        raise OutputError(f"{run} is a file; give a folder")
    record = read_record(run)
    is_run = record is not None or bool(storage.list_files(storage.join(run, "plans")))
    if must_exist and not is_run:
        raise OutputError(f"{run} holds no run: no plans/ and no run.json there. Make one with `celr-ray pipeline`.")
    if not is_run and storage.list_files(run, recursive=True):
        raise OutputError(f"{run} is not empty and holds no celr-ray run; choose a new folder")
    if not must_exist:
        storage.check_writable(run)


def read_plan(run: str, stage: str) -> dict[str, Any] | None:
    """Return a stage's stored plan, or None if the stage never started.

    Raises:
        InputError: the file holds something else.
    """
    uri = plan_uri(run, stage)
    if storage.stat(uri) is None:
        return None
    plan = storage.read_json(uri)
    kinds = {"settings": dict, "fingerprint": str, "n_units": int}
    if not isinstance(plan, dict) or not all(isinstance(plan.get(key), kind) for key, kind in kinds.items()):
        raise InputError(
            f"{uri} is no plan of a stage: it must hold {', '.join(kinds)}. It is damaged: put it back, or "
            f"delete it and {storage.join(run, 'manifests', stage)}, and run the stage again"
        )
    return plan


def read_manifests(run: str, stage: str) -> dict[int, Manifest]:
    """Return the manifests of the finished units of a stage, by unit number.

    Raises:
        InputError: a file there holds something else.
    """
    uris = [file.uri for file in storage.list_files(storage.join(run, "manifests", stage))]
    with ThreadPoolExecutor(_READERS) as pool:  # on an object store each read waits for the network
        manifests = list(pool.map(storage.read_json, uris))
    for uri, manifest in zip(uris, manifests, strict=True):
        if not _is_manifest(uri, manifest):
            raise InputError(f"{uri} is no manifest of a unit: delete it and run the stage {stage} again")
    return {manifest["index"]: manifest for manifest in manifests}


def _is_manifest(uri: str, manifest: Any) -> bool:
    index = manifest.get("index") if isinstance(manifest, dict) else None
    return isinstance(index, int) and uri.endswith(f"/{part_name(index, 'json')}")


def is_owed(stage: str, folder: str, manifest: Manifest) -> bool:
    """Tell whether a finished unit must have a file in a folder of PART_FILES."""
    (count,) = (count for name, _, count in PART_FILES[stage] if name == folder)
    return count is None or add_counts([manifest]).get(count, 0) > 0


def _find_missing_parts(stage: str) -> FindMissing:
    def find_missing(manifest: Manifest, names: Collection[str]) -> list[str]:
        owed = [
            f"{folder}/{part_name(manifest['index'], extension)}"
            for folder, extension, _ in PART_FILES.get(stage, ())
            if is_owed(stage, folder, manifest)
        ]
        return [name for name in owed if name not in names]

    return find_missing


def find_lost(
    run: str, stage: str, manifests: Mapping[int, Manifest], find_missing: FindMissing | None = None
) -> dict[int, list[str]]:
    """Find finished units whose data files are gone; each folder is listed once.

    Args:
        run: run folder.
        stage: name of the stage.
        manifests: of its finished units.
        find_missing: for a stage whose files are not those of PART_FILES.

    Returns:
        Their numbers, ascending, with the names of the files.
    """
    if not manifests:
        return {}
    folders = STAGE_FOLDERS[stage] if find_missing else [folder for folder, _, _ in PART_FILES.get(stage, ())]
    names = {
        f"{folder}/{file.uri.rpartition(f'/{folder}/')[2]}"
        for folder in folders
        for file in storage.list_files(storage.join(run, folder), recursive=find_missing is not None)
    }
    find = find_missing or _find_missing_parts(stage)
    missing = {index: find(manifests[index], names) for index in sorted(manifests)}
    return {index: files for index, files in missing.items() if files}


def check_parts(run: str, stage: str, *folders: str) -> None:
    """Refuse to read folders of a stage in which files are gone, before any work.

    Raises:
        InputError: files of finished units are gone; the message says how they are made again.
    """
    lost = find_lost(run, stage, read_manifests(run, stage))
    files = [name for names in lost.values() for name in names if name.rpartition("/")[0] in folders]
    if files:
        raise InputError(explain_lost(run, stage, files))


def explain_lost(run: str, stage: str, files: Sequence[str]) -> str:
    """Return what to say about files, named relative to the run, that are gone although their units are finished."""
    more = f" (and {len(files) - 1:,} more)" if len(files) > 1 else ""
    return (
        f"{storage.join(run, files[0])}{more} is missing although its unit is finished. Run the command again that "
        f"made it ({REPAIR[stage]}): it makes what is lost, and nothing else"
    )


def is_complete(run: str, stage: str) -> bool:
    """Tell whether every unit of a stage has its manifest."""
    plan = read_plan(run, stage)
    return plan is not None and len(read_manifests(run, stage)) == plan["n_units"]


def add_counts(manifests: Any) -> dict[str, int]:
    """Sum the whole numbers of manifests, key by key; nested tables of counts are flattened with a dot."""
    total: Counter[str] = Counter()
    for manifest in manifests:
        for key, value in manifest.items():
            if isinstance(value, bool) or key in ("index", "bucket"):
                continue
            if isinstance(value, int):
                total[key] += value
            elif isinstance(value, dict):
                for name, count in value.items():
                    if isinstance(count, int):
                        total[f"{key}.{name}"] += count
    return dict(sorted(total.items()))


def read_record(run: str) -> dict[str, Any] | None:
    """Return what run.json holds, or None if there is none.

    Raises:
        InputError: the file holds something else.
    """
    uri = storage.join(run, "run.json")
    if storage.stat(uri) is None:
        return None
    record = storage.read_json(uri)
    if isinstance(record, dict) and isinstance(record.get("config"), dict) and _are_entries(record.get("stages")):
        return record
    raise InputError(f"{uri} is no record of a run: delete it, and the next command on the run writes a new one")


def _are_entries(stages: Any) -> bool:
    return isinstance(stages, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float) for entry in stages.values()
    )
