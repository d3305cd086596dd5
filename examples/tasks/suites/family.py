"""A family of Python tasks: one function to write, in several settings, with its tests.

Each family carries a solution and a near miss: a plausible wrong answer that plain examples do not give away.
The visible tests are examples on which the two agree; the hidden ones hold the cases where they part. So the
verifier of these tasks is wrong in a known way, as visible unit tests are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from string import Template
from typing import Any

Setting = dict[str, Any]
Arguments = tuple[Any, ...]

N_VISIBLE = 3
N_DRAWN = 5
MIN_VISIBLE = 2


class Code(str):
    """Part of a setting that stands in the source as it is, not as a quoted string."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the code itself."""
        return str(self)


@dataclass(frozen=True)
class Family:
    """A function to write, with gaps that each setting fills.

    Attributes:
        signature: such as `shorten(text)`; its name is the entry point.
        level: 1 to 3.
        prompt: goes on after "Write a Python function `SIGNATURE` that"; `$gap` is filled with the value's text,
            `$gap_repr` with its `repr`.
        solution: the source; `$gap` is filled with the value's `repr`.
        near_miss: a plausible wrong source, filled likewise; it must come to an end on every input.
        settings: the values of the gaps, one dict a task.
        plain: ordinary inputs for a setting; the first ones on which both sources agree become visible tests.
        edge: inputs that tell the solution from the near miss, and other corner cases.
        draw: a random input, as further hidden tests.
    """

    signature: str
    level: int
    prompt: str
    solution: str
    near_miss: str
    settings: Sequence[Setting]
    plain: Callable[[Setting], Sequence[Arguments]]
    edge: Callable[[Setting], Sequence[Arguments]]
    draw: Callable[[Random, Setting], Arguments]

    @property
    def name(self) -> str:
        """Return the entry point's name."""
        return self.signature.partition("(")[0]

    def fill_prompt(self, setting: Setting) -> str:
        """Return the task's text."""
        shown = {**setting, **{f"{gap}_repr": repr(value) for gap, value in setting.items()}}
        return f"Write a Python function `{self.signature}` that {_fill(self.prompt, shown, str)}"

    def fill_solution(self, setting: Setting) -> str:
        """Return the right source."""
        return _fill(self.solution, setting, repr).strip() + "\n"

    def fill_near_miss(self, setting: Setting) -> str:
        """Return the wrong source."""
        return _fill(self.near_miss, setting, repr).strip() + "\n"


def vary(name: str, *values: Any) -> list[Setting]:
    """Return settings with one gap."""
    return [{name: value} for value in values]


def table(names: str, *rows: Sequence[Any]) -> list[Setting]:
    """Return settings with several gaps, one row of values each; `names` are separated by blanks."""
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


def _fill(text: str, setting: Setting, show: Callable[[Any], str]) -> str:
    return Template(text).substitute({name: show(value) for name, value in setting.items()})


def make_tests(family: Family, setting: Setting, rng: Random) -> tuple[str, str]:
    """Return the visible and the hidden tests of a task, one assert a line; the hidden ones repeat the visible ones.

    Raises:
        ValueError: fewer than MIN_VISIBLE plain inputs hide the near miss, or no hidden test shows it.
    """
    solution = _Source(family.name, family.fill_solution(setting))
    near_miss = _Source(family.name, family.fill_near_miss(setting))
    plain = _drop_repeats(family.plain(setting))
    visible = [arguments for arguments in plain if solution.agrees(near_miss, arguments)][:N_VISIBLE]
    drawn = [family.draw(rng, setting) for _ in range(N_DRAWN)]
    hidden = _drop_repeats([*visible, *family.edge(setting), *plain, *drawn])
    if len(visible) < MIN_VISIBLE or all(solution.agrees(near_miss, arguments) for arguments in hidden):
        raise ValueError(
            f"{family.name} {setting}: {len(visible)} visible tests; does a hidden one show the near miss?"
        )
    return (
        "".join(solution.write_assert(arguments) for arguments in visible),
        "".join(solution.write_assert(arguments) for arguments in hidden),
    )


def _drop_repeats(inputs: Sequence[Arguments]) -> list[Arguments]:
    """Return the inputs in their order, each once; 1, 1.0 and True are different here."""
    return list({repr(arguments): arguments for arguments in inputs}.values())


class _Source:
    """A source text that can be called. Only for the sources of this folder: it runs in this process."""

    def __init__(self, name: str, text: str) -> None:
        namespace: dict[str, Any] = {}
        exec(compile(text, f"<{name}>", "exec"), namespace)
        self._name = name
        self._function = namespace[name]

    def call(self, arguments: Arguments) -> Any:
        return self._function(*copy.deepcopy(arguments))

    def agrees(self, other: _Source, arguments: Arguments) -> bool:
        """Tell whether another source gives the same value; an exception there is a no."""
        expected = self.call(arguments)
        try:
            return bool(other.call(arguments) == expected)
        except Exception:  # noqa: BLE001 - a near miss may fail in any way
            return False

    def write_assert(self, arguments: Arguments) -> str:
        shown = ", ".join(map(repr, arguments))
        return f"assert {self._name}({shown}) == {self.call(arguments)!r}\n"
