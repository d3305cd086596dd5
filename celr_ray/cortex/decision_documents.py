"""Reads the decisions out of one ATIF document: what `core.episode_log` puts into `extra.celr`.

Bytes in, one `LoggedEpisode` out; whether its values are lawful is for `decision_rows` to say, for many at once. The
objects that a decision log must have are decoded on their own, so that a damaged one is an error and never makes the
document pass for a log without decisions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec

from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, Action
from celr_ray.cortex.state import N_FEATURES, SCHEMA_HASH
from celr_ray.errors import RecordError
from celr_ray.logs.base import MAX_COUNT, decode

__all__ = ["CUT_ENDS", "Decision", "LoggedEpisode", "Probabilities", "read_decisions"]

CUT_ENDS = (None, "RUNNING", "CENSORED")
"""`end_reason`s of episodes that the log does not follow to their end."""

_ENDS_BY = {"STOPPED": "STOP", "ABORTED": "ABORT", "UNAFFORDABLE": "ABORT"}
"""The last action that an end reason stands for; other ends are the runtime's, after any action but these."""


class Probabilities(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The behavior policy's probability of each action."""

    RECURSE: float | None
    ESCALATE: float | None
    VERIFY: float | None
    RETRY_COMPRESSED: float | None
    STOP: float | None
    ABORT: float | None


class Decision(msgspec.Struct, gc=False):
    """One decision; JSON has no NaN, so a number that is none stands as null."""

    t: int
    obs: list[float | None]
    mask: list[bool]
    action: Literal["RECURSE", "ESCALATE", "VERIFY", "RETRY_COMPRESSED", "STOP", "ABORT"]
    probabilities: Probabilities | None = None
    reward: float | None = None


class _Episode(msgspec.Struct, gc=False):
    state_schema: str | None = None
    policy_hash: str | None = None
    success: bool | None = None
    end_reason: str | None = None
    unsafe: bool = False
    total_reward: float | None = None


class _StepCelr(msgspec.Struct, gc=False):
    decision: msgspec.Raw = msgspec.Raw()


class _StepExtra(msgspec.Struct, gc=False):
    celr: _StepCelr | None = None


class _Step(msgspec.Struct, gc=False):
    model_name: str | None = None
    extra: _StepExtra | None = None


class _RunCelr(msgspec.Struct, gc=False):
    task_id: str
    episode: msgspec.Raw = msgspec.Raw()


class _RunExtra(msgspec.Struct, gc=False):
    celr: _RunCelr | None = None


class _Agent(msgspec.Struct, gc=False):
    model_name: str | None = None


class _Document(msgspec.Struct, gc=False):
    schema_version: str
    steps: list[_Step]
    agent: _Agent | None = None
    extra: _RunExtra | None = None


class LoggedEpisode(msgspec.Struct, gc=False):
    """One episode as its log has it.

    Attributes:
        task_id: of the task.
        model: of the agent, as `logs.atif` reads it; None = several or none.
        policy_hash: who decided; None = unknown.
        success: the outcome; None = the task has no checker.
        unsafe: the monitor saw a forbidden act.
        is_cut: the log ends before the episode does.
        total_reward: sum of the rewards as logged; None = unknown.
        decisions: at least one, numbered from 0 without gaps.
    """

    task_id: str
    model: str | None
    policy_hash: str | None
    success: bool | None
    unsafe: bool
    is_cut: bool
    total_reward: float | None
    decisions: list[Decision]


_DOCUMENT = msgspec.json.Decoder(_Document)
_EPISODE = msgspec.json.Decoder(_Episode)
_DECISION = msgspec.json.Decoder(Decision)


def read_decisions(raw: bytes | memoryview) -> LoggedEpisode | None:
    """Return the decisions of a document, or None if it is no log of decisions.

    Raises:
        RecordError: it is one, and something in it is missing or of the wrong shape.
    """
    try:
        document = decode(_DOCUMENT, raw)
    except RecordError:
        return None  # what it is instead, or how it is damaged, the readers of the other formats will say
    found = [step.extra.celr.decision for step in document.steps if step.extra and step.extra.celr]
    raws = [own for own in found if len(memoryview(own)) and bytes(own) != b"null"]
    run = document.extra.celr if document.extra else None
    has_episode = run is not None and len(memoryview(run.episode)) > 0
    if not raws and not has_episode:
        return None
    if run is None or not has_episode:
        raise RecordError("there are decisions, but no extra.celr.episode to tell under which rules they were taken")
    return _check_episode(run, _read_model(document), decode(_EPISODE, run.episode), raws)


def _read_model(document: _Document) -> str | None:
    """Return the run's model as `logs.atif` does, so that ids agree."""
    if document.agent is not None and document.agent.model_name is not None:
        return document.agent.model_name
    models = {step.model_name for step in document.steps if step.model_name is not None}
    return models.pop() if len(models) == 1 else None


def _check_episode(run: _RunCelr, model: str | None, episode: _Episode, raws: list[msgspec.Raw]) -> LoggedEpisode:
    """Check what needs no arithmetic: the feature schema, sizes, the numbering, and that the end fits the last action.

    Raises:
        RecordError: it does not.
    """
    if not run.task_id.strip():
        raise RecordError("the task id is empty")
    if episode.state_schema != SCHEMA_HASH:
        raise RecordError(
            f"the states have the feature schema {episode.state_schema or '(none)'}, this version of celr-ray knows "
            f"{SCHEMA_HASH}: execute the tasks again with it"
        )
    if not raws:
        raise RecordError("the episode has no decisions")
    decisions = [decode(_DECISION, own) for own in raws]
    for number, decision in enumerate(decisions):
        if decision.t != number:
            raise RecordError(f"gap in t: decision {number} has t {min(decision.t, MAX_COUNT)}")
        if len(decision.obs) != N_FEATURES or len(decision.mask) != N_ACTIONS:
            sizes = f"{len(decision.obs)} features and a mask of {len(decision.mask)}"
            raise RecordError(f"decision {number} has {sizes}, not {N_FEATURES} and {N_ACTIONS}")
    _check_end([decision.action for decision in decisions], episode.end_reason)
    return LoggedEpisode(
        task_id=run.task_id.strip(),
        model=model,
        policy_hash=episode.policy_hash,
        success=episode.success,
        unsafe=episode.unsafe,
        is_cut=episode.end_reason in CUT_ENDS,
        total_reward=episode.total_reward,
        decisions=decisions,
    )


def _check_end(actions: list[str], end_reason: str | None) -> None:
    """Check that STOP and ABORT come last, and that the end is the one that the log names.

    Raises:
        RecordError: it is not so.
    """
    endings = (Action.STOP.name, Action.ABORT.name)
    for number, (action, following) in enumerate(pairwise(actions)):
        if action in endings:
            raise RecordError(f"decision {number} is {action}, and {following} follows it")
    if end_reason in CUT_ENDS:
        return
    expected = _ENDS_BY.get(end_reason or "")
    is_ending = actions[-1] in endings
    if (expected is not None and actions[-1] != expected) or (expected is None and is_ending):
        raise RecordError(f"missing end: the episode ended as {end_reason}, its last decision is {actions[-1]}")


ACTION_COLUMNS = {name: column for column, name in enumerate(ACTIONS)}
"""Column of each action by name."""
