"""Which columns of a Parquet file get a dictionary, and which are compressed.

A dictionary: all but texts and content hashes, of which each is another. Parquet builds a dictionary of a column until
it is too large, then gives it up: time lost in writing, and again in reading. Measured on ingested logs: reading texts
is 10 % cheaper without, writing 2 %.

Compressed: all but a row's single numbers. They are a hundredth of the bytes, but two thirds of the columns, and a
compressor begun for each in every row group is a tenth of the time that small row groups take to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

__all__ = ["list_compressed_columns", "list_dictionary_columns"]

_UNIQUE = frozenset({"trajectory_id", "pair_id", "chosen_id", "rejected_id", "content"})
"""Names of fields whose values hardly ever repeat."""


def list_dictionary_columns(schema: pa.Schema) -> list[str]:
    """Return the Parquet paths of the leaf columns that get a dictionary, for `ParquetWriter(use_dictionary=…)`."""
    return [path for path in _list_leaves(schema) if not _UNIQUE.intersection(path.split("."))]


def list_compressed_columns(schema: pa.Schema) -> list[str]:
    """Return the Parquet paths of the leaf columns that are compressed: texts, and what stands in lists and structs."""
    numbers = {field.name for field in schema if pa.types.is_primitive(field.type)}
    return [path for path in _list_leaves(schema) if path not in numbers]


def _list_leaves(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[str]:
    """Yield the Parquet path of every leaf column below some fields."""
    for field in fields:
        path, kind = f"{prefix}{field.name}", field.type
        if pa.types.is_struct(kind):
            yield from _list_leaves([kind.field(i) for i in range(kind.num_fields)], f"{path}.")
        elif pa.types.is_nested(kind):
            yield from _list_leaves([pa.field("element", kind.value_type)], f"{path}.list.")
        else:
            yield path
