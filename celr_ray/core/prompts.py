"""What a model is asked: the first attempt, the improvement of an answer, the compressed retry.

ESCALATE sends the task alone: a stronger tier's first attempt does not depend on what weaker ones said, so recorded
first attempts can stand for it. RECURSE keeps the whole conversation and adds what was found wrong (verify → reflect →
retry); it refines the last answer in place, as tiny recursive models refine theirs (arXiv 2510.04871), at the level
of text. RETRY_COMPRESSED keeps the task and the last failure.
"""

from __future__ import annotations

from celr_ray.cortex.actions import Action

__all__ = ["Chat", "build_chat", "first_chat", "make_feedback"]

Chat = list[dict[str, str]]
"""Messages, `{role, content}`."""

_FAILED = (
    "Your answer was checked and it failed: {reason}\n"
    "Find the mistake and reply with a complete corrected answer, in the form that the task asks for."
)
_IMPROVE = (
    "Check your answer step by step. Reply with a complete improved answer, in the form that the task asks for; "
    "repeat it if it is right."
)
_COMPRESSED = "{task}\n\nAn earlier attempt failed: {reason}\nDo not repeat its mistake."
_MAX_REASON = 600


def first_chat(task_prompt: str, system_prompt: str | None) -> Chat:
    """Return the task alone."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": task_prompt}]


def make_feedback(failure: str | None) -> str:
    """Say what is wrong with the last answer, or, where nothing is known to be, ask for a second look.

    Args:
        failure: the verifier's reason; None = it passed or was not run.
    """
    return _IMPROVE if failure is None else _FAILED.format(reason=_shorten(failure))


def build_chat(
    action: Action, chat: Chat, answer: str | None, failure: str | None, task_prompt: str, system_prompt: str | None
) -> Chat:
    """Return what an attempt sends.

    Args:
        action: RECURSE, ESCALATE or RETRY_COMPRESSED.
        chat: what the last attempt sent; empty before the first.
        answer: what came back; None = nothing did.
        failure: why the verifier refuted the answer, if it did.
        task_prompt: the task.
        system_prompt: in front of it, if any.
    """
    if action == Action.RETRY_COMPRESSED and failure is not None:
        return first_chat(_COMPRESSED.format(task=task_prompt, reason=_shorten(failure)), system_prompt)
    if action != Action.RECURSE or not chat:
        return first_chat(task_prompt, system_prompt)
    if answer is None:
        return chat  # the call failed: ask again
    said = {"role": "assistant", "content": answer}
    return [*chat, said, {"role": "user", "content": make_feedback(failure)}]


def _shorten(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + " …"
