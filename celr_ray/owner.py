"""Who holds a lock, and whether that process is still there."""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache

STALE_S = 300.0
"""A lock of another machine that was not touched for this long counts as left behind, seconds."""

_own_tokens: set[str] = set()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: host name, for people.
        machine: the boot and the PID namespace: where it is equal, process numbers mean the same.
        pid: process number.
        process_started: start of the process in clock ticks since boot; tells it from a later one with its number;
            empty if the system does not say.
        started: when the lock was taken, ISO 8601, UTC.
        token: identifies this lock.
        is_claim: the lock is only being asked for.
    """

    host: str
    machine: str
    pid: int
    process_started: str
    started: str
    token: str
    is_claim: bool = False

    def __str__(self) -> str:
        """Return what a person needs to find the process."""
        return f"process {self.pid} on host {self.host}, started {self.started}"


UNKNOWN = Owner("(unknown)", "", 0, "", "(unknown)", "")
"""Owner in a lock file without contents: its maker is about to write them, or died just then."""


def make_owner() -> Owner:
    """Describe this process as the owner of a new lock; until `forget_owner` the lock counts as held."""
    pid = os.getpid()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = Owner(socket.gethostname(), _machine(), pid, _process_start(pid) or "", started, uuid.uuid4().hex)
    _own_tokens.add(owner.token)
    return owner


def forget_owner(owner: Owner) -> None:
    """Count a lock of this process as no longer held, wherever its file may still lie."""
    _own_tokens.discard(owner.token)


def encode_owner(owner: Owner) -> bytes:
    """Return the contents of a lock file."""
    return (json.dumps(asdict(owner)) + "\n").encode()


def decode_owner(data: bytes) -> Owner:
    """Return the owner that a lock file names; UNKNOWN if it names none."""
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return UNKNOWN


def is_gone(owner: Owner, untouched_s: float) -> bool:
    """Tell whether the owner of a lock is gone: surely if it ran on this machine, presumably if elsewhere.

    Args:
        owner: whose lock it is.
        untouched_s: seconds since it was touched, by the clock of the file system or object store.
    """
    if owner.machine != _machine():
        return untouched_s > STALE_S
    started = _process_start(owner.pid)
    is_same_process = started is not None and (
        started == owner.process_started or "" in (started, owner.process_started)
    )
    if is_same_process and owner.pid == os.getpid():
        return owner.token not in _own_tokens
    return not is_same_process


@cache
def _machine() -> str:
    """Identify the set of processes that this one sees."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
            return f"{source.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """Return when a process started, empty if the system does not say; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as source:
            state, *fields = source.read().rpartition(")")[2].split()
        return None if state in ("Z", "X") else fields[18]
    except OSError:
        pass  # gone, or a system without /proc, or one that hides the processes of others
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
