"""A suite that is run: tasks on live model tiers through the executor, all roles on the same tasks and seeds.

    OUT/live/ROLE/replay-0/logs/part-00000.jsonl       what was said, for `celr-ray bank build` too
    OUT/live/ROLE/replay-0/episodes/part-00000.parquet

The same task, tier and attempt get the same seed for every role, so equal decisions get equal outcomes where the engine
allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.config import ExecuteConfig, ExecuteJob, RuntimeConfig
from celr_ray.core.clients import ModelClient
from celr_ray.core.episodes import EndReason
from celr_ray.core.execute_stage import Executor, open_worker_clients
from celr_ray.core.models import Tier, TierLadder, load_tiers
from celr_ray.core.monitor import load_rules
from celr_ray.core.sandbox import check_sandbox
from celr_ray.core.tasks import Task, read_tasks
from celr_ray.core.verifier import PythonTestsCheck
from celr_ray.cortex.difficulty import DifficultyModel, load_difficulty
from celr_ray.cortex.gate.results import Role, make_rows
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.suites import RunRole, SuiteFacts, describe_price_table, label_difficulty
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.state import SCHEMA_HASH
from celr_ray.errors import InputError, PolicyError
from celr_ray.run_folder import part_name
from celr_ray.stage import hash_json

__all__ = ["LiveSuite"]

_BUDGET_CALLS = 4
"""As in the executor: a task without a budget gets so many worst cases of the strongest tier."""
_SETTINGS = {"default_budget_usd", "default_time_limit_s", "system_prompt", "probe", "limits", "escalation"}


@dataclass(frozen=True)
class LiveSuite:
    """Tasks to run.

    Attributes:
        tasks: URI of a task file.
        tiers: URI of the ladder.
        execute: how tasks are run; its ε must be 0.
        config: seed, replays and cap.
        clients: models to use in this process instead of the tiers' own; only without Ray.
    """

    tasks: str
    tiers: str
    execute: ExecuteConfig
    config: GateConfig
    clients: Mapping[str, ModelClient] | None = None

    @property
    def is_local(self) -> bool:
        """Tell whether its models live in this process only."""
        return self.clients is not None

    @cached_property
    def _ladder(self) -> TierLadder:
        return load_tiers(self.tiers)

    @cached_property
    def _tasks(self) -> list[Task]:
        """Return the tasks, budgets cut to the cap.

        Raises:
            InputError: a line is no task, or a task has no checker.
        """
        file = read_tasks(self.tasks)
        if file.rejected:
            first = file.rejected[0]
            raise InputError(
                f"{len(file.rejected)} lines of {self.tasks} are no tasks, first line {first.line}: {first.reason}. A "
                "gate runs a preset set of tasks and leaves none out: mend or delete them"
            )
        if unchecked := [task.task_id for task in file.tasks if task.checker is None]:
            raise InputError(
                f"{len(unchecked)} tasks of {self.tasks} lack a checker, first {unchecked[0]!r}: a gate needs the truth"
            )
        return [self._cut(task) for task in file.tasks]

    def _cut(self, task: Task) -> Task:
        cap = self.config.cap_usd
        if cap is None:
            return task
        budget = task.budget_usd or self.execute.default_budget_usd or cap
        return task.model_copy(update={"budget_usd": min(budget, cap)})

    @cached_property
    def facts(self) -> SuiteFacts:
        """Return what is known before anything runs.

        Raises:
            InputError: the tasks cannot be gated.
            ConfigError: tiers or rules are wrong.
        """
        if self.execute.epsilon:
            raise InputError("a gate runs policies as they are: set --execute.epsilon 0")
        if self.config.strict_cost and self.config.cap_usd is None:
            raise InputError("strict cost: set --gate.cap-usd, what a live task may cost at most")
        tasks = self._tasks
        if any(isinstance(check, PythonTestsCheck) for task in tasks for check in (task.checker, task.verifier)):
            check_sandbox(allow_weak=self.execute.allow_weak_sandbox)
        prices = [_describe_tier(tier) for tier in self._ladder.tiers]
        identity = {
            "tasks": [task.model_dump(mode="json") for task in tasks],
            "tiers": self._ladder.model_dump(mode="json"),
            "difficulty": self._difficulty.content_hash,
            "monitor": load_rules(self.execute.monitor_rules).content_hash,
            "state_schema": SCHEMA_HASH,
            "seed": self.config.seed,
            **self.execute.model_dump(mode="json", include=_SETTINGS),
        }
        predicted = self._difficulty.predict([task.prompt for task in tasks])
        known = [task.difficulty for task in tasks]
        difficulty = np.array([p if k is None else k for k, p in zip(known, predicted, strict=True)])
        return SuiteFacts(
            kind="live",
            content_hash=hash_json(identity),
            task_ids=tuple(task.task_id for task in tasks),
            strata={
                "difficulty": label_difficulty(difficulty, self.execute.escalation),
                "domain": tuple(task.domain or "unknown" for task in tasks),
            },
            cap_usd=self._find_cap(),
            prices=describe_price_table(prices),
            details={"n_incomplete": 0},
        )

    @cached_property
    def _difficulty(self) -> DifficultyModel:
        return (
            DifficultyModel.neutral() if self.execute.difficulty is None else load_difficulty(self.execute.difficulty)
        )

    def _find_cap(self) -> float:
        """Return the largest budget; of tasks without one, the largest that they can get."""
        strongest = self._ladder.tiers[-1]
        call = strongest.price_usd(strongest.context_window - strongest.max_output_tokens, strongest.max_output_tokens)
        default = self.execute.default_budget_usd or _BUDGET_CALLS * call or 1.0
        return max(task.budget_usd or default for task in self._tasks)

    def open(self) -> RunRole:
        """Load the models."""
        runner = _Runner(self, {task.task_id: task for task in self._tasks}, self._ladder)
        return runner.run


def _describe_tier(tier: Tier) -> dict[str, Any]:
    names = ("name", "model", "input_usd_per_mtok", "output_usd_per_mtok", "max_output_tokens")
    return {name: getattr(tier, name) for name in names}


class _Runner:
    """Runs roles with the same models; one executor for each policy and replay."""

    def __init__(self, suite: LiveSuite, tasks: Mapping[str, Task], ladder: TierLadder) -> None:
        self._suite, self._tasks, self._ladder = suite, tasks, ladder
        self._clients = suite.clients or open_worker_clients(self._job(0), ladder)
        self._executors: dict[tuple[str, int], Executor] = {}

    def _job(self, replay: int) -> ExecuteJob:
        suite = self._suite
        return ExecuteJob(
            tasks=suite.tasks,
            tiers=suite.tiers,
            out=".",
            execute=suite.execute,
            runtime=RuntimeConfig(seed=suite.config.seed + replay),
        )

    def _executor(self, policy: Policy, replay: int) -> Executor:
        key = (policy.content_hash, replay)
        if key not in self._executors:
            self._executors[key] = Executor(self._job(replay), self._ladder, policy, self._clients)
        return self._executors[key]

    def run(self, role: Role, policy: Policy, task_ids: Sequence[str], folder: str | None, index: int) -> pa.Table:
        """Run a policy on some tasks, all replays.

        Raises:
            ModelError: a model's engine died, or its endpoint refuses every call.
            PolicyError: the champion or the anchor cannot decide.
        """
        tasks = [self._tasks[task_id] for task_id in task_ids]
        replays = self._suite.config.replays
        tables = []
        try:
            for replay in range(replays):
                out = storage.join(folder or ".", f"replay-{replay}")
                self._executor(policy, replay).run_tasks(tasks, out, index)
                tables.append(storage.read_parquet(storage.join(out, "episodes", part_name(index))))
        except PolicyError as error:
            if role != "candidate":
                raise PolicyError(f"the {role} cannot decide, so nothing can be compared with it: {error}") from error
            return make_rows(role, task_ids, replays, None, str(error))
        default = self._suite.execute.default_time_limit_s
        return make_rows(role, task_ids, replays, _gather(tables, [task.time_limit_s or default for task in tasks]))


def _gather(tables: Sequence[pa.Table], time_limits_s: Sequence[float]) -> dict[str, Any]:
    """Return the columns of all replays, [n, R] each; the limits are [n]. An episode with an outage is censored."""

    def stack(read: Any) -> Any:
        return np.stack([np.asarray(read(table)) for table in tables], axis=1)

    figures = {
        name: stack(lambda table, name=name: table[name].to_pylist())
        for name in ("cost_usd", "seconds", "budget_usd", "unsafe", "n_fallbacks")
    }
    success = stack(lambda table: table["success"].cast(pa.float64()).to_numpy())
    is_outage = stack(lambda table: table["n_outages"].to_numpy()) > 0
    return {
        **figures,
        "success": success,
        "censored": is_outage,
        "timed_out": (figures["seconds"] > np.asarray(time_limits_s)[:, None]) & ~is_outage,
        "n_decisions": stack(lambda table: [len(actions) for actions in table["actions"].to_pylist()]),
        "end_reason": stack(lambda table: [int(EndReason[name]) for name in table["end_reason"].to_pylist()]),
    }
