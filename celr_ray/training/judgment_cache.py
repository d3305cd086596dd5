"""Replies of judges already paid for, kept by content: what the judge was shown × which judge it was.

A judge unit saves its replies in chunks as it goes, and looks here before it asks the engine. So a killed job loses
at most one chunk; a run that is ingested again, or another run that shares the cache, judges only what is new; and
the key is the text itself, so a changed task text or rendering is never answered from here.

    CACHE/JUDGE_KEY/nNNNNN-bBBBBB/chunk-DIGEST.parquet     columns of CACHE_SCHEMA

A folder holds the tasks of bucket B of N (crc32 of the task id). A task's replies may lie in folders of other N,
written when the run had another number of buckets: those that can hold them are read too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import astuple
from math import gcd

import pyarrow as pa
import pyarrow.compute as pc

from celr_ray import storage
from celr_ray.config import JudgeConfig
from celr_ray.schema import JUDGMENT_SCHEMA
from celr_ray.stage import hash_json
from celr_ray.training.judge_prompt import JudgeRequest
from celr_ray.training.self_reward import JudgeReply, judge_id

KEPT_STATUSES = ("ok", "garbled", "too_long")
"""Statuses that the same judge would give again; an engine_error is worth another try."""

_REPLY_COLUMNS = (
    "status",
    "detail",
    "accuracy",
    "completeness",
    "efficiency",
    "judge_score",
    "verdict",
    "prompt_tokens",
    "cut_tokens",
)
CACHE_SCHEMA = pa.schema(
    [pa.field("request_key", pa.string(), nullable=False), *(JUDGMENT_SCHEMA.field(name) for name in _REPLY_COLUMNS)]
)


def make_request_key(request: JudgeRequest) -> str:
    """Return 32 hex digits that identify what a judge is shown."""
    digest = hashlib.blake2b(digest_size=16)
    for part in astuple(request):
        text = "" if part is None else part
        digest.update(f"{part is None:d}{len(text)}:{text}".encode("utf-8", "replace"))
    return digest.hexdigest()


def make_judge_key(config: JudgeConfig) -> str:
    """Return what identifies a judge in the cache: its judge_id, where it computes, and a local model's files.

    CPU (float32) and GPU give slightly different numbers, and a folder's weights may be replaced under the same path.
    A model that is named by its hub id is taken to stay the same.
    """
    weights: list[tuple[str, int, int]] = []
    if os.path.isdir(config.model_source):
        weights = [
            (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in sorted(os.scandir(config.model_source), key=lambda entry: entry.name)
        ]
    return hash_json([judge_id(config), "gpu" if config.num_gpus else "cpu", weights])


class JudgmentCache:
    """The cached replies of one judge for one task bucket."""

    def __init__(self, uri: str, judge_key: str, bucket: int, n_buckets: int) -> None:
        self._root = storage.join(uri, judge_key)
        self._bucket, self._n_buckets = bucket, n_buckets

    def _may_hold(self, folder: str) -> bool:
        """Tell whether a folder `nN-bB` can hold tasks of this bucket: equal remainders modulo gcd(N, ours)."""
        n_text, _, b_text = folder.removeprefix("n").partition("-b")
        if not (n_text.isdecimal() and b_text.isdecimal()):
            return False
        return (int(b_text) - self._bucket) % gcd(int(n_text), self._n_buckets) == 0

    def load(self, request_keys: Collection[str]) -> dict[str, JudgeReply]:
        """Return the cached replies to some requests, by request key."""
        wanted = pa.array(sorted(request_keys), type=pa.string())
        found: dict[str, JudgeReply] = {}
        for folder in storage.list_folders(self._root):
            if not self._may_hold(folder):
                continue
            for file in storage.list_files(storage.join(self._root, folder)):
                table = storage.read_parquet(file.uri)
                for row in table.filter(pc.is_in(table["request_key"], value_set=wanted)).to_pylist():
                    found.setdefault(row.pop("request_key"), JudgeReply(**row))
        return found

    def save(self, replies: Mapping[str, JudgeReply]) -> None:
        """Save new replies as one chunk; those with a status that may change are left out."""
        kept = {key: reply for key, reply in replies.items() if reply.status in KEPT_STATUSES}
        if not kept:
            return
        rows = [
            {"request_key": key, **{name: getattr(reply, name) for name in _REPLY_COLUMNS}}
            for key, reply in kept.items()
        ]
        digest = hashlib.blake2b("".join(sorted(kept)).encode(), digest_size=12).hexdigest()
        folder = f"n{self._n_buckets:05d}-b{self._bucket:05d}"
        uri = storage.join(self._root, folder, f"chunk-{digest}.parquet")
        storage.write_parquet(uri, pa.Table.from_pylist(rows, schema=CACHE_SCHEMA))
