"""Runs Python code that a model wrote, with its tests, where it can do no harm.

Each run is a bare interpreter of its own (`celr_ray.core.jail`), closed by layers:

    landlock     files: only its own folder and Python's library        Linux 5.13, no rights needed
    seccomp      system calls: no processes, sockets, signals           x86-64 and aarch64, no rights needed
    namespaces   own processes, network, mounts; folder in memory       where user namespaces are allowed
    rlimits      address space, CPU time, file size, open files         everywhere
    audit_hook   names the forbidden act and ends the run               everywhere

Files need `landlock` and the network needs `seccomp`: without them nothing runs, unless `allow_weak` says so. What the
layers do not protect from is in docs/verifiers.md. Neither Ray nor vLLM is known here.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from celr_ray.errors import SandboxError

__all__ = [
    "LAYERS",
    "REQUIRED_LAYERS",
    "SandboxResult",
    "SandboxStatus",
    "check_sandbox",
    "run_python",
    "sandbox_layers",
]

LAYERS = ("rlimits", "audit_hook", "landlock", "seccomp", "namespaces")
REQUIRED_LAYERS = frozenset({"landlock", "seccomp"})
"""Without these, files and network are not isolated."""

SandboxStatus = Literal["passed", "failed", "crashed", "time_limit", "output_limit", "folder_limit", "unsafe"]

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from jail.launch import main; del sys.path[0]; main(sys.argv[2:])"
)
_PROBE_S = 30.0
_GRACE_S = 60.0
"""Beyond the time limit, for an interpreter to start on a busy machine. Only a defect of the launcher needs it all."""


@dataclass(frozen=True)
class SandboxResult:
    """How one run ended.

    Attributes:
        status: `passed` only if every test ran and passed.
        n_passed: tests that passed.
        n_tests: tests that were to run; 0 if the run ended before.
        reason: what failed, one line; empty when passed.
        unsafe: names of the rules that the code tried to break: "network", "process_limit", "signal",
            "read_outside", "write_outside". Limits of time, memory, output and folder are mere failures.
        seconds: wall time of the whole run, start included.
    """

    status: SandboxStatus
    n_passed: int
    n_tests: int
    reason: str
    unsafe: tuple[str, ...]
    seconds: float


def run_python(
    source: str,
    tests: str,
    *,
    time_limit_s: float = 5.0,
    memory_limit_bytes: int = 512 << 20,
    folder_limit_bytes: int = 64 << 20,
    output_limit_bytes: int = 1 << 20,
    entry_point: str | None = None,
    allow_weak: bool = False,
    layers: Iterable[str] | None = None,
) -> SandboxResult:
    """Run code and then its tests in a fresh sandbox; returns when nothing of it is left.

    Args:
        source: the code to judge.
        tests: source with top-level asserts or `test…` functions; sees the names that `source` defines.
        time_limit_s: most wall seconds; CPU seconds are limited to a little more.
        memory_limit_bytes: most address space, the interpreter's 20 MB included.
        folder_limit_bytes: most bytes in the code's folder.
        output_limit_bytes: most bytes printed.
        entry_point: a name that `source` must define; the tests see it as `candidate` too.
        allow_weak: run even where files or network are not isolated.
        layers: the layers to use; None = all that the machine has.

    Raises:
        SandboxError: a required layer is missing, or the sandbox could not be closed.
    """
    chosen = sandbox_layers() if layers is None else frozenset(layers)
    _check_layers(chosen, allow_weak=allow_weak)
    started = time.perf_counter()
    folder = tempfile.mkdtemp(prefix="celr-sandbox-")
    try:
        texts = [text.encode("utf-8", "replace") for text in (source, tests)]
        limits = [time_limit_s, memory_limit_bytes, folder_limit_bytes, output_limit_bytes]
        order = [folder, ",".join(sorted(chosen)), *limits, *map(len, texts), entry_point or ""]
        fields = _launch([str(value) for value in order], b"".join(texts), folder, time_limit_s + _GRACE_S)
    finally:
        _remove(folder)
    status, rule, n_passed, n_tests, reason = fields
    if status not in get_args(SandboxStatus):
        raise SandboxError(f"the sandbox could not be closed with {', '.join(sorted(chosen))}: {reason}")
    unsafe = (rule,) if rule else ()
    seconds = time.perf_counter() - started
    return SandboxResult(status, int(n_passed), int(n_tests), reason, unsafe, seconds)  # type: ignore[arg-type]


def check_sandbox(*, allow_weak: bool = False) -> None:
    """Check that this machine can isolate code that a model wrote, before any runs.

    Raises:
        SandboxError: it cannot, and `allow_weak` is off.
    """
    _check_layers(sandbox_layers(), allow_weak=allow_weak)


def _check_layers(layers: frozenset[str], *, allow_weak: bool) -> None:
    missing = REQUIRED_LAYERS - layers
    if missing and not allow_weak:
        raise SandboxError(
            f"this machine cannot isolate code that a model wrote: {' and '.join(sorted(missing))} missing "
            "(needed: Linux 5.13 or later with Landlock enabled, on x86-64 or aarch64); to run it all the same, in a "
            "container or a virtual machine that may be lost, allow weak isolation"
        )


@functools.cache
def sandbox_layers() -> frozenset[str]:
    """Try each layer by itself in a real run and return the names of those that work here.

    Raises:
        SandboxError: not even a bare interpreter starts.
    """
    run_python("", "assert True", allow_weak=True, layers=(), time_limit_s=_PROBE_S)
    return frozenset(layer for layer in LAYERS if _works(layer))


def _works(layer: str) -> bool:
    try:
        result = run_python("", "assert True", allow_weak=True, layers=(layer,), time_limit_s=_PROBE_S)
    except SandboxError:
        return False
    return result.status == "passed"


def _launch(order: list[str], texts: bytes, folder: str, timeout_s: float) -> list[str]:
    """Start the launcher and return the fields of the outcome; nothing that it started is alive afterwards."""
    command = [sys.executable, "-s", "-S", "-P", "-c", _START, str(Path(__file__).parent), *order]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(folder), cwd="/", start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(texts, timeout=timeout_s)
        except BaseException as error:
            if process.returncode is None:  # not reaped, so the id is still its own
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SandboxError(f"the sandbox did not end within {timeout_s:g} s and was killed") from error
            raise
    fields = output.decode("utf-8", "replace").split("\0")
    if process.returncode != 0 or len(fields) != 5:
        detail = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        return ["broken", "", "0", "0", f"exit code {process.returncode} {' '.join(detail)}"]
    return fields


def _environment(folder: str) -> dict[str, str]:
    """Return the whole environment: equal runs get equal hashes; one arena, so that threads fit the address space."""
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    own = {"HOME": folder, "TMPDIR": folder, "USER": "sandbox", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return {**libraries, **own, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}


def _remove(folder: str) -> None:
    """Remove a folder, whatever was made in it."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):  # folders without rights, or nested deeper than Python can follow
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", folder], check=False, capture_output=True)
