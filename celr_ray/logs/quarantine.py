"""Rejected records: each is written down with its place, the reason and its bytes, before the data of its unit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from celr_ray import storage
from celr_ray.logs.base import ReadItem
from celr_ray.logs.framing import Value
from celr_ray.redact import redact_text
from celr_ray.run_folder import part_name, read_manifests
from celr_ray.runtime import Unit
from celr_ray.schema import QuarantineRow

__all__ = ["Quarantine", "number_lines", "read_rejected"]

_RAW_LIMIT = 64 * 1024
_REDACTED_BEYOND = 16 * 1024
"""Bytes beyond the limit that are redacted before the cut, so that no secret is cut first and then missed."""


class Quarantine:
    """The rejected records of one unit.

    Attributes:
        rows: in the order in which they were rejected.
        redacted: how many secrets of each kind were replaced in them.
    """

    def __init__(self, *, redact: bool) -> None:
        """Begin empty; with `redact`, secrets in what is kept are replaced."""
        self._redact = redact
        self.rows: list[QuarantineRow] = []
        self.redacted: Counter[str] = Counter()

    def reject(
        self, uri: str, offset: int, line: int, index: int | None, reason: str, raw: bytes | memoryview, n_bytes: int
    ) -> None:
        """Note one record.

        Args:
            uri: its file.
            offset: where it begins, bytes of the uncompressed file.
            line: its line, counted within the byte range that was read.
            index: position inside a container record.
            reason: what is wrong with it.
            raw: its bytes, as far as they are known.
            n_bytes: its full length.
        """
        raw = bytes(raw[: _RAW_LIMIT + _REDACTED_BEYOND])
        text = raw[:_RAW_LIMIT].decode("utf-8", errors="backslashreplace")
        if self._redact:
            more = raw.decode("utf-8", errors="backslashreplace")
            text, reason = self._redact_text(more)[:_RAW_LIMIT], self._redact_text(reason)
        self.rows.append(
            QuarantineRow(
                file=uri, offset=offset, line=line, index=index, reason=reason[:500], raw=text, raw_bytes=n_bytes
            )
        )

    def reject_item(self, uri: str, value: Value, line: int, item: ReadItem) -> None:
        """Note one record of a container: `item`, which could not be read, of the value that begins in `line`."""
        container = bytes(value.raw)
        inner = max(container.find(item.raw), 0)
        inner_line = line + container.count(b"\n", 0, inner)
        offset = value.offset + inner
        self.reject(uri, offset, inner_line, item.position, str(item.result), item.raw, len(item.raw))

    def _redact_text(self, text: str) -> str:
        text, found = redact_text(text)
        self.redacted.update(found)
        return text

    def write(self, run: str, folder: str, index: int) -> None:
        """Write the rows of unit `index`; nothing if there are none."""
        if self.rows:
            storage.write_bytes(storage.join(run, folder, part_name(index, "jsonl")), _dump(self.rows))

    def describe(self) -> dict[str, object]:
        """Return what the unit's manifest holds of it."""
        return {"rejected": len(self.rows), "rejected_lines": [row.line for row in self.rows]}


def number_lines(run: str, stage: str, folder: str, units: Sequence[Unit]) -> None:
    """Turn the line numbers of rejected records from counts within a byte range into counts within the file.

    A unit cannot know how many lines stand before its range, and to count them there would make reading quadratic. The
    numbers are made from the manifests, so that doing it again changes nothing.

    Args:
        run: run folder.
        stage: whose manifests hold `n_lines` for each range, `rejected` and `rejected_lines`.
        folder: where the rejected records are.
        units: the stage's units, each with its `ranges`.
    """
    manifests = read_manifests(run, stage)
    lines_before: Counter[str] = Counter()
    for index, unit in enumerate(units):
        manifest = manifests[index]
        if any(lines_before[part["uri"]] for part in unit["ranges"]) and manifest["rejected"]:
            uri = storage.join(run, folder, part_name(index, "jsonl"))
            rows = [QuarantineRow(**json.loads(text)) for text in storage.read_bytes(uri).splitlines()]
            for row, line in zip(rows, manifest["rejected_lines"], strict=True):
                row.line = line + lines_before[row.file]
            storage.write_bytes(uri, _dump(rows))
        for part, n_lines in zip(unit["ranges"], manifest["n_lines"], strict=True):
            lines_before[part["uri"]] += n_lines


def _dump(rows: Sequence[QuarantineRow]) -> bytes:
    return "".join(row.model_dump_json() + "\n" for row in rows).encode()


def read_rejected(run: str, folder: str) -> list[QuarantineRow]:
    """Return all rejected records of a folder of a run, in the order of their units."""
    rows = []
    for file in storage.list_files(storage.join(run, folder)):
        lines = storage.read_bytes(file.uri).splitlines()
        rows += [QuarantineRow(**json.loads(line)) for line in lines]
    return rows
