"""The process in which an answer runs: it runs the answer, then asks for the tests, then runs them.

Neither the tests nor the key that makes a verdict valid are in this process, or in a file, while the answer's top
level runs. What the worker says goes through one pipe, one line a message:

    S                            the sandbox is closed, the answer is about to run
    X text                       the sandbox could not be closed; counts before S only
    U rule event                 a forbidden act; the run ends
    E text                       the answer itself failed; the run ends
    L load_key                   the answer is loaded; the supervisor sends the verdict key and the tests
    V verdict_key n_passed n_tests text     the outcome, and the first failure

Test code sees the builtins as they were before the answer ran, and no name of the answer that hides a builtin,
its entry point excepted.
"""

from __future__ import annotations

import _ast
import builtins
import os
import sys
from types import ModuleType, TracebackType

__all__ = ["ANSWER_FILE", "MAX_TEXT", "plan_tests", "run_answer", "send"]

MAX_TEXT = 500
"""Most characters of a message."""
ANSWER_FILE, TESTS_FILE = "<answer>", "<tests>"
_ONLY_AST = _ast.PyCF_ONLY_AST


def send(pipe: int, *words: object) -> None:
    """Write one message; whatever is no single word must come last."""
    line = " ".join(" ".join(str(word) for word in words).split())
    os.write(pipe, line[: MAX_TEXT + 100].encode("utf-8", "replace") + b"\n")


def run_answer(source: str, entry_point: str, load_key: str, up: int, down: int) -> None:
    """Run an answer and its tests and report.

    Args:
        source: the answer's code.
        entry_point: the name that the answer must define, "" if none is asked for.
        load_key: proves that the answer's top level is done.
        up: pipe to the supervisor.
        down: pipe from it: the verdict key, a line end, the tests.
    """
    pristine = dict(vars(builtins))
    solution = ModuleType("solution")
    sys.modules["solution"] = solution
    try:
        exec(compile(source, ANSWER_FILE, "exec", dont_inherit=True), vars(solution))
    except BaseException as error:  # noqa: BLE001  also SystemExit: nothing that an answer raises may end the worker
        send(up, "E", _describe(error, ANSWER_FILE, source))
        return
    if entry_point and entry_point not in vars(solution):
        send(up, "E", f"the answer defines no {entry_point!r}")
        return
    send(up, "L", load_key)
    verdict_key, _, tests = _read_all(down).partition("\n")
    names = {name: value for name, value in vars(solution).items() if name not in pristine or name == entry_point}
    if entry_point:
        names["candidate"] = names[entry_point]
    names |= {"__builtins__": pristine, "__name__": "tests"}
    n_passed, n_tests, failure = _run_tests(tests, entry_point, names)
    send(up, "V", verdict_key, n_passed, n_tests, failure)


def _read_all(pipe: int) -> str:
    parts = []
    while part := os.read(pipe, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def plan_tests(tree: _ast.Module, entry_point: str) -> list[tuple[bool, _ast.stmt]]:
    """List the statements to run in order, each with whether it is a test.

    Tests are: a top-level `assert`; a top-level call of a function that the tests define; each function `test…`
    that is not called there; and `check(candidate)` if there is an entry point and `check` is not called there.
    """
    functions = [node.name for node in tree.body if isinstance(node, _ast.FunctionDef)]
    plan, called = [], set()
    for node in tree.body:
        name = _called_name(node)
        called.add(name)
        plan.append((isinstance(node, _ast.Assert) or name in functions, node))
    calls = [f"{name}()" for name in functions if name.startswith("test") and name not in called]
    if entry_point and "check" in functions and "check" not in called:
        calls.append("check(candidate)")
    return plan + [(True, compile(call, TESTS_FILE, "exec", _ONLY_AST).body[0]) for call in calls]


def _called_name(node: _ast.stmt) -> str:
    if isinstance(node, _ast.Expr) and isinstance(node.value, _ast.Call) and isinstance(node.value.func, _ast.Name):
        return node.value.func.id
    return ""


def _run_tests(tests: str, entry_point: str, names: dict[str, object]) -> tuple[int, int, str]:
    """Run all tests; a statement that is none and fails counts as one more failed test and ends the run."""
    plan = plan_tests(compile(tests, TESTS_FILE, "exec", _ONLY_AST, dont_inherit=True), entry_point)
    n_tests, n_passed, failure = sum(is_test for is_test, _ in plan), 0, ""
    for is_test, node in plan:
        try:
            exec(compile(_ast.Module([node], []), TESTS_FILE, "exec", dont_inherit=True), names)
        except BaseException as error:  # noqa: BLE001  as above
            failure = failure or _describe(error, TESTS_FILE, tests)
            if not is_test:
                return n_passed, n_tests + 1, failure
        else:
            n_passed += is_test
    return n_passed, n_tests, failure


def _describe(error: BaseException, file: str, text: str) -> str:
    """Say what was raised and at which line of `file`."""
    try:
        message = str(error)[:MAX_TEXT]
    except BaseException:  # noqa: BLE001  the answer's own exception class may raise in __str__
        message = ""
    if isinstance(error, MemoryError):
        message = "the memory limit was reached"
    line = _line_of(error.__traceback__, file)
    source = text.splitlines()[line - 1].strip()[:200] if 0 < line <= len(text.splitlines()) else ""
    name = type(error).__name__
    return (f"`{source}`: " if source else "") + (f"{name}: {message}" if message else name)


def _line_of(traceback: TracebackType | None, file: str) -> int:
    """Return the number of the innermost line of a file in a traceback, 0 if there is none."""
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
