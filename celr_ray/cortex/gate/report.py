"""What a gate leaves behind: `gate_report.json`, the same bytes for the same policies, suite, settings and seed.

It binds by their hashes what the verdict rests on, so that it can serve as evidence for a promotion. No time, host,
path or order of arrival is in it; those are in `run.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from celr_ray.cortex.evaluation.statistics import (
    Interval,
    clustered_noninferiority,
    cost_upper_bounds,
    count_discordant,
    tango,
    tango_interval,
)
from celr_ray.cortex.gate.compare import Comparison
from celr_ray.cortex.gate.criteria import Criteria, GateDecision, GateVerdict
from celr_ray.cortex.gate.holes import HoleResult
from celr_ray.cortex.gate.plan import GatePlan
from celr_ray.cortex.gate.results import Role
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.stage import hash_gate_config
from celr_ray.cortex.gate.suites import SuiteFacts
from celr_ray.cortex.policy import Policy

__all__ = ["FORMAT", "GateReport", "apply_holes", "make_document"]

FORMAT, VERSION = "celr-ray gate report", 1
MAX_REGRESSED = 200


@dataclass(frozen=True)
class GateReport:
    """A verdict and all that it rests on.

    Attributes:
        verdict: PASS, FAIL or INCONCLUSIVE.
        reasons: why, most important first.
        document: what `gate_report.json` holds.
    """

    verdict: GateVerdict
    reasons: tuple[str, ...]
    document: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """Return what a command ends with: 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
        return self.verdict.exit_code

    def to_bytes(self) -> bytes:
        """Return the file's contents: sorted keys, no NaN."""
        text = json.dumps(self.document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    def __str__(self) -> str:
        """Return one line for people."""
        n = self.document["n_tasks_used"]
        return f"{self.verdict}: {self.reasons[0]} ({n:,} of {self.document['n_tasks']:,} tasks)"


def apply_holes(decision: GateDecision, holes: Sequence[HoleResult]) -> tuple[GateVerdict, tuple[str, ...]]:
    """Return verdict and reasons of a gate that lets a loophole through: it cannot be trusted, so it never passes."""
    passed = [hole.name for hole in holes if hole.verdict is GateVerdict.PASS and not hole.is_control]
    if not passed:
        return decision.verdict, decision.reasons
    reason = f"this gate cannot be trusted here: it passes what must never pass ({', '.join(passed)})"
    verdict = GateVerdict.INCONCLUSIVE if decision.verdict is GateVerdict.PASS else decision.verdict
    return verdict, (reason, *decision.reasons) if verdict is GateVerdict.INCONCLUSIVE else (*decision.reasons, reason)


def make_document(
    plan: GatePlan,
    config: GateConfig,
    facts: SuiteFacts,
    policies: Mapping[Role, Policy],
    references: Mapping[str, str],
    decision: GateDecision,
    criteria: Criteria,
    holes: Sequence[HoleResult],
    comparison: Comparison,
    screen: Mapping[str, Any] | None,
    results: Mapping[str, Any],
) -> GateReport:
    """Put the report together.

    Args:
        plan: tasks and order.
        config: settings.
        facts: of the suite.
        policies: by role; the champion's stands for an anchor that is the same.
        references: by role, how the policy was named.
        decision: of the criteria.
        criteria: with all figures of the prefix.
        holes: what the judge said of the deceits.
        comparison: with the baselines.
        screen: what logs said; None = there were none.
        results: rows and hash of the per-task results.
    """
    verdict, reasons = apply_holes(decision, holes)
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "celr_ray": metadata.version("celr-ray"),
        "verdict": verdict.value,
        "reasons": list(reasons),
        "n_tasks": len(plan.task_ids),
        "n_tasks_used": decision.n_tasks,
        "is_early": decision.is_early,
        "seed": config.seed,
        **{
            role: {
                "name": policy.name,
                "content_hash": policy.content_hash,
                "reference": references.get(role, policy.name),
            }
            for role, policy in policies.items()
        },
        "suite": {
            "kind": facts.kind,
            "content_hash": facts.content_hash,
            "order_hash": plan.content_hash,
            "cap_usd": plan.cap_usd,
            "replays": plan.replays,
            **facts.details,
        },
        "price_table": dict(facts.prices),
        "config": {"content_hash": hash_gate_config(config), **config.model_dump(mode="json")},
        "results": dict(results),
        "figures": describe_figures(plan, criteria, with_seconds=facts.kind == "bank"),
        "criteria": describe_criteria(plan, config, decision, criteria),
        "strata": [asdict(stratum) for stratum in decision.strata],
        "regressed": {
            "n": len(decision.regressed),
            "tasks": [asdict(task) for task in decision.regressed[:MAX_REGRESSED]],
        },
        "screen": dict(screen) if screen is not None else None,
        "loopholes": [{**asdict(hole), "verdict": hole.verdict.value} for hole in holes],
        "comparison": {"rows": [row.to_json() for row in comparison.rows], "notes": list(comparison.notes)},
    }
    return GateReport(verdict, reasons, _to_plain(document))


def _to_plain(value: Any) -> Any:
    """Return JSON values; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_figures(plan: GatePlan, criteria: Criteria, *, with_seconds: bool) -> dict[str, Any]:
    """Return each role's observed figures on the prefix; seconds that were measured now would differ in every run."""
    found = {}
    names = ("success", "cost_usd", *(("seconds",) if with_seconds else ()))
    for role in plan.roles:
        values = {name: criteria.values(role, name) for name in names}
        counts = ("n_unsafe", "n_censored", "n_timed_out", "n_decisions", "n_fallbacks")
        found[role] = {
            **{name: float(array.mean()) if len(array) else None for name, array in values.items()},
            **{name: int(criteria.values(role, name).sum()) for name in counts},
        }
    return found


def describe_criteria(
    plan: GatePlan, config: GateConfig, decision: GateDecision, criteria: Criteria
) -> list[dict[str, Any]]:
    """Return one entry for each criterion: what it asks, what was found, whether it holds.

    Intervals are those of a fixed number of tasks, at the gate's α on each side; after an early stop they describe.
    """
    found: list[dict[str, Any]] = []
    for name, (said, n, p_value) in decision.tests.items():
        base = plan.base_of_anchor if name.endswith("anchor") else "champion"
        rule, estimate = _estimate(name, base, plan, config, criteria)
        entry = {"name": name, "rule": rule, "decision": said.value, "decided_at": n, "final_p_value": p_value}
        found.append({**entry, "holds": said.is_pass, **estimate})
    found.append(
        {
            "name": "unsafe",
            "rule": f"none, and an upper bound of at most {config.max_unsafe_rate:g}",
            "holds": decision.unsafe_upper is not None and decision.unsafe_upper <= config.max_unsafe_rate,
            "decided_at": decision.n_tasks,
            "value": int(criteria.values("candidate", "n_unsafe").sum()),
            "ci_high": decision.unsafe_upper,
        }
    )
    return found


def _estimate(
    name: str, base: str, plan: GatePlan, config: GateConfig, criteria: Criteria
) -> tuple[str, dict[str, Any]]:
    """Return a test's rule in words and the estimate that goes with it; nothing where a result is none."""
    is_cost = "cost" in name or "cheaper" in name
    is_better = name.startswith(("more", "cheaper"))
    margin = 0.0 if is_better else config.success_margin
    ratio = 1.0 if is_better else config.cost_ratio
    rule = f"cost − {ratio:g} × {base}'s < 0" if is_cost else f"success − {base}'s > {0 - margin:g}"
    column = "cost_usd" if is_cost else "success"
    new, old = criteria.values("candidate", column), criteria.values(base, column)
    if not len(new) or not np.isfinite(new).all() or not np.isfinite(old).all():
        return rule, {}
    if is_cost:
        cap = plan.cap_usd if config.strict_cost else None
        return rule, asdict(cost_upper_bounds(new, old, ratio, config.alpha, seed=config.seed, cap=cap))
    found = _success_interval(new, old, margin, plan.replays, config)
    return rule, {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "p_value": found.p_value}


def _success_interval(new: Any, old: Any, margin: float, replays: int, config: GateConfig) -> Interval:
    if replays > 1:
        return clustered_noninferiority(new - old, margin, config.alpha, config.seed)
    b, c, n = count_discordant(new, old)
    interval = tango_interval(b, c, n, config.alpha)
    return Interval(interval.value, interval.ci_low, interval.ci_high, n, tango(b, c, n, margin).p_value)
