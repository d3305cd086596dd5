"""An off-policy evaluation as text for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from celr_ray import storage
from celr_ray.config import EvaluatePolicyJob
from celr_ray.cortex.evaluation.evaluate import TransitionEvaluation, evaluate_transitions
from celr_ray.cortex.evaluation.screening import Veto, veto
from celr_ray.cortex.policy import Policy, load_policy

__all__ = ["describe_evaluation", "evaluation_to_json", "run_evaluate_policy"]

_NAMES = {
    "is": "importance sampling",
    "wis": "weighted IS",
    "pdis": "per-decision IS",
    "pdwis": "per-decision weighted IS",
    "dr": "doubly robust",
    "fqe": "fitted Q",
}


def run_evaluate_policy(job: EvaluatePolicyJob) -> str:
    """Evaluate a policy, and a champion if one is given, and write the JSON file if one is asked for.

    Returns:
        The table, and one last line with the outcome.

    Raises:
        InputError: there are no transitions.
        PolicyError: a policy cannot be loaded, or the transitions cannot evaluate any.
    """
    policies = {"candidate": load_policy(job.policy, registry=job.registry)}
    if job.champion is not None:
        policies["champion"] = load_policy(job.champion, registry=job.registry)
    found = {role: _evaluate(job, policy) for role, policy in policies.items()}
    word = veto(found["candidate"].report.screen, found["champion"].report.screen) if "champion" in found else None
    if job.out is not None:
        record = {role: evaluation_to_json(policies[role], evaluation) for role, evaluation in found.items()}
        screen = None if word is None else {"verdict": str(word.verdict), "reason": word.reason}
        storage.write_json(job.out, {"transitions": job.transitions, "split": job.split, "veto": screen, **record})
    texts = [describe_evaluation(policies[role], evaluation) for role, evaluation in found.items()]
    return "\n\n".join([*texts, _last_line(found["candidate"], word)])


def _evaluate(job: EvaluatePolicyJob, policy: Policy) -> TransitionEvaluation:
    return evaluate_transitions(
        job.transitions, policy, job.runtime, split=job.split, alpha=job.alpha, seed=job.runtime.seed
    )


def _last_line(candidate: TransitionEvaluation, word: Veto | None) -> str:
    if word is not None:
        return f"{word.verdict}: {word.reason}"
    if not candidate.report.screen.diagnostics.is_evaluable:
        return "NOT_EVALUABLE: do not use these estimates"
    return "evaluable; no champion to compare with (--champion)"


def describe_evaluation(policy: Policy, evaluation: TransitionEvaluation) -> str:
    """Return a table for a terminal: what to distrust first, then the figures."""
    report, screen = evaluation.report, evaluation.report.screen
    found = screen.diagnostics
    level = f"{100 * (1 - screen.alpha):g} %"
    lines = [
        f"{policy.name} ({policy.content_hash}) on {found.n:,} episodes, {evaluation.n_transitions:,} decisions",
        f"  effective episodes {found.ess:,.1f}, largest weight {found.max_weight_share:.3f} of all, weight 0 in "
        f"{found.zero_weight_share:.3f}, mean weight {found.mean_weight:.3f} (z {found.mean_weight_z:+.1f})",
    ]
    if evaluation.n_unknown:
        lines.append(f"  {evaluation.n_unknown:,} more episodes left out: logged without probabilities")
    if found.n_cut:
        lines.append(f"  {found.n_cut:,} episodes are cut: not in the estimates, counted as the worst in the bounds")
    lines += [f"  NOT EVALUABLE: {problem}" for problem in found.problems]
    lines.append(f"  {'':<26}{'value':>10}  95 % interval (an indication)")
    rows = {"the logs themselves": report.behavior, **{_NAMES[name]: x for name, x in report.estimates.items()}}
    for name, estimate in rows.items():
        lines.append(f"  {name:<26}{estimate.value:>10.3f}  [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]")
    if found.is_evaluable:
        lines.append(f"  {f'Gaffke bounds, {level} each':<36}  [{screen.value_low:.3f}, {screen.value_high:.3f}]")
        lines.append(f"  {f'betting bounds, {level} each':<36}  [{screen.betting_low:.3f}, {screen.betting_high:.3f}]")
    return "\n".join(lines)


def evaluation_to_json(policy: Policy, evaluation: TransitionEvaluation) -> dict[str, Any]:
    """Return the same as JSON; what is not a number is null."""
    record = dataclasses.asdict(evaluation)
    return {"policy": policy.name, "content_hash": policy.content_hash, **_to_json(record)}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
