r"""Finds the answer in what a model wrote: a value, an option, a line, JSON or code.

A value stands behind the last marker: "Answer:", "####" or \boxed{…}; without a marker it is the last number, the
last option letter or the last line, by kind. Texts are untrusted: only their last characters are read, numbers are
compared as exact decimals of bounded length, and nothing here takes more than linear time.
"""

from __future__ import annotations

import ast
import decimal
import re
from collections import deque
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Literal

__all__ = ["AnswerKind", "extract_answer", "extract_code", "has_code", "is_close", "normalise_text", "read_number"]

AnswerKind = Literal["exact", "text", "regex", "numeric", "choice", "json_schema", "python_tests"]

_READ_CHARS = 100_000
"""Only the last characters of a text are read for a value."""
_MAX_DIGITS = 4_300
"""Longest number read, in characters."""
_OPTIONS = ("A", "B", "C", "D", "E", "F", "G", "H")

_MARKER = re.compile(r"\banswer[*_]{0,3}[ \t]{0,3}[:：]|(?<!#)####(?!#)|\\boxed\s{0,3}\{", re.IGNORECASE)
_MARKERS_TRIED = 50
_NUMBER = re.compile(
    r"""(?:(?<![\w)\]])[-+]\s?)?
    (?: (?<![\w.])(?<!\d,)\d{1,3}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?   # 1,234.5
      | (?<![\w.])\d+(?:\.\d+)?
      | (?<![\w.])\.\d+ )
    (?:[eE][-+]?\d+(?!\w))?
    (?:[ ]{0,3}/[ ]{0,3}(?P<lower>\d+(?:\.\d+)?)(?![\w/]))?""",
    re.VERBOSE,
)
_FRACTION = re.compile(r"\\[dt]?frac\s{0,3}\{([^{}]{0,100})\}\s{0,3}\{([^{}]{0,100})\}")
_POWER = re.compile(r"(?:(\d)\s{0,3}(?:\\times|\\cdot|[×·*x])\s{0,3})?\b10\^(?:\{([-+]?\d{1,9})\}|([-+]?\d{1,9}))")
_TEXT_MACRO = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s{0,3}\{([^{}]*)\}")
_CHARACTERS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "＄": "$"})
_DIGIT_GROUPS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_LATEX_NOISE = re.compile(r"\\[,;!: ]|\{,\}(?=\d)|\\(?:left|right|displaystyle)\b|\\?[$]|\\\(|\\\)|\\\[|\\\]")
_QUOTES = "\"'`“”‘’*_"
_CONTEXT = decimal.Context(
    prec=2 * _MAX_DIGITS, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[], rounding=decimal.ROUND_HALF_EVEN
)


def extract_answer(kind: AnswerKind, text: str, *, options: Sequence[str] = _OPTIONS) -> str | None:
    """Find the answer of a kind in a model's text.

    Args:
        kind: `numeric` returns the number as `read_number` reads it, `choice` one of `options`, `json_schema` the
            JSON text, `python_tests` the code; all others a line.
        text: what the model wrote.
        options: what may be chosen.

    Returns:
        The answer, or None if there is none.
    """
    if kind == "python_tests":
        return extract_code(text)
    if kind == "json_schema":
        return _find_json(text)
    text = text[-_READ_CHARS:]
    marked = _after_marker(text)
    if kind == "numeric":
        return _find_number(text, marked)
    if kind == "choice":
        return _find_option(text, marked, options)
    line = _first_line(marked) if marked is not None else _first_line("\n".join(text.rstrip().splitlines()[-1:]))
    return _clean_line(line) or None


def _after_marker(text: str) -> str | None:
    """Return what stands behind the last marker, None if there is no marker; a box that is not closed is none."""
    for match in reversed(list(_MARKER.finditer(text))[-_MARKERS_TRIED:]):
        is_box = match.group().endswith("{")
        found = _in_braces(text, match.end()) if is_box else text[match.end() :]
        if found is not None:
            return found.lstrip().lstrip("*_").lstrip()
    return None


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


def _in_braces(text: str, start: int) -> str | None:
    depth = 1
    for offset, character in enumerate(text[start : start + 2_000]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start : start + offset]
    return None


def _clean_line(line: str) -> str:
    line = _TEXT_MACRO.sub(r"\1", line)
    return line.strip().strip("$").strip(_QUOTES).strip()


def normalise_text(text: str, *, ignore_case: bool) -> str:
    """Bring a short text into the form in which texts are compared: one blank, no quotes, no full stop at the end."""
    line = " ".join(_clean_line(text.translate(_CHARACTERS)).split()).rstrip(".").strip(_QUOTES).strip()
    return line.casefold() if ignore_case else line


def _find_number(text: str, marked: str | None) -> str | None:
    if marked is None:
        return next(iter(deque(_numbers(text), maxlen=1)), None)
    return next(_numbers(re.split(r"[=≈]", _first_line(marked))[-1]), None)


def _numbers(text: str) -> Iterator[str]:
    """Yield the numbers of a text as plain decimals or quotients of two."""
    text = _DIGIT_GROUPS.sub("", text.translate(_CHARACTERS))
    text = _FRACTION.sub(r"(\1)/(\2)", text)
    text = re.sub(r"\(([-+]?[\d.,]{1,100})\)/\(([\d.,]{1,100})\)", r" \1/\2", text)
    text = _POWER.sub(lambda match: f"{match[1] or '1'}e{match[2] or match[3]}", _LATEX_NOISE.sub("", text))
    for match in _NUMBER.finditer(text):
        yield re.sub(r"[,\s+]", "", match.group())


def read_number(text: str) -> Decimal | None:
    """Read a number or a quotient of two as `extract_answer` returns them.

    Returns:
        A finite decimal, exact if it was no quotient, or None: no number, too long, divided by zero.
    """
    upper, _, lower = text.partition("/")
    if max(len(upper), len(lower)) > _MAX_DIGITS:
        return None
    value = _CONTEXT.create_decimal(upper)
    if lower:
        value = decimal.Context(prec=50, traps=[]).divide(value, _CONTEXT.create_decimal(lower))
    return value if value.is_finite() else None


def is_close(found: str, expected: str, tolerance: str) -> bool:
    """Tell whether |found − expected| ≤ tolerance, in decimals; what is no finite number is close to nothing."""
    values = [read_number(text) for text in (found, expected, tolerance)]
    numbers = [value for value in values if value is not None]
    if len(numbers) < 3:
        return False
    distance = _CONTEXT.abs(_CONTEXT.subtract(numbers[0], numbers[1]))
    return distance.is_finite() and distance <= numbers[2]


def _find_option(text: str, marked: str | None, options: Sequence[str]) -> str | None:
    """Return the first option in the line behind a marker, if need be in other case, or the last of the text."""
    alternatives = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    pattern = rf"(?<![\w'’])(?:{alternatives})(?![\w'’])"
    if marked is None:
        return next(iter(re.findall(pattern, text)[-1:]), None)
    line = _first_line(marked)
    are_letters = all(len(option) == 1 for option in options)  # "a" is a word too, so that "A" comes first
    match = (re.search(pattern, line) if are_letters else None) or re.search(pattern, line, re.IGNORECASE)
    if match is None or match.group() in options:
        return match and match.group()
    return next(option for option in options if option.casefold() == match.group().casefold())


def _find_json(text: str) -> str | None:
    blocks = list(_fenced_blocks(text))
    for language in ("json", None):
        for name, body in reversed(blocks):
            if language is None or name == language:
                return body
    marked = _after_marker(text[-_READ_CHARS:])
    candidate = (text if marked is None else marked).strip()
    starts = [start for start in map(candidate.find, "{[") if start >= 0]
    end = max(candidate.rfind("}"), candidate.rfind("]")) + 1
    if starts and min(starts) < end:
        return candidate[min(starts) : end]
    return candidate or None


def _fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and body of each fenced block; one without an end runs to the end of the text."""
    language, body = None, list[str]()
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if not stripped.startswith("```"):
            body.append(line)
        elif language is None:
            language, body = stripped.strip("`").strip().partition(" ")[0].casefold(), []
        else:
            yield language, "".join(body)
            language = None
    if language is not None:
        yield language, "".join(body)


def extract_code(text: str) -> str | None:
    """Find the code: the last block fenced as Python, else the last fenced block, else the text if it is Python."""
    blocks = list(_fenced_blocks(text))
    python = [body for language, body in blocks if language in ("python", "python3", "py")]
    if blocks:
        return (python or [body for _, body in blocks])[-1] or None
    return text if _is_python(text) else None


def has_code(text: str) -> bool:
    """Tell whether a text holds code that a verifier could run."""
    return extract_code(text) is not None


def _is_python(text: str) -> bool:
    """Tell whether a text parses as Python and does something: "Paris", "-12.5" and "Answer: 5" parse too."""
    if len(text) > _READ_CHARS:
        return False
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(_does_something(node) for node in body)


def _does_something(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return not isinstance(node, ast.AnnAssign) or node.value is not None
