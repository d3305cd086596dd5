"""Cutting two conversations into prompt, chosen and rejected. Pure logic on lists of message dicts.

The prompt of a pair is what both runs had before them when they parted; see `schema.PreferencePair` for the
two levels. Only messages and the task's text are used: no score, cost, status or id can get into a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from celr_ray.schema import Level

Messages = Sequence[Mapping[str, Any]]


class SplitPair(NamedTuple):
    """The three texts of a preference pair and its level."""

    level: Level
    prompt: list[Mapping[str, Any]]
    chosen: list[Mapping[str, Any]]
    rejected: list[Mapping[str, Any]]


NoSplit = Literal["equal_texts", "empty_answer", "no_task_text", "different_system_texts", "different_task_texts"]
"""Why two runs have no common prompt to be compared on."""


class SplitRun(NamedTuple):
    """Prompt and completion of a single run."""

    prompt: list[Mapping[str, Any]]
    completion: list[Mapping[str, Any]]


def make_message(role: str, content: str) -> dict[str, Any]:
    """Return a plain text message with all fields of `schema.Message`."""
    return {"role": role, "content": content, "name": None, "tool_call_id": None, "tool_calls": None}


def count_shared(a: Messages, b: Messages) -> int:
    """Return how many leading messages two conversations share."""
    shared = 0
    for left, right in zip(a, b, strict=False):
        if dict(left) != dict(right):
            break
        shared += 1
    return shared


def _leading_system(messages: Messages) -> list[Mapping[str, Any]]:
    system = []
    for message in messages:
        if message["role"] != "system":
            break
        system.append(message)
    return system


def _has_user(messages: Messages) -> bool:
    return any(message["role"] == "user" for message in messages)


def has_agent_message(messages: Messages) -> bool:
    """Tell whether the agent says or calls anything: an empty answer is nothing to learn from."""
    return any(
        message["role"] == "assistant" and ((message["content"] or "").strip() or message["tool_calls"])
        for message in messages
    )


def split_pair(chosen: Messages, rejected: Messages, task_text: str | None) -> SplitPair | NoSplit:
    """Cut two runs of one task where they part.

    level `step` if the first message that differs is the agent's in both; else `trajectory`.

    Args:
        chosen: the better run, all its messages.
        rejected: the worse run.
        task_text: the task as text, for prompts of level `trajectory`; None if unknown.

    Returns:
        Why there is no pair, if the texts are equal, an agent says nothing, the system texts differ, or there is
        neither a task text nor a message that both runs share before they part.
    """
    shared = count_shared(chosen, rejected)
    if shared == len(chosen) == len(rejected):
        return "equal_texts"
    prompt = list(chosen[:shared])
    after, other = list(chosen[shared:]), list(rejected[shared:])
    if not (has_agent_message(chosen) and has_agent_message(rejected)):
        return "empty_answer"
    part_at_agent = bool(after) and bool(other) and after[0]["role"] == other[0]["role"] == "assistant"
    if not part_at_agent:
        return _split_whole(chosen, rejected, task_text)
    if not (has_agent_message(after) and has_agent_message(other)):
        return "empty_answer"
    if task_text and not _has_user(prompt):
        system = _leading_system(prompt)
        prompt = [*system, make_message("user", task_text), *prompt[len(system) :]]
    return SplitPair("step", prompt, after, other) if prompt else "no_task_text"


def _split_whole(chosen: Messages, rejected: Messages, task_text: str | None) -> SplitPair | NoSplit:
    system = _leading_system(chosen)
    if [dict(m) for m in system] != [dict(m) for m in _leading_system(rejected)]:
        return "different_system_texts"
    if not task_text:
        return "no_task_text"
    prompt = [*system, make_message("user", task_text)]
    after = _without_task(chosen[len(system) :], task_text)
    other = _without_task(rejected[len(system) :], task_text)
    return SplitPair("trajectory", prompt, after, other)


def _without_task(messages: Messages, task_text: str) -> list[Mapping[str, Any]]:
    """Drop a first user message that is the task text itself: it stands in the prompt already."""
    first = messages[0] if messages else None
    if first is not None and first["role"] == "user" and first["content"] == task_text:
        return list(messages[1:])
    return list(messages)


def split_run(messages: Messages, task_text: str | None) -> SplitRun | None:
    """Cut one run before the agent's first message that answers a user.

    Returns:
        None if there is no user message and no task text, or nothing of the agent's follows.
    """
    user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if user is None:
        if not task_text:
            return None
        system = _leading_system(messages)
        prompt, completion = [*system, make_message("user", task_text)], list(messages[len(system) :])
    else:
        start = next((i for i in range(user, len(messages)) if messages[i]["role"] == "assistant"), len(messages))
        prompt, completion = list(messages[:start]), list(messages[start:])
    return SplitRun(prompt, completion) if has_agent_message(completion) else None
