"""Starts one sandboxed run: namespaces first, then the supervisor and the worker.

Started by `celr_ray.core.sandbox` in an interpreter of its own, so that nothing of the parent, which may be large
and threaded, is ever forked. The outcome goes to stdout: status, rule, tests passed, tests and text, with NUL between.
"""

from __future__ import annotations

import math
import os
import sys

from . import kernel
from .hook import install_hook
from .supervisor import Outcome, supervise
from .worker import run_answer, send

__all__ = ["main"]

_MAX_FILE_BYTES = 16 << 20
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_PUBLIC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/usr/share/zoneinfo")


class Order:
    """What to run and within which limits, as the parent passes it: nine arguments, and two texts on stdin.

    Attributes:
        folder: an empty folder; the code's working folder.
        layers: names of the layers to use.
        time_limit_s: most wall seconds.
        memory_bytes: most address space.
        folder_bytes: most bytes in the folder.
        output_bytes: most bytes of stdout and stderr.
        n_source: bytes of the answer's source, first on stdin.
        n_tests: bytes of the tests, second on stdin; read when the worker exists, so that it does not hold them.
        entry_point: the name that the answer must define, or "".
    """

    def __init__(self, arguments: list[str]) -> None:
        self.folder = os.path.realpath(arguments[0])
        self.layers = frozenset(arguments[1].split(","))
        self.time_limit_s = float(arguments[2])
        self.memory_bytes, self.folder_bytes, self.output_bytes, self.n_source, self.n_tests = map(int, arguments[3:8])
        self.entry_point = arguments[8]


def main(arguments: list[str]) -> None:
    """Run one order and write its outcome; an error here is a defect of the sandbox and ends with a traceback."""
    kernel.die_with_parent()  # a caller that is killed leaves nothing running
    sys.dont_write_bytecode = True  # from here on: the launcher's own modules may be cached
    order = Order(arguments)
    source = _read(order.n_source)
    if "namespaces" in order.layers:
        kernel.enter_namespaces()
        process_one = os.fork()
        if process_one:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(process_one, 0)[1]) & 0xFF)
        kernel.die_with_parent()
        kernel.mount_scratch(order.folder, order.folder_bytes)
    outcome = _run(order, source)
    os.write(1, "\0".join(map(str, outcome)).encode())
    os._exit(0)  # as process 1, this also ends all that is left


def _read(size: int) -> bytes:
    parts = []
    while size and (part := os.read(0, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _run(order: Order, source: bytes) -> Outcome:
    up, down, output = os.pipe(), os.pipe(), os.pipe()
    load_key = os.urandom(16).hex()
    worker = os.fork()
    if worker == 0:
        try:
            _work(order, source.decode(), load_key, up[1], down[0], output[1])
        finally:
            os._exit(1)
    for fd in (up[1], down[0], output[1]):
        os.close(fd)
    return supervise(
        worker,
        (up[0], down[1], output[0]),
        _read(order.n_tests),
        load_key,
        time_limit_s=order.time_limit_s,
        output_limit_bytes=order.output_bytes,
        folder="" if "namespaces" in order.layers else order.folder,
        folder_limit_bytes=order.folder_bytes,
    )


def _work(order: Order, source: str, load_key: str, up: int, down: int, output: int) -> None:
    kernel.die_with_parent()
    _keep_only(up, down, output)
    try:
        _close_sandbox(order, up)
    except OSError as error:
        send(up, "X", f"{type(error).__name__}: {error}")
        return
    send(up, "S")
    run_answer(source, order.entry_point, load_key, up, down)
    os._exit(0)


def _keep_only(up: int, down: int, output: int) -> None:
    """Leave nothing open but the two pipes, output as stdout and stderr, and nothing as stdin."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    low, high = sorted((up, down))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 1024)


def _close_sandbox(order: Order, up: int) -> None:
    """Give up every right that the answer does not need, and forget what helped to do so."""
    readable = _readable_paths()
    os.chdir(order.folder)
    os.environ.pop("LD_LIBRARY_PATH", None)
    cpu_s = math.ceil(order.time_limit_s) + 1
    has_seccomp = "seccomp" in order.layers
    kernel.drop_capabilities()
    if "landlock" in order.layers:
        kernel.restrict_files(order.folder, readable, _DEVICES)
    if "rlimits" in order.layers:
        kernel.set_limits(order.memory_bytes, cpu_s, _MAX_FILE_BYTES, forbid_processes=not has_seccomp)
    if has_seccomp:
        kernel.filter_syscalls()
    if "audit_hook" in order.layers:
        install_hook(order.folder, readable, _DEVICES, lambda rule, event: _end_unsafe(up, rule, event))
    sys.argv[:] = ["solution"]
    for name in [name for name in sys.modules if name.split(".")[0] in ("jail", "ctypes", "_ctypes")]:
        del sys.modules[name]


def _end_unsafe(up: int, rule: str, event: str) -> None:
    try:
        send(up, "U", rule, event)
    finally:
        os._exit(1)


def _readable_paths() -> list[str]:
    """List what Python itself needs: its standard library, the machine's shared libraries, time zones."""
    own = [*sys.path, os.path.join(sys.base_prefix, "lib")]
    return sorted({os.path.realpath(path) for path in (*own, *_LIBRARIES, *_PUBLIC) if os.path.exists(path)})
