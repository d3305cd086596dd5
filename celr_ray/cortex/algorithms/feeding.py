"""From transitions to minibatches of tensors, without one Python object for each episode: in memory, or streamed.

The order of minibatches depends on the seed and the data alone: minibatch g is the same whether training runs through
or is resumed at g, and with n Learners it is cut into n equal shares. So one and two learn alike, up to rounding.

* `MemorySource` holds all rows; each epoch is one permutation of them.
* `ParquetSource` reads windows of whole row groups (their order is permuted in each epoch) and permutes the rows inside
  a window, so memory is that of three windows whatever the data's size. Every Learner reads all windows and keeps its
  share. Less than one minibatch of rows is left out at the end of each window, another one in each epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from celr_ray import storage
from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.algorithms.columns import COLUMNS, Array, Facts, look_through, read_columns
from celr_ray.errors import InputError, PolicyError

__all__ = ["MemorySource", "Order", "ParquetSource", "Source"]

Minibatch = dict[str, Tensor]


@dataclass(frozen=True)
class Order:
    """Which minibatches a Learner gets.

    Attributes:
        batch_size: rows of a minibatch over all Learners; less where the data have fewer.
        seed: of all permutations.
        start: number of the first minibatch.
        shard, n_shards: which share of each minibatch.
        columns: which columns.
    """

    batch_size: int
    seed: int = 0
    start: int = 0
    shard: int = 0
    n_shards: int = 1
    columns: tuple[str, ...] = tuple(COLUMNS)

    def fit(self, n_rows: int) -> int:
        """Return the rows of a minibatch out of `n_rows`: divisible by the number of shards.

        Raises:
            PolicyError: there are fewer rows than Learners.
        """
        size = min(self.batch_size, n_rows)
        size -= size % self.n_shards
        if size == 0:
            raise PolicyError(f"{n_rows} transitions are too few for {self.n_shards} Learners: use fewer")
        return size


class Source(Protocol):
    """Where transitions come from."""

    n_actions: int

    def look(self) -> Facts:
        """Check and measure all rows.

        Raises:
            PolicyError: there are none, or they cannot be trained on.
        """
        ...

    def minibatches(self, order: Order) -> Iterator[Minibatch]:
        """Yield minibatches without end, from `order.start` on."""
        ...


class MemorySource:
    """Transitions in memory.

    Only this process has them: a pickled copy (a checkpoint's, for one) is empty and says so when it is used.
    """

    def __init__(self, columns: Mapping[str, Any], n_actions: int = N_ACTIONS) -> None:
        """Take columns (see `columns.COLUMNS`); arrays of the right types are not copied.

        Raises:
            PolicyError: a column is missing or has another shape.
        """
        self.n_actions = n_actions
        self.columns: dict[str, Array] | None = read_columns(columns)

    def __deepcopy__(self, memo: object) -> MemorySource:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"n_actions": self.n_actions, "columns": None}

    def look(self) -> Facts:
        """Check and measure all rows, some at a time."""
        columns, step = self._get(), 2**17
        starts = range(0, len(columns["obs"]), step)
        return look_through(({k: v[i : i + step] for k, v in columns.items()} for i in starts), self.n_actions)

    def minibatches(self, order: Order) -> Iterator[Minibatch]:
        """Yield minibatches without end."""
        tensors = {name: _to_tensor(self._get()[name]) for name in order.columns}
        n_rows = len(tensors[order.columns[0]])
        size = order.fit(n_rows)
        epoch, position = divmod(order.start, n_rows // size)
        while True:
            rows = _permute(n_rows, (order.seed, epoch))
            for number in range(position, n_rows // size):
                chosen = rows[number * size + order.shard : (number + 1) * size : order.n_shards]
                yield {name: tensor.index_select(0, chosen) for name, tensor in tensors.items()}
            epoch, position = epoch + 1, 0

    def _get(self) -> dict[str, Array]:
        if self.columns is None:
            raise PolicyError(
                "transitions in memory stay in the process that made them and are not part of a checkpoint: give them "
                "again, with from_checkpoint(path, transitions=…), or train from Parquet files"
            )
        return self.columns


@dataclass(frozen=True)
class _RowGroup:
    uri: str
    number: int
    n_rows: int


@dataclass(frozen=True)
class _Window:
    """Row groups that are read and permuted together; `size` rows make a minibatch."""

    groups: Sequence[_RowGroup]
    size: int
    n_minibatches: int
    seed: tuple[int, ...]


class ParquetSource:
    """Transitions in Parquet files, read window by window."""

    def __init__(self, uri: str, *, split: str = "train", n_actions: int = N_ACTIONS, window_rows: int = 2**17) -> None:
        """Use `URI/transitions/SPLIT/*.parquet`, or the Parquet files of the folder `uri` itself if it has no such.

        Args:
            uri: folder, local or remote.
            split: `train` or `validation`.
            n_actions: A.
            window_rows: rows that are read and permuted together; one row group at least.
        """
        self.uri = uri
        self.split = split
        self.n_actions = n_actions
        self.window_rows = window_rows
        self._found: list[_RowGroup] | None = None

    def __deepcopy__(self, memo: object) -> ParquetSource:
        return self

    def look(self) -> Facts:
        """Check and measure all rows, one window at a time."""
        return look_through(
            (_read_window(window, tuple(COLUMNS)) for window in self._plan(self._row_groups())), self.n_actions
        )

    def minibatches(self, order: Order) -> Iterator[Minibatch]:
        """Yield minibatches without end; the next window is read meanwhile."""
        epoch, skip = 0, order.start
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window") as pool:
            while True:
                windows = self._plan_epoch(order, epoch)
                while windows and skip >= windows[0].n_minibatches:
                    skip -= windows.pop(0).n_minibatches
                ahead = [pool.submit(_read_window, windows[0].groups, order.columns)] if windows else []
                for number, window in enumerate(windows):
                    columns = ahead.pop().result()
                    if number + 1 < len(windows):
                        ahead.append(pool.submit(_read_window, windows[number + 1].groups, order.columns))
                    yield from _cut(columns, order, window, skip)
                    skip = 0
                epoch += 1

    def _plan_epoch(self, order: Order, epoch: int) -> list[_Window]:
        """Return the windows of an epoch in their order.

        Raises:
            PolicyError: each has fewer rows than there are Learners.
        """
        groups = self._row_groups()
        shuffled = [groups[number] for number in _permute(len(groups), (order.seed, epoch)).tolist()]
        plan = self._plan(shuffled)
        large = [window for window in plan if _count(window) >= order.n_shards]
        sizes = [order.fit(_count(window)) for window in large or plan[:1]]
        return [
            _Window(window, size, _count(window) // size, (order.seed, epoch, number))
            for number, (window, size) in enumerate(zip(large, sizes, strict=True))
        ]

    def _plan(self, groups: Sequence[_RowGroup]) -> list[list[_RowGroup]]:
        """Join row groups to windows: each has at least one, and at most `window_rows` rows if it has more."""
        windows: list[list[_RowGroup]] = []
        for group in groups:
            if windows and _count(windows[-1]) + group.n_rows <= self.window_rows:
                windows[-1].append(group)
            else:
                windows.append([group])
        return windows

    def _row_groups(self) -> list[_RowGroup]:
        """List all row groups that have rows.

        Raises:
            InputError: there are no Parquet files.
            PolicyError: they have no rows.
        """
        if self._found is None:
            folder = storage.join(self.uri, "transitions", self.split)
            folder = folder if storage.is_directory(folder) else self.uri
            files = [file.uri for file in storage.list_files(folder) if file.uri.endswith(".parquet")]
            if not files:
                raise InputError(f"{folder} has no Parquet files of transitions; build them with the dataset stage")
            self._found = [group for uri in sorted(files) for group in _list_row_groups(uri)]
        if not self._found:
            raise PolicyError(f"{self.uri}: the split {self.split!r} has no transitions to train on")
        return self._found


def _count(window: Sequence[_RowGroup]) -> int:
    return sum(group.n_rows for group in window)


def _list_row_groups(uri: str) -> list[_RowGroup]:
    with _open(uri) as file:
        metadata = file.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return [_RowGroup(uri, number, size) for number, size in enumerate(sizes) if size]


def _open(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_input(uri))
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri} is no Parquet file: {error}") from error


def _read_window(window: Sequence[_RowGroup], names: tuple[str, ...]) -> dict[str, Array]:
    """Read some columns of row groups into arrays."""
    by_file: dict[str, list[int]] = {}
    for group in window:
        by_file.setdefault(group.uri, []).append(group.number)
    tables = []
    for uri, numbers in by_file.items():
        with _open(uri) as file:
            if missing := [name for name in names if name not in file.schema_arrow.names]:
                raise PolicyError(f"{uri} has no column {', '.join(missing)}: it holds no transitions")
            tables.append(file.read_row_groups(numbers, columns=list(names)))
    table = pa.concat_tables(tables)
    return {name: _to_array(table[name], COLUMNS[name]) for name in names}


def _to_array(column: pa.ChunkedArray, dtype: Any) -> Array:
    """Return a column as an array; lists of one fixed length as [N, length].

    Raises:
        PolicyError: there are nulls, or lists of any length.
    """
    array = column.combine_chunks()
    if array.null_count:
        raise PolicyError(f"{array.null_count} transitions have a null where there must be numbers ({array.type})")
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        raise PolicyError(f"a column of transitions is {array.type}; observations must be lists of one fixed length")
    if pa.types.is_fixed_size_list(array.type):
        values = array.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(values.reshape(len(array), array.type.list_size), dtype=dtype)
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype=dtype)


def _cut(columns: dict[str, Array], order: Order, window: _Window, skip: int) -> Iterator[Minibatch]:
    """Yield the minibatches of a window, without the first `skip`."""
    tensors = {name: _to_tensor(array) for name, array in columns.items()}
    rows = _permute(len(tensors[order.columns[0]]), window.seed)
    for number in range(skip, window.n_minibatches):
        chosen = rows[number * window.size + order.shard : (number + 1) * window.size : order.n_shards]
        yield {name: tensor.index_select(0, chosen) for name, tensor in tensors.items()}


def _permute(n: int, seed: tuple[int, ...]) -> Tensor:
    """Return a permutation of 0 to n − 1 that depends on the numbers of `seed` alone, int64 [n]."""
    return torch.from_numpy(np.random.default_rng(list(seed)).permutation(n))


def _to_tensor(array: Array) -> Tensor:
    """Return a tensor on the same memory. Training only reads it, so an array from Ray's store may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)
