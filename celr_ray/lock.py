"""One command at a time on a run folder.

Whoever writes into a run holds its lock: a hidden file that names host, process and start time and is touched every
30 seconds. A second command is refused. A lock whose owner is gone is taken over: at once if the owner ran on this
machine, after five minutes without a touch if it ran elsewhere. Nothing here knows of stages.
"""

from __future__ import annotations

import fcntl
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from celr_ray import storage
from celr_ray.atomic import TEMPORARY_PREFIX
from celr_ray.errors import CelrRayError, OutputError
from celr_ray.owner import STALE_S, UNKNOWN, Owner, decode_owner, encode_owner, forget_owner, is_gone, make_owner

LOCK_NAME = ".celr-ray-lock"
HEARTBEAT_S = 30.0
_TRIES = 6
_held: dict[tuple[str, int], RunLock] = {}


def _read_owner(uri: str) -> Owner | None:
    """Return who is named in a lock, UNKNOWN if nobody is; None if it is no longer there."""
    for _ in range(5):
        if storage.stat(uri) is None:
            return None
        with suppress(CelrRayError):
            owner = decode_owner(storage.read_bytes(uri))
            if owner is not UNKNOWN:
                return owner
        time.sleep(0.1)
    return UNKNOWN


def _refuse(run: str, owner: Owner, uri: str) -> OutputError:
    return OutputError(
        f"{run} is in use by {owner}. Wait until it ends, or choose another folder. (If it is gone, the lock is taken "
        f"over: at once on its own machine, elsewhere {STALE_S / 60:.0f} minutes after its last sign of life; or "
        f"delete {uri})"
    )


def _announce_takeover(run: str, owner: Owner) -> None:
    print(f"lock      {run}: took over from {owner}, which is gone", file=sys.stderr, flush=True)


class _Lock(Protocol):
    """How a lock is kept in one kind of store."""

    def acquire(self) -> None:
        """Take it, or raise OutputError that names the owner."""

    def refresh(self) -> bool:
        """Touch it; False if it is no longer ours."""

    def release(self) -> None:
        """Give it back, if it is still ours."""


class _FileLock:
    """One file, made by exclusive creation; a stale one is removed under flock, so that one of several does it."""

    def __init__(self, run: str, owner: Owner) -> None:
        self._run = run
        self._owner = owner
        self._uri = storage.join(run, LOCK_NAME)
        self._path = storage.resolve(self._uri)[1]
        self._new_folders: list[str] = []

    def acquire(self) -> None:
        try:
            self._make_folders()
            for _ in range(_TRIES):
                if self._create():
                    return
                owner = _read_owner(self._uri)
                if owner is not None:
                    if not is_gone(owner, self._untouched_s()):
                        raise _refuse(self._run, owner, self._uri)
                    self._remove_if_gone()
        except OSError as error:
            self._remove_new_folders()
            raise OutputError(f"cannot write {self._uri}: {error}") from error
        raise OutputError(f"cannot lock {self._run}: several others try at the same time; give the command again")

    def _make_folders(self) -> None:
        folder = os.path.dirname(self._path)
        while not os.path.isdir(folder):
            self._new_folders.append(folder)
            folder = os.path.dirname(folder)
        for missing in reversed(self._new_folders):
            os.makedirs(missing, exist_ok=True)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, encode_owner(self._owner))
        except OSError:
            os.unlink(self._path)
            raise
        finally:
            os.close(descriptor)
        return True

    def _untouched_s(self) -> float:
        """Return the lock's age by the clock of its file system: against a file that is made now."""
        probe = f"{os.path.dirname(self._path)}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}-clock"
        try:
            with open(probe, "wb"):
                return os.stat(probe).st_mtime - os.stat(self._path).st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            with suppress(OSError):
                os.unlink(probe)

    def _remove_if_gone(self) -> None:
        """Remove the lock, unless another did so meanwhile and perhaps took it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            with suppress(OSError):  # a network file system without flock: exclusive creation must do
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self._is_file(descriptor):
                return
            owner = decode_owner(os.read(descriptor, 4096))
            if is_gone(owner, self._untouched_s()):
                os.unlink(self._path)
                _announce_takeover(self._run, owner)
                storage.delete_temporaries(self._run)
        finally:
            os.close(descriptor)

    def _is_file(self, descriptor: int) -> bool:
        """Tell whether an open file still is the one under the lock's name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def refresh(self) -> bool:
        owner = _read_owner(self._uri)
        if owner is None or owner.token != self._owner.token:
            return False
        os.utime(self._path)
        return True

    def release(self) -> None:
        with suppress(OSError):
            owner = _read_owner(self._uri)
            if owner is not None and owner.token == self._owner.token:
                os.unlink(self._path)
        self._remove_new_folders()

    def _remove_new_folders(self) -> None:
        with suppress(OSError):
            for folder in self._new_folders:
                os.rmdir(folder)


class _ObjectLock:
    """One object a claimant, named by its token: put it, list all, keep it only if no other live one is there.

    pyarrow has no conditional put, and one shared object that is written and read back would leave a race. With
    claims of their own, of two claimants the one that wrote later sees the other, so at most one goes on, provided the
    store lists an object as soon as it is put, as AWS S3 does since December 2020. A store that does not can let two
    claimants through. When two meet, both withdraw and try again after a random pause.
    """

    def __init__(self, run: str, owner: Owner) -> None:
        self._run = run
        self._owner = owner
        self._uri = storage.join(run, f"{LOCK_NAME}-{owner.token}")

    def acquire(self) -> None:
        for attempt in range(_TRIES):
            storage.write_bytes(self._uri, encode_owner(replace(self._owner, is_claim=True)))
            try:
                met, gone = self._look()
                if met is None:
                    storage.write_bytes(self._uri, encode_owner(self._owner))
            except BaseException:
                self._withdraw()
                raise
            if met is None:
                self._clear(gone)
                return
            self._withdraw()
            owner, uri = met
            if not owner.is_claim or attempt == _TRIES - 1:
                raise _refuse(self._run, owner, uri)
            time.sleep(random.uniform(0.1, 0.5) * 2**attempt)

    def _look(self) -> tuple[tuple[Owner, str] | None, list[tuple[Owner, str]]]:
        """Return one live claim of another, if there is any, else the claims whose owners are gone."""
        prefix = self._uri.removesuffix(self._owner.token)
        claims = {file.uri: file for file in storage.list_files(self._run, with_hidden=True)}
        if self._uri not in claims:
            raise OutputError(f"cannot lock {self._run}: the store does not list {self._uri}, which was just written")
        now_ns = claims[self._uri].modified_ns
        gone = []
        for uri, file in claims.items():
            owner = _read_owner(uri) if uri.startswith(prefix) and uri != self._uri else None
            if owner is None:
                continue
            if not is_gone(owner, (now_ns - file.modified_ns) / 1e9):
                return (owner, uri), []
            gone.append((owner, uri))
        return None, gone

    def _clear(self, gone: list[tuple[Owner, str]]) -> None:
        for owner, uri in gone:
            with suppress(CelrRayError):  # it stays stale, and the next command tries again
                storage.delete_file(uri)
            _announce_takeover(self._run, owner)

    def _withdraw(self) -> None:
        with suppress(CelrRayError):
            storage.delete_file(self._uri)

    def refresh(self) -> bool:
        if storage.stat(self._uri) is None:
            return False
        storage.write_bytes(self._uri, encode_owner(self._owner))
        return True

    def release(self) -> None:
        self._withdraw()


class RunLock:
    """A lock that is held, and the thread that keeps touching it."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._owner = make_owner()
        kind = _FileLock if storage.is_local(run) else _ObjectLock
        self._lock: _Lock = kind(run, self._owner)
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="celr-ray-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock and start touching it.

        Raises:
            OutputError: another command holds it, or the folder cannot be written.
        """
        try:
            self._lock.acquire()
        except BaseException:
            forget_owner(self._owner)
            raise
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            # A store that does not answer for a while: the next touch may succeed, and finds out whose the lock is.
            with suppress(CelrRayError, OSError):
                if not self._lock.refresh():
                    self._is_lost = True
                    return

    def check(self) -> None:
        """Stop a command whose lock was lost while it was suspended or cut off for minutes.

        Raises:
            OutputError: another command has taken the lock over, or someone has deleted it.
        """
        if self._is_lost:
            raise OutputError(
                f"the lock of {self._run} is no longer ours: deleted, or taken over by another command while this one "
                "gave no sign of life for minutes. Finished units are kept"
            )

    def release(self) -> None:
        """Stop touching the lock and remove it; if the store does not answer, it stays and will be taken over."""
        self._ended.set()
        self._thread.join()
        with suppress(CelrRayError):
            self._lock.release()
        forget_owner(self._owner)


@contextmanager
def run_lock(run: str) -> Iterator[RunLock]:
    """Hold the lock of a run folder; inside, in the same thread, it can be entered again.

    The lock is hidden (its name begins with a dot), so that a folder with a lock and nothing else counts as empty;
    folders made for it are removed at the end if nothing was written.

    Args:
        run: run folder.

    Raises:
        OutputError: another command holds the lock, `run` is a file, or it cannot be written.
    """
    filesystem, path = storage.resolve(run)
    key = (f"{filesystem.type_name}:{os.path.realpath(path) if storage.is_local(run) else path}", threading.get_ident())
    if key in _held:
        yield _held[key]
        return
    if storage.stat(run) is not None:
        raise OutputError(f"{run} is a file; give a folder")
    lock = RunLock(run)
    lock.acquire()
    _held[key] = lock
    pid = os.getpid()
    try:
        yield lock
    finally:
        if os.getpid() == pid:
            del _held[key]
            lock.release()
