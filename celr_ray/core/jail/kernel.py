"""What the kernel gives to confine a process, called through ctypes: nothing to compile, nothing to install.

Every function acts on the calling process and everything it starts, for good. Each raises OSError if the kernel
refuses, so that a sandbox that could not be closed is never used. Neither root nor a setuid program is needed.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable, Sequence
from ctypes import c_int, c_long, c_ubyte, c_uint, c_ulong, c_ushort, c_void_p

from .syscalls import ARCHITECTURES, build_filter

__all__ = [
    "die_with_parent",
    "drop_capabilities",
    "enter_namespaces",
    "filter_syscalls",
    "landlock_abi",
    "mount_scratch",
    "restrict_files",
    "set_limits",
]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18

# Landlock: the same call numbers on every architecture; rights as of ABI 5, scopes as of ABI 6
_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _SockFilter(ctypes.Structure):
    _fields_ = [("code", c_ushort), ("jt", c_ubyte), ("jf", c_ubyte), ("k", c_uint)]


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", c_ushort), ("filter", ctypes.POINTER(_SockFilter))]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int, pointer: object = None) -> None:
    _checked(_libc.prctl(c_int(option), c_ulong(value), pointer, c_ulong(0), c_ulong(0)), f"prctl {option}")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def set_limits(memory_bytes: int, cpu_s: int, file_bytes: int, *, forbid_processes: bool) -> None:
    """Limit address space, CPU time, the size of each file, open files and core dumps.

    Args:
        memory_bytes: most address space.
        cpu_s: most CPU seconds of all threads.
        file_bytes: most bytes of each written file.
        forbid_processes: also set RLIMIT_NPROC to 0. It counts the user's processes everywhere, forbids threads
            too and does not bind root; only for kernels without seccomp, where nothing else stops a fork bomb.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if forbid_processes:
        limits[resource.RLIMIT_NPROC] = 0
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def enter_namespaces() -> None:
    """Move into own user, mount, network and IPC namespaces; the next child is process 1 of an own PID namespace.

    The user keeps its id, so files keep their owner, but holds no right over anything outside.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWPID
    _checked(_libc.unshare(c_int(flags)), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount_scratch(folder: str, size_bytes: int) -> None:
    """Mount an empty file system in memory over a folder, in this mount namespace only."""
    _checked(_libc.mount(None, b"/", None, c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private")
    flags, options = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={size_bytes},nr_inodes=4096,mode=0700"
    target = os.fsencode(folder)
    _checked(_libc.mount(b"tmpfs", target, b"tmpfs", c_ulong(flags), options.encode()), "mount tmpfs")


def drop_capabilities() -> None:
    """Give up every capability, and the means to gain one by starting a program."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    number = _SYS_CAPSET.get(os.uname().machine)
    if number is not None:
        header, none = (c_uint * 2)(_CAPABILITY_VERSION_3, 0), (c_uint * 6)()
        _checked(_libc.syscall(c_long(number), header, none), "capset")


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 if it has none."""
    version = _libc.syscall(c_long(_SYS_CREATE_RULESET), None, c_ulong(0), c_uint(_VERSION_FLAG))
    return max(int(version), 0)


def restrict_files(folder: str, readable: Iterable[str], devices: Iterable[str]) -> None:
    """Allow only: all but special files and programs in `folder`, reading `readable`, reading and writing `devices`.

    Newer kernels also close TCP ports, abstract sockets and signals to other processes. Paths that do not exist are
    left out. Not covered by Landlock: metadata (`stat`), modes, owners, times, `chdir`.

    Raises:
        OSError: the kernel has no Landlock or refuses.
    """
    abi = landlock_abi()
    rights = _FIRST_RIGHTS | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    handled = _RulesetAttr(
        rights | (_IOCTL_DEV if abi >= 5 else 0),
        _TCP_BIND_AND_CONNECT if abi >= 4 else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0,
    )
    # ctypes passes by reference; a kernel that knows a shorter structure accepts zeros behind it
    size = c_ulong(ctypes.sizeof(handled))
    ruleset = _libc.syscall(c_long(_SYS_CREATE_RULESET), ctypes.byref(handled), size, c_uint(0))
    _checked(ruleset, "landlock_create_ruleset")
    _allow(ruleset, folder, rights & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK))
    for path in readable:
        _allow(ruleset, path, _READ_FILE | _READ_DIR)
    for path in devices:
        _allow(ruleset, path, rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE))
    _checked(_libc.syscall(c_long(_SYS_RESTRICT_SELF), c_int(ruleset), c_uint(0)), "landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= ~_READ_DIR
    rule = _PathBeneathAttr(rights, fd)
    result = _libc.syscall(c_long(_SYS_ADD_RULE), c_int(ruleset), c_int(_PATH_BENEATH), ctypes.byref(rule), c_uint(0))
    _checked(result, f"landlock_add_rule {path}")
    os.close(fd)


def filter_syscalls() -> None:
    """Refuse every system call that `syscalls.build_filter` does not allow.

    Raises:
        OSError: the kernel refuses, or the processor's call numbers are unknown here.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(f"no list of system calls for {machine}, only for {', '.join(ARCHITECTURES)}")
    program = build_filter(machine, os.getpid())
    _install(program)


def _install(program: Sequence[tuple[int, int, int, int]]) -> None:
    instructions = (_SockFilter * len(program))(*[_SockFilter(*instruction) for instruction in program])
    fprog = _SockFprog(len(program), instructions)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.cast(ctypes.pointer(fprog), c_void_p))
