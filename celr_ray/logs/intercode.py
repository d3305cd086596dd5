"""Reader of InterCode results (princeton-nlp/intercode): episodes of {query, turn_history, summary, …}.

The tool's own files hold one object of episodes by number; single episodes (JSONL) are read too. The agent saw
the reward of each turn; here rewards are kept out of the texts. What the program wrote in the agent's place (the
marker `blocked` of a refused request, the `submit` that ends a run out of turns) is left out and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.base import (
    Count,
    LogReader,
    ParsedMessage,
    ParsedRun,
    ReadItem,
    Reward,
    SourceContext,
    decode,
    make_task_id,
)

_RESULT_FOLDER = re.compile(r"results/[^/]+/(?P<model>[^/]+)/[^/]+\Z")
_FILE_NAME = re.compile(r"\Aic_[a-z]+_multiturn_(?P<model>.+)_\d+_turns")
_FORCED_THOUGHT = "EXCEEDED MAX TURNS"


class _TurnHistory(msgspec.Struct, gc=False):
    actions: list[str]
    observations: list[Any]
    thoughts: list[str] | None = None


class _Summary(msgspec.Struct, gc=False):
    max_reward: Reward
    turns_taken: Count | None = None
    turns_max: Count | None = None


class _Episode(msgspec.Struct, gc=False):
    environment: str
    dataset: str
    task_id: int | str
    query: str
    turn_history: _TurnHistory
    summary: _Summary
    file: str | None = msgspec.field(default=None, name="_file")


_EPISODE_DECODER = msgspec.json.Decoder(_Episode)
_FILE_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _find_model(episode: _Episode, context: SourceContext) -> str | None:
    """Return the model, which only the path names: `results/ENVIRONMENT/MODEL/…`, else the file's own name."""
    folder = _RESULT_FOLDER.search(episode.file or "")
    named = _FILE_NAME.match((episode.file or context.file_name).rsplit("/", 1)[-1])
    return folder["model"] if folder else named["model"] if named else None


def _agent_turns(history: _TurnHistory) -> int:
    """Return how many of the actions are the agent's: the last may be the program's."""
    n = len(history.actions)
    if n and len(history.observations) < n and history.actions[-1] == "blocked":
        return n - 1
    if n and history.thoughts and len(history.thoughts) == n and history.thoughts[-1].startswith(_FORCED_THOUGHT):
        return n - 1
    return n


def _read_turns(history: _TurnHistory, n_turns: int) -> Iterator[ParsedMessage]:
    for i in range(n_turns):
        thought = history.thoughts[i] if history.thoughts and i < len(history.thoughts) else ""
        action = history.actions[i]
        yield ParsedMessage("assistant", f"{thought}\n\n{action}" if thought else action)
        if i < len(history.observations):
            seen = history.observations[i]
            yield ParsedMessage("user", seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False))


def _parse(episode: _Episode, context: SourceContext) -> ParsedRun:
    history, summary = episode.turn_history, episode.summary
    if len(history.observations) > len(history.actions):
        raise RecordError(f"{len(history.observations)} observations of {len(history.actions)} actions")
    n_turns = _agent_turns(history)
    domain = episode.environment.removeprefix("ic_")
    dataset = episode.dataset.rsplit("/", 1)[-1].removesuffix(".json")
    success = summary.max_reward >= 1 - 1e-6
    out_of_turns = summary.turns_max is not None and (summary.turns_taken or 0) >= summary.turns_max
    return ParsedRun(
        task_id=make_task_id("intercode", domain, make_task_id(dataset, None, episode.task_id)),
        messages=[ParsedMessage("user", episode.query), *_read_turns(history, n_turns)],
        status="SUCCESS" if success else "STUCK" if out_of_turns else "FAILED",
        domain=domain,
        model=_find_model(episode, context),
        prompt=episode.query,
        success=success,
        reward=summary.max_reward,
        n_steps=n_turns,
        n_hidden_messages=len(history.actions) - n_turns + max(len(history.observations) - n_turns, 0),
    )


def _is_intercode(keys: frozenset[str]) -> bool:
    return {"query", "turn_history", "summary"} <= keys or (bool(keys) and all(key.isdecimal() for key in keys))


def _read(raw: bytes, context: SourceContext) -> Iterator[ReadItem]:
    members = decode(_FILE_DECODER, raw)
    if not members or not all(key.isdecimal() for key in members):
        yield ReadItem(0, raw, _parse(decode(_EPISODE_DECODER, raw), context))
        return
    for position, member in enumerate(members.values()):
        episode = bytes(member)
        try:
            result: ParsedRun | RecordError = _parse(decode(_EPISODE_DECODER, episode), context)
        except RecordError as error:
            result = error
        yield ReadItem(position, episode, result)


INTERCODE = LogReader(
    "intercode",
    _is_intercode,
    _read,
    record=_Episode,
    lacks=("cost_usd", "budget_limit_usd", "duration_s", "n_steps_completed", "n_retries"),
    unmapped=("turn_history.rewards", "turn_history.valid_action", "summary.max_reward_idx", "info"),
)
