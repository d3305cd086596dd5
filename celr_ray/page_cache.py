"""What was read once and will not be read again leaves the system's page cache.

Logs larger than memory fill the cache with pages that nobody asks for a second time. The system then searches it for
room at every page that is read or written: `benchmarks/scaling.py` at a million logs took 8.4 s of the kernel's time
for ingest without this module, and 2.9 s with it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from celr_ray import storage

_MIN_BYTES = 32 * 2**20


def forget_pages(uri: str, start: int = 0, end: int | None = None) -> None:
    """Drop a range of a local file from the page cache; small ranges are kept, and files in object stores have none.

    Args:
        uri: the file.
        start: first byte.
        end: byte after the last, None = to the end of the file.
    """
    if not storage.is_local(uri) or not hasattr(os, "posix_fadvise"):
        return
    if end is not None and end - start < _MIN_BYTES:
        return
    with suppress(OSError):  # the file is gone, or the file system knows no such advice
        file = os.open(storage.resolve(uri)[1], os.O_RDONLY)
        try:
            n_bytes = (os.fstat(file).st_size if end is None else end) - start
            if n_bytes >= _MIN_BYTES:
                os.posix_fadvise(file, start, n_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
