"""The front door to the gate: `PromotionGate(config).run(candidate, champion, anchor, suite)`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.evaluation.bank import Bank
from celr_ray.cortex.gate.compare import Comparison, compare_policies, describe_roles
from celr_ray.cortex.gate.criteria import GateDecision, GateVerdict
from celr_ray.cortex.gate.holes import HoleResult, check_holes
from celr_ray.cortex.gate.monitor import GateMonitor
from celr_ray.cortex.gate.plan import GatePlan, make_plan
from celr_ray.cortex.gate.practice import make_practice_suite
from celr_ray.cortex.gate.report import GateReport, make_document
from celr_ray.cortex.gate.results import Role, drop_seconds, hash_rows
from celr_ray.cortex.gate.screen import screen_candidate
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.stage import Workers, make_stage_plan, run_gate_stage
from celr_ray.cortex.gate.suites import BankSuite, Suite
from celr_ray.cortex.policy import Policy, load_policy
from celr_ray.stage import StageReport, open_stage

__all__ = ["GateConfig", "GateReport", "GateVerdict", "PromotionGate"]

REPORT, RESULTS, PAGE = "gate_report.json", "gate_results.parquet", "gate_report.html"


@dataclass
class PromotionGate:
    """Decides whether a candidate may take the champion's place.

    Attributes:
        config: margins, levels, sizes, seed.
        out: folder of the gate; a gate that was killed is resumed there. None = nothing is kept.
        runtime: where to run.
        workers: how many.
        transitions: logs for the screen; None = no screen.
        overwrite: replace another gate in the folder.
        stage_report: what the last run did.

    Example:
        >>> report = PromotionGate().run("router@3", "router@champion", "router@anchor", "bank")  # doctest: +SKIP
        >>> report.verdict, report.reasons  # doctest: +SKIP
    """

    config: GateConfig | None = None
    out: str | None = None
    runtime: RuntimeConfig | None = None
    workers: Workers | None = None
    transitions: str | None = None
    overwrite: bool = False
    stage_report: StageReport | None = None

    def run(
        self,
        candidate: Policy | str,
        champion: Policy | str = "heuristic",
        anchor: Policy | str | None = None,
        suite: Suite | Bank | str | None = None,
        *,
        registry: str | None = None,
        references: Mapping[str, str] | None = None,
    ) -> GateReport:
        """Run the gate: loopholes, screen, paired sequential test, strata, report.

        Args:
            candidate: a policy, or what `load_policy` takes.
            champion: who is deployed now.
            anchor: frozen base of the margins; None = the static heuristic.
            suite: tasks; a bank, or the URI of one, is replayed.
            registry: where names are looked up.
            references: by role, what the report calls the policies.

        Raises:
            InputError: the suite holds no usable task.
            PolicyError: champion or anchor cannot decide.
            RunMismatchError: the folder holds another gate.
        """
        config = self.config or GateConfig()
        found = _load(candidate, champion, anchor, registry)
        if suite is None or isinstance(suite, Bank | str):
            suite = BankSuite(suite if suite is not None else "bank", config, _escalation_of(found["anchor"]))
        with ExitStack() as stack:
            out = self.out or stack.enter_context(tempfile.TemporaryDirectory())
            return self._run(config, found, suite, out, references or {})

    def _run(
        self, config: GateConfig, found: dict[Role, Policy], suite: Suite, out: str, references: Mapping[str, str]
    ) -> GateReport:
        facts = suite.facts
        has_own_anchor = found["anchor"].content_hash != found["champion"].content_hash
        plan = make_plan(facts.task_ids, facts.strata, config, cap_usd=facts.cap_usd, has_own_anchor=has_own_anchor)
        policies: dict[Role, Policy] = {role: policy for role, policy in found.items() if role in plan.roles}
        stage_plan = make_stage_plan(suite, policies, plan, config)
        open_stage(out, stage_plan, overwrite=self.overwrite)
        for name in (REPORT, RESULTS, PAGE):  # no verdict stands beside results that it is not of
            storage.delete_file(storage.join(out, name))
        holes = self._check_holes(config, suite, policies, plan)
        runtime = self.runtime or RuntimeConfig()
        screen = None
        if self.transitions is not None:
            screen = screen_candidate(
                self.transitions, found["candidate"], found["champion"], runtime, alpha=config.alpha, seed=config.seed
            )
        monitor = GateMonitor(plan, config)
        if screen is not None and screen["is_rejected"]:
            monitor.criteria.close(GateVerdict.FAIL, [f"screen: {screen['reason']}"])
        else:
            workers = self.workers or Workers()
            self.stage_report = run_gate_stage(out, stage_plan, suite, policies, runtime, workers, monitor)
        decision = monitor.finish()
        rows = monitor.rows() if facts.kind == "bank" else drop_seconds(monitor.rows())
        report = make_document(
            plan,
            config,
            facts,
            found,
            references,
            decision,
            monitor.criteria,
            holes,
            _compare(config, suite, policies, plan, decision, monitor),
            screen,
            {"rows": rows.num_rows, "content_hash": hash_rows(rows), "file": RESULTS},
        )
        storage.write_parquet(storage.join(out, RESULTS), rows)
        storage.write_bytes(storage.join(out, REPORT), report.to_bytes())
        return report

    def _check_holes(
        self, config: GateConfig, suite: Suite, policies: Mapping[Role, Policy], plan: GatePlan
    ) -> tuple[HoleResult, ...]:
        """Try the loopholes on the bank, or for a live suite on a simulated one."""
        if isinstance(suite, BankSuite):
            return check_holes(suite.replay_suite, policies, plan, config)
        practice = make_practice_suite(config)
        facts = practice.facts
        own = make_plan(
            facts.task_ids,
            facts.strata,
            config.model_copy(update={"must_pass": [], "max_tasks": None}),
            cap_usd=facts.cap_usd,
            has_own_anchor="anchor" in plan.roles,
        )
        return check_holes(practice.replay_suite, policies, own, config)


def _load(
    candidate: Policy | str, champion: Policy | str, anchor: Policy | str | None, registry: str | None
) -> dict[Role, Policy]:
    def load(policy: Policy | str) -> Policy:
        return load_policy(policy, registry=registry) if isinstance(policy, str) else policy

    return {"candidate": load(candidate), "champion": load(champion), "anchor": load(anchor or "heuristic")}


def _escalation_of(anchor: Policy) -> EscalationConfig:
    return anchor.config if isinstance(anchor, HeuristicPolicy) else EscalationConfig()


def _compare(
    config: GateConfig,
    suite: Suite,
    policies: Mapping[Any, Policy],
    plan: GatePlan,
    decision: GateDecision,
    monitor: GateMonitor,
) -> Comparison:
    task_ids = plan.task_ids[: decision.n_tasks]
    if isinstance(suite, BankSuite) and task_ids:
        return compare_policies(suite.replay_suite, suite.train_suite, policies, task_ids, seed=config.seed)
    success, cost = (
        {role: monitor.criteria.values(role, name) for role in plan.roles} for name in ("success", "cost_usd")
    )
    is_whole = all(len(v) and np.isfinite(v).all() for part in (success, cost) for v in part.values())
    rows = describe_roles(policies, success, cost, config.seed) if is_whole else []
    return Comparison(tuple(rows), ("baselines are replayed on banks only",))
