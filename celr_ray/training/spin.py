"""SPIN pairs: what a model answered to a prompt (rejected) against a response from SFT data (chosen).

SPIN (arXiv 2401.01335) plays the model against real data, whatever its own answer scored; so the outcome is not asked.
Only the agent's first answer is taken, as SPIN's rows have one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.errors import InputError
from celr_ray.schema import MESSAGES, PAIR_SCHEMA
from celr_ray.training.conversations import Conversations, RunCuts, Spans, make_message, normalise_prompt
from celr_ray.training.pairing import LEVELS, Texts, make_pair_ids
from celr_ray.training.spans import Ints, count_before, take_rows

SftIndex = Mapping[str, Sequence[str]]
"""SFT responses by normalised prompt."""


class SpinPairs(NamedTuple):
    """SPIN pairs, and the place among the candidates of the run that each of them rejects."""

    runs: Ints
    table: pa.Table


def read_sft(uris: Sequence[str]) -> list[dict[str, Any]]:
    """Read SFT data: JSONL of {"prompt", "response"} or {"messages"}.

    Raises:
        InputError: a file is missing, or a line is not a JSON object.
    """
    rows = []
    for uri in uris:
        for file in storage.expand(uri):
            for number, line in enumerate(storage.read_bytes(file.uri).splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{file.uri}, line {number}: not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise InputError(f'{file.uri}, line {number}: expected {{"prompt", "response"}} or {{"messages"}}')
                rows.append(row)
    return rows


def index_sft(sft_data: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return SFT responses by normalised prompt.

    Args:
        sft_data: rows {"prompt", "response"}, or {"messages"} of which the first user message is the prompt and
            the first assistant message the response. Rows without both are left out.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for row in sft_data:
        prompt, response = row.get("prompt"), row.get("response")
        if "messages" in row:
            prompt = find_content(row["messages"], "user")
            response = find_content(row["messages"], "assistant")
        if isinstance(prompt, str) and isinstance(response, str) and prompt.strip() and response.strip():
            found[normalise_prompt(prompt)].append(response)
    return dict(found)


def find_content(messages: Sequence[Mapping[str, Any]], role: str) -> str | None:
    """Return the first text that a role says."""
    return next((m.get("content") for m in messages if m.get("role") == role and m.get("content")), None)


def choose_answers(task: Ints, prompts: Sequence[str | None], sft: SftIndex, limit: int) -> Ints:
    """Return the runs whose task text has an SFT response, at most `limit` of a task.

    Runs without a task text are among them: they are joined by their own messages.
    """
    joined = [i for i, prompt in enumerate(prompts) if prompt is None or normalise_prompt(prompt) in sft]
    places = np.array(joined, dtype=np.int64)
    return places[count_before(task[places]) < limit]


def pair_answers(runs: Ints, groups: Ints, light: pa.Table, texts: Texts, sft: SftIndex, limit: int) -> SpinPairs:
    """Pair the first answers of runs with the SFT responses to the same prompt.

    Args:
        runs: places among the candidates.
        groups: the cap is for each of these, shape (R,).
        light: trajectory_id, task_id and model of the candidates.
        texts: their texts.
        sft: SFT responses.
        limit: most pairs of a group.
    """
    conversations = texts.conversations
    cuts = conversations.split_runs(texts.locate(runs))
    chosen, rows = _join_responses(conversations, cuts, groups, sft, limit)
    return SpinPairs(runs[rows], _make_table(chosen, runs[rows], take_rows(cuts, rows), light, conversations))


def _join_responses(
    conversations: Conversations, cuts: RunCuts, groups: Ints, sft: SftIndex, limit: int
) -> tuple[list[str], Ints]:
    """Return SFT responses, and the row of the run that answered the same prompt otherwise."""
    usable = np.flatnonzero(cuts.is_usable)
    asked = conversations.read_last_users(take_rows(cuts.prompt, usable))
    answers = conversations.read_contents(cuts.completion.begin[usable])
    taken: Counter[int] = Counter()
    chosen, rows = [], []
    for row, group, user, answer in zip(usable.tolist(), groups[usable].tolist(), asked, answers, strict=True):
        if not user or not answer:
            continue
        for response in sft.get(normalise_prompt(user), ()):
            if taken[group] < limit and response.strip() != answer.strip():
                taken[group] += 1
                chosen.append(response)
                rows.append(row)
    return chosen, np.array(rows, dtype=np.int64)


def _make_table(
    responses: Sequence[str], runs: Ints, cuts: RunCuts, light: pa.Table, conversations: Conversations
) -> pa.Table:
    places, n = pa.array(runs), len(runs)
    task_ids, rejected_ids = light["task_id"].take(places), light["trajectory_id"].take(places)
    digests = [hashlib.blake2b(response.encode(), digest_size=8).hexdigest() for response in responses]
    chosen_ids, types = pa.array([f"sft-{digest}" for digest in digests], pa.string()), pa.repeat("spin", n)
    columns = [
        make_pair_ids(task_ids, types, chosen_ids, rejected_ids),
        task_ids,
        types,
        pa.repeat(LEVELS[True], n),
        conversations.take_prompts(cuts.prompt),
        pa.array([[make_message("assistant", response)] for response in responses], MESSAGES),
        conversations.take_spans(Spans(cuts.completion.begin, cuts.completion.begin + 1)),
        chosen_ids,
        rejected_ids,
        *(pa.nulls(n, pa.float64()) for _ in range(2)),
        pa.nulls(n, pa.string()),
        light["model"].take(places),
    ]
    return pa.table(columns, schema=PAIR_SCHEMA)
