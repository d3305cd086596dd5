"""What is known of tasks before the first call: budgets, limits, difficulty, risk, and the probe of the cheap model.

Everything here comes from the task's own text and settings, or is paid for (the probe); the checker is only asked of
which kind it is, to tell coding tasks from others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from celr_ray.config import ExecuteConfig
from celr_ray.core.answers import AnswerKind
from celr_ray.core.calls import Models
from celr_ray.core.episodes import KeyArray, TaskColumns
from celr_ray.core.live import hash_text
from celr_ray.core.monitor import Monitor
from celr_ray.core.probe import first_calls, probe_tasks
from celr_ray.core.tasks import Task
from celr_ray.core.verifier import PythonTestsCheck
from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.difficulty import DifficultyModel

__all__ = ["make_task_columns"]

_DEFAULT_BUDGET_CALLS = 4
_FREE_BUDGET_USD = 1.0
"""Budget where every tier is free: any number does, shares of it are always 0."""


def make_task_columns(
    tasks: Sequence[Task],
    models: Models,
    monitor: Monitor,
    difficulty: DifficultyModel,
    config: ExecuteConfig,
    *,
    seed: int,
) -> TaskColumns:
    """Return what the episodes of some tasks begin with.

    Args:
        tasks: [B].
        models: price calls, and are probed if `config.probe`.
        monitor: gives the prior risk.
        difficulty: gives the estimate where the task has none of its own.
        config: defaults for tasks without budget or time limit.
        seed: of the probe's sampling.
    """
    prompts = [task.prompt for task in tasks]
    key: KeyArray = np.array([hash_text(task.task_id) for task in tasks], dtype=np.uint64)
    strongest = first_calls(prompts, key, models.ladder.n_tiers - 1, config.system_prompt, seed)
    budget = _make_budgets(tasks, models.worst_case_usd(strongest, within_window=False), config.default_budget_usd)
    given = np.array([np.nan if task.difficulty is None else task.difficulty for task in tasks])
    probe = probe_tasks(
        prompts,
        [_answer_kind(task) for task in tasks],
        key,
        budget,
        models,
        config.system_prompt,
        seed,
        is_wanted=config.probe,
    )
    return TaskColumns(
        key=key,
        budget_usd=budget,
        time_limit_s=np.array([task.time_limit_s or config.default_time_limit_s for task in tasks], dtype=float),
        difficulty=np.where(np.isnan(given), difficulty.predict(prompts), given),
        is_difficulty_known=~np.isnan(given) | difficulty.is_trained,
        risk=monitor.risk(prompts),
        is_coding=np.array([_is_coding(task) for task in tasks], dtype=bool),
        has_verifier=np.array([task.verifier is not None for task in tasks], dtype=bool),
        needs_code=np.array([isinstance(task.verifier, PythonTestsCheck) for task in tasks], dtype=bool),
        probe_agreement=probe.agreement,
        probe_confidence=probe.confidence,
        probe_usd=probe.cost_usd,
        probe_s=probe.seconds,
    )


def _make_budgets(tasks: Sequence[Task], strongest_usd: FloatArray, default_usd: float | None) -> FloatArray:
    """Return the tasks' budgets [B], US$; where none is given, some calls of the strongest tier."""
    own = np.array([np.nan if task.budget_usd is None else task.budget_usd for task in tasks])
    usual = np.where(strongest_usd > 0, _DEFAULT_BUDGET_CALLS * strongest_usd, _FREE_BUDGET_USD)
    return np.where(np.isnan(own), usual if default_usd is None else default_usd, own)


def _answer_kind(task: Task) -> AnswerKind:
    """Return how answers to a task are compared with each other; its checker is asked for its kind only."""
    return "text" if task.checker is None else task.checker.kind


def _is_coding(task: Task) -> bool:
    return any(isinstance(check, PythonTestsCheck) for check in (task.checker, task.verifier))
