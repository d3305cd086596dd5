"""Local files that appear whole or not at all: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["TEMPORARY_PREFIX", "written_whole"]

TEMPORARY_PREFIX = ".tmp-"
"""Names of unfinished files begin with it; readers leave them out."""


@contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Yield a temporary path to write to; after the block the file stands under `path`, and after an error nowhere.

    Raises:
        OSError: it cannot be written.
    """
    folder, name = os.path.split(path)
    _make_folders(folder)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync(path: str) -> None:
    """Wait until a file is on disk.

    Raises:
        OSError: it cannot be put there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    """Make the names in a folder outlast a power cut, if the file system can: no manifest may outlive its data."""
    with suppress(OSError):
        _sync(folder)
