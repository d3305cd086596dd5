"""The worker's audit hook: tells which rule an answer tried to break, and ends the run there.

This is the layer that names the act, not the one that stops it: the kernel refuses the same acts to code that gets
past Python. A hook cannot be removed, but code that reaches the interpreter's memory can blind it.
"""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Callable, Sequence

__all__ = ["forbidden_act", "install_hook"]

_NETWORK = frozenset(
    {
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendmsg",
        "socket.sendto",
    }
)
_PROCESSES = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "subprocess.Popen"}
)
_SIGNALS = frozenset({"os.kill", "os.killpg"})
_READS = {"os.listdir": (0,), "os.scandir": (0,)}
_WRITES = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.lchmod": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.removexattr": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.setxattr": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
    "sqlite3.connect": (0,),
}
_INTROSPECTION = frozenset({"gc.get_objects", "gc.get_referents", "gc.get_referrers", "sys._current_frames"})
_MEMORY_MODULES = frozenset({"ctypes", "_ctypes", "_testcapi", "_testinternalcapi", "_xxsubinterpreters"})
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IN_MEMORY = (":memory:", "")
_AF_UNIX = 1


def install_hook(
    folder: str, readable: Sequence[str], devices: Sequence[str], report: Callable[[str, str], None]
) -> None:
    """Watch this process for good.

    Args:
        folder: where the answer may write.
        readable: files and folders that it may read.
        devices: files that it may also write.
        report: called with the rule and the event; must not return.
    """
    pid, getframe = os.getpid(), sys._getframe

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "import" and args[0] in _MEMORY_MODULES:
            raise ImportError(f"{args[0]} is closed here")
        if event in _INTROSPECTION:
            raise RuntimeError(f"{event} is closed here")
        if event == "socket.__new__" and args[1] == _AF_UNIX and _is_pair(getframe(1)):
            return
        rule = forbidden_act(event, args, pid, (folder,), (folder, *readable, *devices), devices)
        if rule is not None:
            report(rule, event)

    sys.addaudithook(hook)


def _is_pair(frame: object) -> bool:
    """Tell whether a socket is made by `socket.socketpair`, which asyncio needs: the kernel allows pairs only."""
    caller = getattr(frame, "f_back", None)
    return caller is not None and caller.f_code.co_name == "socketpair"


def forbidden_act(
    event: str,
    args: tuple[object, ...],
    pid: int,
    writable: Sequence[str],
    readable: Sequence[str],
    devices: Sequence[str],
) -> str | None:
    """Name the rule that an audit event breaks.

    Returns:
        "network", "process_limit", "signal", "read_outside", "write_outside", or None.

    Source: Python 3.11, library/audit_events.
    """
    if event == "open":
        return _opening(args, (*writable, *devices), readable)
    if event in _NETWORK or event == "socket.__new__":
        return "network"
    if event in _PROCESSES:
        return "process_limit"
    if event in _SIGNALS:
        return None if args[0] == pid else "signal"
    if event in _READS and not all(_is_inside(args[index], readable) for index in _READS[event]):
        return "read_outside"
    if event in _WRITES and not all(_is_inside(args[index], writable) for index in _WRITES[event]):
        return "write_outside"
    return None


def _opening(args: tuple[object, ...], writable: Sequence[str], readable: Sequence[str]) -> str | None:
    path, mode, flags = args
    writes = isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
    if isinstance(mode, str):
        writes = writes or bool(set(mode) & set("wax+"))
    if writes:
        return None if _is_inside(path, writable) else "write_outside"
    return None if _is_inside(path, readable) else "read_outside"


def _is_inside(path: object, roots: Sequence[str]) -> bool:
    """Tell whether a path, links followed, is one of the roots or below; open files and None always are."""
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or path in _IN_MEMORY or "\0" in path:
        return True
    real = posixpath.realpath(path)
    return any(real == root or real.startswith(root + "/") for root in roots)
