"""What the difficulty estimator reads off a task's text: terms for TF-IDF, and a few plain counts.

Training and prediction call the same functions, so they cannot differ. Everything here is pure and works on one text;
it sees the text that stands before the first model call and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CHARS", "PLAIN_FEATURES", "TERM_FAMILIES", "char_terms", "clean_text", "plain_features", "word_terms"]

Floats = NDArray[np.float64]

MAX_CHARS = 16_384
"""Terms come from the first and the last half of so many characters: a question stands at one of the two ends."""

_CHAR_SIZES = (2, 3, 4)
_TOKEN = re.compile(r"\w+|[^\w\s]")
_DIGIT = re.compile(r"\d")
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPERATOR = re.compile(r"[-+*/=<>^%]")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_CODE_MARK = re.compile(r"[{}()\[\];_\\]|```")


def clean_text(text: str) -> str:
    """Return a text for terms: its two ends, lower case, digits as 0, control characters and white space as one space.

    A number's size says little where its digits say nothing, so only its form is kept.
    """
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]} {text[-MAX_CHARS // 2 :]}"
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
    return _UNPRINTABLE.sub(" ", _DIGIT.sub("0", text.lower())).strip()


def word_terms(text: str) -> list[str]:
    """Return the words and signs of a text, and each two that follow each other."""
    words = _TOKEN.findall(clean_text(text))
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def char_terms(text: str) -> list[str]:
    """Return all runs of 2, 3 and 4 characters, across words."""
    cleaned = clean_text(text)
    return [cleaned[i : i + size] for size in _CHAR_SIZES for i in range(len(cleaned) - size + 1)]


TERM_FAMILIES: dict[str, Callable[[str], list[str]]] = {"word": word_terms, "char": char_terms}
"""The families of terms; each is one TF-IDF vector of length 1."""

_COUNTS: dict[str, Callable[[str], int]] = {
    "n_chars": len,
    "n_words": lambda text: len(text.split()),
    "n_distinct_words": lambda text: len(set(text.split())),
    "n_digits": lambda text: len(_DIGIT.findall(text)),
    "n_numbers": lambda text: len(_NUMBER.findall(text)),
    "n_operators": lambda text: len(_OPERATOR.findall(text)),
    "n_code_marks": lambda text: len(_CODE_MARK.findall(text)),
    "n_sentences": lambda text: len(_SENTENCE_END.findall(text)),
    "n_questions": lambda text: text.count("?"),
    "n_commas": lambda text: text.count(","),
    "n_lines": lambda text: text.count("\n"),
    "n_non_ascii": lambda text: sum(not character.isascii() for character in text),
}
PLAIN_FEATURES = (*_COUNTS, "chars_per_word")
"""Names of the plain features, in the order of `plain_features`."""


def plain_features(text: str) -> Floats:
    """Return ln(1 + x) of each of `PLAIN_FEATURES`, [P], finite for any text; the whole text counts."""
    counts = [float(count(text)) for count in _COUNTS.values()]
    n_chars, n_words = counts[:2]
    return np.asarray(np.log1p([*counts, n_chars / max(n_words, 1.0)]))
