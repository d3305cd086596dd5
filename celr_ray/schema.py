"""READ FIRST: the rows that flow between the stages, as pydantic models and as Arrow schemas.

The pydantic models are for single rows (front doors, tests, documentation of each field); the Arrow
schemas are what the Parquet files of a run hold. Both are written out here, field by field, and
`tests/test_schema.py` checks that they agree. Times are seconds, money is US$, scores are in [0, 1].
This module must not import Ray, vLLM or anything else of this package but `errors`.

Words used everywhere:
    task        what an agent was asked to do. `task_id` is `SOURCE/DOMAIN/ID`, so that equal ids of
                two benchmarks or two domains never meet. The same task run by two models is one task.
    trajectory  one run of one agent on one task: its messages, its outcome, its cost.
    agent view  `messages` holds what the agent itself saw and said; what a simulated user did out
                of its sight (its own tool calls) is left out.
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BANK_ATTEMPT_SCHEMA",
    "BANK_TASK_SCHEMA",
    "JUDGMENT_SCHEMA",
    "KTO_SCHEMA",
    "MESSAGES",
    "MESSAGE_FIELDS",
    "PAIR_SCHEMA",
    "SCORE_COLUMNS",
    "TASK_SCHEMA",
    "TRAJECTORY_SCHEMA",
    "TRANSITION_SCHEMA",
    "Judgment",
    "KtoRow",
    "Message",
    "PreferencePair",
    "QuarantineRow",
    "TaskSummary",
    "Trajectory",
    "TrajectoryScore",
    "Transition",
    "transition_schema",
]

Role = Literal["system", "user", "assistant", "tool"]
Status = Literal["SUCCESS", "FAILED", "STUCK", "UNKNOWN"]
PairType = Literal["dpo", "spin", "self_reward"]
Level = Literal["step", "trajectory"]
JudgmentStatus = Literal["ok", "garbled", "too_long", "empty", "engine_error"]


class _Row(BaseModel):
    """Base of all row models: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")


class Message(_Row):
    """One chat message in the OpenAI shape, with tool calls kept as JSON text.

    Tool arguments differ in keys from call to call; as an Arrow struct they would become one struct
    full of nulls, so they stay text.
    """

    role: Role
    content: str | None = Field(None, description="text; null where an assistant only calls tools")
    name: str | None = Field(None, description="tool name, in messages of role tool")
    tool_call_id: str | None = Field(None, description="the call that a tool message answers: call_1, call_2, …")
    tool_calls: str | None = Field(
        None, description='JSON list [{"id", "type": "function", "function": {"name", "arguments": JSON text}}]'
    )


class TrajectoryScore(_Row):
    """Rule scores of one trajectory; a part that cannot be computed is null, never 0."""

    trajectory_id: str
    success_score: float | None = Field(
        None, description="1 success, 0 failure, graded reward where the source has one"
    )
    efficiency_score: float | None = Field(None, description="1 / (1 + retries)")
    cost_score: float | None = Field(None, description="clip(1 − cost / budget, 0, 1)")
    completion_score: float | None = Field(None, description="completed plan steps / all plan steps")
    composite_score: float | None = Field(None, description="weighted mean of the parts that exist")
    missing_scores: list[str] = Field(default_factory=list, description="parts that the composite does without")
    trajectory: dict[str, Any] | None = Field(
        None, exclude=True, repr=False, description="the row that was scored, for `create_dpo_pairs`; not stored"
    )


class Trajectory(_Row):
    """One logged run, normalised from any source format, with its rule scores."""

    trajectory_id: str = Field(description="hash of the raw record, its task and its model: equal for exact duplicates")
    task_id: str = Field(min_length=1, description="SOURCE/DOMAIN/ID")
    source_uri: str
    source_format: str
    source_offset: int = Field(description="byte offset of the record in the uncompressed file")
    source_index: int = Field(description="position inside a container record (a JSON list of runs); else 0")
    domain: str | None = None
    model: str | None = None
    prompt: str | None = Field(None, description="the task's text")
    messages: list[Message]
    status: Status
    success: bool | None = Field(None, description="the outcome that pairing and KTO use; null = unknown")
    reward: float | None = Field(None, description="the source's own figure, unchanged")
    cost_usd: float | None = None
    budget_limit_usd: float | None = None
    duration_s: float | None = None
    n_steps: int | None = Field(None, description="plan steps, or assistant messages where there is no plan")
    n_steps_completed: int | None = Field(None, description="completed plan steps; null without a plan")
    n_retries: int | None = None
    n_hidden_messages: int = Field(0, description="messages left out because the agent never saw them")
    bucket: int = Field(description="crc32(task_id) mod the run's bucket count")
    success_score: float | None = None
    efficiency_score: float | None = None
    cost_score: float | None = None
    completion_score: float | None = None
    composite_score: float | None = None
    missing_scores: list[str] = Field(default_factory=list)


class Judgment(_Row):
    """One judge's verdict on one trajectory. Not scored = null scores and a status that says why."""

    trajectory_id: str
    task_id: str
    judge_id: str = Field(description="hash of model, rubric, sampling and length limits")
    judge_model: str
    status: JudgmentStatus
    detail: str | None = Field(None, description="what went wrong, where the status is not ok")
    accuracy: float | None = Field(None, description="expected score, 1–5")
    completeness: float | None = Field(None, description="expected score, 1–5")
    efficiency: float | None = Field(None, description="expected score, 1–5")
    judge_score: float | None = Field(None, description="mean of (E − 1) / 4 over the three criteria, 0–1")
    verdict: str | None = Field(None, description="the generated text, such as 4,3,5")
    prompt_tokens: int | None = None
    cut_tokens: int = Field(0, description="tokens cut from the middle of the trajectory to fit the context")
    self_judged: bool = Field(False, description="the judge is the model that made the trajectory")


class PreferencePair(_Row):
    """Two runs of one task, the better one chosen. Texts hold no score, cost, status or id.

    level `step`: the runs share every message up to one of the agent's and part there; `prompt` holds
    the shared messages, `chosen` and `rejected` what follows in each run.
    level `trajectory`: a simulated user or a tool had already made them differ; `prompt` holds the system
    text and the task, `chosen` and `rejected` the whole conversations.
    """

    pair_id: str
    task_id: str
    pair_type: PairType
    level: Level
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_id: str
    rejected_id: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    chosen_model: str | None = None
    rejected_model: str | None = None


class KtoRow(_Row):
    """One run of a task that gave no preference pair because all its outcomes are alike."""

    trajectory_id: str
    task_id: str
    prompt: list[Message]
    completion: list[Message]
    label: bool = Field(description="true = the run succeeded")


class TaskSummary(_Row):
    """What pairing found in one task, and why a pair type has no pair there."""

    task_id: str
    n_runs: int = Field(description="distinct runs")
    n_duplicates: int = Field(description="exact copies left out")
    n_success: int
    n_failure: int
    n_unknown: int = Field(description="runs without an outcome")
    n_judged: int
    n_dpo: int
    n_self_reward: int
    n_spin: int
    n_step: int = Field(description="pairs of level step, all types")
    n_trajectory: int = Field(description="pairs of level trajectory, all types")
    n_kto: int
    dpo_reason: str | None = Field(None, description="why there is no dpo pair; null if there is one")
    self_reward_reason: str | None = None
    spin_reason: str | None = None


class Transition(_Row):
    """One decision of one episode as offline training reads it (RLlib's column names).

    An observation is the state vector followed by the mask as 0 and 1. Rows of an episode stand together, ordered by t.
    """

    eps_id: str = Field(description="identifies the episode by its content, as trajectory_id does")
    task_id: str
    t: int = Field(description="number of the decision in its episode, from 0 without gaps")
    obs: list[float] = Field(description="[D + A] what the policy saw")
    new_obs: list[float] = Field(
        description="[D + A] what it saw next; after the last row of an episode zeros, with only ABORT in the mask"
    )
    actions: int = Field(description="column of the mask that was done")
    rewards: float = Field(description="rewards_raw scaled, for training")
    rewards_raw: float = Field(description="the reward of `cortex.reward`; the episode's end adds to its last row")
    terminateds: bool = Field(description="true in the last row of an episode that ended")
    truncateds: bool = Field(description="true in the last row of an episode whose log was cut before its end")
    action_prob: float | None = Field(None, description="probability with which it was done; null = unknown")
    behavior: list[float | None] = Field(description="[A] the behavior policy's probabilities; all null = unknown")
    return_to_go: float = Field(description="sum of rewards_raw from here on; of a cut log, up to the cut")
    policy_hash: str | None = Field(None, description="identifies the behavior policy")
    source: str = Field(description="format of the log that it comes from")


class QuarantineRow(_Row):
    """One rejected input record."""

    file: str
    offset: int = Field(description="byte offset in the uncompressed file")
    line: int = Field(description="1-based line number")
    index: int | None = Field(None, description="position inside a container record, if it is one")
    reason: str
    raw: str = Field(description="the record's bytes as text, undecodable bytes escaped, at most 64 KiB")
    raw_bytes: int = Field(description="full length of the record in bytes")


MESSAGE_FIELDS: list[pa.Field] = [
    pa.field("role", pa.string(), nullable=False),
    pa.field("content", pa.string()),
    pa.field("name", pa.string()),
    pa.field("tool_call_id", pa.string()),
    pa.field("tool_calls", pa.string()),
]
MESSAGES = pa.list_(pa.field("item", pa.struct(MESSAGE_FIELDS), nullable=False))
"""Arrow type of a conversation."""

SCORE_COLUMNS = ("success_score", "efficiency_score", "cost_score", "completion_score", "composite_score")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_SCORE_FIELDS = [
    *(pa.field(name, pa.float64()) for name in SCORE_COLUMNS),
    _required("missing_scores", pa.list_(pa.string())),
]

TRAJECTORY_SCHEMA = pa.schema(
    [
        _required("trajectory_id", pa.string()),
        _required("task_id", pa.string()),
        _required("source_uri", pa.string()),
        _required("source_format", pa.string()),
        _required("source_offset", pa.int64()),
        _required("source_index", pa.int64()),
        pa.field("domain", pa.string()),
        pa.field("model", pa.string()),
        pa.field("prompt", pa.string()),
        _required("messages", MESSAGES),
        _required("status", pa.string()),
        pa.field("success", pa.bool_()),
        pa.field("reward", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("budget_limit_usd", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("n_steps", pa.int64()),
        pa.field("n_steps_completed", pa.int64()),
        pa.field("n_retries", pa.int64()),
        _required("n_hidden_messages", pa.int64()),
        _required("bucket", pa.int64()),
        *_SCORE_FIELDS,
    ]
)

JUDGMENT_SCHEMA = pa.schema(
    [
        _required("trajectory_id", pa.string()),
        _required("task_id", pa.string()),
        _required("judge_id", pa.string()),
        _required("judge_model", pa.string()),
        _required("status", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("accuracy", pa.float64()),
        pa.field("completeness", pa.float64()),
        pa.field("efficiency", pa.float64()),
        pa.field("judge_score", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        _required("cut_tokens", pa.int64()),
        _required("self_judged", pa.bool_()),
    ]
)

PAIR_SCHEMA = pa.schema(
    [
        _required("pair_id", pa.string()),
        _required("task_id", pa.string()),
        _required("pair_type", pa.string()),
        _required("level", pa.string()),
        _required("prompt", MESSAGES),
        _required("chosen", MESSAGES),
        _required("rejected", MESSAGES),
        _required("chosen_id", pa.string()),
        _required("rejected_id", pa.string()),
        pa.field("chosen_score", pa.float64()),
        pa.field("rejected_score", pa.float64()),
        pa.field("chosen_model", pa.string()),
        pa.field("rejected_model", pa.string()),
    ]
)

KTO_SCHEMA = pa.schema(
    [
        _required("trajectory_id", pa.string()),
        _required("task_id", pa.string()),
        _required("prompt", MESSAGES),
        _required("completion", MESSAGES),
        _required("label", pa.bool_()),
    ]
)

_TASK_COUNTS = (
    "n_runs",
    "n_duplicates",
    "n_success",
    "n_failure",
    "n_unknown",
    "n_judged",
    "n_dpo",
    "n_self_reward",
    "n_spin",
    "n_step",
    "n_trajectory",
    "n_kto",
)
TASK_SCHEMA = pa.schema(
    [
        _required("task_id", pa.string()),
        *(_required(name, pa.int64()) for name in _TASK_COUNTS),
        pa.field("dpo_reason", pa.string()),
        pa.field("self_reward_reason", pa.string()),
        pa.field("spin_reason", pa.string()),
    ]
)

EPISODE_SCHEMA = pa.schema(
    [
        _required("task_id", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("level", pa.string()),
        _required("policy", pa.string()),
        _required("policy_hash", pa.string()),
        pa.field("success", pa.bool_()),
        pa.field("correctness", pa.float64()),
        _required("unsafe", pa.bool_()),
        _required("end_reason", pa.string()),
        _required("budget_usd", pa.float64()),
        _required("cost_usd", pa.float64()),
        _required("seconds", pa.float64()),
        _required("difficulty", pa.float64()),
        pa.field("total_reward", pa.float64()),
        _required("final_tier", pa.int64()),
        _required("n_attempts", pa.int64()),
        _required("n_failed_calls", pa.int64()),
        _required("n_outages", pa.int64()),
        _required("n_fallbacks", pa.int64()),
        _required("actions", pa.list_(pa.string())),
        _required("prompt_tokens", pa.int64()),
        _required("output_tokens", pa.int64()),
    ]
)
"""One row for each task that was executed. A success of null = the task has no checker. n_fallbacks: decisions that the
policy left to a simpler one. n_outages: failed calls for which nothing that was sent is to blame."""

BANK_TASK_SCHEMA = pa.schema(
    [
        _required("task_id", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("level", pa.string()),
        _required("split", pa.string()),
        _required("difficulty", pa.float64()),
        _required("is_difficulty_known", pa.bool_()),
        _required("risk", pa.float64()),
        _required("is_coding", pa.bool_()),
        _required("has_verifier", pa.bool_()),
        _required("needs_code", pa.bool_()),
        _required("budget_usd", pa.float64()),
        _required("time_limit_s", pa.float64()),
        pa.field("probe_agreement", pa.float64()),
        pa.field("probe_confidence", pa.float64()),
        _required("probe_usd", pa.float64()),
        _required("probe_s", pa.float64()),
    ]
)
"""One row for each task of an outcome bank: what is known before the first call. split: train, validation or gate."""

BANK_ATTEMPT_SCHEMA = pa.schema(
    [
        _required("task_id", pa.string()),
        _required("tier", pa.string()),
        _required("kind", pa.string()),
        _required("depth", pa.int64()),
        pa.field("prior_success", pa.bool_()),
        _required("prior_refuted", pa.bool_()),
        _required("attempt", pa.int64()),
        pa.field("seed", pa.int64()),
        _required("success", pa.bool_()),
        _required("correctness", pa.float64()),
        _required("has_answer", pa.bool_()),
        _required("has_code", pa.bool_()),
        _required("answer_key", pa.uint64()),
        pa.field("confidence", pa.float64()),
        _required("context_used", pa.float64()),
        _required("cost_usd", pa.float64()),
        pa.field("quote_usd", pa.float64()),
        _required("seconds", pa.float64()),
        _required("prompt_tokens", pa.int64()),
        _required("output_tokens", pa.int64()),
        _required("unsafe", pa.bool_()),
        pa.field("verifier_passed", pa.bool_()),
        pa.field("verifier_cost_usd", pa.float64()),
        pa.field("verifier_seconds", pa.float64()),
        _required("source", pa.string()),
    ]
)
"""One row for each recorded attempt of a bank, all of it measured on the same call.

kind: fresh (the task alone was sent), reflective (the talk so far and a request to improve) or compressed (the task and
the last failure). depth: answers in the talk that was sent. prior_*: the answer that a reflective or compressed attempt
was made from, right or not and refuted by the verifier or not. attempt: number on its tier in its episode, from 0.
quote_usd: worst-case price before the call. verifier_cost_usd: null = never verified; then verifier_passed is null
too, which else means that the verifier gave no verdict.
"""

N_TRANSITION_FEATURES, N_TRANSITION_ACTIONS = 33, 6
"""D and A of the Cortex: as `cortex.state.N_FEATURES` and `cortex.actions.N_ACTIONS`."""


def transition_schema(n_features: int, n_actions: int) -> pa.Schema:
    """Return the columns of transitions for states of D features and A actions."""
    observation = pa.list_(pa.field("item", pa.float32(), nullable=False), n_features + n_actions)
    probabilities = pa.list_(pa.float64(), n_actions)  # nulls inside: Arrow cannot read back a fixed-size list of null
    return pa.schema(
        [
            _required("eps_id", pa.string()),
            _required("task_id", pa.string()),
            _required("t", pa.int64()),
            _required("obs", observation),
            _required("new_obs", observation),
            _required("actions", pa.int64()),
            _required("rewards", pa.float32()),
            _required("rewards_raw", pa.float64()),
            _required("terminateds", pa.bool_()),
            _required("truncateds", pa.bool_()),
            pa.field("action_prob", pa.float64()),
            _required("behavior", probabilities),
            _required("return_to_go", pa.float64()),
            pa.field("policy_hash", pa.string()),
            _required("source", pa.string()),
        ]
    )


TRANSITION_SCHEMA = transition_schema(N_TRANSITION_FEATURES, N_TRANSITION_ACTIONS)
"""One row for each decision; rows of an episode stand together, ordered by t."""
