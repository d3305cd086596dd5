"""Finds the fields of a record that its reader does not look at, so that a user is told what went into no column.

The reader's own msgspec structs say what it reads: whatever else a record holds, at any depth, is unmapped. Looking
costs a second decoding, so only the first records of each format and unit are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import LogReader, decode

SAMPLE_ROWS = 64
"""Records of each format that a unit looks at."""

MAX_FIELDS = 200
"""Fields named for each format and unit; a log whose keys are data would name thousands."""


_TOLD_FIELDS = 6
_DECODER = msgspec.json.Decoder()


class UnmappedFields:
    """Counts, for each format, the sampled records that hold a field which the reader does not read."""

    def __init__(self) -> None:
        self._n_looked: Counter[str] = Counter()
        self._found: dict[str, Counter[str]] = {}

    def look(self, reader: LogReader, raw: bytes | memoryview) -> None:
        """Look at one readable record, unless enough of its format were looked at."""
        if self._n_looked[reader.name] >= SAMPLE_ROWS or reader.record_type is None:
            return
        self._n_looked[reader.name] += 1
        found = self._found.setdefault(reader.name, Counter())
        try:
            value = decode(_DECODER, raw)
        except RecordError:  # damage in a field that the reader skips
            return
        for path in sorted(set(_find_unread(value, _inspect(reader.record_type), ""))):
            if path in found or len(found) < MAX_FIELDS:
                found[path] += 1

    def describe(self) -> dict[str, dict[str, int]]:
        """Return `sampled` records by format, and `unmapped` ones by FORMAT.FIELD."""
        fields = {
            f"{name}.{path}": count for name, found in sorted(self._found.items()) for path, count in found.items()
        }
        return {"sampled": dict(sorted(self._n_looked.items())), "unmapped": fields}


def split_unmapped(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the counts of `unmapped.FORMAT.FIELD` by format and field."""
    fields: dict[str, dict[str, int]] = {}
    for key, count in sorted(counts.items()):
        if key.startswith("unmapped."):
            _, name, path = key.split(".", 2)
            fields.setdefault(name, {})[path] = count
    return fields


def tell_unmapped(counts: Mapping[str, int]) -> str | None:
    """Return one line for people on the fields that went into no column, None if there are none.

    Args:
        counts: of the ingest stage, `unmapped.FORMAT.FIELD` among them.
    """
    fields = split_unmapped(counts)
    if not fields:
        return None
    told = [
        f"{name}: {', '.join(sorted(found)[:_TOLD_FIELDS])}{', …' if len(found) > _TOLD_FIELDS else ''}"
        for name, found in fields.items()
    ]
    return f"fields that went into no column: {'; '.join(told)}. All of them: `unmapped` in run.json"


@lru_cache(maxsize=64)
def _inspect(record: Any) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(record)


def _find_unread(value: Any, kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    """Yield the paths, as `steps[].extra`, of what a value holds and its type does not name; nulls are nothing."""
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    for one in kinds:
        if isinstance(value, dict) and isinstance(one, msgspec.inspect.StructType):
            known = {field.encode_name: field.type for field in one.fields}
            for name, inner in value.items():
                here = f"{path}.{name}" if path else name
                if name in known:
                    yield from _find_unread(inner, known[name], here)
                elif inner is not None:
                    yield here
        elif isinstance(value, dict) and isinstance(one, msgspec.inspect.DictType):
            for inner in value.values():
                yield from _find_unread(inner, one.value_type, f"{path}.*")
        elif isinstance(value, list) and isinstance(one, msgspec.inspect.ListType):
            for inner in value:
                yield from _find_unread(inner, one.item_type, f"{path}[]")
