"""The system calls that an answer may make, and the seccomp program that refuses all others.

Left out on purpose: every way to start a process or a program, to reach a network or a named socket, to signal
or limit others, to change modes, owners, times or attributes of files (Landlock does not cover these), SysV IPC
and shared memory that outlive a process, and whatever a future kernel adds. A refused call fails with EPERM.

Source: Linux 6.x, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import errno

__all__ = ["ARCHITECTURES", "Instruction", "build_filter"]

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant: `struct sock_filter`."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH values by machine name; others have no seccomp layer."""

_PLAIN = {  # name: (x86_64, aarch64), None = the architecture has no such call
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "fstat": (5, 80),
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "open": (2, None), "openat": (257, 56), "creat": (85, None),
    "getdents": (78, None), "getdents64": (217, 61), "readlink": (89, None), "readlinkat": (267, 78),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166), "statfs": (137, 43),
    "fstatfs": (138, 44), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "ftruncate": (77, 46), "fsync": (74, 82),
    "fdatasync": (75, 83), "flock": (73, 32), "copy_file_range": (326, 285), "sendfile": (40, 71),
    "pipe": (22, None), "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None), "alarm": (37, None),
    "setitimer": (38, 103), "getitimer": (36, 102), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "getrlimit": (97, 163), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getpriority": (140, 141),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "getcpu": (309, 168), "futex": (202, 98), "set_tid_address": (218, 96), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "rseq": (334, 293), "membarrier": (324, 283), "getrandom": (318, 278),
    "restart_syscall": (219, 128), "wait4": (61, 260), "waitid": (247, 95), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

_CHECKED = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "socketpair": (53, 199), "sendto": (44, 206),
    "ioctl": (16, 29), "fcntl": (72, 25), "prlimit64": (302, 261),
}  # fmt: skip
_CLONE3 = 435

_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Terminal state, window size, bytes to read, blocking mode, close-on-exec. FS_IOC_SETFLAGS is not among them."""
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""Duplicate, flags, record locks. F_SETOWN, which signals others, is not among them."""

# Berkeley packet filter codes and the layout of struct seccomp_data
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000


def build_filter(machine: str, pid: int) -> list[Instruction]:
    """Build the seccomp program for a process.

    Threads may start, processes may not; `kill` and `tgkill` reach the process itself only; `prlimit64` changes
    its own limits only; socket pairs are local and `sendto` takes no address.

    Args:
        machine: a key of ARCHITECTURES.
        pid: the process's own id, as it sees it.
    """
    column = list(ARCHITECTURES).index(machine)
    numbers = {name: pair[column] for name, pair in _CHECKED.items()}
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for pair in _PLAIN.values():
        number = pair[column]
        if number is not None:
            program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += _when(_CLONE3, [_fail(errno.ENOSYS)])  # its flags are out of reach; glibc falls back to clone
    program += _when(numbers["clone"], [_load(0), (_IF_BITS, 0, 1, _CLONE_THREAD), _allow(), _fail()])
    program += _when(numbers["kill"], _if_among(0, [pid]))
    program += _when(numbers["tgkill"], _if_among(0, [pid]))
    program += _when(numbers["prlimit64"], _if_among(0, [0]))
    program += _when(numbers["socketpair"], _if_among(0, [_AF_UNIX]))
    program += _when(numbers["ioctl"], _if_among(1, _IOCTLS))
    program += _when(numbers["fcntl"], _if_among(1, _FCNTLS))
    no_address = [_load(4), (_IF_EQUAL, 0, 3, 0), _load(4, high=True), (_IF_EQUAL, 0, 1, 0), _allow(), _fail()]
    program += _when(numbers["sendto"], no_address)
    return [*program, _fail()]


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """Run `body`, which always returns, if the call's number is `number`."""
    return [(_IF_EQUAL, 0, len(body), number), *body]


def _if_among(argument: int, values: list[int] | tuple[int, ...]) -> list[Instruction]:
    """Allow the call if the low half of an argument, an int in C, is one of `values`."""
    tests: list[Instruction] = []
    for value in values:
        tests += [(_IF_EQUAL, 0, 1, value), _allow()]
    return [_load(argument), *tests, _fail()]


def _load(argument: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument + 4 * high)


def _allow() -> Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _fail(number: int = errno.EPERM) -> Instruction:
    return (_RETURN, 0, 0, _FAIL | number)
