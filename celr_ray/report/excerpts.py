"""Turns the messages of a pair into what a person reads: cut texts, parsed tool calls, marked differences.

Pure functions over untrusted text; nothing is escaped here, rendering does that.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from celr_ray.redact import redact_row
from celr_ray.report.data import Conversation, MessageView, PairView, Segment, SideView, ToolCall
from celr_ray.training.conversations import count_shared

MAX_CHARACTERS = 3000
"""Longest text of one message that is shown."""

MAX_MESSAGES = 30
"""Most messages of one conversation that are shown."""

_CONTEXT_CHARACTERS = 300
_MAX_DIFF_WORDS = 600
_LEAST_LIKENESS = 0.5

Message = Mapping[str, Any]


def make_pair_view(pair: Mapping[str, Any], chosen: Message, rejected: Message) -> PairView:
    """Lay out one pair.

    Args:
        pair: a row of PAIR_SCHEMA.
        chosen: facts of the chosen run (`success`, `cost_usd`, `n_steps`); empty if it is not in the run.
        rejected: the same of the rejected run.
    """
    pair, _ = redact_row(pair)
    a, b = pair["chosen"], pair["rejected"]
    n_shared = count_shared(a, b)
    texts = (_text_at(a, n_shared), _text_at(b, n_shared))
    marks = mark_differences(*texts) if _same_speaker(a, b, n_shared) else None
    return PairView(
        pair_id=pair["pair_id"],
        task_id=pair["task_id"],
        pair_type=pair["pair_type"],
        level=pair["level"],
        prompt=show_conversation(pair["prompt"]),
        chosen=_make_side("chosen", pair, chosen, n_shared, marks and marks[0]),
        rejected=_make_side("rejected", pair, rejected, n_shared, marks and marks[1]),
    )


def _text_at(messages: Sequence[Message], place: int) -> str:
    return (messages[place]["content"] or "") if place < len(messages) else ""


def _same_speaker(a: Sequence[Message], b: Sequence[Message], place: int) -> bool:
    return place < min(len(a), len(b)) and bool(a[place]["role"] == b[place]["role"])


def _make_side(
    side: str, pair: Mapping[str, Any], facts: Mapping[str, Any], n_shared: int, marks: Sequence[Segment] | None
) -> SideView:
    messages = pair[side]
    return SideView(
        trajectory_id=pair[f"{side}_id"],
        model=pair[f"{side}_model"],
        score=pair[f"{side}_score"],
        success=facts.get("success"),
        cost_usd=facts.get("cost_usd"),
        n_steps=facts.get("n_steps"),
        shared=show_conversation(messages[:n_shared]),
        own=show_conversation(messages[n_shared:], marks),
    )


def show_conversation(messages: Sequence[Message], marks: Sequence[Segment] | None = None) -> Conversation:
    """Cut a conversation for showing.

    Args:
        messages: rows of MESSAGES.
        marks: the text of the first message in segments, if differences are marked there.
    """
    shown = [show_message(message, marks if i == 0 else None) for i, message in enumerate(messages[:MAX_MESSAGES])]
    return Conversation(shown, len(messages))


def show_message(message: Message, marks: Sequence[Segment] | None = None) -> MessageView:
    """Cut one message for showing; where differences are marked, the first of them is inside the text shown."""
    segments = list(marks or [Segment(message["content"] or "")])
    segments, n_before, n_after = _cut(segments)
    return MessageView(
        role=message["role"],
        name=message["name"],
        segments=[segment for segment in segments if segment.text],
        tool_calls=parse_tool_calls(message["tool_calls"]),
        n_before=n_before,
        n_after=n_after,
    )


def _cut(segments: Sequence[Segment]) -> tuple[list[Segment], int, int]:
    """Keep MAX_CHARACTERS of a text, from shortly before the first difference where that comes late."""
    total = sum(len(segment.text) for segment in segments)
    if total <= MAX_CHARACTERS:
        return list(segments), 0, 0
    before_change = 0
    if any(segment.is_changed for segment in segments):
        first = next(i for i, segment in enumerate(segments) if segment.is_changed)
        before_change = sum(len(segment.text) for segment in segments[:first])
    start = max(before_change - _CONTEXT_CHARACTERS, 0) if before_change > MAX_CHARACTERS // 2 else 0
    end = min(start + MAX_CHARACTERS, total)
    kept, place = [], 0
    for segment in segments:
        low, high = max(start - place, 0), min(end - place, len(segment.text))
        if low < high:
            kept.append(Segment(segment.text[low:high], segment.is_changed))
        place += len(segment.text)
    return kept, start, total - end


def mark_differences(a: str, b: str) -> tuple[list[Segment], list[Segment]] | None:
    """Mark the words that differ between two texts.

    Returns:
        The segments of both texts, or None where the texts are too unlike for marks to help a reader.
    """
    words_a, words_b = _split_words(a), _split_words(b)
    if not a or not b or len(words_a) + len(words_b) > 2 * _MAX_DIFF_WORDS:
        return _mark_middle(a, b) if a and b else None
    matcher = difflib.SequenceMatcher(None, words_a, words_b, autojunk=False)
    if matcher.ratio() < _LEAST_LIKENESS:
        return None
    side_a: list[Segment] = []
    side_b: list[Segment] = []
    for tag, a_low, a_high, b_low, b_high in matcher.get_opcodes():
        side_a.append(Segment("".join(words_a[a_low:a_high]), tag != "equal"))
        side_b.append(Segment("".join(words_b[b_low:b_high]), tag != "equal"))
    return _join_marks(side_a), _join_marks(side_b)


def _join_marks(segments: Sequence[Segment]) -> list[Segment]:
    """Make one mark of marks that only white space keeps apart."""
    joined: list[Segment] = []
    for i, segment in enumerate(segments):
        is_gap = not segment.text.strip() and any(after.text for after in segments[i + 1 : i + 2])
        is_changed = segment.is_changed or (is_gap and bool(joined) and joined[-1].is_changed)
        if joined and joined[-1].is_changed == is_changed:
            joined[-1] = Segment(joined[-1].text + segment.text, is_changed)
        elif segment.text:
            joined.append(Segment(segment.text, is_changed))
    return joined


def _split_words(text: str) -> list[str]:
    """Split into words and the white space between them, so that joining gives the text back."""
    return re.findall(r"\s+|[^\s]+", text)


def _mark_middle(a: str, b: str) -> tuple[list[Segment], list[Segment]] | None:
    """Mark all between the common beginning and the common end; for texts too long to compare by words."""
    shortest = min(len(a), len(b))
    start = next((i for i in range(shortest) if a[i] != b[i]), shortest)
    end = next((i for i in range(shortest - start) if a[-1 - i] != b[-1 - i]), shortest - start)
    if start + end < _LEAST_LIKENESS * shortest:
        return None
    return tuple(  # type: ignore[return-value]
        [Segment(text[:start]), Segment(text[start : len(text) - end], True), Segment(text[len(text) - end :])]
        for text in (a, b)
    )


def parse_tool_calls(text: str | None) -> list[ToolCall]:
    """Read the tool calls of a message; text of another shape is shown as it stands."""
    if not text:
        return []
    try:
        calls = json.loads(text)
        return [ToolCall(str(call["function"]["name"]), _show_arguments(call["function"])) for call in calls]
    except (ValueError, TypeError, KeyError, RecursionError):
        return [ToolCall("tool call", text[:MAX_CHARACTERS])]


def _show_arguments(function: Mapping[str, Any]) -> str:
    """Indent the arguments if they are JSON; cut them if they are long."""
    arguments = function.get("arguments", "")
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        shown = json.dumps(value, indent=1, ensure_ascii=False)
    except (ValueError, RecursionError):
        shown = str(arguments)
    return shown if len(shown) <= MAX_CHARACTERS else shown[:MAX_CHARACTERS] + " …"
