"""Files and folders behind URIs, and the one way in which this package writes them.

Every path a user gives may be a local path, `file://…` or `s3://…` (or another scheme that `pyarrow.fs` knows).
The key of an `s3://` URI is taken as it stands, as the AWS command line does: nothing in it is escaped. A file
appears under its final name whole or not at all: locally it is written under a temporary name in the same
folder and renamed; an object store shows an object only when its upload is complete. What fails raises
InputError or OutputError.
This module knows nothing of logs, stages or schemas.
"""

from __future__ import annotations

import fnmatch
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from celr_ray import s3
from celr_ray.atomic import TEMPORARY_PREFIX, written_whole
from celr_ray.dictionaries import list_compressed_columns, list_dictionary_columns
from celr_ray.errors import InputError, OutputError, UsageError
from celr_ray.remote import RemoteReader

_TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{32}-")
_ONE_SLASH = re.compile(r"(^|/)(s3|file|gs|gcs|abfss?|hdfs|viewfs):/(?!/)")
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
        InputError: the scheme is unknown to pyarrow, or the URI or its settings are incomplete.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if _ONE_SLASH.search(uri):
            raise InputError(f"cannot use the URI {uri!r}: two slashes must follow the colon, and then a name")
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return pafs.LocalFileSystem(), _local_path(uri, rest)
    if scheme == "s3":
        path = _object_path(uri, rest)
        with _errors(uri, "use", InputError):
            return s3.open_s3(path.split("/", 1)[0]), path
    try:
        return pafs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"cannot use the URI {uri!r}: {error}") from error


def _local_path(uri: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"cannot use the URI {uri!r}: a file URI is file:///PATH, with three slashes")
    return os.path.normpath("/" + unquote(path))


def _object_path(uri: str, rest: str) -> str:
    path = rest.rstrip("/")
    bucket = path.split("/", 1)[0]
    if not bucket or "" in path.split("/"):
        raise InputError(f"cannot use the URI {uri!r}: it must be s3://BUCKET/KEY, no part of it empty")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
        raise InputError(
            f"cannot use the URI {re.sub('//.*@', '//…@', uri)!r}: no bucket has such a name. Keys and endpoints "
            "belong into AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    return path


def is_local(uri: str) -> bool:
    """Tell whether a path or URI leads to a file system of this machine (network mounts included)."""
    return isinstance(resolve(uri)[0], pafs.LocalFileSystem)


@contextmanager
def _errors(uri: str, verb: str, kind: type[UsageError]) -> Iterator[None]:
    """Turn what pyarrow or the operating system raises into one error that names the URI."""
    try:
        yield
    except OSError as error:
        scheme, _, rest = uri.partition("://")
        reason = s3.explain(error, rest.split("/", 1)[0]) if scheme == "s3" else str(error)
        raise kind(f"cannot {verb} {uri}: {reason}") from error


def join(uri: str, *parts: str) -> str:
    """Append path parts to a local path or URI."""
    return posixpath.join(uri, *parts)


def _with_prefix(uri: str, path: str) -> str:
    """Turn a path inside a file system back into the form in which the user gave `uri`."""
    if "://" not in uri:
        return path
    scheme = uri.split("://", 1)[0]
    return f"file://{quote(path)}" if scheme == "file" else f"{scheme}://{path}"


def stat(uri: str) -> StoredFile | None:
    """Describe one file, or return None if there is no file at `uri`.

    Raises:
        InputError: the place cannot be looked at.
    """
    info = _get_info(uri)
    if info.type != pafs.FileType.File:
        return None
    return StoredFile(uri, info.size or 0, info.mtime_ns or 0)


def is_directory(uri: str) -> bool:
    """Tell whether `uri` is a folder (on an object store: has keys below it).

    Raises:
        InputError: the place cannot be looked at.
    """
    return bool(_get_info(uri).type == pafs.FileType.Directory)


def _get_info(uri: str) -> pafs.FileInfo:
    filesystem, path = resolve(uri)
    with _errors(uri, "read", InputError):
        return filesystem.get_file_info(path)


def list_files(uri: str, *, recursive: bool = False, with_hidden: bool = False) -> list[StoredFile]:
    """List the files in a folder, sorted by name.

    Args:
        uri: the folder.
        recursive: also the files in folders below it.
        with_hidden: also hidden and temporary files: those with a name, or in a folder, that begins with `.` or `_`.

    Returns:
        An empty list if the folder does not exist.

    Raises:
        InputError: it cannot be listed.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    with _errors(uri, "list", InputError):
        infos = filesystem.get_file_info(selector)
    found = []
    for info in infos:
        relative = posixpath.relpath(info.path, path)
        is_hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if info.type == pafs.FileType.File and (with_hidden or not is_hidden):
            found.append(StoredFile(_with_prefix(uri, info.path), info.size or 0, info.mtime_ns or 0))
    return sorted(found, key=lambda file: file.uri)


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted; an empty list if it does not exist.

    Raises:
        InputError: it cannot be listed.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True)
    with _errors(uri, "list", InputError):
        infos = filesystem.get_file_info(selector)
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def expand(uri: str) -> list[StoredFile]:
    """Find the files that a user's path means: one file, a folder (with all below it), or a glob.

    Raises:
        InputError: nothing is there, it cannot be read, or the glob matches nothing.
    """
    return expand_all(uri)[0]


def expand_all(uri: str) -> tuple[list[StoredFile], list[StoredFile]]:
    """Find the files that a user's path means, as `expand`, and those left out because of an underscore.

    Names and folders that begin with `.` are left out without a word. A symbolic link that leads back to a folder above
    it is not followed.

    Returns:
        The files; and those among what the path means with a name, or in a folder, that begins with `_`.

    Raises:
        InputError: nothing is there, it cannot be read, or the glob matches nothing.
    """
    file = stat(uri)
    if file is not None:
        return [file], []
    if is_directory(uri):  # before it is taken for a glob: its name may hold brackets
        return _list_below(uri)
    if not _GLOB_CHARACTERS.isdisjoint(uri):
        return _expand_glob(uri)
    _check_bucket(uri)
    raise InputError(f"no such file or folder: {uri}. Check the path; globs need quotes or must match something.")


def _check_bucket(uri: str) -> None:
    """Raise InputError if a URI leads to a bucket that does not exist."""
    scheme, _, rest = uri.partition("://")
    bucket = rest.split("/", 1)[0]
    if scheme == "s3" and not is_directory(f"s3://{bucket}"):
        error = OSError("AWS Error NO_SUCH_BUCKET")
        raise InputError(f"cannot read {uri}: {s3.explain(error, bucket)}")


def _list_below(uri: str) -> tuple[list[StoredFile], list[StoredFile]]:
    """List the files below a folder, sorted: those to read, and those with `_` in front of a name or a folder's."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        with _errors(uri, "list", InputError):
            files = [
                StoredFile(_with_prefix(uri, found), info.st_size, info.st_mtime_ns)
                for found, info in _walk(path, frozenset({os.path.realpath(path)}))
                if _is_utf8(found)
            ]
        files.sort(key=lambda file: file.uri)
    else:
        files = list_files(uri, recursive=True, with_hidden=True)
    shown: list[StoredFile] = []
    underscored: list[StoredFile] = []
    for file in files:
        names = posixpath.relpath(resolve(file.uri)[1], path).split("/")
        if not any(name.startswith(".") for name in names):
            (underscored if any(name.startswith("_") for name in names) else shown).append(file)
    return shown, underscored


def _is_utf8(path: str) -> bool:
    """Return True.

    Raises:
        InputError: the path holds other bytes, which no URI and no plan can hold.
    """
    try:
        return bool(path.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"the name of {os.fsencode(path)!r} is not UTF-8: rename the file") from error


def _walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below a local folder; links are followed, but not into a folder `above`, given by real paths."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    yield from _walk(entry.path, above | {real})
            elif entry.is_file():
                with suppress(FileNotFoundError):  # deleted meanwhile
                    yield entry.path, entry.stat()


def _expand_glob(uri: str) -> tuple[list[StoredFile], list[StoredFile]]:
    parts = uri.split("/")
    fixed = next(i for i, part in enumerate(parts) if not _GLOB_CHARACTERS.isdisjoint(part))
    base = "/".join(parts[:fixed]) or ("/" if uri.startswith("/") else ".")
    if not is_directory(base):
        _check_bucket(base)
        raise InputError(f"no such folder: {base} (from the glob {uri})")
    pattern = "/".join(parts[fixed:])
    base_path = resolve(base)[1]
    matches, underscored = (
        [file for file in files if _matches(posixpath.relpath(resolve(file.uri)[1], base_path), pattern)]
        for files in _list_below(base)
    )
    if not matches:
        raise InputError(f"the glob {uri} matches no file")
    return matches, underscored


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

    Reads from an object store raise InputError too, never OSError: a broken connection must not pass for a
    damaged file.

    Raises:
        InputError: it cannot be opened.
    """
    filesystem, path = resolve(uri)
    with _errors(uri, "open", InputError):
        source = filesystem.open_input_file(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return source
    return pa.PythonFile(RemoteReader(uri, source, lambda: _errors(uri, "read", InputError)), mode="r")


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        InputError: it cannot be read.
    """
    with open_input(uri) as source, _errors(uri, "read", InputError):
        return source.read()  # type: ignore[no-any-return]


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a whole file so that it appears complete or not at all; an existing one is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = pa.py_buffer(data)
    filesystem, path = resolve(uri)
    with _errors(uri, "write", OutputError):
        if isinstance(filesystem, pafs.LocalFileSystem):
            with written_whole(path) as temporary, open(temporary, "wb") as target:
                target.write(buffer)
        else:
            # By default pyarrow packs what is named .gz or .zst. No `with`: leaving it would complete the upload after
            # an error too; `close` alone fails if any part has failed.
            sink = filesystem.open_output_stream(path, compression=None)
            sink.write(buffer)
            sink.close()


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
    """Write a Parquet file atomically, texts and lists in zstd level 1.

    Args:
        uri: where.
        table: the rows.
        row_group_sizes: rows of each row group, in order, summing to the table's rows; empty = one group.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):  # no second copy of the whole file in memory
        with _errors(uri, "write", OutputError), written_whole(path) as temporary, pa.OSFile(temporary, "wb") as file:
            _write_row_groups(file, table, row_group_sizes)
        return
    sink = pa.BufferOutputStream()
    _write_row_groups(sink, table, row_group_sizes)
    write_bytes(uri, sink.getvalue())


def _write_row_groups(sink: pa.NativeFile, table: pa.Table, row_group_sizes: Sequence[int]) -> None:
    compressed = list_compressed_columns(table.schema)
    options = {
        "compression": dict.fromkeys(compressed, "zstd"),
        "compression_level": dict.fromkeys(compressed, 1),
        "use_dictionary": list_dictionary_columns(table.schema),
        "write_statistics": False,  # nothing here filters by value, and footers are a third as long without
    }
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        start = 0
        for size in row_group_sizes or (table.num_rows,):
            writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
            start += size


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file whole (schema as written, no Pandas metadata).

    Raises:
        InputError: it cannot be read or is no Parquet file.
    """
    wanted = list(columns) if columns is not None else None
    with open_input(uri) as source, _errors(uri, "read", InputError):
        try:
            return pq.ParquetFile(source, pre_buffer=not is_local(uri)).read(columns=wanted)
        except pa.ArrowInvalid as error:
            raise InputError(f"cannot read {uri}: not a whole Parquet file: {error}") from error


def delete_directory(uri: str) -> None:
    """Delete a folder and all below it; nothing happens if it does not exist.

    Raises:
        OutputError: it cannot be deleted.
    """
    filesystem, path = resolve(uri)
    with _errors(uri, "delete", OutputError):
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens if it does not exist.

    Raises:
        OutputError: it cannot be deleted.
    """
    filesystem, path = resolve(uri)
    with _errors(uri, "delete", OutputError):
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            filesystem.delete_file(path)


def delete_temporaries(uri: str) -> None:
    """Delete the temporary files that killed processes left in a folder and below it; an object store has none.

    Only for a folder in which nobody writes.
    """
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return
    for folder, _, names in os.walk(path):
        for name in filter(_TEMPORARY_NAME.match, names):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))


def check_writable(uri: str) -> None:
    """Write and delete a probe file.

    Raises:
        OutputError: the folder cannot be written.
    """
    probe = join(uri, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-probe")
    write_bytes(probe, b"")
    delete_file(probe)
