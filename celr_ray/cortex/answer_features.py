"""What can be read off a worked answer beside its question, without a model: form, arithmetic, use of the numbers.

Made for answers that end in a number, with steps on the way; of other answers there remain length and form. Everything
is pure and works on one answer: no outcome and no other answer is looked at. The strongest signs are plain ones: the
answer breaks off, a calculation that it writes down is wrong, or its result is not what it calculated.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from celr_ray.core.answers import extract_answer, read_number
from celr_ray.cortex.text_features import MAX_CHARS, Floats

__all__ = ["ANSWER_FEATURES", "Arithmetic", "answer_features", "check_arithmetic"]

_MAX_EXPRESSION = 120
_TOLERANCE = 0.006
"""A result is right if it is so near, absolutely or relative to its size: answers round to cents and per cents."""

_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+")
_CALCULATION = re.compile(r"<<([^<>=]{1,120})=([^<>=]{1,60})>>")
"""The annotation of GSM8K's solutions, which models that saw them imitate: `<<2*3=6>>`."""
_EQUATION = re.compile(
    r"(?<![\w.])((?:\(\s*)*[$]?\d[\d\s$.,()+\-*/×÷x\\]{0,118}?)=\s*[$]?\s*(-?\d[\d,]*(?:\.\d+)?)"
    r"(?![\d,.]*\d|\s*[-+*/×÷x^]\s*[$(]?\d)"
)
_OPEN = re.compile(r"<<[^<>]*$")
_MARKED = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_CLEAN_NUMBER = re.compile(r"[$]?-?[\d,]+(?:\.\d+)?")
_HEDGE = re.compile(
    r"\b(?:assum\w+|however|unclear|unknown|cannot|can't|not (?:clear|given|specified|enough)|approximately|about|"
    r"let's say|sorry)\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:since|because|therefore|thus|hence)\b", re.IGNORECASE)
_SEQUENCE = re.compile(r"\b(?:first|then|next|finally)\b", re.IGNORECASE)
_SIGNS = str.maketrans({"×": "*", "÷": "/", "x": "*", "$": "", ",": "", "\\": "", "−": "-"})

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Arithmetic(NamedTuple):
    """The calculations that a text writes down, counted.

    Attributes:
        right: the result is that of the calculation.
        wrong: it is another one.
        unread: what stands there could not be calculated.
    """

    right: int
    wrong: int
    unread: int


def check_arithmetic(text: str) -> Arithmetic:
    """Recompute every calculation of a text: `<<a op b=c>>`, and plain `a op b = c`.

    Numbers, brackets, + − * / and their usual signs are read; results may be rounded to cents. Nothing is executed.

    Args:
        text: an answer; of a long one the two ends.
    """
    counts = [0, 0, 0]
    for expression, result in _list_calculations(_shorten(text)):
        value, written = _evaluate(expression), _read_float(result)
        if value is None or written is None:
            counts[2] += 1
        else:
            counts[0 if math.isclose(value, written, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) else 1] += 1
    return Arithmetic(*counts)


def _list_calculations(text: str) -> Iterator[tuple[str, str]]:
    yield from _CALCULATION.findall(text)
    for expression, result in _EQUATION.findall(_CALCULATION.sub(" ", text)):
        if any(sign in expression for sign in "+-*/×÷x"):
            yield expression, result


def _evaluate(expression: str) -> float | None:
    """Return the value of an arithmetic expression, None where it is none."""
    text = expression.translate(_SIGNS).strip()
    if len(text) > _MAX_EXPRESSION:
        return None
    try:
        value = _calculate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return value if math.isfinite(value) else None


def _calculate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_calculate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_calculate(node.left), _calculate(node.right))
    raise ValueError("neither a number nor a sum, difference, product or quotient")


def _read_float(text: str) -> float | None:
    cleaned = text.translate(_SIGNS).strip()
    value = _evaluate(cleaned) if "/" in cleaned else None
    if value is not None:
        return value
    try:
        number = float(cleaned)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(text: str) -> list[float]:
    found = [float(match.replace(",", "")) for match in _NUMBER.findall(text)]
    return [number for number in found if math.isfinite(number)]


ANSWER_FEATURES = (
    "is_marked",
    "is_marked_clean",
    "is_marked_decimal",
    "is_marked_with_unit",
    "is_followed",
    "ends_sentence",
    "is_broken_off",
    "n_right",
    "n_wrong",
    "n_unread",
    "share_wrong",
    "n_annotations",
    "n_chars",
    "n_lines",
    "n_repeated_lines",
    "n_numbers",
    "n_question_numbers",
    "share_used",
    "share_not_given",
    "n_fractional",
    "n_long_decimals",
    "has_large_number",
    "is_final_last",
    "is_final_calculated",
    "is_final_given",
    "is_final_known",
    "final_size",
    "is_final_whole",
    "is_final_negative",
    "n_hedges",
    "n_reasons",
    "n_sequence",
    "n_slashes",
    "length_ratio",
    "question_chars",
    "question_words",
    "question_sentences",
    "question_per_cents",
    "question_multiples",
    "question_rates",
)
"""Names of the features, in the order of `answer_features`."""

_MULTIPLES = re.compile(
    r"\b(?:half|twice|thirds?|quarters?|fourths?|fifths?|double|triple|times|dozen)\b", re.IGNORECASE
)
_RATES = re.compile(r"\b(?:each|every|per|a day|an hour)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?:\s|$)")


def answer_features(question: str, answer: str) -> Floats:
    """Return the features of an answer to a question, [F], in the order of `ANSWER_FEATURES`; finite for any text.

    Counts are as they are, the length in hundreds of characters, other sizes as ln(1 + x), the rest flags and shares.

    Args:
        question: what was asked.
        answer: what the model wrote; of a long one the two ends.
    """
    text = _shorten(answer).strip()
    question = _shorten(question)
    features = {**_form(text), **_steps(text), **_finals(question, text), **_questions(question)}
    features["length_ratio"] = math.log1p(len(text)) - math.log1p(len(question))
    return np.array([float(features[name]) for name in ANSWER_FEATURES])


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS // 2]}\n{text[-MAX_CHARS // 2 :]}"


def _form(text: str) -> dict[str, float]:
    """Is there a marked result, is it one number, and does the text come to an end?"""
    marked = _MARKED.search(text)
    result = marked.group(1).strip() if marked else ""
    return {
        "is_marked": marked is not None,
        "is_marked_clean": bool(_CLEAN_NUMBER.fullmatch(result)),
        "is_marked_decimal": "." in result,
        "is_marked_with_unit": any(character.isalpha() for character in result),
        "is_followed": marked is not None and bool(text[marked.end() :].strip()),
        "ends_sentence": text.endswith((".", "!")),
        "is_broken_off": bool(_OPEN.search(text)),
    }


def _steps(text: str) -> dict[str, float]:
    """Count the calculations, and look for repetition and doubt."""
    right, wrong, unread = check_arithmetic(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {
        "n_right": right,
        "n_wrong": wrong,
        "n_unread": unread,
        "share_wrong": wrong / (right + wrong + 1),
        "n_annotations": len(_CALCULATION.findall(text)),
        "n_chars": len(text) / 100,
        "n_lines": len(lines),
        "n_repeated_lines": len(lines) - len(set(lines)),
        "n_hedges": len(_HEDGE.findall(text)),
        "n_reasons": len(_REASON.findall(text)),
        "n_sequence": len(_SEQUENCE.findall(text)),
        "n_slashes": math.log1p(text.count("/")),
        "n_long_decimals": len(re.findall(r"\d\.\d{3,}", text)),
    }


def _finals(question: str, text: str) -> dict[str, float]:
    """Hold the result against the numbers of the question and of the steps."""
    steps, given = _numbers(text.split("####", 1)[0]), _numbers(question)
    found = extract_answer("numeric", text)
    number = None if found is None else read_number(found)
    final = math.nan if number is None or abs(number) > 10**300 else float(number)
    is_known = math.isfinite(final)
    return {
        "n_numbers": math.log1p(len(steps)),
        "n_question_numbers": len(given),
        "share_used": len(set(given) & set(steps)) / max(len(set(given)), 1),
        "share_not_given": sum(value not in given for value in steps) / max(len(steps), 1),
        "n_fractional": sum(value != round(value) for value in steps),
        "has_large_number": max(steps, default=0.0) > 1e5,
        "is_final_last": is_known and bool(steps) and final == steps[-1],
        "is_final_calculated": is_known and final in steps,
        "is_final_given": is_known and final in given,
        "is_final_known": is_known,
        "final_size": math.log1p(abs(final)) if is_known else 0.0,
        "is_final_whole": is_known and final == round(final),
        "is_final_negative": is_known and final < 0,
    }


def _questions(question: str) -> dict[str, float]:
    return {
        "question_chars": math.log1p(len(question)),
        "question_words": math.log1p(len(question.split())),
        "question_sentences": len(_SENTENCE.findall(question)),
        "question_per_cents": question.count("%"),
        "question_multiples": len(_MULTIPLES.findall(question)),
        "question_rates": len(_RATES.findall(question)),
    }
