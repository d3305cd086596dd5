"""Writes an episode as an ATIF document: the messages as steps, every decision in a step's `extra.celr.decision`.

Decisions that say nothing (VERIFY, STOP, ABORT, a failed call) are placeholder steps, which readers of this package
leave out of the messages. `extra.celr` at the root holds what ATIF has no field for, and under `episode` who decided
and under which rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from celr_ray.core.episodes import EndReason
from celr_ray.core.executor import Results
from celr_ray.core.models import TierLadder
from celr_ray.core.prompts import Chat
from celr_ray.core.transcript import Event, Transcript
from celr_ray.core.verifier import CheckResult
from celr_ray.cortex.actions import ACTIONS
from celr_ray.logs.atif import SCHEMA_VERSION, CelrRun

__all__ = ["make_episode_document"]


def make_episode_document(
    row: int,
    transcript: Transcript,
    results: Results,
    ladder: TierLadder,
    episode: Mapping[str, Any],
) -> dict[str, Any]:
    """Return one episode as an ATIF document.

    Args:
        row: the episode's row in `results`.
        transcript: what was said.
        results: how the wave's episodes ended.
        ladder: the model tiers.
        episode: JSON values that tell who decided and how: policy, hashes, seed, limits.
    """
    decisions = results.decisions
    first, last = np.searchsorted(decisions.episode, [row, row + 1])
    models = {tier.name: tier.model for tier in ladder.tiers}
    steps: list[dict[str, Any]] = []
    sent: Chat = []
    for event, n in zip(transcript.events, range(first, last), strict=True):
        steps += _say(event, sent)
        steps.append(_make_step(event, results, n, models))
        sent = event.sent or sent
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    used = {models[event.tier] for event in transcript.events if event.text is not None and event.tier}
    agent = {"name": "celr-ray", "version": "1", "model_name": used.pop() if len(used) == 1 else None}
    return {
        "schema_version": SCHEMA_VERSION,
        "agent": {key: value for key, value in agent.items() if value is not None},
        "steps": steps,
        "final_metrics": {"total_cost_usd": float(results.cost_usd[row])},
        "extra": {"celr": {**_describe_run(row, transcript, results), "episode": _describe_end(row, results, episode)}},
    }


def _describe_run(row: int, transcript: Transcript, results: Results) -> dict[str, Any]:
    """Return the columns of a trajectory that ATIF has no field for."""
    task = transcript.task
    success = results.success[row]
    n_attempts = sum(event.sent is not None for event in transcript.events)
    n_said = sum(event.text is not None for event in transcript.events)
    run = CelrRun(
        task_id=task.task_id,
        domain=task.domain,
        prompt=task.prompt,
        status="UNKNOWN" if np.isnan(success) else "SUCCESS" if success else "FAILED",
        success=None if np.isnan(success) else bool(success),
        reward=None if np.isnan(results.correctness[row]) else float(results.correctness[row]),
        budget_limit_usd=float(results.budget_usd[row]),
        duration_s=float(results.seconds[row]),
        n_steps=n_said,
        n_retries=max(n_attempts - 1, 0),
        source_format="celr_ray",
    )
    described: dict[str, Any] = msgspec.to_builtins(run)
    return described


def _describe_end(row: int, results: Results, episode: Mapping[str, Any]) -> dict[str, Any]:
    reward = results.total_reward[row]
    return {
        **episode,
        "end_reason": EndReason(int(results.end_reason[row])).name,
        "unsafe": bool(results.unsafe[row]),
        "total_reward": None if np.isnan(reward) else float(reward),
    }


def _describe_decision(event: Event, results: Results, n: int) -> dict[str, Any]:
    """Return decision n as JSON values."""
    decisions = results.decisions
    outcomes = decisions.outcomes
    reward = decisions.reward[n]
    return {
        "t": int(decisions.t[n]),
        "obs": decisions.obs[n].tolist(),
        "mask": decisions.mask[n].tolist(),
        "action": event.action,
        "probabilities": dict(zip(ACTIONS, decisions.probabilities[n].tolist(), strict=True)),
        "tier": event.tier,
        "cost_usd": float(outcomes.cost_usd[n]),
        "seconds": float(outcomes.seconds[n]),
        "prompt_tokens": int(outcomes.prompt_tokens[n]),
        "output_tokens": int(outcomes.output_tokens[n]),
        "reward": None if np.isnan(reward) else float(reward),
        "unsafe": list(event.unsafe),
        "failure": event.failure,
        "finish_reason": event.finish_reason,
        "verification": _describe_check(event.verification),
        "check": _describe_check(event.check),
    }


def _describe_check(result: CheckResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"passed": result.passed, "score": result.score, "reason": result.reason, "seconds": result.seconds}


def _say(event: Event, before: Chat) -> list[dict[str, Any]]:
    """Return the messages of an attempt that were not said before: all of the first, the last one of a later one."""
    if event.sent is None or event.sent == before:
        return []
    said = event.sent[-1:] if before else event.sent
    return [{"step_id": 0, "source": message["role"], "message": message["content"]} for message in said]


def _make_step(event: Event, results: Results, n: int, models: Mapping[str, str]) -> dict[str, Any]:
    """Return the step of one decision: the model's answer, or a placeholder."""
    decision = _describe_decision(event, results, n)
    if event.text is None:
        celr = {"is_placeholder": True, "decision": decision}
        return {"step_id": 0, "source": "system", "message": "", "extra": {"celr": celr}}
    return {
        "step_id": 0,
        "source": "agent",
        "message": event.text,
        "model_name": models[event.tier or ""],
        "metrics": {
            "prompt_tokens": decision["prompt_tokens"],
            "completion_tokens": decision["output_tokens"],
            "cost_usd": decision["cost_usd"],
        },
        "extra": {"celr": {"decision": decision}},
    }
