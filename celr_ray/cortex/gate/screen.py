"""The gate's screen: off-policy bounds from logs, which can reject a candidate before any task is run, and no more."""

from __future__ import annotations

from typing import Any

from celr_ray.config import RuntimeConfig
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions
from celr_ray.cortex.evaluation.screening import Screen, Verdict, veto
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.transitions import read_dataset_record

__all__ = ["screen_candidate"]


def screen_candidate(
    transitions: str, candidate: Policy, champion: Policy, runtime: RuntimeConfig, *, alpha: float, seed: int
) -> dict[str, Any]:
    """Return what the logs say: `data_hash` of the dataset, `verdict`, `reason`, `is_rejected`, both policies' bounds.

    Args:
        transitions: folder of a dataset; its validation tasks are used.
        candidate: who wants to be promoted.
        champion: who is deployed now.
        runtime: where to run.
        alpha: of each bound.
        seed: of the draws.

    Raises:
        InputError: there are no transitions.
        PolicyError: the logs do not say with which probabilities they were decided.
    """
    screens = {
        role: evaluate_transitions(transitions, policy, runtime, alpha=alpha, seed=seed).report.screen
        for role, policy in (("candidate", candidate), ("champion", champion))
    }
    said = veto(screens["candidate"], screens["champion"])
    return {
        "data_hash": read_dataset_record(transitions)["data_hash"],
        "verdict": said.verdict.value,
        "reason": said.reason,
        "is_rejected": said.verdict is Verdict.REJECTED,
        **{role: _describe(screen) for role, screen in screens.items()},
    }


def _describe(screen: Screen) -> dict[str, Any]:
    found = screen.diagnostics
    bounds = {name: value if found.is_evaluable else None for name, value in _bounds(screen).items()}
    return {"n": found.n, "ess": found.ess, "max_weight_share": found.max_weight_share, **bounds}


def _bounds(screen: Screen) -> dict[str, float]:
    return {"value_low": screen.value_low, "value_high": screen.value_high}
