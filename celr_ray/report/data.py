"""What the report shows, as plain data: the only thing that passes from collecting to rendering.

Texts in here come from logs and are untrusted; rendering escapes them. Numbers that do not exist are None,
never 0. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from celr_ray.report.statistics import Estimate


@dataclass(frozen=True)
class Capped:
    """The first rows of a table that may be longer than a report should be.

    Attributes:
        rows: what is shown.
        n_total: how many there are.
    """

    rows: Sequence[object]
    n_total: int


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in equal bins over [0, 1].

    Attributes:
        name: what is counted.
        edges: bin limits, one more than counts.
        counts: values in each bin; the last bin includes 1.
        n: values counted.
        n_null: rows without a value.
        mean: mean of the values; None if there are none.
    """

    name: str
    edges: Sequence[float]
    counts: Sequence[int]
    n: int
    n_null: int
    mean: float | None


@dataclass(frozen=True)
class SourceRow:
    """The distinct runs of one source format, model and domain."""

    source_format: str
    model: str | None
    domain: str | None
    n_runs: int
    n_success: int
    success_rate: Estimate | None
    mean_cost_usd: float | None
    n_cost: int
    n_no_budget: int
    n_no_cost: int
    n_no_retries: int
    n_no_outcome: int


@dataclass(frozen=True)
class StageState:
    """How far a stage came.

    Attributes:
        name: ingest, judge, pair or export.
        n_units: units planned; None if the stage never started.
        n_done: units whose manifest exists.
        counts: whole numbers of its manifests, added up.
    """

    name: str
    n_units: int | None
    n_done: int
    counts: Mapping[str, int]

    @property
    def is_started(self) -> bool:
        """Tell whether the stage has a plan or results."""
        return self.n_units is not None or self.n_done > 0

    @property
    def is_finished(self) -> bool:
        """Tell whether every planned unit is done."""
        return self.n_units is not None and self.n_done >= self.n_units


@dataclass(frozen=True)
class FlowStep:
    """One box of the flow picture: a count, what it counts, and what left the flow there."""

    label: str
    count: int | None
    detail: str
    dropped: int | None = None
    dropped_label: str = ""


@dataclass(frozen=True)
class FlowCheck:
    """A sum that must hold, such as records in = trajectories + rejected."""

    text: str
    holds: bool


@dataclass(frozen=True)
class JudgeData:
    """What the judge did, and how far it agrees with known outcomes."""

    n_rows: int
    models: Sequence[str]
    statuses: Sequence[tuple[str, int]]
    histogram: Histogram
    by_outcome: Sequence[tuple[str, Sequence[int]]]
    n_cut: int
    cut_tokens: int
    max_cut_tokens: int
    prompt_tokens: int | None
    n_self_judged: int
    n_success: int
    n_failure: int
    n_tasks: int
    auc: Estimate | None
    kappa: Estimate | None
    threshold: float
    meaning: str


@dataclass(frozen=True)
class Segment:
    """A piece of a text; `is_changed` where the two sides of a pair differ."""

    text: str
    is_changed: bool = False


@dataclass(frozen=True)
class ToolCall:
    """One tool call of an assistant message."""

    name: str
    arguments: str


@dataclass(frozen=True)
class MessageView:
    """One message as shown, with long texts cut.

    Attributes:
        role: system, user, assistant or tool.
        name: tool name, in tool messages.
        segments: the text shown, in order.
        tool_calls: calls of an assistant message.
        n_before: characters left out before the text shown.
        n_after: characters left out after it.
    """

    role: str
    name: str | None
    segments: Sequence[Segment]
    tool_calls: Sequence[ToolCall]
    n_before: int = 0
    n_after: int = 0


@dataclass(frozen=True)
class Conversation:
    """Messages as shown; `n_total` says how many there are."""

    messages: Sequence[MessageView]
    n_total: int


@dataclass(frozen=True)
class SideView:
    """The chosen or the rejected side of a pair.

    Attributes:
        trajectory_id: the run it comes from.
        model: who wrote it.
        score: the score that pairing compared.
        success: outcome of the run, if known.
        cost_usd: cost of the run, if known.
        n_steps: steps of the run, if known.
        shared: leading messages equal on both sides.
        own: the messages from the first difference on.
    """

    trajectory_id: str
    model: str | None
    score: float | None
    success: bool | None
    cost_usd: float | None
    n_steps: int | None
    shared: Conversation
    own: Conversation


@dataclass(frozen=True)
class PairView:
    """One preference pair, ready to be shown."""

    pair_id: str
    task_id: str
    pair_type: str
    level: str
    prompt: Conversation
    chosen: SideView
    rejected: SideView


@dataclass(frozen=True)
class TaskBar:
    """Pairs of one task (or mean pairs of all remaining tasks), by pair type."""

    task_id: str
    counts: Mapping[str, float]


@dataclass(frozen=True)
class ReasonRow:
    """Why tasks have no pair: a reason, and how many tasks it keeps from each pair type."""

    reason: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class PairsData:
    """The preference pairs, and why tasks have none."""

    n_pairs: int
    n_tasks: int
    n_tasks_with_pair: int
    n_unpaired_rows: int
    levels: Sequence[str]
    by_type: Sequence[tuple[str, Mapping[str, int]]]
    top_tasks: Sequence[TaskBar]
    n_rest_tasks: int
    n_rest_pairs: int
    rest: TaskBar | None
    reasons: Sequence[ReasonRow]
    samples: Sequence[PairView]


@dataclass(frozen=True)
class RejectedRow:
    """One quarantined record as shown."""

    file: str
    line: int
    offset: int
    reason: str
    beginning: str


@dataclass(frozen=True)
class RejectionKind:
    """Records rejected for one kind of reason, and the first full reason of that kind."""

    kind: str
    n: int
    example: str


@dataclass(frozen=True)
class UnmappedRow:
    """A field of the logs that goes into no column: how many of the records that were looked at hold it."""

    source_format: str
    field: str
    n_found: int
    n_sampled: int


@dataclass(frozen=True)
class QuarantineData:
    """The rejected records; `n_counted` of `n_rejected` were read for the table of reasons."""

    n_rejected: int
    n_counted: int
    reasons: Capped
    first: Capped


@dataclass(frozen=True)
class ExportFile:
    """One exported file; `n_rows` is None where counting would mean reading a large file."""

    path: str
    size_bytes: int
    n_rows: int | None


@dataclass(frozen=True)
class DataSet:
    """Rows written for one trainer; `n_test` of `n_rows` are in its test split (None = not counted)."""

    name: str
    n_rows: int
    n_test: int | None


@dataclass(frozen=True)
class ExportData:
    """What was exported, and what the formats could not hold."""

    data_sets: Sequence[DataSet]
    files: Capped
    losses: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class RunData:
    """Everything that the report of a run shows."""

    name: str
    verdict: str
    stages: Sequence[StageState]
    flow: Sequence[FlowStep]
    checks: Sequence[FlowCheck]
    n_runs: int
    n_tasks: int
    n_duplicates: int
    sources: Capped
    total: SourceRow | None
    unmapped: Capped
    scores: Sequence[Histogram]
    judge: JudgeData | None
    pairs: PairsData | None
    quarantine: QuarantineData
    exports: ExportData | None
    settings: Sequence[tuple[str, Capped]]
    versions: Sequence[tuple[str, str]]
