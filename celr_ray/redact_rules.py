"""The patterns that find secrets, as detect-secrets has them, and what a text must hold for each to match.

The patterns are the detector's, unchanged, and a few of ours for what it misses (`_OWN`). Searching with all of them
takes almost a second a megabyte; most of them cannot match in most texts, which a look for a few literals shows. What
to look for is read off the patterns themselves, so no secret that they would find is lost, now or with the next
release. The detectors' `verify`, which sends a secret to its service, is never called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple, TypeAlias

_LEFT_OUT = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})
_OWN = {
    "AWS Access Key": (
        re.compile(
            r"aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?(?<![0-9a-z/+])"
            r"(?-i:(?=[^A-Z]{0,39}[A-Z])(?=[^a-z]{0,39}[a-z])(?=[^0-9]{0,39}[0-9]))([0-9a-z/+]{40})(?![0-9a-z/+=])",
            re.IGNORECASE,
        ),
    ),
    "OpenAI Token": (re.compile(r"sk-[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20}"),),
}
"""Patterns by the detector's kind. Its own of AWS secret keys asks for quotes, which files and shells do without; that
of OpenAI knows no `-` and `_` in the random parts, which keys have had since they name a project (`sk-proj-`)."""

_LEAST_WORD = 8
_WORD_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=\\") | set(range(128, 256))
_SHAPES = bytes(ord("x") if byte in _WORD_BYTES else ord(" ") for byte in range(256))

Need: TypeAlias = "str | int | Needs"
"""What must stand in a text for a pattern to match: a lower-case literal, or a word of at least so many characters."""


class Needs(NamedTuple):
    """All of some needs, or any of them."""

    is_any: bool
    parts: tuple[Need, ...]


class View(NamedTuple):
    """A text as needs are looked up in it.

    Attributes:
        folded: in lower case.
        longest: bytes in its longest word.
    """

    folded: str
    longest: int


class Pattern(NamedTuple):
    """One pattern of a detector.

    Attributes:
        regex: as the detector has it.
        needs: what the text must hold for it to match; None = nothing is known.
        group: the group that is the secret; 0 = it shows in the match.
    """

    regex: re.Pattern[str]
    needs: Need | None
    group: int = 0


class Rule(NamedTuple):
    """Patterns that share a need.

    Attributes:
        rank: its place among all; where matches overlap, the first gives the name.
        kind: the detector's name for what it finds.
        needs: what the text must hold for any of the patterns to match; None = nothing is known.
        detector: asked whether a match is one, where it is stricter than its pattern; else None.
        reads_lines: the patterns find values by their names, and read one line.
    """

    rank: int
    kind: str
    needs: Need | None
    patterns: tuple[Pattern, ...]
    detector: Any = None
    reads_lines: bool = False


@lru_cache(maxsize=1)
def load_rules() -> tuple[Rule, ...]:
    """Return the patterns of all detectors in use: by kind, values found by their names last."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins import keyword
    from detect_secrets.plugins.base import RegexBasedDetector

    rules: list[Rule] = []
    detectors: dict[str, Any] = get_mapping_from_secret_type_to_class()
    for kind, detector in sorted(detectors.items()):
        if detector.__name__ in _LEFT_OUT or not issubclass(detector, RegexBasedDetector):
            continue
        is_stricter = detector.analyze_string is not RegexBasedDetector.analyze_string
        for regex in (*detector.denylist, *_OWN.get(kind, ())):
            pattern = Pattern(regex, _read_needs(regex))
            rules.append(Rule(len(rules), kind, pattern.needs, (pattern,), detector() if is_stricter else None))
    by_name = keyword.QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP.items()
    patterns = tuple(Pattern(regex, _read_needs(regex), group) for regex, group in by_name)
    needs = _read_needs(re.compile("|".join(keyword.DENYLIST)))
    rules.append(Rule(len(rules), keyword.KeywordDetector.secret_type, needs, patterns, reads_lines=True))
    return tuple(rules)


def _read_needs(regex: re.Pattern[str]) -> Need | None:
    """Read off a pattern what any text that it matches must hold, so that most texts need no search with it."""
    return _needs_of_sequence(sre_parser.parse(regex.pattern, regex.flags))


def _needs_of_sequence(items: Iterable[tuple[Any, Any]]) -> Need | None:
    found: list[Need] = []
    literal = ""
    for operation, argument in items:
        if operation is sre.LITERAL:
            literal += chr(argument).lower()
            continue
        found += [literal] if literal else []
        literal = ""
        part = _needs_of_item(operation, argument)
        found += [part] if part is not None else []
    found += [literal] if literal else []
    found.sort(key=_cost)
    return Needs(False, tuple(found)) if len(found) > 1 else (found[0] if found else None)


def _cost(needs: Need) -> tuple[int, int]:
    """Order needs so that what is rare and quickly looked up comes first: long words, long literals, alternatives."""
    if isinstance(needs, int):
        return 0, -needs
    return (1, -len(needs)) if isinstance(needs, str) else (2, len(needs.parts))


def _needs_of_item(operation: Any, argument: Any) -> Need | None:
    if operation is sre.SUBPATTERN:
        return _needs_of_sequence(argument[-1])
    if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT) and argument[0] > 0:
        least, _, repeated = argument
        is_word = len(repeated) == 1 and repeated[0][0] is sre.IN and _is_of_words(repeated[0][1])
        if is_word:
            return int(least) if least >= _LEAST_WORD else None
        return _needs_of_sequence(repeated)
    if operation is sre.BRANCH:
        branches = [_needs_of_sequence(branch) for branch in argument[1]]
        parts = tuple(branch for branch in branches if branch is not None)
        return Needs(True, parts) if len(parts) == len(branches) else None
    return None


def _is_of_words(members: Iterable[tuple[Any, Any]]) -> bool:
    """Tell whether a class of characters holds only such as `_WORD_BYTES` takes for parts of a word."""
    for operation, argument in members:
        if operation is sre.LITERAL:
            characters = {argument}
        elif operation is sre.RANGE:
            characters = set(range(argument[0], argument[1] + 1))
        elif argument in (sre.CATEGORY_DIGIT, sre.CATEGORY_WORD):
            continue
        else:
            return False
        if not characters <= _WORD_BYTES:
            return False
    return True


def look(text: str) -> View:
    """Read off a text what needs are compared with."""
    words = text.encode("utf-8", "surrogatepass").translate(_SHAPES).split()
    if not text.isascii():  # patterns without case take these letters for i and s
        text = text.replace("İ", "i").replace("ı", "i").replace("ſ", "s")
    return View(text.lower(), len(max(words, default=b"")))


def holds(view: View, needs: Need | None) -> bool:
    """Tell whether a text holds what a pattern needs."""
    if isinstance(needs, int):
        return needs <= view.longest
    if isinstance(needs, str):
        return needs in view.folded
    if needs is None:
        return True
    for part in needs.parts:
        if holds(view, part) is needs.is_any:
            return needs.is_any
    return not needs.is_any
