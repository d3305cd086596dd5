"""The model as judge: from a verdict's token probabilities to scores, and the front door `SelfRewardScorer`.

The judge answers `A,C,E`, three digits from 1 to 5, and nothing else (`VERDICT_REGEX` constrains it). What
counts is not the digit but the expected score: with p(d) the probability of digit d at its place,

    E = Σ d·p(d) / Σ p(d),  d = 1 … 5        judge_score = mean over the three criteria of (E − 1) / 4

A judge that failed gives null scores and a status that says why, never a neutral number. The verdict is
read from the completion only. This module imports neither Ray nor vLLM; engines satisfy `JudgeLLM`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from celr_ray.schema import Judgment, JudgmentStatus, PreferencePair
from celr_ray.stage import hash_json
from celr_ray.training.judge_prompt import (
    QUESTION,
    RUBRICS,
    FittedPrompt,
    JudgeRequest,
    PromptCodec,
    TooLong,
    build_judge_messages,
    fit_prompt,
    render_transcript,
    request_from_trajectory,
)

if TYPE_CHECKING:
    from celr_ray.config import JudgeConfig

__all__ = [
    "SAMPLING",
    "VERDICT_REGEX",
    "Completion",
    "Failure",
    "JudgeLLM",
    "JudgeReply",
    "JudgeRequest",
    "SelfRewardScorer",
    "TokenChoice",
    "build_judge_messages",
    "expected_scores",
    "is_self_judged",
    "judge_id",
    "judge_requests",
    "judgment_from_reply",
    "read_replies",
    "render_transcript",
]

VERDICT_REGEX = "[1-5],[1-5],[1-5]"
SAMPLING: dict[str, Any] = {"temperature": 0.0, "logprobs": 5, "max_tokens": 8, "regex": VERDICT_REGEX}
"""How a verdict is sampled. `max_tokens`: five characters, at worst one token each, and the end token."""

_VERDICT = re.compile(r"\s*([1-5]),([1-5]),([1-5])")
_PROMPT_FORMAT = 1  # part of judge_id: raise it when the layout of the prompt changes
_CAPACITY_KWARGS = frozenset(
    {
        "block_size",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)
"""Arguments of the engine that change its speed, not its verdicts."""


@dataclass(frozen=True)
class TokenChoice:
    """One generated token and the alternatives that the engine weighed there.

    Attributes:
        text: decoded text of the chosen token.
        alternatives: (decoded text, natural log of probability) of the likeliest tokens, the chosen one included.
    """

    text: str
    alternatives: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Completion:
    """What an engine returned for one prompt.

    Attributes:
        text: the generated text.
        tokens: its tokens in order; an end token may follow.
        cached_tokens: prompt tokens that came out of the prefix cache.
    """

    text: str
    tokens: Sequence[TokenChoice]
    cached_tokens: int = 0


@dataclass(frozen=True)
class Failure:
    """Why an engine returned nothing for one prompt."""

    detail: str


@dataclass(frozen=True)
class JudgeReply:
    """A verdict on one request. Fields as in `schema.Judgment`; scores are null unless the status is ok."""

    status: JudgmentStatus
    detail: str | None = None
    accuracy: float | None = None
    completeness: float | None = None
    efficiency: float | None = None
    judge_score: float | None = None
    verdict: str | None = None
    prompt_tokens: int | None = None
    cut_tokens: int = 0
    cached_tokens: int = 0


class JudgeLLM(Protocol):
    """Anything that judges: `engine.VllmJudgeEngine`, or `testing.FakeJudge` in tests."""

    @property
    def name(self) -> str:
        """The model's name, as judgments record it."""

    def generate(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Judge all requests and return a reply for each, in their order; a bad request never fails the others."""


def expected_scores(completion: Completion) -> tuple[float, float, float] | None:
    """Compute the expected score of each criterion from the probabilities at the verdict's digits.

    Some tokenizers merge a digit with a comma or another digit. A digit that is character k of its token is
    weighed against the alternatives that agree with the token's first k characters and have a digit there.

    Returns:
        Three values in [1, 5], or None if the completion is no verdict or its probabilities are unusable.
    """
    joined = "".join(token.text for token in completion.tokens)
    match = _VERDICT.match(joined)
    if match is None or re.fullmatch(VERDICT_REGEX, completion.text.strip()) is None:
        return None
    values = [_expected_digit(completion.tokens, match.start(group)) for group in (1, 2, 3)]
    if any(value is None for value in values):
        return None
    accuracy, completeness, efficiency = (value for value in values if value is not None)
    return accuracy, completeness, efficiency


def _expected_digit(tokens: Sequence[TokenChoice], offset: int) -> float | None:
    """Return Σ d·p(d) / Σ p(d) at a character offset of the completion."""
    for token in tokens:
        if offset < len(token.text):
            break
        offset -= len(token.text)
    weights = [0.0] * 6
    for text, logprob in token.alternatives:
        if len(text) > offset and text[:offset] == token.text[:offset] and text[offset] in "12345":
            weights[int(text[offset])] += math.exp(logprob)
    total = sum(weights)
    if not 0 < total < math.inf:  # false for NaN too
        return None
    value = sum(digit * weight for digit, weight in enumerate(weights)) / total
    return min(max(value, 1.0), 5.0)


def judge_requests(
    requests: Sequence[JudgeRequest],
    codec: PromptCodec,
    limit: int,
    complete: Callable[[list[FittedPrompt]], Sequence[Completion | Failure]],
    *,
    rubric: str = "additive",
) -> list[JudgeReply]:
    """Fit all prompts, complete those that fit in one call, and read the verdicts.

    Args:
        requests: what to judge; runs of one task should be neighbours (prefix cache).
        codec: the judge's tokenizer.
        limit: most tokens of a prompt.
        complete: the engine; returns one result a prompt, in order.
        rubric: a name in RUBRICS.
    """
    fitted = [fit_prompt(request, codec, limit, rubric=rubric) for request in requests]
    return read_replies(fitted, complete([prompt for prompt in fitted if isinstance(prompt, FittedPrompt)]))


def read_replies(fitted: Sequence[FittedPrompt | TooLong], results: Sequence[Completion | Failure]) -> list[JudgeReply]:
    """Read the verdicts.

    Args:
        fitted: what each request became.
        results: the engine's results for the prompts that fit, in order.
    """
    found = iter(results)
    return [
        _read_reply(prompt, next(found))
        if isinstance(prompt, FittedPrompt)
        else JudgeReply("too_long", prompt.detail, prompt_tokens=prompt.prompt_tokens)
        for prompt in fitted
    ]


def _read_reply(prompt: FittedPrompt, result: Completion | Failure) -> JudgeReply:
    n_tokens, n_cut = len(prompt.prompt_ids), prompt.cut_tokens
    if isinstance(result, Failure):
        return JudgeReply("engine_error", result.detail, prompt_tokens=n_tokens, cut_tokens=n_cut)
    scores = expected_scores(result)
    if scores is None:
        detail = f"no verdict of the form {VERDICT_REGEX} with usable probabilities: {result.text[:200]!r}"
        return JudgeReply("garbled", detail, verdict=result.text[:200], prompt_tokens=n_tokens, cut_tokens=n_cut)
    return JudgeReply(
        "ok",
        accuracy=scores[0],
        completeness=scores[1],
        efficiency=scores[2],
        judge_score=sum((score - 1) / 4 for score in scores) / len(scores),
        verdict=result.text.strip(),
        prompt_tokens=n_tokens,
        cut_tokens=n_cut,
        cached_tokens=result.cached_tokens,
    )


def judge_id(config: JudgeConfig) -> str:
    """Hash what a verdict depends on: model, rubric, question, sampling, window, and engine arguments that matter."""
    engine_kwargs = {name: value for name, value in config.engine_kwargs.items() if name not in _CAPACITY_KWARGS}
    return hash_json(
        {
            "model": config.model_source,
            "rubric": RUBRICS[config.rubric],
            "question": QUESTION,
            "prompt_format": _PROMPT_FORMAT,
            "sampling": SAMPLING,
            "max_model_len": config.max_model_len,
            "engine_kwargs": engine_kwargs,
        }
    )


def is_self_judged(judge_model: str, model: str | None) -> bool:
    """Tell whether the judge is the model that made the run, by name: the last part of the path, case ignored."""
    return model is not None and _short_name(judge_model) == _short_name(model)


def _short_name(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].casefold()


def judgment_from_reply(row: Mapping[str, Any], reply: JudgeReply, *, judge_id: str, judge_model: str) -> Judgment:
    """Make the row that is stored for one trajectory.

    Args:
        row: `trajectory_id`, `task_id` and `model` of the trajectory.
        reply: the judge's reply.
        judge_id: hash of the judge's settings.
        judge_model: the judge's name.
    """
    return Judgment(
        trajectory_id=row["trajectory_id"],
        task_id=row["task_id"],
        judge_id=judge_id,
        judge_model=judge_model,
        self_judged=is_self_judged(judge_model, row.get("model")),
        **{name: value for name, value in vars(reply).items() if name != "cached_tokens"},
    )


class SelfRewardScorer:
    """Rates responses and trajectories with a judge model, and pairs trajectories by its ratings.

    Departs from CELR's class of this name: a failed judge gives None, where CELR returned a neutral 0.5 that no
    one can tell from a verdict; scores are expected values over the digits' probabilities, not parsed text;
    trajectories without a verdict are left out of the pairs.

    Source: CELR phase 7, `self_reward.py`.
    """

    def __init__(self, llm: JudgeLLM) -> None:
        self._llm = llm

    def score_response(self, prompt: str, response: str) -> float | None:
        """Rate one answer to one prompt.

        Returns:
            The judge score in [0, 1], or None if the judge failed.
        """
        request = JudgeRequest(prompt, render_transcript([{"role": "assistant", "content": response}]))
        return self._llm.generate([request])[0].judge_score

    def score_trajectory(self, trajectory: Mapping[str, Any]) -> float | None:
        """Rate one run.

        Args:
            trajectory: a `schema.Trajectory` as dict, or one raw log record of any format that ingest reads.

        Returns:
            The judge score in [0, 1], or None if the judge failed.

        Raises:
            RecordError: a raw record cannot be read.
        """
        from celr_ray.logs.api import normalise_record

        return self._llm.generate([request_from_trajectory(normalise_record(trajectory))])[0].judge_score

    def generate_reward_pairs(self, trajectories: Sequence[Mapping[str, Any]]) -> list[PreferencePair]:
        """Rate all runs in one batch and pair those of the same task by their ratings, as the pair stage does.

        Args:
            trajectories: as for `score_trajectory`; exact duplicates are judged once.

        Raises:
            RecordError: a raw record cannot be read.
        """
        from celr_ray.logs.api import normalise_record
        from celr_ray.training.data_generator import PreferencePairGenerator

        by_id = {row["trajectory_id"]: row for row in map(normalise_record, trajectories)}
        rows = sorted(by_id.values(), key=lambda row: (row["task_id"], row["trajectory_id"]))
        replies = self._llm.generate([request_from_trajectory(row) for row in rows])
        scores = {row["trajectory_id"]: reply.judge_score for row, reply in zip(rows, replies, strict=True)}
        return PreferencePairGenerator().create_self_reward_pairs(rows, scores)
