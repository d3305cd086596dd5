"""Short Python functions in three levels, with visible tests (the verifier) and hidden ones (the checker).

| level | what |
|---|---|
| 1 | one idea, one corner case |
| 2 | two rules that meet |
| 3 | a small algorithm or a small language |

The tasks are a fixed set: every family in each of its settings; the seed draws the random inputs of the hidden tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .families import dates, grids, integers, lists, mappings, parsing, recursion, rewriting, simulations, strings
from .family import Family, Setting, make_tests
from .rows import CODE_RULE, Row, add_difficulty, make_row

N_LEVELS = 3
TIME_LIMIT_S = 5
_TOPICS = (strings, lists, mappings, integers, grids, simulations, parsing, rewriting, recursion, dates)
FAMILIES: Sequence[Family] = tuple(family for topic in _TOPICS for family in topic.FAMILIES)


def make_rows(seed: int, *, with_difficulty: bool) -> tuple[list[Row], list[Row]]:
    """Return the suite's rows, and beside them `{task_id, solution, near_miss}` for each."""
    rows, solutions = [], []
    for family in sorted(FAMILIES, key=lambda family: family.level):
        for number, setting in enumerate(family.settings):
            task_id = f"celr/python/{family.level}-{family.name}-{number}"
            rows.append(_make_task(task_id, family, setting, seed))
            sources = {"solution": family.fill_solution(setting), "near_miss": family.fill_near_miss(setting)}
            solutions.append({"task_id": task_id, **sources})
    return (add_difficulty(rows, N_LEVELS) if with_difficulty else rows), solutions


def _make_task(task_id: str, family: Family, setting: Setting, seed: int) -> Row:
    visible, hidden = (
        {"kind": "python_tests", "tests": tests, "entry_point": family.name, "time_limit_s": TIME_LIMIT_S}
        for tests in make_tests(family, setting, Random(f"{task_id} {seed}"))
    )
    prompt = f"{family.fill_prompt(setting)} {CODE_RULE}"
    return make_row(task_id, prompt, hidden, visible, "python", family.level)
