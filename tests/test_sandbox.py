"""The sandbox under real attacks: each must fail, and nothing outside may change.

The attacks themselves are in sandbox_attacks.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from sandbox_attacks import CHEATS, FORBIDDEN, HONEST, LIMITS, REFUSED

from celr_ray.core import sandbox
from celr_ray.core.jail.syscalls import ARCHITECTURES, build_filter
from celr_ray.core.sandbox import LAYERS, REQUIRED_LAYERS, SandboxResult, check_sandbox, run_python, sandbox_layers
from celr_ray.errors import SandboxError

TESTS = "assert f() == 1"
ANSWER = "\ndef f():\n    return 1\n"
VARIANTS = {
    "all": frozenset(LAYERS),
    "kernel only, no namespaces": frozenset(LAYERS) - {"audit_hook", "namespaces"},
}


@dataclass
class Scene:
    """What attacks aim at, outside the sandbox."""

    layers: frozenset[str]
    work: Path
    canary: Path
    port: int
    unix_path: str

    def run(self, source: str, tests: str = TESTS, **options: object) -> SandboxResult:
        """Run a source in which CANARY, PORT, UNIX and PID stand for the targets."""
        names = {"CANARY": self.canary, "PORT": self.port, "UNIX": self.unix_path, "PID": os.getpid()}
        head = "".join(
            f"{name} = {value if isinstance(value, int) else str(value)!r}\n" for name, value in names.items()
        )
        return run_python(head + source, tests, layers=self.layers, **options)  # type: ignore[arg-type]

    def survivors(self) -> list[str]:
        """Return the command lines of processes that belong to a run of this scene."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.work) in command:
                    found.append(command.decode("utf-8", "replace"))
        return found


@pytest.fixture(params=VARIANTS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Targets, and afterwards the proof that they are untouched."""
    layers = VARIANTS[request.param]
    if layers - sandbox_layers():
        pytest.skip(f"this kernel has no {', '.join(layers - sandbox_layers())}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    canary = tmp_path / "canary"
    canary.write_text("secret")
    before = canary.stat()
    signals: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    unix_path = str(tmp_path / "unix")
    listeners = [_listen(("127.0.0.1", 0)), _listen(unix_path), _listen(f"\0celr-{os.getpid()}")]
    scene = Scene(layers, work, canary, listeners[0].getsockname()[1], unix_path)
    yield scene
    contacted = [listener for listener in listeners if _was_contacted(listener)]
    for listener in listeners:
        listener.close()
    signal.signal(signal.SIGUSR1, previous)
    after = canary.stat()
    assert canary.read_text() == "secret"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)
    assert {path.name for path in tmp_path.iterdir()} == {"work", "canary", "unix"}
    assert not list(work.iterdir())
    assert not scene.survivors()
    assert not contacted
    assert not signals


def _listen(address: str | tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    return listener


def _was_contacted(listener: socket.socket) -> bool:
    """Tell whether anyone connected, also if he is gone again."""
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("attack", FORBIDDEN)
def test_forbidden_acts_fail_and_are_named(scene: Scene, attack: str) -> None:
    rule, source = FORBIDDEN[attack]
    result = scene.run(source + ANSWER)
    assert result.status != "passed"
    assert result.reason
    if "audit_hook" in scene.layers:
        assert result.unsafe == (rule,)
        assert result.status == "unsafe"


@pytest.mark.parametrize("attack", ["read a file", "write", "inet", "fork bomb"])
def test_an_act_that_is_hidden_in_a_try_does_no_harm_and_is_named(scene: Scene, attack: str) -> None:
    rule, source = FORBIDDEN[attack]
    body = "\n".join("    " + line for line in source.splitlines())
    result = scene.run(f"try:\n{body}\nexcept BaseException:\n    pass{ANSWER}")
    if "audit_hook" in scene.layers:
        assert (result.status, result.unsafe) == ("unsafe", (rule,))


@pytest.mark.parametrize("attack", REFUSED)
def test_other_system_calls_are_refused(scene: Scene, attack: str) -> None:
    assert scene.run(REFUSED[attack] + ANSWER).status in ("failed", "crashed")


@pytest.mark.parametrize("attack", LIMITS)
def test_limits_end_the_run_and_are_no_unsafe_act(scene: Scene, attack: str) -> None:
    expected, source = LIMITS[attack]
    limit_s = 1.0 if expected == {"time_limit"} else 30.0
    result = scene.run(source + ANSWER, time_limit_s=limit_s)
    assert result.status in expected
    assert result.reason
    assert result.unsafe == ()


def test_the_reason_names_the_memory_limit(scene: Scene) -> None:
    result = scene.run("def f():\n    return len(bytearray(10 << 30))")
    assert "memory limit" in result.reason


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_never_pass(scene: Scene, cheat: str) -> None:
    result = scene.run(CHEATS[cheat], "assert all([f() == 1])\ndef test_f():\n    assert len([]) == 0 and f() == 1")
    assert result.status in ("failed", "time_limit")
    assert result.reason
    assert "\n" not in result.reason


@pytest.mark.parametrize("source", HONEST)
def test_honest_code_passes(scene: Scene, source: str) -> None:
    result = scene.run(HONEST[source])
    assert (result.status, result.reason, result.unsafe) == ("passed", "", ())
    assert (result.n_passed, result.n_tests) == (1, 1)


def test_folders_that_are_deep_or_closed_are_removed(scene: Scene) -> None:
    deep = "import os\nos.mkdir('closed', 0)\nfor _ in range(3000):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)"
    scene.run(deep + ANSWER, time_limit_s=30.0)


def test_the_environment_is_empty_and_hashes_are_equal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    source = "import os, sys\ndef f():\n    return 'SECRET_TOKEN' in os.environ or len(sys.argv) > 1 or hash('a')"
    reasons = {scene.run(source, "assert not f(), f()").reason for _ in range(2)}
    assert len(reasons) == 1
    assert "True" not in reasons.pop()


def test_a_caller_that_is_killed_leaves_nothing_running(scene: Scene) -> None:
    program = (
        "import sys, tempfile; from celr_ray.core.sandbox import run_python; tempfile.tempdir = sys.argv[1]\n"
        "run_python('while True: pass', 'assert True', time_limit_s=60, layers=sys.argv[2].split(','))"
    )
    folder = str(scene.work)
    with subprocess.Popen([sys.executable, "-c", program, folder, ",".join(scene.layers)]) as caller:
        try:
            assert wait_for(lambda: len(scene.survivors()) > 2), "caller, launcher and worker"
        finally:
            caller.kill()
    assert wait_for(lambda: not scene.survivors())
    for left in scene.work.iterdir():
        left.rmdir()


def wait_for(is_so: Callable[[], bool]) -> bool:
    """Wait up to 20 s."""
    deadline = time.monotonic() + 20
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return so


def test_the_share_of_passed_tests_is_counted() -> None:
    tests = "import math\nassert f(1) == 1\nassert f(2) == 0\ndef test_a():\n    assert f(3) == 3\ndef test_b(): f()\n"
    result = run_python("def f(x): return x", tests)
    assert (result.status, result.n_passed, result.n_tests) == ("failed", 2, 4)
    assert result.reason == "2 of 4 tests failed, first: `assert f(2) == 0`: AssertionError"


def test_a_statement_between_tests_that_fails_counts_as_a_failed_test() -> None:
    result = run_python("f = 1", "assert f == 1\n1 / 0\nassert f == 1")
    assert (result.status, result.n_passed, result.n_tests) == ("failed", 1, 3)


def test_check_is_called_with_the_entry_point() -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 1\n"
    assert run_python("def f(x): return x", tests, entry_point="f").status == "passed"
    assert run_python("def f(x): return 2", tests, entry_point="f").status == "failed"
    assert run_python("def f(x): return 2", tests + "check(f)").n_tests == 1
    assert run_python("def g(x): return x", tests, entry_point="f").reason == "the answer defines no 'f'"


def test_an_entry_point_may_hide_a_builtin() -> None:
    tests = "assert sum(1, 2) == 3"
    assert run_python("def sum(a, b): return a + b", tests, entry_point="sum").status == "passed"
    assert run_python("def sum(a, b): return a + b", tests).status == "failed"


def test_no_tests_is_no_pass() -> None:
    assert run_python("f = 1", "x = 1").status == "failed"


def test_large_sources_and_tests_arrive_whole() -> None:
    rows = "".join(f"x{i} = {i}\n" for i in range(20_000))
    tests = "".join(f"assert x{i} == {i}\n" for i in range(0, 20_000, 10))
    result = run_python(rows, tests, time_limit_s=60.0)
    assert (result.status, result.n_passed) == ("passed", 2_000)


def test_many_runs_side_by_side_stay_apart() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: run_python(f"f = {n}", f"assert f == {n % 10}"), range(20)))
    assert [result.status == "passed" for result in results] == [n < 10 for n in range(20)]


def test_a_machine_that_cannot_isolate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "sandbox_layers", lambda: frozenset({"rlimits", "audit_hook"}))
    with pytest.raises(SandboxError, match="landlock and seccomp missing"):
        run_python("f = 1", "assert f == 1")
    with pytest.raises(SandboxError, match="allow weak"):
        check_sandbox()
    check_sandbox(allow_weak=True)
    assert run_python("f = 1", "assert f == 1", allow_weak=True).status == "passed"
    assert run_python("open('/etc/passwd')", "assert True", allow_weak=True).unsafe == ("read_outside",)


@pytest.mark.parametrize("layer", sorted(REQUIRED_LAYERS))
def test_each_required_layer_is_required(layer: str) -> None:
    with pytest.raises(SandboxError, match=layer):
        run_python("f = 1", "assert f == 1", layers=set(LAYERS) - {layer})


def test_a_sandbox_that_does_not_start_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox, "_START", "raise RuntimeError('does not start')")
    with pytest.raises(SandboxError, match="does not start"):
        run_python("f = 1", "assert f == 1", layers=LAYERS)
    monkeypatch.setattr(sandbox, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(sandbox, "_GRACE_S", 0.2)
    with pytest.raises(SandboxError, match="was killed"):
        run_python("f = 1", "assert f == 1", layers=LAYERS, time_limit_s=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_system_call_filter_has_valid_jumps(machine: str) -> None:
    program = build_filter(machine, 7)
    assert len(program) < 4096
    for offset, (_, if_true, if_false, _) in enumerate(program):
        assert max(if_true, if_false) < 256
        assert offset + 1 + max(if_true, if_false) < len(program) or offset == len(program) - 1
