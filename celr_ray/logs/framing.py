"""Cutting files into JSON values: lines of JSONL, or whole documents; plain or compressed; damage included.

`iter_values` yields every value of a byte range of a file exactly once, whatever the ranges: a line belongs
to the range in which it starts. What cannot be a value (an over-long line, the broken end of a gz file, an
empty file) is yielded as damage, never skipped and never raised.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from celr_ray import storage

BLOCK_BYTES = 4 * 2**20
_PACKED_BYTES = 256 * 1024
_ZSTD_PIECES = (_PACKED_BYTES, 4096, 1)
_HEAD_BYTES = 64 * 1024
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LINE_EXTENSIONS = (".jsonl", ".ndjson")
_BRACE = ord("{")
_UTF8_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_MAX_KEPT_BYTES = 64 * 1024
MAX_EXPANSION = 200
"""A compressed file may expand this many times (logs do 5 to 30 times), small ones to 64 MiB in any case."""
_MIN_EXPANDED_BYTES = 64 * 2**20


class Value(NamedTuple):
    """One JSON value as found in a file.

    Attributes:
        offset: byte offset in the uncompressed file.
        raw: its bytes (of a damaged value the first 64 KiB); of a whole line a view, which keeps the block it lies in.
        damage: why it cannot be a value; None if it may be one.
        n_bytes: its full length.
    """

    offset: int
    raw: bytes | memoryview
    damage: str | None
    n_bytes: int


@dataclass(frozen=True)
class FileRange:
    """A byte range of one input file; `end` None = to the end. Compressed files and documents are never cut."""

    uri: str
    start: int = 0
    end: int | None = None


@dataclass
class LineCounter:
    """Counts the lines that start in a range, blank ones too, while `iter_values` reads it.

    Attributes:
        line: 1-based number, within the range, of the line of the value yielded last; in the end, all lines.
    """

    line: int = 0


def split_extension(uri: str) -> tuple[str, str | None]:
    """Return the extension below any compression's (".json"), and the compression ("gzip", "zstd" or None)."""
    name = uri.rsplit("/", 1)[-1].lower()
    compression = None
    for suffix, kind in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), kind
    dot = name.rfind(".")
    return (name[dot:] if dot >= 0 else ""), compression


def is_splittable(uri: str) -> bool:
    """Tell whether a file may be cut into byte ranges: plain JSONL by its name."""
    extension, compression = split_extension(uri)
    return compression is None and extension in _LINE_EXTENSIONS


def iter_values(part: FileRange, max_value_bytes: int, counter: LineCounter | None = None) -> Iterator[Value]:
    """Yield the JSON values that start in a byte range of a file.

    Args:
        part: the range.
        max_value_bytes: a longer line or document is damage, bytes.
        counter: told the line of each value; a document that is no JSONL counts as line 1.

    Raises:
        InputError: the file cannot be opened.
    """
    counter = counter or LineCounter()
    extension, compression = split_extension(part.uri)
    with storage.open_input(part.uri) as source:
        if part.start:
            source.seek(part.start - 1)
        blocks = _Blocks(source, compression)
        head = blocks.peek()
        if part.start == 0:
            counter.line = 1
            if not head:
                yield Value(0, b"", blocks.error or "the file is empty", 0)
                return
            if head[:2] in _WIDE_BOMS:
                yield Value(0, head[:_MAX_KEPT_BYTES], f"{_WIDE_BOMS[head[:2]]} text; convert it to UTF-8", len(head))
                return
        if extension in _LINE_EXTENSIONS or _looks_like_lines(head):
            counter.line = 0
            is_blank = True
            for value in _iter_lines(blocks, part, max_value_bytes, counter):
                is_blank = False
                yield value
            if is_blank and part.start == 0 and (compression or part.end is None or part.end >= source.size()):
                counter.line = 1
                yield Value(0, b"", "the file is empty", 0)
        else:
            yield from _whole_document(blocks, max_value_bytes)


class _Blocks:
    """Reads a file in blocks; a compressed one that breaks off ends with `error` set, what could be read kept."""

    def __init__(self, source: pa.NativeFile, compression: str | None) -> None:
        readers = {None: _read_plain, "gzip": _read_gzip, "zstd": _read_zstd}
        self._blocks = readers[compression](source)
        if compression is not None:
            self._blocks = _limit_expansion(self._blocks, source.size())
        self._first: bytes | None = None
        self.error: str | None = None

    def peek(self) -> bytes:
        """Return the first block; blocks without a line break are joined, up to 4 MiB."""
        if self._first is None:
            self._first = self._read()
            while b"\n" not in self._first and len(self._first) < BLOCK_BYTES and (block := self._read()):
                self._first += block
        return self._first

    def __iter__(self) -> Iterator[bytes]:
        block = self.peek()
        while block:
            yield block
            block = self._read()

    def _read(self) -> bytes:
        try:
            return next(self._blocks, b"")
        except (OSError, zlib.error) as error:
            self.error = f"truncated or damaged compressed file: {error}"
            return b""
        except _BombError as error:
            self.error = str(error)
            return b""


class _BombError(Exception):
    """A compressed file expands further than logs do."""


def _limit_expansion(blocks: Iterator[bytes], packed_bytes: int) -> Iterator[bytes]:
    limit = max(_MIN_EXPANDED_BYTES, MAX_EXPANSION * packed_bytes)
    total = 0
    for block in blocks:
        total += len(block)
        if total > limit:
            raise _BombError(
                f"expands to more than {limit:,} bytes, {MAX_EXPANSION} times its {packed_bytes:,}: "
                "not read further, it looks like a decompression bomb; unpack it first if it is not"
            )
        yield block


def _read_plain(source: pa.NativeFile) -> Iterator[bytes]:
    while block := source.read(BLOCK_BYTES):
        yield block


def _read_gzip(source: pa.NativeFile) -> Iterator[bytes]:
    """Decompress gzip members one after another; each block is bounded, however far the data expand."""
    packed: bytes = source.read(_PACKED_BYTES)
    while packed:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if not packed:
                packed = source.read(_PACKED_BYTES)
            if not packed:
                raise OSError("the gzip stream ends before its end marker")
            before = member.copy()
            try:
                block = member.decompress(packed, BLOCK_BYTES)
            except zlib.error:
                yield from _inflate_to_damage(before, packed)
                raise
            packed = member.unconsumed_tail
            if block:
                yield block
        packed = (member.unused_data or source.read(_PACKED_BYTES)).lstrip(b"\0")


def _inflate_to_damage(member: zlib._Decompress, packed: bytes) -> Iterator[bytes]:
    """Yield what stands before the damage in packed bytes: a decoder that fails gives nothing of what it was given."""
    with suppress(zlib.error):
        for place in range(len(packed)):
            if block := member.decompress(packed[place : place + 1]):
                yield block


def _read_zstd(source: pa.NativeFile) -> Iterator[bytes]:
    """Decompress zstd frames; before damage, in ever smaller pieces: a read that fails gives none of its bytes."""
    start, n_read = source.tell(), 0
    streams = []  # a stream that is deleted closes the file below it
    for size in _ZSTD_PIECES:
        source.seek(start)
        stream = pa.CompressedInputStream(source, "zstd")
        streams.append(stream)
        place = 0
        try:
            while place < n_read:
                place += len(stream.read(min(_PACKED_BYTES, n_read - place)))
            while block := stream.read(size):
                n_read += len(block)
                yield block
        except OSError:
            if size == _ZSTD_PIECES[-1]:
                raise
        else:
            return


def _looks_like_lines(head: bytes) -> bool:
    """Guess from the first 64 KiB of a file of unknown extension, or 4 MiB if lines are long, whether it is JSONL.

    A pretty-printed document has first lines that are no whole values; JSONL has almost only such lines. The last line
    may go on beyond the sample: of it only the first character counts.
    """
    sample = head[:_HEAD_BYTES]
    *lines, last = [line.strip() for line in (sample if sample.count(b"\n") > 1 else head).split(b"\n")]
    lines = [line for line in lines if line]
    whole = sum(line[:1] == b"{" and line[-1:] == b"}" for line in lines)
    n_lines = len(lines) + bool(last)
    return n_lines > 1 and (whole + (last[:1] == b"{")) * 2 > n_lines


def _iter_lines(blocks: _Blocks, part: FileRange, limit: int, counter: LineCounter) -> Iterator[Value]:
    offset = max(part.start - 1, 0)
    pending: list[bytes] = []
    pending_bytes = 0
    skip_first = part.start > 0
    end = math.inf if part.end is None else part.end
    for block in blocks:
        view = memoryview(block)
        start = 0
        while (newline := block.find(b"\n", start)) >= 0:
            length = pending_bytes + newline - start
            if not skip_first:
                counter.line += 1
                value = _as_value(offset, pending, view[start:newline], length, limit)
                if value is not None:
                    yield value
            skip_first = False
            offset += length + 1
            start = newline + 1
            pending, pending_bytes = [], 0
            if offset >= end:
                return
        if pending_bytes <= limit:
            pending.append(block[start:])
        pending_bytes += len(block) - start
    if skip_first:
        return
    counter.line += 1
    if blocks.error:
        kept = b"".join(pending)
        yield Value(offset, kept[:_MAX_KEPT_BYTES], blocks.error, pending_bytes)
    elif value := _as_value(offset, pending, memoryview(b""), pending_bytes, limit):
        yield value


def _as_value(offset: int, pending: list[bytes], last: memoryview, length: int, limit: int) -> Value | None:
    """Make the value of a line; None if it is blank. Most lines lie within one block and begin with a brace."""
    if not pending and 0 < length <= limit and last[0] == _BRACE:
        return Value(offset, last, None, length)
    line = b"".join([*pending, last])
    if length > limit:
        reason = f"a line of {length:,} bytes; the limit is {limit:,} bytes"
        return Value(offset, line[:_MAX_KEPT_BYTES], reason, length)
    if offset == 0:
        line = line.removeprefix(_UTF8_BOM)
    return Value(offset, line, None, length) if line and not line.isspace() else None


def _whole_document(blocks: _Blocks, limit: int) -> Iterator[Value]:
    kept: list[bytes] = []
    length = 0
    for block in blocks:
        length += len(block)
        kept.append(block)
        if length > limit:
            raw = b"".join(kept)[:_MAX_KEPT_BYTES]
            yield Value(0, raw, f"a document of more than {limit:,} bytes; the limit is that", length)
            return
    raw = b"".join(kept).removeprefix(_UTF8_BOM)
    if blocks.error:
        yield Value(0, raw[:_MAX_KEPT_BYTES], blocks.error, length)
    elif raw.isspace() or not raw:
        yield Value(0, raw[:_MAX_KEPT_BYTES], "the file is empty", length)
    else:
        yield Value(0, raw, None, length)
