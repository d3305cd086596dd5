"""Takes secrets out of texts: API keys, tokens, private keys, passwords in URLs and behind names such as `api_key`.

What a secret looks like, detect-secrets decides, but for the few patterns that `redact_rules` adds. This module finds
where the secret stands and where it ends, replaces it by `[REDACTED KIND]`, and keeps JSON readable. The detectors that
guess by entropy and the one for IP addresses are left out, because they hit ordinary text: docs/redaction.md has the
figures.

Everything here is pure: no file is opened, and no detector is asked to verify a secret, which would send it to its
service. Equal texts give equal texts, and redacting twice gives what redacting once gives.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from celr_ray.redact_rules import Rule, holds, load_rules, look

__all__ = ["redact_messages", "redact_row", "redact_text"]

_PARTS = {"content": False, "tool_calls": True}
"""What of a message is redacted, and whether it is JSON."""

_CONVERSATIONS = ("prompt", "messages", "chosen", "rejected", "completion")
_MAX_PASSES = 10_000
"""Far more than any text takes; each pass leaves less to find."""

_MAX_DEPTH = 6
_CACHED_CHARS = 16 * 1024
_LINE_CHARS = 1024
_WINDOW_CHARS = 16 * 1024
"""The time of some patterns grows with the square of the length: longer lines and texts are read in pieces."""

_MAX_BLOCK_CHARS = 32 * 1024

_PLACEHOLDER = re.compile(r"\[REDACTED [^\[\]\n]{1,60}\]")
_STRING_LITERAL = re.compile(r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+(?P<end>"?)')
_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
_CUT_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}\Z")
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_BOUNDS = re.compile(r"[\s=:\"']*((?:(?!\[REDACTED )[^\s\"'`\\,;&])*)")
_TOKEN_TAIL = re.compile(r"[\w-]{0,2048}(?:\.[\w-]{16,2048})?", re.ASCII)
_BLOCK_END = re.compile(r"-----END[ A-Z0-9]*PRIVATE KEY(?: BLOCK)?-----|Private-(?:MAC|Hash):\s*[0-9a-f]+")
_KEY_MATERIAL = re.compile(r"[A-Za-z0-9+/]{32}")
_KEY_HEADERS = re.compile(r"[\s\\nr-]*(?:[A-Z][A-Za-z]+-?[A-Z]?[a-z]*: [^\n\\\"]{0,100}(?:\s|\\[nr])*)*")
_KEY_CHUNK = re.compile(r"[^A-Za-z0-9+/]{0,12}[A-Za-z0-9+/=]{20,}(?:[^A-Za-z0-9+/]{0,4}[A-Za-z0-9+/=]{1,64}\Z)?")

Counts = Counter[str]
"""Number of places replaced, by kind of secret."""


_Rules = Sequence[Rule]


class _Span(NamedTuple):
    start: int
    end: int
    rank: int
    kind: str


def _unescape(text: str) -> str:
    """Take one level of JSON escapes off a text."""
    text = text.replace("\\\\", "\0").replace('\\"', '"').replace("\\/", "/")
    text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    if "\\u" in text:
        text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return text.replace("\0", "\\")


def _iter_unescaped(text: str) -> Iterator[str]:
    """Yield a text without its outer escapes, then without the next, …: all that its quoted strings stand for."""
    for _ in range(_MAX_DEPTH):
        before, text = text, _unescape(text) if "\\" in text else text
        if text == before:
            return
        yield text


def _choose_rules(text: str) -> _Rules:
    """Return the few patterns that can match in a text, however it is escaped."""
    view = look("\n".join([text, *_iter_unescaped(text)]))
    return [rule for rule in load_rules() if holds(view, rule.needs)]


# ---------------------------------------------------------------- finding


def _find_spans(text: str, rules: _Rules) -> Iterator[_Span]:
    view = look(text)
    windows = _cut(len(text), _WINDOW_CHARS)
    for rule in rules:
        if holds(view, rule.needs):
            for start, end in _find_values(text, rule) if rule.reads_lines else _find_matches(text, rule, windows):
                if start < end and _is_secret(text[start:end]):
                    yield _Span(start, end, rule.rank, rule.kind)


def _cut(length: int, size: int) -> list[tuple[int, int]]:
    """Cut a length into ranges of a size, each of which shares a quarter with the next."""
    step = size - size // 4
    return [(start, min(start + size, length)) for start in range(0, max(length - size // 4, 1), step)]


def _find_matches(text: str, rule: Rule, windows: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for pattern in rule.patterns:
        for start, end in windows:
            for match in pattern.regex.finditer(text, start, end):
                if rule.detector is None or any(rule.detector.analyze_string(match[0])):
                    yield _extent(text, match)


def _is_secret(value: str) -> bool:
    """Tell whether anything is left to hide: no `<password>`, `${PASSWORD}`, `*****` or placeholder of ours."""
    from detect_secrets.filters.heuristic import is_templated_secret

    rest = _PLACEHOLDER.sub("", value)
    return any(character.isalnum() for character in rest) and not is_templated_secret(value)


def _extent(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Return where a secret starts and ends.

    A private key is found by its first line: it reaches to its last. Else it is the pattern's group if that ends the
    match but for a quote or an @ (`key="SECRET"`), or the whole match, where the group is a mere prefix. It holds no
    quotes, commas or white space, which some patterns take with it, and goes on to the end of the word, before which
    others stop (new Stripe keys are four times as long as their pattern).
    """
    if "PRIVATE KEY" in match[0] or "PuTTY" in match[0]:
        return _block_extent(text, match)
    start, end = match.span()
    if match.lastindex and match.end(match.lastindex) >= end - 1:
        start, end = match.span(match.lastindex)
    bounds = _BOUNDS.match(text, start, end)
    start, end = bounds.span(1) if bounds else (start, end)
    tail = _TOKEN_TAIL.match(text, end)
    return start, tail.end() if tail else end


def _block_extent(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Return the whole block of a private key; an empty range where only its first line is mentioned."""
    start, head = match.span()
    while start > 0 and text[start - 1] == "-":
        start -= 1
    last = _BLOCK_END.search(text, head, head + _MAX_BLOCK_CHARS)
    if last and _KEY_MATERIAL.search(text, head, last.start()):
        return start, last.end()
    headers = _KEY_HEADERS.match(text, head)
    end = begin = headers.end() if headers else head
    while chunk := _KEY_CHUNK.match(text, end):
        end = chunk.end()
    return (start, end) if end > begin else (start, start)


def _find_values(text: str, rule: Rule) -> Iterator[tuple[int, int]]:
    from detect_secrets.filters.heuristic import is_indirect_reference, is_prefixed_with_dollar_sign

    for offset, line in _choose_lines(list(_iter_lines(text)), rule):
        looked = look(line)
        whole = line + '"' if offset + len(line) == len(text) else line  # a text that was cut ends in an open string
        views = dict.fromkeys([whole, _APOSTROPHE.sub("_", whole)])  # for the patterns, an apostrophe ends a value
        for pattern in rule.patterns:
            if not holds(looked, pattern.needs):
                continue
            for match in (match for view in views for match in pattern.regex.finditer(view)):
                if not is_prefixed_with_dollar_sign(match[pattern.group]) and not is_indirect_reference(line):
                    start, end = match.span(pattern.group)
                    yield offset + start, offset + _end_of_string(line, start, end)


def _end_of_string(line: str, start: int, end: int) -> int:
    """Return where a quoted value ends: a quote that is escaped, before which the patterns stop, is part of it."""
    while end < len(line) and _is_escaped(line, start, end):
        quote = line[end]
        end += 1
        while end < len(line) and line[end] != quote:
            end += 1
    return end


def _is_escaped(line: str, start: int, place: int) -> bool:
    """Tell whether an odd number of backslashes stands before a place."""
    before = line[start:place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _choose_lines(lines: Sequence[tuple[int, str]], rule: Rule) -> Iterator[tuple[int, str]]:
    """Yield the lines in which a rule can match; a half of the lines that cannot hold one is left out at a glance."""
    if not lines or not holds(look("\n".join(line for _, line in lines)), rule.needs):
        return
    if len(lines) == 1:
        yield lines[0]
        return
    middle = len(lines) // 2
    yield from _choose_lines(lines[:middle], rule)
    yield from _choose_lines(lines[middle:], rule)


def _iter_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text and where they start; long lines in overlapping pieces."""
    offset = 0
    for line in text.splitlines(keepends=True):
        for start, end in _cut(len(line), _LINE_CHARS):
            yield offset + start, line[start:end].rstrip()
        offset += len(line)


# ---------------------------------------------------------------- replacing


def _replace_spans(text: str, rules: _Rules) -> tuple[str, Counts]:
    """Replace all that is found; what overlaps becomes one placeholder, of the kind that ranks first."""
    merged: list[_Span] = []
    for span in sorted(_find_spans(text, rules)):
        if merged and span.start < merged[-1].end:
            last = merged.pop()
            best = min(last, span, key=lambda item: item.rank)
            span = _Span(last.start, max(last.end, span.end), best.rank, best.kind)
        merged.append(span)
    if not merged:
        return text, Counter()
    parts, place = [], 0
    for span in merged:
        parts += [text[place : span.start], f"[REDACTED {span.kind}]"]
        place = span.end
    return "".join([*parts, text[place:]]), Counter(span.kind for span in merged)


def _replace_in_literals(text: str, rules: _Rules, depth: int) -> tuple[str, Counts]:
    """Redact the string literals of a text that are JSON, each as the text it stands for, however deep it is quoted.

    One without a closing quote, as a cut line has, is read as far as it goes.
    """
    counts: Counts = Counter()

    def replace(match: re.Match[str]) -> str:
        literal, is_open = match[0], not match["end"]
        try:
            value = json.loads(_CUT_ESCAPE.sub(r"\1", literal) + '"' if is_open else literal)
        except ValueError:
            return literal
        redacted, found = _redact_once(value, rules, depth=depth + 1)
        if not found:
            return literal
        counts.update(found)
        quoted = _quote(redacted, keep_letters=not literal.isascii())
        return quoted[:-1] if is_open else quoted

    return _STRING_LITERAL.sub(replace, text), counts


def _quote(text: str, *, keep_letters: bool) -> str:
    quoted = json.dumps(text, ensure_ascii=not keep_letters)
    try:
        quoted.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can hold
        return json.dumps(text)
    return quoted


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _redact_once(text: str, rules: _Rules, *, depth: int = 0, is_json: bool = False) -> tuple[str, Counts]:
    counts: Counts = Counter()
    if depth < _MAX_DEPTH and any(next(_find_spans(view, rules), None) for view in _iter_unescaped(text)):
        text, counts = _replace_in_literals(text, rules, depth)
    replaced, found = _replace_spans(text, rules)
    if found and is_json and _is_json(text) and not _is_json(replaced):
        replaced, found = _replace_in_literals(text, rules, depth)
    return replaced, counts + found


def _redact(text: str, is_json: bool) -> tuple[str, Counts]:
    """Redact until nothing is found: a placeholder's words can complete a pattern, and some find the last on a line."""
    rules, counts = _choose_rules(text), Counter[str]()
    for _ in range(_MAX_PASSES if rules else 0):
        text, found = _redact_once(text, rules, is_json=is_json)
        if not found:
            break
        rules, counts = load_rules(), counts + found
    return text, counts


_redact_cached = lru_cache(maxsize=4096)(_redact)
"""Rows repeat system texts and whole prompts."""


def redact_text(text: str, *, is_json: bool = False) -> tuple[str, Counts]:
    """Replace each secret in a text by a placeholder such as `[REDACTED AWS Access Key]`.

    Args:
        text: what to look through. JSON in it that is quoted as a string is read as JSON.
        is_json: valid JSON must stay valid.

    Returns:
        The text, and how many places were replaced, by kind.
    """
    redacted, counts = (_redact_cached if len(text) <= _CACHED_CHARS else _redact)(text, is_json)
    return redacted, counts.copy()


def redact_messages(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], Counts]:
    """Redact the content and the tool calls of messages (rows of `schema.MESSAGES`).

    Returns:
        The messages (those that hold no secret are the same objects), and the places replaced, by kind.
    """
    counts: Counts = Counter()
    redacted = []
    for message in messages:
        for part, is_json in _PARTS.items():
            if text := message.get(part):
                clean, found = redact_text(text, is_json=is_json)
                if found:
                    message = {**message, part: clean}
                    counts.update(found)
        redacted.append(message)
    return redacted, counts


def redact_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], Counts]:
    """Redact the conversations of a pair, an unpaired run or a trajectory, and a trajectory's task text."""
    redacted, counts = dict(row), Counter[str]()
    for key in _CONVERSATIONS:
        if value := row.get(key):
            redacted[key], found = redact_text(value) if isinstance(value, str) else redact_messages(value)
            counts.update(found)
    return redacted, counts
