"""Maps runs of other agents, whose logs hold no decisions, onto the six actions, where that can be done honestly.

A run becomes an episode of what its log shows, and nothing else:

- Its first attempt is a RECURSE on the tier of its model. Each retry that the log counts is another RECURSE. A change
  to a stronger model, by name or by an escalation count, is an ESCALATE. Trials of Reflexion are RECURSE and VERIFY in
  turn, for there the environment's verdict decides whether the loop goes on. RETRY_COMPRESSED is never assumed.
- An answer that was handed in ends with STOP, also a wrong one. A run of CELR that reports its own failure ends with
  ABORT. A run that a limit of its program broke off ends without a decision, at its last attempt.
- States and masks come from the executor's own state machine (`foreign_play`), fed with that script. Difficulty and
  confidence are not known and have their neutral values; risk and unsafe acts are judged from the texts by the
  monitor's rules.
- Cost and time are charged to the attempts in equal parts, as far as the log or the settings give both the amount and
  its limit; where they do not, they count 0, and the run is counted under `assumed`. That is at most 1 each, of a
  reward in which success outweighs failure by 2 + the failure penalty.
- Nobody's probabilities are known: `action_prob` is null, so no off-policy estimate can use these episodes.

Refused, with one of the reasons of `REFUSALS`: what has no outcome, what several models did in an unknown order, and
what cannot happen under the caps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import msgspec

from celr_ray.config import DatasetConfig
from celr_ray.core.answers import has_code
from celr_ray.core.episodes import UNVERIFIED
from celr_ray.core.monitor import Monitor
from celr_ray.cortex.actions import Action
from celr_ray.errors import RecordError
from celr_ray.logs.base import Count, ParsedRun, decode

__all__ = ["REFUSALS", "ForeignRun", "RefusedError", "map_run"]

REFUSALS = {
    "no_outcome": "the log does not say whether the run succeeded",
    "no_attempt": "the agent said nothing and the log counts no attempt",
    "several_models": "several models worked on it; name them, weak to strong, in dataset.tiers",
    "unknown_model": "its model is not among dataset.tiers",
    "unknown_order": "the log does not tell in which order retries, models or escalations came",
    "beyond_caps": "it made more attempts or decisions than dataset.limits allow",
    "repeated_trial": "a Reflexion record that repeats an earlier success",
    "superseded": "a Reflexion trial that was not the last of its environment",
    "foreign": "logs without decisions were to be left out (dataset.foreign)",
}
"""Why a sound record gives no episode."""

_CELR = ("celr_plan", "celr_step", "celr_benchmark")
_LLM_CALL = re.compile(r"LLM call: ([^,]+), tokens=")
_TRIAL = re.compile(r"trial_\d+")


class RefusedError(Exception):
    """A run that cannot be mapped; `reason` is a key of `REFUSALS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(REFUSALS[reason])
        self.reason = reason


@dataclass(frozen=True)
class ForeignRun:
    """One run as a script of actions with their outcomes.

    Attributes:
        eps_id: of the record.
        run_id: of the run that the record belongs to.
        rank: of several records of a run, that with the highest tells all of it.
        task_id: of the task.
        source: format of the log.
        actions: what was done, in order.
        passed: what each action's verification said: 1, 0, or −1 for none.
        n_tiers: length of the ladder.
        tier: where it began.
        has_answer: its last attempt gave an answer.
        has_code: that answer holds code.
        risk: of an unsafe act, from the task's text.
        success, correctness, unsafe: how it ended.
        cost_share, time_share: of budget and time limit that the run used, 0 where that is not known.
        assumed: what was not known: `cost`, `time`, `retries`.
    """

    eps_id: str
    run_id: str
    rank: int
    task_id: str
    source: str
    actions: tuple[Action, ...]
    passed: tuple[int, ...]
    n_tiers: int
    tier: int
    has_answer: bool
    has_code: bool
    risk: float
    success: bool
    correctness: float
    unsafe: bool
    cost_share: float
    time_share: float
    assumed: tuple[str, ...]


class _PlanLog(msgspec.Struct, gc=False):
    execution_log: list[str] = []


class _BenchmarkRow(msgspec.Struct, gc=False):
    escalation_count: Count = 0


class _AtifStep(msgspec.Struct, gc=False):
    model_name: str | None = None
    is_copied_context: bool | None = None


class _Atif(msgspec.Struct, gc=False):
    steps: list[_AtifStep] = []


class _Reflexion(msgspec.Struct, gc=False):
    memory: list[str] = []
    run: str = msgspec.field(default="", name="_run")


_PLAN, _BENCHMARK = msgspec.json.Decoder(_PlanLog), msgspec.json.Decoder(_BenchmarkRow)
_ATIF, _REFLEXION = msgspec.json.Decoder(_Atif), msgspec.json.Decoder(_Reflexion)


@dataclass
class _Script:
    """Actions so far, with what verifications said."""

    actions: list[Action] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)

    def add(self, action: Action, passed: int = UNVERIFIED) -> None:
        self.actions.append(action)
        self.passed.append(passed)


def map_run(
    run: ParsedRun,
    raw: bytes | memoryview,
    uri: str,
    eps_id: str,
    source: str,
    config: DatasetConfig,
    monitor: Monitor,
) -> ForeignRun:
    """Turn a run into a script.

    Args:
        run: as its reader gives it.
        raw: the record's bytes, for what `ParsedRun` has no field for.
        uri: its file; trials of Reflexion are told apart by it.
        eps_id: id of the record.
        source: format of the log.
        config: tiers, defaults and caps.
        monitor: judges the texts.

    Raises:
        RefusedError: it cannot be mapped.
    """
    if config.foreign == "refuse":
        raise RefusedError("foreign")
    if run.success is None:
        raise RefusedError("no_outcome")
    said = [message for message in run.messages if message.role == "assistant"]
    is_reflexion = source == "reflexion"
    has_answer = is_reflexion or any(message.content or message.tool_calls for message in said)
    if not has_answer and (run.success or not run.n_steps):
        raise RefusedError("no_attempt")
    models, n_escalations = _read_models(run, raw, source)
    tier, n_tiers, climbs = _place(models, n_escalations, config.tiers)
    script = _write_trials(run) if is_reflexion else _write_attempts(run, climbs, source, has_answer=has_answer)
    texts = [text for message in said for text in (message.content, message.tool_calls) if text]
    prompt = run.prompt or next((m.content for m in run.messages if m.role == "user" and m.content), "")
    is_graded = run.reward is not None and 0 <= run.reward <= 1
    shares, assumed = _find_shares(run, config)
    mapped = ForeignRun(
        eps_id=eps_id,
        run_id=eps_id,
        rank=0,
        task_id=run.task_id,
        source=source,
        actions=tuple(script.actions),
        passed=tuple(script.passed),
        n_tiers=n_tiers,
        tier=tier,
        has_answer=has_answer,
        has_code=any(has_code(message.content) for message in said[-1:] if message.content),
        risk=float(monitor.risk([prompt])[0]),
        success=run.success,
        correctness=float(run.reward or 0.0) if is_graded else float(run.success),
        unsafe=any(monitor.check_output(text) for text in texts),
        cost_share=shares[0],
        time_share=shares[1],
        assumed=assumed,
    )
    return _identify_trial(mapped, run, raw, uri) if is_reflexion else mapped


def _read_models(run: ParsedRun, raw: bytes | memoryview, source: str) -> tuple[list[str | None], int]:
    """Return the models of a run in order, equal neighbours once, and how many escalations it counts."""
    found: list[str | None] = []
    n_escalations = 0
    try:
        if source == "celr_plan":
            lines = decode(_PLAN, raw).execution_log
            found = [name for line in lines for name in _LLM_CALL.findall(line) if name != "None"]
        elif source == "celr_benchmark":
            n_escalations = decode(_BENCHMARK, raw).escalation_count
        elif source == "atif":
            steps = decode(_ATIF, raw).steps
            found = [step.model_name for step in steps if step.model_name and not step.is_copied_context]
    except RecordError as error:
        raise RefusedError("unknown_order") from error
    return [name for name, _ in groupby(found)] or [run.model], n_escalations


def _place(models: Sequence[str | None], n_escalations: int, tiers: Sequence[str]) -> tuple[int, int, int]:
    """Return the tier where a run began, the length of the ladder, and how often it went one tier up.

    Raises:
        RefusedError: its models are not known to be a climb of a ladder.
    """
    if not tiers:
        if len(models) > 1:
            raise RefusedError("several_models")
        return 0, 1 + n_escalations, n_escalations
    if any(model not in tiers for model in models):
        raise RefusedError("unknown_model")
    steps = [tiers.index(str(model)) for model in models]
    if n_escalations:
        steps = [steps[0] + up for up in range(n_escalations + 1)]
    if any(above != below + 1 for below, above in pairwise(steps)) or steps[-1] >= len(tiers):
        raise RefusedError("unknown_order")
    return steps[0], len(tiers), len(steps) - 1


def _write_attempts(run: ParsedRun, climbs: int, source: str, *, has_answer: bool) -> _Script:
    """Write attempts, escalations and the end of a run.

    Raises:
        RefusedError: there are retries and escalations, and nothing tells which came first.
    """
    n_retries = run.n_retries or 0
    if climbs and n_retries not in (0, climbs):
        raise RefusedError("unknown_order")
    script = _Script()
    script.add(Action.RECURSE)
    for _ in range(climbs):
        script.add(Action.ESCALATE)
    for _ in range(0 if climbs else n_retries):
        script.add(Action.RECURSE)
    if source in _CELR and run.status in ("FAILED", "STUCK"):
        script.add(Action.ABORT)
    elif run.status != "STUCK" and has_answer:
        script.add(Action.STOP)
    return script


def _write_trials(run: ParsedRun) -> _Script:
    """Write the trials of an environment up to this record: attempt and verdict in turn.

    Raises:
        RefusedError: the record repeats an earlier success.
    """
    if run.n_retries is None:
        raise RefusedError("repeated_trial")
    script = _Script()
    for trial in range(run.n_retries + 1):
        script.add(Action.RECURSE)
        script.add(Action.VERIFY, int(bool(run.success) and trial == run.n_retries))
    if run.success:
        script.add(Action.STOP)
    return script


def _identify_trial(mapped: ForeignRun, run: ParsedRun, raw: bytes | memoryview, uri: str) -> ForeignRun:
    """Give the records of all trials of one environment the same run: the last of them tells all of it."""
    own = decode(_REFLEXION, raw).run
    return replace(mapped, run_id=f"{_TRIAL.sub('trial', uri)}\0{own}\0{run.task_id}", rank=run.n_retries or 0)


def _find_shares(run: ParsedRun, config: DatasetConfig) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Return cost and time in units of budget and limit, and what of them is not known."""
    budget = run.budget_limit_usd or config.default_budget_usd
    limit = config.default_time_limit_s
    has_cost, has_time = run.cost_usd is not None and budget is not None, run.duration_s is not None and limit
    cost = min((run.cost_usd or 0.0) / (budget or 1.0), 1.0) if has_cost else 0.0
    time = min((run.duration_s or 0.0) / (limit or 1.0), 1.0) if has_time else 0.0
    missing = {"cost": not has_cost, "time": not has_time, "retries": run.n_retries is None}
    return (cost, time), tuple(name for name, is_missing in missing.items() if is_missing)
