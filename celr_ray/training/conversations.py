"""Cutting conversations into prompt, chosen and rejected. Pure logic on Arrow columns.

The prompt of a pair is what both runs had before them when they parted; see `schema.PreferencePair` for the
two levels. Only messages and the task's text are used: no score, cost, status or id can get into a text.

The rules read no text but those that they must compare: they work on the places of messages, for all pairs of a bucket
at once, and the texts stay in Arrow until they are written. Array sizes: `M` messages, `R` runs, `N` runs or pairs
being cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray.schema import MESSAGE_FIELDS, MESSAGES
from celr_ray.training.spans import Bools, Ints, expand, first_within, stands_in

Messages = Sequence[Mapping[str, Any]]
TEXT_SCHEMA = pa.schema([("prompt", pa.string()), ("messages", MESSAGES)])
"""What is needed of a run to cut it: its task's text, if known, and its messages."""

NoSplit = Literal[
    "different_task_texts",
    "equal_texts",
    "empty_answer",
    "no_task_text",
    "different_system_texts",
]
"""Why two runs have no common prompt to be compared on."""

NO_SPLIT: tuple[NoSplit, ...] = get_args(NoSplit)


def make_message(role: str, content: str) -> dict[str, Any]:
    """Return a plain text message with all fields of `schema.Message`."""
    return {"role": role, "content": content, "name": None, "tool_call_id": None, "tool_calls": None}


def normalise_prompt(text: str) -> str:
    """Return the form of a task's text by which runs and SFT data are joined: white space folded."""
    return " ".join(text.split())


class Prompts(NamedTuple):
    """The prompts of N pairs: messages `begin` … `middle`, the task's text of run `task` (−1 = none), … `end`."""

    begin: Ints
    middle: Ints
    end: Ints
    task: Ints


class Spans(NamedTuple):
    """For each of N texts the places of its messages, `begin` … `end`."""

    begin: Ints
    end: Ints


class PairCuts(NamedTuple):
    """Where N pairs are cut.

    Attributes:
        no_split: place in `NO_SPLIT` of the reason why there is no pair; −1 = there is one.
        is_step: level `step`; else `trajectory`.
        prompt: common prompt.
        chosen: what follows in the better run.
        rejected: what follows in the worse run.
    """

    no_split: Ints
    is_step: Bools
    prompt: Prompts
    chosen: Spans
    rejected: Spans


class RunCuts(NamedTuple):
    """Where N single runs are cut; those of which nothing can be learnt are not `is_usable`."""

    is_usable: Bools
    prompt: Prompts
    completion: Spans


class Conversations:
    """The messages of R runs, flat, and where each run begins and ends among them.

    Args:
        texts: columns of TEXT_SCHEMA, one row a run.
    """

    def __init__(self, texts: pa.Table) -> None:
        lists = _join(texts["messages"])
        offsets = lists.offsets.to_numpy().astype(np.int64)
        self.messages: pa.StructArray = lists.values
        self.tasks: pa.StringArray = _join(texts["prompt"])
        self.begin: Ints = offsets[:-1]
        self.end: Ints = offsets[1:]

    @cached_property
    def _fields(self) -> list[tuple[pa.StringArray, Ints]]:
        """Each field of the messages with its lengths in bytes; −1 = null."""
        columns = [self.messages.field(field.name) for field in MESSAGE_FIELDS]
        return [(column, _measure(column)) for column in columns]

    @cached_property
    def _task_sizes(self) -> Ints:
        return _measure(self.tasks)

    @cached_property
    def _agent(self) -> Ints:
        return self._find_role("assistant")

    @cached_property
    def _users(self) -> Ints:
        return self._find_role("user")

    @cached_property
    def _system_end(self) -> Ints:
        """Where each run's leading system messages end."""
        is_other = np.ones(len(self.messages), dtype=np.bool_)
        is_other[self._find_role("system")] = False
        return first_within(np.flatnonzero(is_other), self.begin, self.end)

    @cached_property
    def _speaking(self) -> Ints:
        """Where the agent says or calls anything."""
        content, calls = self.messages.field("content"), self.messages.field("tool_calls")
        is_blank = pc.fill_null(pc.or_(pc.utf8_is_space(content), pc.equal(pc.binary_length(content), 0)), True)
        speaks = ~is_blank.to_numpy(zero_copy_only=False) | (_measure(calls) > 0)
        speaking: Ints = self._agent[speaks[self._agent]]
        return speaking

    def _find_role(self, role: str) -> Ints:
        return np.flatnonzero(pc.equal(self.messages.field("role"), role).to_numpy(zero_copy_only=False))

    def has_speech(self, begin: Ints, end: Ints) -> Bools:
        """Tell whether the agent says or calls anything in `begin` … `end`; if not, there is nothing to learn from."""
        return np.asarray(first_within(self._speaking, begin, end) < end)

    def has_task(self, runs: Ints) -> Bools:
        """Tell which runs know their task's text."""
        return np.asarray(self._task_sizes[runs] > 0)

    def count_shared(self, a: Ints, b: Ints) -> Ints:
        """Return how many leading messages the runs a and b share, shape (N,). Looks further in ever larger steps."""
        sizes = np.minimum(self.end[a] - self.begin[a], self.end[b] - self.begin[b])
        shared: Ints = np.zeros(len(sizes), dtype=np.int64)
        step = 1
        open_ = np.flatnonzero(sizes > 0)
        while len(open_):
            stop = np.minimum(shared[open_] + step, sizes[open_])
            left, right = (expand(self.begin[x[open_]] + shared[open_], self.begin[x[open_]] + stop) for x in (a, b))
            ends = np.cumsum(stop - shared[open_])
            begins = ends - (stop - shared[open_])
            first = first_within(np.flatnonzero(~self._is_equal(left, right)), begins, ends)
            shared[open_] += first - begins
            open_ = open_[(first == ends) & (stop < sizes[open_])]
            step *= 2
        return shared

    def _is_equal(self, left: Ints, right: Ints) -> Bools:
        """Tell which messages are equal in all fields; texts are looked at only where all lengths agree."""
        same = np.ones(len(left), dtype=np.bool_)
        for _, sizes in self._fields:
            same &= sizes[left] == sizes[right]
        for column, sizes in self._fields:
            doubtful = np.flatnonzero(same & (sizes[left] > 0))
            same[doubtful] = _equal_texts(column, left[doubtful], column, right[doubtful])
        return same

    def split_pairs(self, chosen: Ints, rejected: Ints) -> PairCuts:
        """Cut two runs of one task where they part, for N pairs.

        level `step` if the first message that differs is the agent's in both; else `trajectory`. There is no pair if
        the task texts differ (two tasks under one id: CELR's own ids are not unique across projects), the conversations
        are equal, an agent says nothing, the system texts differ, or there is neither a task text nor a message that
        both runs share before they part.
        """
        shared = self.count_shared(chosen, rejected)
        begin, parted, other = self.begin[chosen], self.begin[chosen] + shared, self.begin[rejected] + shared
        end, other_end = self.end[chosen], self.end[rejected]
        is_step = stands_in(self._agent, parted, end) & stands_in(self._agent, other, other_end)
        task = np.where(self.has_task(chosen), chosen, rejected)
        has_task = self.has_task(task)
        speaks = self.has_speech(np.where(is_step, parted, begin), end)
        speaks &= self.has_speech(np.where(is_step, other, self.begin[rejected]), other_end)
        no_split = _first_true(
            ("different_task_texts", self._has_other_task(chosen, rejected)),
            ("equal_texts", (parted == end) & (other == other_end)),
            ("empty_answer", ~speaks),
            ("different_system_texts", ~is_step & self._has_other_system(chosen, rejected, shared)),
            ("no_task_text", ~has_task & (~is_step | (shared == 0))),
        )
        is_added = has_task & (~is_step | (first_within(self._users, begin, parted) == parted))
        middle = np.minimum(self._system_end[chosen], parted)
        prompt = Prompts(begin, middle, np.where(is_step, parted, middle), np.where(is_added, task, -1))
        rests = (
            Spans(np.where(is_step, at, self._skip_task(runs, task)), self.end[runs])
            for runs, at in ((chosen, parted), (rejected, other))
        )
        return PairCuts(no_split, is_step, prompt, *rests)

    def _has_other_system(self, a: Ints, b: Ints, shared: Ints) -> Bools:
        """Tell where the leading system messages of two runs are not the same, all of them shared."""
        n_system, n_other = (self._system_end[runs] - self.begin[runs] for runs in (a, b))
        return np.asarray((n_system != n_other) | (n_system > shared))

    def _has_other_task(self, a: Ints, b: Ints) -> Bools:
        """Tell where two runs have task texts that differ in more than white space."""
        differs = self.has_task(a) & self.has_task(b)
        known = np.flatnonzero(differs)
        differs[known] = ~_equal_texts(self.tasks, a[known], self.tasks, b[known])
        for i in np.flatnonzero(differs):
            left, right = (self.tasks[int(runs[i])].as_py() for runs in (a, b))
            differs[i] = normalise_prompt(left) != normalise_prompt(right)
        return differs

    def _skip_task(self, runs: Ints, task: Ints) -> Ints:
        """Return where runs begin after their system and a user's message that is the task's text itself."""
        begin = self._system_end[runs]
        is_task = stands_in(self._users, begin, self.end[runs]) & self.has_task(task)
        open_ = np.flatnonzero(is_task)
        is_task[open_] = _equal_texts(self.messages.field("content"), begin[open_], self.tasks, task[open_])
        return begin + is_task

    def split_runs(self, runs: Ints) -> RunCuts:
        """Cut single runs before the agent's first message that answers a user, for N runs.

        A run without a user message is cut after its system messages if its task's text is known. Nothing is usable if
        there is neither, or nothing of the agent's follows.
        """
        begin, end = self.begin[runs], self.end[runs]
        user = first_within(self._users, begin, end)
        has_user, has_task = user < end, self.has_task(runs)
        cut = np.where(has_user, first_within(self._agent, user, end), self._system_end[runs])
        prompt = Prompts(begin, cut, cut, np.where(has_user, -1, runs))
        return RunCuts((has_user | has_task) & self.has_speech(cut, end), prompt, Spans(cut, end))

    def take_spans(self, spans: Spans) -> pa.ListArray:
        """Return the messages of each span as a column of conversations."""
        return _make_lists(spans.end - spans.begin, self.messages.take(pa.array(expand(*spans))))

    def take_prompts(self, prompts: Prompts) -> pa.ListArray:
        """Return the messages of each prompt, with the task's text as a user's where it is asked for."""
        is_added = prompts.task >= 0
        own = self.messages.take(pa.array(expand(prompts.begin, prompts.end)))
        contents = self.tasks.take(pa.array(prompts.task[is_added]))
        source = pa.concat_arrays([own, _make_user_messages(contents)])
        before, after = prompts.middle - prompts.begin, prompts.end - prompts.middle
        starts = np.cumsum(before + after) - before - after
        tasks = len(own) + np.cumsum(is_added) - is_added
        begins = np.stack([starts, tasks, starts + before], axis=1)
        sizes = np.stack([before, is_added, after], axis=1)
        places = expand(begins.ravel(), (begins + sizes).ravel())
        return _make_lists(sizes.sum(axis=1), source.take(pa.array(places)))

    def read_contents(self, places: Ints) -> list[str | None]:
        """Return the texts of single messages."""
        texts: list[str | None] = self.messages.field("content").take(pa.array(places)).to_pylist()
        return texts

    def read_last_users(self, prompts: Prompts) -> list[str | None]:
        """Return the last text that a user says in each prompt; None where there is none."""
        sizes = _measure(self.messages.field("content"))
        users = np.append(-1, self._users[sizes[self._users] > 0])
        last = users[np.searchsorted(users, prompts.end) - 1]
        own = self.read_contents(np.maximum(last, 0)) if len(self.messages) else []
        added = self.tasks.take(pa.array(np.maximum(prompts.task, 0))).to_pylist() if len(self.tasks) else []
        is_own, is_added = last >= prompts.begin, prompts.task >= 0
        rows = zip(own, added, is_own.tolist(), is_added.tolist(), strict=True)
        return [task if adds else text if owns else None for text, task, owns, adds in rows]


def count_shared(a: Messages, b: Messages) -> int:
    """Return how many leading messages two conversations share."""
    pair = _from_lists([a, b])
    return int(pair.count_shared(np.array([0]), np.array([1]))[0])


def has_agent_message(messages: Messages) -> bool:
    """Tell whether the agent says or calls anything: an empty answer is nothing to learn from."""
    only = _from_lists([messages])
    return bool(only.has_speech(only.begin, only.end)[0])


def _from_lists(conversations: Sequence[Messages]) -> Conversations:
    tasks = pa.nulls(len(conversations), pa.string())
    lists = pa.array([list(messages) for messages in conversations], MESSAGES)
    return Conversations(pa.table([tasks, lists], schema=TEXT_SCHEMA))


def _first_true(*conditions: tuple[NoSplit, Bools]) -> Ints:
    """Return the place in NO_SPLIT of the first condition that holds, −1 for none."""
    return np.select([holds for _, holds in conditions], [NO_SPLIT.index(name) for name, _ in conditions], -1)


def _measure(column: pa.StringArray) -> Ints:
    return np.asarray(pc.fill_null(pc.binary_length(column), -1).to_numpy())


def _equal_texts(left: pa.StringArray, i: Ints, right: pa.StringArray, j: Ints) -> Bools:
    """Tell where two texts are there and equal."""
    equal = pc.equal(left.take(pa.array(i)), right.take(pa.array(j)))
    return np.asarray(pc.fill_null(equal, False).to_numpy(zero_copy_only=False))


def _make_user_messages(contents: pa.StringArray) -> pa.StructArray:
    n = len(contents)
    columns = [pa.repeat("user", n), contents, *(pa.nulls(n, pa.string()) for _ in MESSAGE_FIELDS[2:])]
    return pa.StructArray.from_arrays(columns, fields=MESSAGE_FIELDS)


def _make_lists(sizes: Ints, messages: pa.StructArray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), messages, type=MESSAGES)


def _join(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece; copied only if it is in several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
