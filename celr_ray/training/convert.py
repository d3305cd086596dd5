"""The row rules of each trainer: one preference pair, KTO row or run in, at most one training row out.

Every converter is pure and total: it never raises on a valid row. It returns the row, or None where the
trainer has no place for it, with the names of all that was changed or lost; the export stage counts these
names as `losses`. No score, cost, status or id enters a row.

    to_trl        prompt, chosen, rejected: lists of messages with native tool calls
    to_axolotl    messages, chosen, rejected: text messages; chosen and rejected are ONE assistant message each
    to_spin       real, generated: [user, assistant]
    to_kto        prompt, completion, label
    to_sft        messages
    to_sharegpt   conversations: [{"from", "value"}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from celr_ray.training.render import (
    Messages,
    Row,
    has_tool_calls,
    has_unreadable_calls,
    render_content,
    to_native_message,
    to_text_messages,
)

TRUNCATION_CHARS = 4096 * 4
"""About 4,096 tokens: pairs that are equal up to here become equal texts where a trainer cuts there."""

SHAREGPT_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


class Converted(NamedTuple):
    """A training row, or None if the input was left out, and the names of what was changed or lost."""

    row: Row | None
    losses: tuple[str, ...] = ()


class _Pair(NamedTuple):
    prompt: Messages
    chosen: Messages
    rejected: Messages


def _without_prompt(prompt: Messages, side: Messages) -> Messages:
    """Drop the prompt, or its system messages, from the head of a whole conversation that repeats it."""
    if list(side[: len(prompt)]) == list(prompt):
        return side[len(prompt) :]
    system = list(takewhile(lambda message: message["role"] == "system", prompt))
    return side[len(system) :] if list(side[: len(system)]) == system else side


def _read_pair(pair: Mapping[str, Any]) -> _Pair:
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    if pair["level"] == "trajectory":
        chosen, rejected = _without_prompt(prompt, chosen), _without_prompt(prompt, rejected)
    return _Pair(prompt, chosen, rejected)


def _has_answer(messages: Messages) -> bool:
    return any(message["role"] == "assistant" and render_content(message).strip() for message in messages)


def _uses_tools(messages: Messages) -> bool:
    return any(has_tool_calls(message) for message in messages)


def _spoken(messages: Messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in to_text_messages(messages)]


def _head(prompt: Messages, side: Messages) -> str:
    """Return the first TRUNCATION_CHARS characters of prompt and side as one text."""
    parts: list[str] = []
    length = 0
    for message in (*prompt, *side):
        text = f"{message['role']}\n{render_content(message)}\n"
        parts.append(text)
        length += len(text)
        if length >= TRUNCATION_CHARS:
            break
    return "".join(parts)[:TRUNCATION_CHARS]


def _is_cut_alike(pair: _Pair) -> bool:
    chosen = _head(pair.prompt, pair.chosen)
    return len(chosen) == TRUNCATION_CHARS and chosen == _head(pair.prompt, pair.rejected)


def to_trl(pair: Mapping[str, Any]) -> Converted:
    """Convert a pair for TRL's DPOTrainer: conversational, explicit prompt, native tool calls.

    Left out: no prompt (`trl_no_prompt`), a side in which the agent says nothing (`trl_no_answer`), both sides the same
    text (`trl_identical`). Counted: `trl_tool_calls` (the chat template must know tools), `trl_arguments_as_text`,
    `trl_prompt_without_user` (some templates refuse such prompts), `trl_identical_after_truncation_risk`.
    """
    parts = _read_pair(pair)
    if not parts.prompt:
        return Converted(None, ("trl_no_prompt",))
    if not _has_answer(parts.chosen) or not _has_answer(parts.rejected):
        return Converted(None, ("trl_no_answer",))
    if _spoken(parts.chosen) == _spoken(parts.rejected):
        return Converted(None, ("trl_identical",))
    everything = [*parts.prompt, *parts.chosen, *parts.rejected]
    found = {
        "trl_tool_calls": _uses_tools(everything),
        "trl_arguments_as_text": any(has_unreadable_calls(message) for message in everything),
        "trl_prompt_without_user": all(message["role"] != "user" for message in parts.prompt),
        "trl_identical_after_truncation_risk": _is_cut_alike(parts),
    }
    row = {name: [to_native_message(message) for message in side] for name, side in parts._asdict().items()}
    return Converted(row, tuple(name for name, is_true in found.items() if is_true))


def _leading_answer(side: Messages) -> tuple[str, int]:
    """Return the text of the assistant messages at the head of a side, and their number."""
    head = list(takewhile(lambda message: message["role"] == "assistant", side))
    texts = [text for text in (render_content(message).strip() for message in head) if text]
    return "\n\n".join(texts), len(head)


def to_axolotl(pair: Mapping[str, Any]) -> Converted:
    """Convert a pair for Axolotl's `chat_template.default` DPO reader.

    That reader takes one assistant message a side (the last of a list) and no tool calls. So each side is the
    agent's move on which the runs part: its leading assistant messages, joined. What follows a tool's or a
    user's reply is left to TRL's format (`axolotl_followup_dropped`). A side that starts with anything
    else has no such move (`axolotl_left_out`). Texts are stripped: the reader searches the
    rendered text for them, and many templates strip.
    """
    parts = _read_pair(pair)
    chosen, n_chosen = _leading_answer(parts.chosen)
    rejected, n_rejected = _leading_answer(parts.rejected)
    if not parts.prompt or not chosen or not rejected:
        return Converted(None, ("axolotl_left_out",))
    if chosen == rejected:
        return Converted(None, ("axolotl_identical",))
    kept = [*parts.prompt, *parts.chosen[:n_chosen], *parts.rejected[:n_rejected]]
    found = {
        "axolotl_tools_rendered": _uses_tools(kept),
        "axolotl_followup_dropped": n_chosen < len(parts.chosen) or n_rejected < len(parts.rejected),
        "axolotl_turns_merged": n_chosen > 1 or n_rejected > 1,
    }
    row = {
        "messages": to_text_messages(parts.prompt),
        "chosen": {"role": "assistant", "content": chosen},
        "rejected": {"role": "assistant", "content": rejected},
    }
    return Converted(row, tuple(name for name, is_true in found.items() if is_true))


def _name_speakers(messages: Sequence[Mapping[str, str]]) -> list[Row]:
    return [{"from": SHAREGPT_NAMES[message["role"]], "value": message["content"]} for message in messages]


def to_sharegpt_dpo(pair: Mapping[str, Any]) -> Converted:
    """Convert a pair as `to_axolotl` does, messages in ShareGPT's words: from and value."""
    row, losses = to_axolotl(pair)
    if row is None:
        return Converted(None, losses)
    sides = {side: _name_speakers([row[side]])[0] for side in ("chosen", "rejected")}
    return Converted({"conversations": _name_speakers(row["messages"]), **sides}, losses)


def _fold_prompt(prompt: Messages) -> tuple[str, list[str]]:
    """Return a prompt as the text of one user message, and what was folded into it."""
    texts = to_text_messages(prompt)
    systems = [message["content"] for message in texts if message["role"] == "system"]
    others = [message for message in texts if message["role"] != "system"]
    losses = ["spin_system_folded"] if systems else []
    if [message["role"] for message in others] == ["user"]:
        talk = [others[0]["content"]]
    else:
        talk = [f"{_SPEAKERS[message['role']]}: {message['content']}" for message in others]
        losses += ["spin_turns_folded"] if others else []
    return "\n\n".join([*systems, *talk]), losses


def to_spin(pair: Mapping[str, Any]) -> Converted:
    """Convert a pair for SPIN: `real` and `generated`, each [user, assistant], with the same user message.

    SPIN's loader takes everything after the first message as the completion. So the system text and
    earlier turns are folded into the user text; a side with anything but assistant messages is left out.
    """
    parts = _read_pair(pair)
    chosen, n_chosen = _leading_answer(parts.chosen)
    rejected, n_rejected = _leading_answer(parts.rejected)
    has_other_turns = n_chosen < len(parts.chosen) or n_rejected < len(parts.rejected)
    user, losses = _fold_prompt(parts.prompt)
    if has_other_turns or not chosen or not rejected or not user.strip():
        return Converted(None, ("spin_left_out",))
    if chosen == rejected:
        return Converted(None, ("spin_identical",))
    if _uses_tools([*parts.prompt, *parts.chosen, *parts.rejected]):
        losses.append("spin_tools_rendered")
    if n_chosen > 1 or n_rejected > 1:
        losses.append("spin_turns_merged")
    row = {
        name: [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        for name, answer in (("real", chosen), ("generated", rejected))
    }
    return Converted(row, tuple(losses))


def to_kto(row: Mapping[str, Any]) -> Converted:
    """Convert an unpaired run for TRL's KTOTrainer; left out without prompt or without a word of the agent."""
    if not row["prompt"]:
        return Converted(None, ("kto_no_prompt",))
    if not _has_answer(row["completion"]):
        return Converted(None, ("kto_no_answer",))
    everything = [*row["prompt"], *row["completion"]]
    found = {
        "kto_tool_calls": _uses_tools(everything),
        "kto_arguments_as_text": any(has_unreadable_calls(message) for message in everything),
        "kto_prompt_without_user": all(message["role"] != "user" for message in row["prompt"]),
    }
    converted = {
        "prompt": [to_native_message(message) for message in row["prompt"]],
        "completion": [to_native_message(message) for message in row["completion"]],
        "label": row["label"],
    }
    return Converted(converted, tuple(name for name, is_true in found.items() if is_true))


def _with_task(trajectory: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Return a run's messages with its task in them, or nothing and the reason."""
    messages = list(trajectory["messages"])
    if not _has_answer(messages):
        return [], ("sft_no_answer",)
    if any(message["role"] == "user" for message in messages):
        return messages, ()
    if not trajectory.get("prompt"):
        return [], ("sft_no_task_text",)
    n_system = len(list(takewhile(lambda message: message["role"] == "system", messages)))
    messages.insert(n_system, {"role": "user", "content": trajectory["prompt"]})
    return messages, ("sft_task_text_added",)


def to_sft(trajectory: Mapping[str, Any]) -> Converted:
    """Convert a run for TRL's SFTTrainer: the whole conversation as the agent saw it, native tool calls.

    A run without a user message gets its task's text as one; without that, or without a word of the
    agent, it is left out.
    """
    messages, losses = _with_task(trajectory)
    if not messages:
        return Converted(None, losses)
    found = {
        "sft_tool_calls": _uses_tools(messages),
        "sft_arguments_as_text": any(has_unreadable_calls(message) for message in messages),
    }
    row = {"messages": [to_native_message(message) for message in messages]}
    return Converted(row, (*losses, *(name for name, is_true in found.items() if is_true)))


def to_sharegpt(trajectory: Mapping[str, Any]) -> Converted:
    """Convert a run to a ShareGPT conversation, tool calls as text; the same runs are left out as in `to_sft`."""
    messages, _ = _with_task(trajectory)
    if not messages:
        return Converted(None, ("sharegpt_left_out",))
    row = {"conversations": _name_speakers(to_text_messages(messages))}
    return Converted(row, ("sharegpt_tools_rendered",) if _uses_tools(messages) else ())
