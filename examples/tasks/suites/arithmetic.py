"""Arithmetic in five levels, from one-digit sums to nested expressions; every answer is a whole number.

| level | what |
|---|---|
| 1 | one-digit sums and differences |
| 2 | two-digit sums and differences, one-digit products |
| 3 | three-digit sums and differences, two-digit by one-digit products, exact divisions |
| 4 | two operations, brackets or precedence |
| 5 | four operations, nested brackets, larger numbers |

An expression is built with its value; the tests evaluate its text again on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from celr_ray.core.tasks import ANSWER_RULE

from .rows import Row, SuiteOptions, add_difficulty, draw_new, make_row, number_check

N_LEVELS = 5
_RANKS = {"+": 1, "-": 1, "*": 2, "/": 2}
_ATOM = 3
_PHRASES = ("Compute {}.", "What is {}?", "Work out {}.", "Find the value of {}.")


@dataclass(frozen=True)
class Expression:
    """An arithmetic expression.

    Attributes:
        text: as shown in the prompt.
        value: what it comes to.
        rank: how strongly its last operation binds: 1 for + and −, 2 for * and /, 3 for a number.
    """

    text: str
    value: int
    rank: int = _ATOM

    def join(self, sign: str, right: Expression) -> Expression:
        """Return `self sign right`, with brackets only where they are needed.

        Raises:
            ValueError: a division leaves a remainder.
        """
        rank = _RANKS[sign]
        left_text = self.text if self.rank >= rank else f"({self.text})"
        right_text = right.text if right.rank > rank or (sign == "+" and right.rank == rank) else f"({right.text})"
        return Expression(f"{left_text} {sign} {right_text}", _apply(sign, self.value, right.value), rank)


def _apply(sign: str, left: int, right: int) -> int:
    if sign == "/":
        if left % right:
            raise ValueError(f"{left} / {right} leaves a remainder")
        return left // right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _number(rng: Random, low: int, high: int) -> Expression:
    value = rng.randint(low, high)
    return Expression(str(value), value)


def _sum_or_difference(rng: Random, low: int, high: int) -> Expression:
    """Return a sum, or a difference that is not negative."""
    left, right = sorted((_number(rng, low, high), _number(rng, low, high)), key=lambda part: -part.value)
    return left.join("-", right) if rng.random() < 0.5 else right.join("+", left)


def _quotient(rng: Random, low: int, high: int) -> Expression:
    """Return an exact division; divisor 3 to 9, quotient between `low` and `high`."""
    divisor, quotient = rng.randint(3, 9), rng.randint(low, high)
    return Expression(str(divisor * quotient), divisor * quotient).join("/", Expression(str(divisor), divisor))


def _level_1(rng: Random) -> Expression:
    return _sum_or_difference(rng, 1, 9)


def _level_2(rng: Random) -> Expression:
    if rng.random() < 0.7:
        return _sum_or_difference(rng, 10, 99)
    return _number(rng, 2, 9).join("*", _number(rng, 2, 9))


def _level_3(rng: Random) -> Expression:
    kind = rng.randrange(3)
    if kind == 0:
        return _sum_or_difference(rng, 100, 999)
    if kind == 1:
        return _number(rng, 12, 99).join("*", _number(rng, 3, 9))
    return _quotient(rng, 11, 99)


def _level_4(rng: Random) -> Expression:
    kind = rng.randrange(4)
    if kind == 0:
        return _number(rng, 12, 99).join("*", _number(rng, 3, 9)).join("-", _number(rng, 100, 400))
    if kind == 1:
        return _sum_or_difference(rng, 11, 60).join("*", _number(rng, 3, 9))
    if kind == 2:
        return _number(rng, 100, 999).join("-", _number(rng, 11, 40).join("*", _number(rng, 3, 9)))
    return _quotient(rng, 11, 60).join("+", _number(rng, 12, 40).join("*", _number(rng, 3, 9)))


def _level_5(rng: Random) -> Expression:
    kind = rng.randrange(3)
    product = _number(rng, 12, 60).join("*", _number(rng, 11, 40))
    if kind == 0:
        return product.join("-", _sum_or_difference(rng, 20, 200).join("*", _number(rng, 3, 9)))
    if kind == 1:
        inner = product.join("+", _quotient(rng, 11, 60))
        return inner.join("-", _number(rng, 100, 999)).join("*", _number(rng, 2, 9))
    outer = _number(rng, 100, 999).join("-", _quotient(rng, 11, 60).join("+", _number(rng, 10, 99)))
    return outer.join("*", _number(rng, 3, 9)).join("-", product)


_LEVELS = (_level_1, _level_2, _level_3, _level_4, _level_5)


def draw_expression(level: int, rng: Random) -> Expression:
    """Return a random expression of a level (1 to 5)."""
    return _LEVELS[level - 1](rng)


def make_rows(options: SuiteOptions) -> list[Row]:
    """Return the suite's rows, level by level.

    Raises:
        ValueError: more tasks are asked for than a level has (level 1: 90 different expressions).
    """
    rows = []
    for level in range(1, N_LEVELS + 1):
        rng = Random(f"arithmetic {level} {options.seed}")
        seen: set[str] = set()
        for number in range(options.per_level):
            text, answer = draw_new(partial(_text_and_value, level, rng), seen)
            prompt = f"{rng.choice(_PHRASES).format(text)} {ANSWER_RULE}"
            task_id = f"celr/arithmetic/{level}-{number:03d}"
            rows.append(make_row(task_id, prompt, number_check(answer), options.verifier, "arithmetic", level))
    return add_difficulty(rows, N_LEVELS) if options.with_difficulty else rows


def _text_and_value(level: int, rng: Random) -> tuple[str, int]:
    expression = draw_expression(level, rng)
    return expression.text, expression.value
