"""Reading an object of a store in requests of a sensible size, with the errors of this package."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import pyarrow as pa

from celr_ray.errors import InputError

READ_AHEAD_BYTES = 4 * 2**20


class RemoteReader(io.RawIOBase):
    """A file object over an object: each read that it cannot answer from memory is one request.

    A read that goes on where the last one ended fetches 4 MiB ahead (decompressors ask for 64 KiB at a time); any
    other fetches just what it asks for (Parquet column chunks).
    """

    def __init__(self, uri: str, source: pa.NativeFile, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """Take the opened object.

        Args:
            uri: its name in messages.
            source: the object.
            guard: makes a context that turns what a request raises into InputError.
        """
        super().__init__()
        self._uri = uri
        self._source = source
        self._guard = guard
        self._size = int(source.size())
        self._position = 0
        self._block = b""
        self._block_start = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read in any order."""
        return True

    def tell(self) -> int:
        """Return the position, bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; nothing is requested."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; all that is left if it is None or negative.

        Raises:
            InputError: a request failed, or the object is shorter than it was when it was opened.
        """
        left = max(self._size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        begin = self._position - self._block_start
        kept = self._block[begin : begin + wanted] if 0 <= begin <= len(self._block) else b""
        self._position += len(kept)
        missing = wanted - len(kept)
        if not missing:
            return kept
        is_sequential = self._position == self._block_start + len(self._block)
        with self._guard():
            self._source.seek(self._position)
            block: bytes = self._source.read(max(missing, READ_AHEAD_BYTES) if is_sequential else missing)
        if len(block) < missing:
            raise InputError(f"cannot read {self._uri}: it became shorter while it was read; give the command again")
        self._block, self._block_start = block, self._position
        self._position += missing
        return kept + block[:missing] if kept else block[:missing]

    def close(self) -> None:
        """Close the object."""
        if not self.closed:
            self._source.close()
        super().close()
