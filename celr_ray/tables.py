"""The tables of a run as `ray.data.Dataset`s, so that users compose them with the rest of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celr_ray import storage
from celr_ray.errors import InputError

if TYPE_CHECKING:
    from ray.data import Dataset


def _read(uri: str, folder: str) -> Dataset:
    """Read one table of a run; `uri` is the run folder or the table's own folder."""
    import ray

    inner = storage.join(uri, folder)
    place = inner if storage.is_directory(inner) else uri
    files = [file.uri for file in storage.list_files(place) if file.uri.endswith(".parquet")]
    if not files:
        raise InputError(f"no {folder} in {uri}: neither a run folder nor a folder of Parquet parts")
    filesystem, _ = storage.resolve(files[0])
    return ray.data.read_parquet([storage.resolve(file)[1] for file in files], filesystem=filesystem)


def read_trajectories(uri: str) -> Dataset:
    """Read the trajectories of a run (columns: `schema.Trajectory`).

    Exact duplicates stand in the files as often as in the logs; equal `trajectory_id`s mark them.

    Raises:
        InputError: there are none.
    """
    return _read(uri, "trajectories")


def read_judgments(uri: str) -> Dataset:
    """Read the judgments of a run (columns: `schema.Judgment`).

    Raises:
        InputError: there are none.
    """
    return _read(uri, "judgments")


def read_pairs(uri: str) -> Dataset:
    """Read the preference pairs of a run (columns: `schema.PreferencePair`).

    Raises:
        InputError: there are none.
    """
    return _read(uri, "pairs")


def read_transitions(uri: str, split: str = "train") -> Dataset:
    """Read the transitions of a dataset (columns: `schema.Transition`); `cortex.transitions` reads them without Ray.

    Args:
        uri: run folder of a dataset, or a folder of Parquet parts.
        split: `train` or `validation`.

    Raises:
        InputError: there are none.
    """
    return _read(uri, storage.join("transitions", split))
