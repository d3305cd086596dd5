"""Preference pairs from rows in memory: the specification's front door (phase 7, data_generator.py).

It runs what the pair stage runs (pairing.py, spin.py), on the tasks of a list of rows instead of a bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray.config import PairConfig
from celr_ray.errors import ConfigError
from celr_ray.schema import TRAJECTORY_SCHEMA, Message, PreferencePair, TrajectoryScore
from celr_ray.training.conversations import TEXT_SCHEMA, make_message
from celr_ray.training.pairing import (
    LIGHT_COLUMNS,
    ROW,
    Texts,
    gather_pairs,
    make_candidates,
    make_pair_table,
    pair_runs,
)
from celr_ray.training.preference import ScoredType
from celr_ray.training.spans import Ints
from celr_ray.training.spin import find_content, index_sft, pair_answers

Row = Mapping[str, Any]


class PreferencePairGenerator:
    """Builds preference pairs from lists of rows: the specification's front door.

    Departs from CELR, which paired the best run of one task with the worst of another: here both runs of a pair
    have the same `task_id`, always.
    """

    def __init__(self, config: PairConfig | None = None) -> None:
        self.config = config or PairConfig()

    def create_dpo_pairs(
        self, scored: Sequence[Row | TrajectoryScore], judge_scores: Mapping[str, float | None] | None = None
    ) -> list[PreferencePair]:
        """Pair high-scoring with low-scoring runs of the same task.

        Args:
            scored: what `TrajectoryScorer.rank` returns, or trajectory rows with their scores (`schema.Trajectory` as
                dicts).
            judge_scores: judge score by trajectory_id, to break ties; None = no judge.
        """
        rows = [_as_row(item) for item in scored]
        return self._create(rows, judge_scores or {}, "dpo")

    def create_self_reward_pairs(
        self, rows: Sequence[Row], judge_scores: Mapping[str, float | None]
    ) -> list[PreferencePair]:
        """Pair runs of the same task by the judge's score; an outcome that says the opposite forbids the pair."""
        return self._create(rows, judge_scores, "self_reward")

    def create_spin_pairs(
        self, sft_data: Sequence[Mapping[str, Any]], model_responses: Sequence[Mapping[str, Any]]
    ) -> list[PreferencePair]:
        """Pair SFT responses (chosen) with model responses (rejected) to the same prompt.

        Args:
            sft_data: rows {"prompt", "response"} or {"messages"}.
            model_responses: rows of the same form, or trajectory rows.
        """
        rows = [row for response in model_responses if (row := _as_spin_row(response)) is not None]
        texts, every = _open_texts(rows), np.arange(len(rows))
        texts.fetch(every)
        light = _make_light(rows, ("trajectory_id", "task_id", "model"))
        spin = pair_answers(every, every, light, texts, index_sft(sft_data), self.config.max_pairs_per_task)
        return _as_pairs(spin.table)

    def export_trl_format(self, pairs: Sequence[PreferencePair], output: str) -> int:
        """Write pairs for TRL's DPOTrainer; returns the number of rows written."""
        from celr_ray.training.export import write_trl

        return write_trl(list(pairs), output)

    def export_sharegpt_format(self, pairs: Sequence[PreferencePair], output: str) -> int:
        """Write pairs for Axolotl (ShareGPT columns); returns the number of rows written."""
        from celr_ray.training.export import write_sharegpt_dpo

        return write_sharegpt_dpo(list(pairs), output)

    def _create(
        self, rows: Sequence[Row], judge_scores: Mapping[str, float | None], pair_type: ScoredType
    ) -> list[PreferencePair]:
        distinct = {(row["task_id"], row["trajectory_id"]): row for row in rows}
        ordered = [distinct[key] for key in sorted(distinct)]
        judged = [judge_scores.get(row["trajectory_id"]) for row in ordered]
        light, texts = _make_light(ordered, LIGHT_COLUMNS), _open_texts(ordered)
        runs = make_candidates(light, np.array(judged, dtype=np.float64))
        paired = pair_runs(runs, [pair_type], self.config, texts)
        return _as_pairs(make_pair_table(gather_pairs(paired), light, texts.conversations))


def _make_light(rows: Sequence[Row], columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([TRAJECTORY_SCHEMA.field(name) for name in columns])
    return pa.table([[row[name] for row in rows] for name in columns], schema=schema)


def _open_texts(rows: Sequence[Row]) -> Texts:
    """Return the texts of rows in memory; messages are checked, so that none is lost that Arrow has no field for."""

    def read(places: Ints) -> pa.Table:
        wanted = [rows[place] for place in places]
        prompts = [row["prompt"] for row in wanted]
        messages = [[Message.model_validate(m).model_dump() for m in row["messages"]] for row in wanted]
        return pa.table([prompts, messages], schema=TEXT_SCHEMA).append_column(ROW, pa.array(places))

    return Texts(len(rows), read)


def _as_pairs(table: pa.Table) -> list[PreferencePair]:
    return [PreferencePair(**row) for row in table.to_pylist()]


def _as_row(item: Row | TrajectoryScore) -> Row:
    if not isinstance(item, TrajectoryScore):
        return item
    if item.trajectory is None:
        raise ConfigError("this TrajectoryScore does not hold its trajectory; use one that TrajectoryScorer made")
    return item.trajectory


def _as_spin_row(response: Mapping[str, Any]) -> dict[str, Any] | None:
    if "trajectory_id" in response:
        return dict(response)
    indexed = index_sft([response])
    if not indexed:
        return None
    answer = next(iter(indexed.values()))[0]
    prompt = response.get("prompt") or find_content(response["messages"], "user") or ""
    digest = hashlib.blake2b(f"{prompt}\0{answer}".encode(), digest_size=8).hexdigest()
    messages = [make_message("user", prompt), make_message("assistant", answer)]
    return {
        "trajectory_id": digest,
        "task_id": str(
            response.get("task_id") or f"prompt-{hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()}"
        ),
        "messages": messages,
        "prompt": prompt,
        "model": response.get("model"),
    }
