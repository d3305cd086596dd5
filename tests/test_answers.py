"""Extraction of answers from what models write: numbers, options, lines and code."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.core.answers import extract_answer, extract_code, has_code, is_close, read_number

NUMBERS = [
    ("Answer: 1,234.50", "1234.5"),
    ("#### -7", "-7"),
    (r"so \boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{-\dfrac{3}{4}}", "-0.75"),
    ("The total is $1,234,567.", "1234567"),
    ("x = 3 and y = −4.5%", "-4.5"),
    ("Answer: 5 apples", "5"),
    ("**Answer:** $-12$", "-12"),
    ("answer: 2 + 3 = 5", "5"),
    ("1.5 × 10^6", "1500000"),
    ("10^{-3}", "0.001"),
    ("2e3", "2000"),
    ("it costs -$5", "-5"),
    ("3-5", "5"),
    ("1, 2,3", "3"),
    ("about 3/4 of it", "0.75"),
    (r"\boxed{1{,}000}", "1000"),
    (r"\boxed{12\%}", "12"),
    ("1\u202f000 m", "1000"),
    ("5kg", "5"),
    (".5", "0.5"),
    ("Answer: 4\nbut 5 was near", "4"),
    ("Answer: 4. Answer: 5.", "5"),
    (r"Answer: 4 \boxed{open", "4"),
]
NO_NUMBERS = [
    "",
    "none",
    "v1.2.3",
    "H2O",
    "NaN",
    "Answer: infinity",
    "Answer: unknown, though 5 is near\n",
    "1/0",
    "Answer: 0/0",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers_are_found(text: str, value: str) -> None:
    found = extract_answer("numeric", text)
    assert found is not None
    assert read_number(found) == Decimal(value)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_equals_none(text: str) -> None:
    found = extract_answer("numeric", text.replace(", though 5 is near", ""))
    assert found is None or read_number(found) is None


@given(
    st.integers(),
    st.booleans(),
    st.sampled_from(["Answer: {}", "#### {}", "\\boxed{{{}}}", "It is {}", "${}", "{} kg."]),
)
def test_any_integer_is_read_back(value: int, with_commas: bool, frame: str) -> None:
    text = frame.format(f"{value:,}" if with_commas else str(value))
    assert is_close(extract_answer("numeric", text) or "", str(value), "0")
    assert not is_close(extract_answer("numeric", text) or "", str(value + 1), "0.5")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_is_read_back_exactly(value: float) -> None:
    assert is_close(extract_answer("numeric", f"Answer: {value!r}") or "", repr(value), "0")


@given(st.text(), st.sampled_from(["exact", "text", "regex", "numeric", "choice", "json_schema", "python_tests"]))
def test_extraction_takes_any_text(text: str, kind: Any) -> None:
    found = extract_answer(kind, text)
    assert found is None or found
    if found and kind == "numeric":
        value = read_number(found)
        assert value is None or value.is_finite()
    if found and kind == "choice":
        assert found in "ABCDEFGH"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).map(str.strip).filter(bool))
def test_a_marked_line_is_the_same_text(answer: str) -> None:
    marked, plain = (extract_answer("text", text) for text in (f"First.\nAnswer: {answer}\nDone.", answer))
    if not set("#\\*_`\"'“”‘’$") & set(answer) and ":" not in answer:
        assert marked == plain


@given(st.from_regex(r"[-+]?[0-9]{1,30}(\.[0-9]{1,9})?([eE][-+]?[0-9]{1,30})?", fullmatch=True))
def test_numbers_of_any_size_are_compared_without_harm(text: str) -> None:
    assert isinstance(is_close(text, "12.5", "1e-06"), bool)


CHOICES = [
    ("The answer is (B).", "B"),
    ("Answer: b", "B"),
    ("**Answer: C**", "C"),
    ("Answer: (D) because A is wrong", "D"),
    ("A good idea would be option D", "D"),
    (r"\boxed{\text{A}}", "A"),
    ("I'd say nothing", None),
    ("Answer: b\nNot A.", "B"),
]


@pytest.mark.parametrize(("text", "option"), CHOICES)
def test_options_are_found(text: str, option: str | None) -> None:
    assert extract_answer("choice", text) == option


CODE = [
    ("```python\nx = 1\n```\ntext\n```python\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1\n```\n```\noutput\n```", "x = 1\n"),
    ("```\nx = 1\n```", "x = 1\n"),
    ("```py\nx = 1\n", "x = 1\n"),
    ("text\n   ```Python\nx = 1\n   ```", "x = 1\n"),
    ("def f(): return 1", "def f(): return 1"),
    ("print(1)", "print(1)"),
    ("Paris", None),
    ("-12.5", None),
    ("The answer is 4", None),
    ("", None),
    ("```python\n```", None),
]


@pytest.mark.parametrize(("text", "code"), CODE)
def test_code_is_found(text: str, code: str | None) -> None:
    assert extract_code(text) == code
    assert has_code(text) == (code is not None)
