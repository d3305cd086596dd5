"""Writes an episode as an ATIF document: the messages as steps, every decision in a step's `extra.celr.decision`.

Decisions that say nothing (VERIFY, STOP, ABORT, a failed call) are placeholder steps, which readers of this package
leave out of the messages. So are the messages of contexts that were given up: ESCALATE and RETRY_COMPRESSED begin a new
talk, and what a trainer shall see is the talk that led to the last answer, not several talks as one. `extra.celr` at
the root holds what ATIF has no field for, and under `episode` who decided and under which rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    contexts = _number_contexts(transcript)
    answered = [context for event, context in zip(transcript.events, contexts, strict=True) if event.text is not None]
    steps: list[dict[str, Any]] = []
    sent: Chat = []
    before = 0
    for n, event, context in zip(range(first, last), transcript.events, contexts, strict=True):
        own = [*_say(event, sent, is_new=not steps or context != before), _make_step(event, results, n, models)]
        if context != (answered or contexts)[-1]:
            _hide(own)
        steps += own
        sent, before = event.sent or sent, context
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    used = {
        models[event.tier or ""]
        for event, context in zip(transcript.events, contexts, strict=True)
        if event.text is not None and context == answered[-1]
    }
    agent = {"name": "celr-ray", "version": "1", "model_name": used.pop() if len(used) == 1 else None}
    return {
        "schema_version": SCHEMA_VERSION,
        "agent": {key: value for key, value in agent.items() if value is not None},
        "steps": steps,
        "final_metrics": {"total_cost_usd": float(results.cost_usd[row])},
        "extra": {
            "celr": {**_describe_run(row, transcript, results, steps), "episode": _describe_end(row, results, episode)}
        },
    }


def _describe_run(
    row: int, transcript: Transcript, results: Results, steps: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the columns of a trajectory that ATIF has no field for.

    A run that gave up is a failure; but if it did so with a right answer in hand, its outcome is left unknown here, so
    that no trainer learns to avoid the answer. `episode.success` has the episode's own.
    """
    task = transcript.task
    success = results.success[row]
    is_accepted = results.end_reason[row] == EndReason.STOPPED
    last = transcript.last_answer
    is_unlucky = not is_accepted and last is not None and last.check is not None and last.check.passed
    is_unknown = bool(np.isnan(success)) or is_unlucky
    n_attempts = sum(event.sent is not None for event in transcript.events)
    hidden = [s for s in steps if s["message"] and s.get("extra", {}).get("celr", {}).get("is_placeholder")]
    run = CelrRun(
        task_id=task.task_id,
        domain=task.domain,
        prompt=task.prompt,
        status="UNKNOWN" if is_unknown else "SUCCESS" if success else "FAILED" if is_accepted else "STUCK",
        success=None if is_unknown else bool(success),
        reward=None if is_unknown else float(results.correctness[row]),
        budget_limit_usd=float(results.budget_usd[row]),
        duration_s=float(results.seconds[row]),
        n_steps=sum(event.text is not None for event in transcript.events),
        n_retries=max(n_attempts - 1, 0),
        n_hidden_messages=len(hidden),
        source_format="celr_ray",
    )
    described: dict[str, Any] = msgspec.to_builtins(run)
    return described


def _describe_end(row: int, results: Results, episode: Mapping[str, Any]) -> dict[str, Any]:
    reward = results.total_reward[row]
    success = results.success[row]
    return {
        **episode,
        "success": None if np.isnan(success) else bool(success),
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


def _number_contexts(transcript: Transcript) -> list[int]:
    """Return for each event the number of the talk that it belongs to; a new one begins where an attempt drops history.

    An attempt goes on with the last talk if it sends all of it and more, or the same again after a call that failed.
    """
    numbers: list[int] = []
    number, sent, was_answered = 0, list[dict[str, str]](), False
    for event in transcript.events:
        if event.sent is not None:
            extends = len(event.sent) > len(sent) and event.sent[: len(sent)] == sent
            repeats = event.sent == sent and not was_answered
            number += bool(sent) and not (extends or repeats)
            sent, was_answered = event.sent, event.text is not None
        numbers.append(number)
    return numbers


def _say(event: Event, before: Chat, *, is_new: bool) -> list[dict[str, Any]]:
    """Return the messages of an attempt that its talk does not hold yet."""
    if event.sent is None or (event.sent == before and not is_new):
        return []
    said = event.sent if is_new else event.sent[-1:]
    return [{"step_id": 0, "source": message["role"], "message": message["content"]} for message in said]


def _hide(steps: list[dict[str, Any]]) -> None:
    """Mark steps as placeholders, so that readers of this package leave them out of the messages."""
    for step in steps:
        step.setdefault("extra", {}).setdefault("celr", {})["is_placeholder"] = True


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
