"""JSON answers against a JSON schema, where the answer is untrusted: bounded in size, patterns bounded in time.

The schema comes with the task. It may refer to itself only: nothing is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import regex

__all__ = ["check_schema", "describe_violation"]

_MAX_JSON_CHARS = 32_768
_PATTERN_TIME_LIMIT_S = 1.0
_MAX_REASON = 300
_TELL_EXPECTED = frozenset({"const", "enum"})
"""Keywords whose message would tell the expected value."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check a schema when its task is read.

    Raises:
        ValueError: it is no schema of draft 2020-12, refers to another document, or uses `patternProperties`, whose
            patterns cannot be bounded in time.
    """
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]

    try:
        _validator_class().check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message}") from error
    for key, value in _members(schema):
        if key in ("$ref", "$dynamicRef") and not str(value).startswith("#"):
            raise ValueError(f"{key} {value!r} refers to another document; only references within the schema are read")
        if key == "patternProperties":
            raise ValueError("patternProperties cannot be checked in bounded time; list the properties")
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value)


def _check_pattern(pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
        for member in value.values():
            yield from _members(member)
    elif isinstance(value, list):
        for member in value:
            yield from _members(member)


def describe_violation(schema: Mapping[str, Any], text: str | None) -> str:
    """Say how a JSON text violates a schema, "" if it does not; the first violation found."""
    if text is None:
        return "no JSON was found"
    if len(text) > _MAX_JSON_CHARS:
        return f"the JSON is longer than {_MAX_JSON_CHARS} characters"
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        return f"the answer is no JSON: {error}"[:_MAX_REASON]
    from referencing import Registry

    validator = _validator_class()(schema, registry=Registry())
    try:
        violation = next(validator.iter_errors(value), None)
    except TimeoutError:
        return f"matching a pattern took longer than {_PATTERN_TIME_LIMIT_S:g} s"
    except RecursionError:
        return "the JSON is nested too deeply"
    if violation is None:
        return ""
    is_short = violation.validator not in _TELL_EXPECTED and len(violation.message) < _MAX_REASON
    return (
        f"{violation.json_path[:_MAX_REASON]}: {violation.message if is_short else f'violates {violation.validator}'}"
    )


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


@cache
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator, validators  # type: ignore[import-untyped]

    return validators.extend(Draft202012Validator, {"pattern": _match_pattern})


def _match_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Exception]:
    from jsonschema.exceptions import ValidationError

    is_match = not isinstance(instance, str) or regex.search(pattern, instance, timeout=_PATTERN_TIME_LIMIT_S)
    if not is_match:
        yield ValidationError(f"a text does not match the pattern {pattern!r}")
