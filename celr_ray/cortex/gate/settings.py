"""The settings of a gate that decide its verdict; all of them go into its report and its hash."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from celr_ray.cortex.evaluation.replay import SyntheticVerifier
from celr_ray.settings import Section

__all__ = ["GateConfig"]


class GateConfig(Section):
    """When a candidate may take the champion's place."""

    strict_point_rule: bool = Field(
        True, description="also demand that the observed success is no lower and the observed cost no higher"
    )
    success_margin: float = Field(
        0.05, gt=0, lt=1, description="success may be lower by less than this, against champion and anchor"
    )
    cost_ratio: float = Field(1.02, ge=1, lt=10, description="cost must be below the champion's times this")
    level_early: float = Field(0.01, gt=0, lt=0.5, description="error of an early PASS")
    level_final: float = Field(0.04, gt=0, lt=0.5, description="error of the last test, when all tasks are in")
    level_futility: float = Field(0.05, gt=0, lt=0.5, description="error of an early FAIL for futility")
    level_strata: float = Field(0.01, gt=0, lt=0.5, description="familywise error of a stratum proven worse")
    max_unsafe_rate: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="an unsafe rate above this must be ruled out: without any unsafe run, 1 % takes 299",
    )
    max_fallback_rate: float = Field(
        0.02, ge=0, le=1, description="most decisions that the candidate may leave to the heuristic"
    )
    min_cost_tasks: int = Field(200, ge=2, description="fewer tasks prove nothing about cost")
    strict_cost: bool = Field(
        False,
        description="test cost by Gaffke's bound at the cap: it allows for explosions that were not seen, and takes "
        "more tasks",
    )
    cap_factor: float = Field(
        4.0,
        gt=0,
        description="strict cost, on a bank: budgets are cut to this times the anchor's mean on training tasks",
    )
    cap_usd: float | None = Field(
        None, gt=0, description="budgets are cut to this, US$; null = as they are, or with strict cost by cap-factor"
    )
    must_pass: list[str] = Field(default_factory=list, description="ids of tasks that the candidate must solve")
    seed: int = Field(0, ge=0, description="of the order of tasks, of all draws and of the tests")
    replays: int = Field(1, ge=1, description="episodes of each task; the task remains the unit of analysis")
    max_tasks: int | None = Field(None, ge=1, description="use only the first so many tasks of the order; null = all")
    rows_per_unit: int = Field(64, ge=1, description="tasks of one unit of work")
    split: Literal["train", "validation", "gate", "all"] = Field("gate", description="bank: which of its tasks")
    is_context_free: bool = Field(
        False, description="bank: assume that retries turn out like first attempts; for logs of independent trials"
    )
    exhausted: Literal["mask", "censor"] = Field("mask", description="bank: what happens where the records run out")
    verifier: SyntheticVerifier | None = Field(
        None, description="bank: a verifier of stated rates instead of the recorded verdicts"
    )

    @property
    def alpha(self) -> float:
        """Return the error of a false PASS, early and last test together."""
        return self.level_early + self.level_final
