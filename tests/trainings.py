"""Banks, datasets and small trainings for tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from banks import add_fresh, make_parts

from celr_ray.config import BankConfig, BankReplayJob, TrainCortexJob
from celr_ray.cortex.evaluation.bank import Bank
from celr_ray.cortex.evaluation.bank_build import assemble_bank
from celr_ray.cortex.evaluation.bank_rows import TaskFacts
from celr_ray.cortex.evaluation.replay_dataset import run_bank_replay
from celr_ray.cortex.trainer import TrainingReport, run_train_cortex

SMALL = {"hidden": [32], "updates": 300, "bc_updates": 160, "alphas": [0.1], "expectiles": [0.9], "betas": [3.0]}
"""Enough for a problem of two kinds of tasks, in about a second each."""


def deceiving_bank(n_tasks: int = 600, seed: int = 0) -> Bank:
    """Make a bank of two kinds of tasks, both easy by the heuristic's thresholds; the cheap tier fails one kind.

    So the heuristic fails half of all tasks, and a policy that escalates at difficulty .3 hardly any.
    """
    rng = np.random.default_rng(seed)
    parts = make_parts(2)
    for i in range(n_tasks):
        task, is_hard = f"task/{i}", i % 2 == 0
        parts.tasks[task] = TaskFacts(difficulty=0.3 if is_hard else 0.1, is_difficulty_known=True, budget_usd=1.0)
        add_fresh(parts, task, 0, rng.random(3) < (0.05 if is_hard else 0.95), cost=0.01)
        add_fresh(parts, task, 1, rng.random(3) < 0.97, cost=0.1)
    return assemble_bank(parts, BankConfig())


def replay(bank: Path, out: Path, **settings: Any) -> str:
    """Replay the heuristic with exploration as a dataset; returns its folder."""
    job: dict[str, Any] = {"bank": str(bank), "out": str(out), "epsilon": 0.5, "replays": 6, **settings}
    run_bank_replay(BankReplayJob(**job))
    return str(out)


def train(data: str, out: Path, algorithm: str = "auto", runtime: Any = None, **settings: Any) -> TrainingReport:
    """Train on transitions; settings are those of TrainConfig, beside those of the job."""
    of_job = {name: settings.pop(name) for name in ("registry", "overwrite", "name", "parent") if name in settings}
    return run_train_cortex(
        TrainCortexJob(
            transitions=data,
            out=str(out),
            algorithm=algorithm,
            train=SMALL | settings,
            runtime=runtime or {"executor": "loop"},
            **{"registry": "none", "name": "router", **of_job},
        )
    )
