"""What a log reader is, and what it gives back: the neutral `ParsedRun`.

A reader is one small module: typed msgspec structs for the records of its format, a function that maps one
record to a `ParsedRun`, and a `LogReader` that `registry.READERS` lists. Readers are pure: bytes in, runs
or `RecordError`s out; they open no files and know nothing of Arrow, units or quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec

from celr_ray.errors import RecordError

MAX_COUNT = 2**31 - 1
"""Largest count a log may hold; an unbounded one would overflow the Arrow builders."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Dollars = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Reward = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


class ParsedMessage(NamedTuple):
    """One message in the order of `schema.MESSAGE_FIELDS`."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: str | None = None


class ParsedRun(msgspec.Struct, gc=False):
    """One run as every format can be told; the fields are those of `schema.Trajectory`."""

    task_id: str
    messages: list[ParsedMessage]
    status: str
    domain: str | None = None
    model: str | None = None
    prompt: str | None = None
    success: bool | None = None
    reward: float | None = None
    cost_usd: float | None = None
    budget_limit_usd: float | None = None
    duration_s: float | None = None
    n_steps: int | None = None
    n_steps_completed: int | None = None
    n_retries: int | None = None
    n_hidden_messages: int = 0
    file_key: str = ""
    """What of the run only its file's name tells; part of its id, where the records of several files are alike."""


@dataclass(frozen=True)
class SourceContext:
    """What a reader may know beside the record itself.

    Attributes:
        file_name: last part of the source's path; some formats keep model and domain only there.
        task_texts: task text by task_id, from task definition files among the inputs.
        folder: what stands before the file name.
    """

    file_name: str = ""
    task_texts: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    @classmethod
    def of_file(cls, uri: str, task_texts: Mapping[str, str]) -> SourceContext:
        """Return what a reader may know of a file's records."""
        folder, _, name = uri.rpartition("/")
        return cls(name, task_texts, folder)


class ReadItem(NamedTuple):
    """One record of a JSON value: its position in a container, its bytes, the run or what is wrong with it."""

    position: int
    raw: bytes | memoryview
    result: ParsedRun | RecordError


@dataclass(frozen=True)
class LogReader:
    """One log format.

    Attributes:
        name: the value of `--format` and of `source_format`.
        matches: tells from a JSON object's keys whether it is a record (or container) of this format.
        read: turns one JSON object's bytes into its runs; raises RecordError if the whole object is unusable.
        lacks: columns of `Trajectory` that the format never has; counted in reports.
        unmapped: fields of the source that go into no column; listed in docs/data_formats.md.
        shares_keys: records of another format can pass for this one, so every record is recognised afresh.
        record: struct of one record, where `read` is no SingleRecordReader; `unmapped.py` compares records with it.
    """

    name: str
    matches: Callable[[frozenset[str]], bool]
    read: Callable[[bytes, SourceContext], Iterator[ReadItem]] | SingleRecordReader
    lacks: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()
    shares_keys: bool = False
    record: type[msgspec.Struct] | None = None

    @property
    def record_type(self) -> type[msgspec.Struct] | None:
        """The struct that names all that is read of a record."""
        return self.read.record if isinstance(self.read, SingleRecordReader) else self.record


def decode(decoder: msgspec.json.Decoder[Any], raw: bytes | memoryview) -> Any:
    """Decode a record, with every way in which it can fail turned into a RecordError.

    Raises:
        RecordError: not JSON, not UTF-8, nested too deep, or not of the decoder's shape.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise RecordError(f"wrong shape: {error}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except msgspec.DecodeError as error:
        several = " (if these are several documents, write one a line)" if "trailing characters" in str(error) else ""
        raise RecordError(f"not valid JSON: {error}{several}") from error
    except RecursionError as error:
        raise RecordError("not usable JSON: nested too deep") from error


class SingleRecordReader:
    """The `read` function of a format in which one JSON object is one run; `read_run` does without the iterator."""

    def __init__(self, decoder: msgspec.json.Decoder[Any], parse: Callable[[Any, SourceContext], ParsedRun]) -> None:
        self._decoder = decoder
        self._parse = parse

    @property
    def record(self) -> type[msgspec.Struct]:
        """The struct that the decoder makes."""
        kind: type[msgspec.Struct] = self._decoder.type
        return kind

    def __call__(self, raw: bytes, context: SourceContext) -> Iterator[ReadItem]:
        """Yield the one run of an object."""
        yield ReadItem(0, raw, self.read_run(raw, context))

    def read_run(self, raw: bytes | memoryview, context: SourceContext) -> ParsedRun:
        """Return the one run of an object.

        Raises:
            RecordError: it is unusable.
        """
        return self._parse(decode(self._decoder, raw), context)


def single_record_reader(
    decoder: msgspec.json.Decoder[Any], parse: Callable[[Any, SourceContext], ParsedRun]
) -> SingleRecordReader:
    """Make the `read` function of a format in which one JSON object is one run."""
    return SingleRecordReader(decoder, parse)


def make_task_id(source: str, domain: str | None, task: str | int) -> str:
    """Join the parts of a task id: `SOURCE/DOMAIN/ID`, or `SOURCE/ID` where there are no domains.

    Raises:
        RecordError: the task's own id is empty.
    """
    own = str(task).strip()
    if not own:
        raise RecordError("the task id is empty")
    return "/".join([part for part in (source, domain, own) if part])


class CallNumbers:
    """Gives the tool calls of one run the ids call_1, call_2, … in order of appearance.

    The ids that services make are random, so two runs that did the same would differ in them.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        self._count = 0

    def assign(self, original: str | None) -> str:
        """Return the new id of a call that an assistant makes."""
        self._count += 1
        number = f"call_{self._count}"
        if original:
            self._numbers[original] = number
        return number

    def look_up(self, original: str | None) -> str | None:
        """Return the new id of the call that a tool message answers; None if no such call was made."""
        return self._numbers.get(original or "")


def render_tool_call(call_id: str, name: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return one tool call in the OpenAI shape, arguments as JSON text."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def dump_tool_calls(calls: list[dict[str, Any]]) -> str | None:
    """Return the JSON text of a message's tool calls, or None if it has none."""
    return json.dumps(calls, ensure_ascii=False) if calls else None
