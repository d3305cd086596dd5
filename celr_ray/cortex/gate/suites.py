"""Where a gate's results come from: what a suite of tasks is, and the bank of recorded outcomes as one.

A suite knows its tasks before anything runs. Workers get it as it is: it must be small, or hold URIs, and load what it
needs in `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from celr_ray.core.episodes import Limits, TaskColumns
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.bank import Bank, load_bank
from celr_ray.cortex.evaluation.replay import ReplayConfig
from celr_ray.cortex.evaluation.replay_run import ReplayResults, ReplaySuite, prepare_replay, run_replay
from celr_ray.cortex.gate.results import Role, make_rows
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.policy import Policy
from celr_ray.errors import InputError, PolicyError
from celr_ray.stage import hash_json

__all__ = ["BankSuite", "Suite", "SuiteFacts", "describe_price_table", "label_difficulty", "replay_rows"]

RunRole = Callable[[Role, Policy, Sequence[str], str | None, int], pa.Table]
"""(role, policy, task ids, folder for logs or None, number of the unit) → rows of `results.RESULT_SCHEMA`."""

_MAX_LEVELS = 20


@dataclass(frozen=True)
class SuiteFacts:
    """What is known of a suite before anything runs.

    Attributes:
        kind: bank (replayed) or live (run).
        content_hash: identifies everything but policies and gate settings that a result depends on.
        task_ids: [n].
        strata: name of a grouping → [n] stratum of each task.
        cap_usd: most that the runtime lets a policy spend on a task, US$.
        prices: the price table.
        details: what else the report says of it, JSON values.
    """

    kind: str
    content_hash: str
    task_ids: tuple[str, ...]
    strata: Mapping[str, tuple[str, ...]]
    cap_usd: float
    prices: Mapping[str, Any]
    details: Mapping[str, Any]


class Suite(Protocol):
    """A set of tasks on which policies can be compared."""

    @property
    def is_local(self) -> bool:
        """Tell whether it can be run in this process only."""
        ...

    @property
    def facts(self) -> SuiteFacts:
        """Return what is known before anything runs."""
        ...

    def open(self) -> RunRole:
        """Load what it takes to run policies; called once in each worker."""
        ...


def label_difficulty(difficulty: FloatArray, config: EscalationConfig) -> tuple[str, ...]:
    """Return easy, medium or hard for each task, by the heuristic's thresholds."""
    names = ("easy", "medium", "hard")
    edges = [config.medium_difficulty, config.hard_difficulty]
    return tuple(names[place] for place in np.searchsorted(edges, difficulty, side="right"))


def describe_price_table(tiers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the prices of the tiers with their hash."""
    rows = [dict(tier) for tier in tiers]
    return {"content_hash": hash_json(rows), "tiers": rows}


@dataclass(frozen=True)
class BankSuite:
    """Tasks of an outcome bank, replayed.

    Attributes:
        bank: a bank, or the URI of one.
        config: split, replays, seed and rules of the replay.
        escalation: where ESCALATE leads, and thresholds of the heuristic.
        limits: the runtime's caps.
    """

    bank: Bank | str
    config: GateConfig
    escalation: EscalationConfig
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """Return False: any worker can read a bank."""
        return False

    @cached_property
    def _whole(self) -> Bank:
        return load_bank(self.bank) if isinstance(self.bank, str) else self.bank

    @cached_property
    def replay_suite(self) -> ReplaySuite:
        """Return the tasks made ready, budgets cut to the cap."""
        split = None if self.config.split == "all" else self.config.split
        suite = prepare_replay(self._whole, split, self._rules())
        cap = self._find_cap()
        return suite if cap is None else cut_budgets(suite, cap)

    def _rules(self) -> ReplayConfig:
        config = self.config
        return ReplayConfig(
            seed=config.seed,
            replays=config.replays,
            exhausted=config.exhausted,
            is_context_free=config.is_context_free,
            verifier=config.verifier,
            escalation=self.escalation,
            limits=self.limits,
        )

    def _find_cap(self) -> float | None:
        """Return what budgets are cut to, None = nothing."""
        if self.config.cap_usd is not None or not self.config.strict_cost:
            return self.config.cap_usd
        if self.train_suite is None:
            raise InputError("strict cost: the bank has no training tasks to find a cap from; set --gate.cap-usd")
        anchor = run_replay(self.train_suite, HeuristicPolicy(self.escalation))
        return self.config.cap_factor * float(anchor.cost_bounds()[1].mean())

    @cached_property
    def train_suite(self) -> ReplaySuite | None:
        """Return the training tasks under the same rules, budgets not cut; None if none can be replayed."""
        try:
            return prepare_replay(self._whole, "train", self._rules())
        except InputError:
            return None

    @cached_property
    def facts(self) -> SuiteFacts:
        """Return what is known before anything runs."""
        suite = self.replay_suite
        tasks = suite.bank.tasks
        cap = float(suite.columns.budget_usd.max())
        rules = self._rules().model_dump(mode="json")
        identity = {"bank": suite.bank.content_hash, "split": self.config.split, "rules": rules, "cap_usd": cap}
        tiers = [
            {"name": t.name, "input_usd_per_mtok": t.input_usd_per_mtok, "output_usd_per_mtok": t.output_usd_per_mtok,
             "max_attempt_usd": t.max_attempt_usd, "max_verification_usd": t.max_verification_usd}
            for t in suite.bank.tiers
        ]  # fmt: skip
        return SuiteFacts(
            kind="bank",
            content_hash=hash_json({**identity, "tasks": suite.bank.task_ids}),
            task_ids=tuple(suite.bank.task_ids),
            strata={
                "difficulty": label_difficulty(tasks["difficulty"].to_numpy(), self.escalation),
                **label_column(tasks, "domain"),
                **label_column(tasks, "level"),
            },
            cap_usd=cap,
            prices=describe_price_table(tiers),
            details={
                "bank_hash": suite.bank.content_hash,
                "split": self.config.split,
                "n_incomplete": suite.n_incomplete,
            },
        )

    def open(self) -> RunRole:
        """Load the bank."""
        suite = self.replay_suite
        place = {task_id: row for row, task_id in enumerate(suite.bank.task_ids)}

        def run(role: Role, policy: Policy, task_ids: Sequence[str], folder: str | None, index: int) -> pa.Table:
            rows = np.array([place[task_id] for task_id in task_ids], dtype=np.int64)
            return replay_rows(suite, role, policy, rows)

        return run


def label_column(tasks: pa.Table, name: str) -> dict[str, tuple[str, ...]]:
    """Return a column as a grouping, nothing if it has too many values to be one."""
    values = tuple("unknown" if value is None else str(value) for value in tasks[name].to_pylist())
    is_grouping = name != "level" or len(set(values)) <= _MAX_LEVELS
    return {name: values} if is_grouping else {}


def cut_budgets(suite: ReplaySuite, cap_usd: float) -> ReplaySuite:
    """Return the suite with no budget above the cap."""
    columns = {**vars(suite.columns), "budget_usd": np.minimum(suite.columns.budget_usd, cap_usd)}
    return replace(suite, columns=TaskColumns(**columns))


def replay_rows(suite: ReplaySuite, role: Role, policy: Policy, rows: Any) -> pa.Table:
    """Replay a policy on some tasks of a suite.

    A candidate that gives no probabilities, or chooses what is not allowed, gets rows that say so.

    Args:
        suite: a bank made ready.
        role: whose rows they are.
        policy: decides.
        rows: [m] numbers of the tasks.

    Raises:
        PolicyError: the champion or the anchor cannot decide.
    """
    task_ids = [suite.bank.task_ids[row] for row in rows]
    try:
        results = run_replay(suite, policy, rows=rows)
    except PolicyError as error:
        if role != "candidate":
            raise PolicyError(f"the {role} cannot decide, so nothing can be compared with it: {error}") from error
        return make_rows(role, task_ids, suite.config.replays, None, str(error))
    return make_rows(role, task_ids, suite.config.replays, make_figures(results))


def make_figures(results: ReplayResults) -> dict[str, Any]:
    """Return the columns of a replay, [n, R] each."""
    figures: dict[str, Any] = {
        name: getattr(results, name)
        for name in (
            "success",
            "cost_usd",
            "seconds",
            "unsafe",
            "censored",
            "timed_out",
            "n_decisions",
            "n_fallbacks",
            "end_reason",
        )
    }
    return {**figures, "budget_usd": np.broadcast_to(results.budget_usd[:, None], results.success.shape)}
