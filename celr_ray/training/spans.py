"""Arithmetic on places: spans of messages in a flat column, groups of rows in a sorted one; not what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def first_within(places: Ints, begin: Ints, end: Ints) -> Ints:
    """Return the first of the sorted places in each `begin` … `end`; `end` where there is none."""
    padded = np.append(places, np.iinfo(np.int64).max)
    first: Ints = np.minimum(padded[np.searchsorted(places, begin)], end)
    return first


def stands_in(places: Ints, at: Ints, end: Ints) -> Bools:
    """Tell where `at` itself is one of the sorted places and lies before `end`."""
    return np.asarray((first_within(places, at, end) == at) & (at < end))


def expand(begin: Ints, end: Ints) -> Ints:
    """Return all places of the spans `begin` … `end`, one span after another."""
    sizes = end - begin
    return np.asarray(np.arange(sizes.sum()) + np.repeat(begin - np.cumsum(sizes) + sizes, sizes))


def count_before(groups: Ints) -> Ints:
    """Return how many equal values stand before each one of a sorted array."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


Columns = TypeVar("Columns")


def take_rows(columns: Columns, rows: Ints | Bools) -> Columns:
    """Return some rows of an array, or of a (nested) named tuple of arrays."""
    if isinstance(columns, np.ndarray):
        return columns[rows]  # type: ignore[return-value]
    return type(columns)(*(take_rows(column, rows) for column in columns))  # type: ignore[attr-defined]


def join_rows(parts: Sequence[Columns]) -> Columns:
    """Return arrays, or (nested) named tuples of arrays, one after another."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)  # type: ignore[arg-type,return-value]
    return type(parts[0])(*(join_rows(columns) for columns in zip(*parts, strict=True)))
