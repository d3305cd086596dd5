"""Files and folders behind URIs, and the one way in which this package writes them.

Every path a user gives may be a local path, `file://…` or `s3://…` (anything `pyarrow.fs` knows). A file
appears under its final name whole or not at all: locally it is written under a temporary name in the
same folder and renamed; an object store shows an object only when its upload is complete.
This module knows nothing of logs, stages or schemas.
"""

from __future__ import annotations

import fnmatch
import json
import os
import posixpath
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from celr_ray.errors import InputError, OutputError

TEMPORARY_PREFIX = ".tmp-"
_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file as a listing shows it.

    Attributes:
        uri: where it is, in the form the user gave (local path or URI).
        size_bytes: its length as stored.
        modified_ns: modification time, nanoseconds since 1970; 0 if the store has none.
    """

    uri: str
    size_bytes: int
    modified_ns: int


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path inside it.

    Raises:
        InputError: the scheme is unknown to pyarrow, or its settings are incomplete.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        return pafs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"cannot use the URI {uri!r}: {error}") from error


def join(uri: str, *parts: str) -> str:
    """Append path parts to a local path or URI."""
    return posixpath.join(uri, *parts)


def _with_prefix(uri: str, path: str) -> str:
    """Turn a path inside a file system back into the form in which the user gave `uri`."""
    if "://" not in uri:
        return path
    scheme = uri.split("://", 1)[0]
    return f"{scheme}://{path}"


def stat(uri: str) -> StoredFile | None:
    """Describe one file, or return None if there is no file at `uri`."""
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        return None
    return StoredFile(uri, info.size or 0, info.mtime_ns or 0)


def is_directory(uri: str) -> bool:
    """Tell whether `uri` is a folder (on an object store: has keys below it)."""
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == pafs.FileType.Directory)


def list_files(uri: str, *, recursive: bool = False) -> list[StoredFile]:
    """List the files in a folder, sorted by name; hidden and temporary files are left out.

    Returns:
        An empty list if the folder does not exist.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    found = []
    for info in filesystem.get_file_info(selector):
        relative = posixpath.relpath(info.path, path)
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if info.type == pafs.FileType.File and not hidden:
            found.append(StoredFile(_with_prefix(uri, info.path), info.size or 0, info.mtime_ns or 0))
    return sorted(found, key=lambda file: file.uri)


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted; an empty list if it does not exist."""
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def expand(uri: str) -> list[StoredFile]:
    """Find the files that a user's path means: one file, a folder (with all below it), or a glob.

    Raises:
        InputError: nothing is there, it cannot be read, or the glob matches nothing.
    """
    try:
        if not _GLOB_CHARACTERS.isdisjoint(uri) and stat(uri) is None:
            return _expand_glob(uri)
        file = stat(uri)
        if file is not None:
            return [file]
        if is_directory(uri):
            return list_files(uri, recursive=True)
    except OSError as error:
        raise InputError(f"cannot read {uri}: {error}") from error
    raise InputError(f"no such file or folder: {uri}. Check the path; globs need quotes or must match something.")


def _expand_glob(uri: str) -> list[StoredFile]:
    parts = uri.split("/")
    fixed = next(i for i, part in enumerate(parts) if not _GLOB_CHARACTERS.isdisjoint(part))
    base = "/".join(parts[:fixed]) or ("/" if uri.startswith("/") else ".")
    if not is_directory(base):
        raise InputError(f"no such folder: {base} (from the glob {uri})")
    pattern = "/".join(parts[fixed:])
    base_path = resolve(base)[1]
    matches = [
        file
        for file in list_files(base, recursive=True)
        if _matches(posixpath.relpath(resolve(file.uri)[1], base_path), pattern)
    ]
    if not matches:
        raise InputError(f"the glob {uri} matches no file")
    return matches


def _matches(relative: str, pattern: str) -> bool:
    """Match part by part, so that `*` does not cross a `/`; `**` stands for any depth."""
    names, globs = relative.split("/"), pattern.split("/")

    def match(i: int, j: int) -> bool:
        if j == len(globs):
            return i == len(names)
        if globs[j] == "**":
            return any(match(k, j + 1) for k in range(i, len(names) + 1))
        return i < len(names) and fnmatch.fnmatchcase(names[i], globs[j]) and match(i + 1, j + 1)

    return match(0, 0)


def open_input(uri: str) -> pa.NativeFile:
    """Open a file for random access.

    Raises:
        InputError: it cannot be opened.
    """
    filesystem, path = resolve(uri)
    try:
        return filesystem.open_input_file(path)
    except OSError as error:
        raise InputError(f"cannot open {uri}: {error}") from error


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        InputError: it cannot be read.
    """
    with open_input(uri) as source:
        return source.read()  # type: ignore[no-any-return]


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a whole file so that it appears complete or not at all; an existing one is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_local(path, data)
        else:
            with filesystem.open_output_stream(path) as sink:
                sink.write(data)
    except OSError as error:
        raise OutputError(f"cannot write {uri}: {error}") from error


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{name}")
    try:
        with open(temporary, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_json(uri: str) -> Any:
    """Read a JSON file that this package wrote.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise InputError(f"{uri} is not valid JSON: {error}") from error


def write_json(uri: str, value: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_bytes(uri, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_parquet(uri: str, table: pa.Table, row_group_sizes: Sequence[int] = ()) -> None:
    """Write a Parquet file atomically, zstd level 1.

    Args:
        uri: where.
        table: the rows.
        row_group_sizes: rows of each row group, in order, summing to the table's rows; empty = one group.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", compression_level=1) as writer:
        start = 0
        for size in row_group_sizes or (table.num_rows,):
            writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
            start += size
    write_bytes(uri, sink.getvalue())


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file whole (schema as written, no Pandas metadata)."""
    with open_input(uri) as source:
        return pq.ParquetFile(source).read(columns=list(columns) if columns is not None else None)


def delete_directory(uri: str) -> None:
    """Delete a folder and all below it; nothing happens if it does not exist.

    Raises:
        OutputError: it cannot be deleted.
    """
    filesystem, path = resolve(uri)
    try:
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)
    except OSError as error:
        raise OutputError(f"cannot delete {uri}: {error}") from error


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens if it does not exist."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.File:
        filesystem.delete_file(path)


def check_writable(uri: str) -> None:
    """Write and delete a probe file.

    Raises:
        OutputError: the folder cannot be written.
    """
    probe = join(uri, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-probe")
    write_bytes(probe, b"")
    delete_file(probe)
