"""Preference pairs of one task after another: pure, and the specification's front door to it.

`build_task_pairs` is what the pair stage runs for each task; `PreferencePairGenerator` (phase 7,
data_generator.py) offers the same on lists of rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celr_ray.config import PairConfig
from celr_ray.errors import ConfigError
from celr_ray.schema import KtoRow, PairType, PreferencePair, TrajectoryScore
from celr_ray.training.conversations import NoSplit, SplitPair, make_message, split_pair, split_run
from celr_ray.training.preference import Candidate, Choice, ScoredType, is_one_sided, iter_choices

Row = Mapping[str, Any]

SPARE_CHOICES = 8
"""Choices taken beyond the cap, because some fall away when their texts are equal or have no common prompt."""


def make_candidate(row: Row, judge_score: float | None) -> Candidate:
    """Return the light view of a trajectory row."""
    return Candidate(
        row["trajectory_id"],
        row["success"],
        row["success_score"],
        row["composite_score"],
        judge_score,
        row["model"],
    )


def take_choices(candidates: Sequence[Candidate], pair_type: ScoredType, config: PairConfig) -> list[Choice]:
    """Return the pairs to try for one task, best first: the cap and some spare ones."""
    cap = 1 if config.strategy == "best_worst" else config.max_pairs_per_task
    choices = []
    for choice in iter_choices(candidates, pair_type, config):
        choices.append(choice)
        if len(choices) >= cap + SPARE_CHOICES:
            break
    return choices


def make_pairs(
    task_id: str, pair_type: PairType, choices: Iterable[Choice], texts: Mapping[str, Row], config: PairConfig
) -> list[PreferencePair]:
    """Turn choices into pairs with their texts, up to the cap; a choice without usable texts is passed over.

    Args:
        task_id: the task.
        pair_type: `dpo` or `self_reward`.
        choices: best first.
        texts: rows with `messages` and `prompt`, by trajectory_id.
        config: strategy and cap.
    """
    cap = 1 if config.strategy == "best_worst" else config.max_pairs_per_task
    pairs: list[PreferencePair] = []
    for choice in choices:
        if len(pairs) == cap:
            break
        chosen, rejected = texts[choice.chosen.trajectory_id], texts[choice.rejected.trajectory_id]
        split = split_rows(chosen, rejected)
        if isinstance(split, str):
            continue
        ids = (choice.chosen.trajectory_id, choice.rejected.trajectory_id)
        pairs.append(
            PreferencePair(
                pair_id=_make_pair_id(task_id, pair_type, *ids),
                task_id=task_id,
                pair_type=pair_type,
                level=split.level,
                prompt=split.prompt,
                chosen=split.chosen,
                rejected=split.rejected,
                chosen_id=ids[0],
                rejected_id=ids[1],
                chosen_score=choice.chosen_score,
                rejected_score=choice.rejected_score,
                chosen_model=choice.chosen.model,
                rejected_model=choice.rejected.model,
            )
        )
    return pairs


def split_rows(chosen: Row, rejected: Row) -> SplitPair | NoSplit:
    """Cut two trajectory rows into the texts of a pair, or say why they make none.

    Two different task texts under one task_id are two tasks (CELR's own ids are not unique across projects).
    """
    prompts = {normalise_prompt(row["prompt"]) for row in (chosen, rejected) if row["prompt"]}
    if len(prompts) > 1:
        return "different_task_texts"
    return split_pair(chosen["messages"], rejected["messages"], chosen["prompt"] or rejected["prompt"])


def _make_pair_id(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def normalise_prompt(text: str) -> str:
    """Return the form of a prompt by which SFT data and model responses are joined: white space folded."""
    return " ".join(text.split())


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
            prompt = _first_content(row["messages"], "user")
            response = _first_content(row["messages"], "assistant")
        if isinstance(prompt, str) and isinstance(response, str) and prompt.strip() and response.strip():
            found[normalise_prompt(prompt)].append(response)
    return dict(found)


def _first_content(messages: Sequence[Mapping[str, Any]], role: str) -> str | None:
    return next((m.get("content") for m in messages if m.get("role") == role and m.get("content")), None)


def make_spin_pairs(
    task_id: str, rows: Sequence[Row], sft: Mapping[str, Sequence[str]], config: PairConfig
) -> list[PreferencePair]:
    """Pair SFT responses (chosen) with what a model answered to the same prompt (rejected).

    SPIN (arXiv 2401.01335) plays the model against real data, whatever its own answer scored; so the outcome is
    not asked. Only the agent's first answer is taken, as SPIN's rows have one.

    Args:
        task_id: the task of the rows.
        rows: trajectory rows with `messages`, `prompt`, `trajectory_id`, `model`, by trajectory_id.
        sft: SFT responses by normalised prompt.
        config: the cap.
    """
    pairs: list[PreferencePair] = []
    for row in rows:
        split = split_run(row["messages"], row["prompt"])
        if split is None:
            continue
        user = next((m["content"] for m in reversed(split.prompt) if m["role"] == "user" and m["content"]), None)
        answer = split.completion[0]
        if user is None or not answer["content"]:
            continue
        for response in sft.get(normalise_prompt(user), ()):
            if len(pairs) == config.max_pairs_per_task:
                return pairs
            if response.strip() == answer["content"].strip():
                continue
            sft_id = "sft-" + hashlib.blake2b(response.encode(), digest_size=8).hexdigest()
            pairs.append(
                PreferencePair(
                    pair_id=_make_pair_id(task_id, "spin", sft_id, row["trajectory_id"]),
                    task_id=task_id,
                    pair_type="spin",
                    level="step",
                    prompt=split.prompt,
                    chosen=[make_message("assistant", response)],
                    rejected=[answer],
                    chosen_id=sft_id,
                    rejected_id=row["trajectory_id"],
                    rejected_model=row["model"],
                )
            )
    return pairs


def make_kto_rows(task_id: str, candidates: Sequence[Candidate], texts: Mapping[str, Row], limit: int) -> list[KtoRow]:
    """Return the runs of a task with one-sided outcomes as single labelled rows, at most `limit`."""
    rows: list[KtoRow] = []
    if not is_one_sided(candidates):
        return rows
    for candidate in candidates:
        if len(rows) == limit or candidate.trajectory_id not in texts:
            continue
        text = texts[candidate.trajectory_id]
        split = split_run(text["messages"], text["prompt"])
        if split is None or candidate.success is None:
            continue
        rows.append(
            KtoRow(
                trajectory_id=candidate.trajectory_id,
                task_id=task_id,
                prompt=split.prompt,
                completion=split.completion,
                label=candidate.success,
            )
        )
    return rows


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
        sft = index_sft(sft_data)
        pairs: list[PreferencePair] = []
        for response in model_responses:
            row = _as_spin_row(response)
            if row is not None:
                pairs += make_spin_pairs(row["task_id"], [row], sft, self.config)
        return pairs

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
        tasks: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            tasks[row["task_id"]][row["trajectory_id"]] = row
        pairs: list[PreferencePair] = []
        for task_id in sorted(tasks):
            texts = dict(sorted(tasks[task_id].items()))
            candidates = [make_candidate(row, judge_scores.get(row["trajectory_id"])) for row in texts.values()]
            choices = take_choices(candidates, pair_type, self.config)
            pairs += make_pairs(task_id, pair_type, choices, texts, self.config)
        return pairs


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
    prompt = response.get("prompt") or _first_content(response["messages"], "user") or ""
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
