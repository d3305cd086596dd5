"""The rows of judge units, read in as few passes over a task bucket as memory allows.

A unit is a slice of a bucket in the order of its tasks, while the bucket's row groups hold all its tasks mixed: to
find a unit's texts, all row groups must be decoded. So one pass also keeps the texts of the units that follow, as long
as they fit the memory given to them, and a bucket of U units is decoded as often as its texts fill that memory, not U
times. What is read does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.buckets import read_bucket
from celr_ray.run_folder import part_name
from celr_ray.runtime import Unit

__all__ = ["UnitRows"]

Positions = npt.NDArray[np.int64]
"""Places of rows in the bucket's order."""


class UnitRows:
    """Reads units; remembers the bucket of the last one, and the texts that its pass found."""

    def __init__(self, columns: Sequence[str], *, max_bytes: int = 128 * 2**20) -> None:
        """Make a reader.

        Args:
            columns: columns wanted beside `trajectory_id`.
            max_bytes: texts to keep, as Arrow counts them; a unit that is larger is kept whole. Beside them there is
                one decoded row group, and the rows of one unit as dicts.
        """
        self._columns = list(columns)
        self._max_bytes = max_bytes
        self._bucket: tuple[str, list[Sequence[int]]] | None = None
        self._ids = pa.array([], type=pa.string())
        self._n_duplicates = 0
        self._window = range(0)
        self._pieces: list[tuple[Positions, pa.Table]] = []

    def read(self, unit: Unit) -> tuple[list[dict[str, Any]], int]:
        """Return the rows of a unit, ordered by (task_id, trajectory_id), and the duplicates dropped in its bucket.

        Args:
            unit: `run`, `row_groups`, `start` and `stop` of a unit of the judge's plan.
        """
        self._enter_bucket(unit["run"], unit["row_groups"])
        wanted = range(len(self._ids))[unit["start"] : unit["stop"]]
        if wanted and not (wanted[0] in self._window and wanted[-1] in self._window):
            self._pass_over_bucket(wanted)
        rows: dict[int, dict[str, Any]] = {}
        for positions, table in self._pieces:
            mask = (positions >= wanted.start) & (positions < wanted.stop)
            if mask.any():
                rows.update(zip(positions[mask].tolist(), table.filter(pa.array(mask)).to_pylist(), strict=True))
        return [rows[position] for position in wanted], self._n_duplicates

    def _enter_bucket(self, run: str, row_groups: list[Sequence[int]]) -> None:
        """Read the order of another bucket's rows and forget the one before."""
        if self._bucket == (run, row_groups):
            return
        self._window, self._pieces = range(0), []
        table, self._n_duplicates = read_bucket(run, row_groups, ())
        self._ids = table["trajectory_id"].combine_chunks()
        self._bucket = (run, row_groups)

    def _pass_over_bucket(self, wanted: range) -> None:
        """Read the texts of the rows wanted and of as many of the following ones as fit the memory."""
        assert self._bucket is not None
        run, row_groups = self._bucket
        self._window, self._pieces = range(wanted.start, len(self._ids)), []
        is_found = np.zeros(len(self._ids), dtype=bool)
        for part in sorted({part for part, _ in row_groups}):
            with storage.open_input(storage.join(run, "trajectories", part_name(part))) as source:
                file = pq.ParquetFile(source)
                for group in (group for owner, group in row_groups if owner == part):
                    self._take_row_group(file, group, is_found)
                    self._shrink_window(wanted.stop)

    def _take_row_group(self, file: pq.ParquetFile, group: int, is_found: npt.NDArray[np.bool_]) -> None:
        """Keep the rows of one row group that lie in the window; of equal ids the first that is met."""
        ids = file.read_row_group(group, columns=["trajectory_id"], use_threads=False)["trajectory_id"]
        places = pc.fill_null(pc.index_in(ids, value_set=self._ids), -1).to_numpy().astype(np.int64)
        _, first = np.unique(places, return_index=True)
        mask = np.zeros(len(places), dtype=bool)
        mask[first] = True
        mask &= (places >= self._window.start) & (places < self._window.stop) & ~is_found[places]
        if not mask.any():
            return
        table = file.read_row_group(group, columns=["trajectory_id", *self._columns], use_threads=False)
        self._pieces.append((places[mask], table.filter(pa.array(mask))))
        is_found[places[mask]] = True

    def _shrink_window(self, least_stop: int) -> None:
        """Give up the last rows of the window while those kept exceed the memory, but none before `least_stop`."""
        while (kept := sum(table.nbytes for _, table in self._pieces)) > self._max_bytes:
            if self._window.stop == least_stop:
                return
            n_fit = len(self._window) * self._max_bytes // kept
            self._window = range(self._window.start, max(self._window.start + n_fit, least_stop))
            kept_pieces = []
            for positions, table in self._pieces:
                mask = positions < self._window.stop
                kept_pieces.append((positions[mask], table.filter(pa.array(mask))))
            self._pieces = kept_pieces
