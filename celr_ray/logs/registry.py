"""The list of log readers, and recognition of the format of a record. A new reader is added here."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from celr_ray.errors import RecordError
from celr_ray.logs.atif import ATIF
from celr_ray.logs.base import LogReader, ReadItem, SingleRecordReader, SourceContext, decode
from celr_ray.logs.celr import CELR_BENCHMARK, CELR_PLAN, CELR_STEP
from celr_ray.logs.chat import CHAT
from celr_ray.logs.intercode import INTERCODE
from celr_ray.logs.reflexion import REFLEXION
from celr_ray.logs.swe_agent import MINI_SWE_AGENT, SWE_AGENT
from celr_ray.logs.tau2_bench import TAU2_BENCH
from celr_ray.logs.tau_bench import TAU_BENCH

READERS: dict[str, LogReader] = {
    reader.name: reader
    for reader in (
        CELR_PLAN,
        CELR_STEP,
        CELR_BENCHMARK,
        TAU_BENCH,
        TAU2_BENCH,
        ATIF,
        SWE_AGENT,
        MINI_SWE_AGENT,
        INTERCODE,
        REFLEXION,
        CHAT,  # last: every object with `messages` that no other reader knows
    )
}

_KEYS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


def detect_format(raw: bytes) -> LogReader:
    """Recognise the format of one JSON object by its keys.

    Raises:
        RecordError: it is not a JSON object, or no reader knows its keys.
    """
    if not raw.lstrip()[:1] == b"{":
        raise RecordError(f"not a JSON object: it starts with {raw.lstrip()[:20]!r}")
    keys = frozenset(decode(_KEYS_DECODER, raw))
    for reader in READERS.values():
        if reader.matches(keys):
            return reader
    shown = ", ".join(sorted(keys)[:12])
    raise RecordError(f"unknown shape: no reader knows an object with the keys {shown[:300] or '(none)'}")


class RecordReader:
    """Reads JSON values of one format, or recognises it value by value.

    A list is read as a list of records. With `auto`, the format of the last record is tried first, so
    that a file of one format pays for recognition once.
    """

    def __init__(self, format_name: str) -> None:
        self._fixed = READERS[format_name] if format_name != "auto" else None
        self._last = self._fixed

    def read(self, value: bytes | memoryview, context: SourceContext) -> list[tuple[str, ReadItem]]:
        """Return each record of a JSON value as (format, item); `index` counts within the outermost container.

        Raises:
            RecordError: the value as a whole is unusable.
        """
        last = self._last
        if last is not None and isinstance(last.read, SingleRecordReader) and not last.shares_keys:
            try:
                return [(last.name, ReadItem(0, value, last.read.read_run(value, context)))]
            except RecordError:
                pass  # another format, a list, or damage: what it is will be told below
        return list(self._read_value(bytes(value), context))

    def _read_value(self, value: bytes, context: SourceContext) -> Iterator[tuple[str, ReadItem]]:
        if value.lstrip()[:1] != b"[":
            yield from self._read_object(value, context)
            return
        for position, element in enumerate(decode(_LIST_DECODER, value)):
            raw = bytes(element)
            try:
                for name, item in self._read_object(raw, context):
                    index = position if item.position == 0 and item.raw is raw else item.position
                    yield name, ReadItem(index, item.raw, item.result)
            except RecordError as error:
                yield "", ReadItem(position, raw, error)

    def _read_object(self, raw: bytes, context: SourceContext) -> Iterator[tuple[str, ReadItem]]:
        reader = self._fixed
        if reader is None:
            reader = self._last
            try:
                if reader is not None and not reader.shares_keys:
                    yield from [(reader.name, item) for item in reader.read(raw, context)]
                    return
            except RecordError:
                pass
            reader = self._last = detect_format(raw)
        yield from [(reader.name, item) for item in reader.read(raw, context)]
