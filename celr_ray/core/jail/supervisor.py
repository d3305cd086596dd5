"""Watches a worker from outside and decides how its run ended. No code of an answer ever runs in this process."""

from __future__ import annotations

import os
import select
import time

__all__ = ["Outcome", "supervise"]

Outcome = tuple[str, str, int, int, str]
"""status as in `sandbox.SandboxResult`, or "broken"; the broken rule or ""; tests passed; tests; what happened."""

_MAX_MESSAGES_BYTES = 1 << 16
_FOLDER_CHECK_S = 0.05
_MAX_FILES = 4096


def supervise(
    worker: int,
    pipes: tuple[int, int, int],
    tests: bytes,
    load_key: str,
    *,
    time_limit_s: float,
    output_limit_bytes: int,
    folder: str,
    folder_limit_bytes: int,
) -> Outcome:
    """Watch a worker until it has spoken, ended or broken a limit, then kill it.

    Args:
        worker: its process id.
        pipes: messages from it, tests to it, its output.
        tests: source of the tests.
        load_key: what the worker says once the answer's top level is done.
        time_limit_s: most wall seconds.
        output_limit_bytes: most bytes of stdout and stderr.
        folder: the worker's folder, watched if it is not "".
        folder_limit_bytes: most bytes in it.
    """
    watch = _Watch(pipes, tests, load_key)
    deadline = time.monotonic() + time_limit_s
    outcome: Outcome | None = None
    while outcome is None:
        left = deadline - time.monotonic()
        if left <= 0:
            outcome = _failure("time_limit", f"the time limit of {time_limit_s:g} s passed")
        elif folder and _is_too_large(folder, folder_limit_bytes):
            outcome = _failure(
                "folder_limit", f"more than {folder_limit_bytes} bytes or {_MAX_FILES} files were written"
            )
        elif watch.n_output > output_limit_bytes:
            outcome = _failure("output_limit", f"more than {output_limit_bytes} bytes were printed")
        elif watch.is_silent:
            return _ending(_kill(worker, grace_s=1.0))
        else:
            outcome = watch.wait(min(left, _FOLDER_CHECK_S) if folder else left)
    _kill(worker, grace_s=0)
    return outcome


class _Watch:
    """The three pipes of a worker and what came out of them so far."""

    def __init__(self, pipes: tuple[int, int, int], tests: bytes, load_key: str) -> None:
        self._up, self._down, self._output = pipes
        self._tests, self._load_key = tests, load_key
        self._verdict_key = os.urandom(16).hex()
        self._pending = b""
        self._received = b""
        self._is_closed = False
        self.n_output = 0
        self.is_silent = False
        """The worker closed its pipe without a verdict."""
        self._poll = select.poll()
        self._poll.register(self._up, select.POLLIN)
        self._poll.register(self._output, select.POLLIN)
        os.set_blocking(self._down, False)

    def wait(self, timeout_s: float) -> Outcome | None:
        """Move data for at most this long; return the outcome if the worker told one."""
        outcome = None
        for fd, _ in self._poll.poll(max(1, round(timeout_s * 1000))):
            if fd == self._up:
                outcome = self._read_messages()
            elif fd == self._output:
                self._drop_output()
            else:
                self._send_tests()
        return outcome

    def _drop_output(self) -> None:
        n_read = len(os.read(self._output, 1 << 16))
        self.n_output += n_read
        if n_read == 0:
            self._poll.unregister(self._output)

    def _send_tests(self) -> None:
        try:
            self._pending = self._pending[os.write(self._down, self._pending[: 1 << 16]) :]
        except BrokenPipeError:
            self._pending = b""
        if not self._pending:
            self._poll.unregister(self._down)
            os.close(self._down)

    def _read_messages(self) -> Outcome | None:
        data = os.read(self._up, 1 << 16)
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            outcome = self._read_message(line.decode("utf-8", "replace"))
            if outcome is not None:
                return outcome
        self.is_silent = not data or len(self._received) > _MAX_MESSAGES_BYTES
        return None

    def _read_message(self, line: str) -> Outcome | None:
        kind, _, rest = line.partition(" ")
        if not self._is_closed:
            self._is_closed = kind == "S"
            return None if self._is_closed else ("broken", "", 0, 0, rest or line)
        if kind == "L" and rest == self._load_key and not self._pending:
            self._pending = self._verdict_key.encode() + b"\n" + self._tests
            self._load_key = ""
            self._poll.register(self._down, select.POLLOUT)
            return None
        if kind == "U":
            rule, _, event = rest.partition(" ")
            return "unsafe", rule, 0, 0, f"the code tried {event}, which breaks the rule {rule}"
        if kind == "E":
            return _failure("failed", rest)
        return self._read_verdict(rest) if kind == "V" else _failure("failed", "the verdict is unreadable")

    def _read_verdict(self, text: str) -> Outcome:
        words = text.split(" ", 3)
        if len(words) < 3 or words[0] != self._verdict_key or not (words[1] + words[2]).isdecimal():
            return _failure("failed", "the verdict is not genuine")
        n_passed, n_tests = int(words[1]), int(words[2])
        failure = words[3] if len(words) > 3 else ""
        if 0 < n_tests == n_passed:
            return "passed", "", n_passed, n_tests, ""
        return "failed", "", n_passed, n_tests, f"{n_tests - n_passed} of {n_tests} tests failed, first: {failure}"


def _failure(status: str, reason: str) -> Outcome:
    return status, "", 0, 0, reason


def _kill(worker: int, *, grace_s: float) -> int:
    """End a worker, at once or after it had time to end by itself, and return its wait status."""
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    os.kill(worker, 9)
    return os.waitpid(worker, 0)[1]


def _ending(status: int) -> Outcome:
    """Say how a worker ended that gave no verdict; SIGXCPU and SIGKILL are how the kernel enforces its limits."""
    if not os.WIFSIGNALED(status):
        return _failure("failed", f"the program ended before its tests were done (exit code {os.WEXITSTATUS(status)})")
    number = os.WTERMSIG(status)
    if number in (9, 24):
        return _failure("time_limit", "the limit of CPU time passed, or the machine ran out of memory")
    return _failure("crashed", f"the program crashed (signal {number})")


def _is_too_large(folder: str, limit_bytes: int) -> bool:
    """Tell whether a folder holds too many bytes or files, or cannot be measured because it is nested too deeply."""
    n_bytes, n_files, waiting = 0, 0, [folder]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    n_files += 1
                    n_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    except FileNotFoundError:  # removed meanwhile
        return False
    except OSError:
        return True
    return n_bytes > limit_bytes or n_files > _MAX_FILES
