"""Candidate and champion beside the baselines, on the tasks that the verdict rests on: success, cost, curve, regret.

These figures describe; none of them decides. Intervals are bootstraps over tasks. Censored episodes count as failures
that spent their whole budget, for every policy alike, as do those that took longer than their time limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, HeuristicPolicy
from celr_ray.cortex.actions import FloatArray, IntArray
from celr_ray.cortex.evaluation.baselines import RetryThenEscalate, make_baselines
from celr_ray.cortex.evaluation.metrics import Metric, bootstrap_mean, measure_curve
from celr_ray.cortex.evaluation.oracle import OracleResults, find_hindsight_ceiling, find_leave_one_out_oracle
from celr_ray.cortex.evaluation.replay_run import ReplayResults, ReplaySuite, run_replay
from celr_ray.cortex.policy import Policy
from celr_ray.errors import PolicyError

__all__ = ["Comparison", "PolicyRow", "compare_policies", "describe_roles"]

_DRAWS = 1_000
_WEAK, _STRONG = "always-cheap", "always-strong"


@dataclass(frozen=True)
class PolicyRow:
    """One policy's figures.

    Attributes:
        name: of the policy.
        role: candidate, champion, anchor, baseline, or ceiling (an oracle: no policy).
        content_hash: of the policy; None of a ceiling.
        n: tasks.
        success, cost_usd: means.
        pgr: share of the gap between always-cheap and always-strong that it recovers.
        apgr, cpt50, cpt80: of the curve always-cheap → policy → always-strong.
        regret_success, regret_usd: leave-one-out oracle's success − its own; its own cost − the oracle's.
    """

    name: str
    role: str
    content_hash: str | None
    n: int
    success: Metric
    cost_usd: Metric
    pgr: Metric | None = None
    apgr: Metric | None = None
    cpt50: Metric | None = None
    cpt80: Metric | None = None
    regret_success: Metric | None = None
    regret_usd: Metric | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The table.

    Attributes:
        rows: candidate first.
        notes: what is missing and why.
    """

    rows: tuple[PolicyRow, ...]
    notes: tuple[str, ...]


def describe_roles(
    policies: Mapping[str, Policy], success: Mapping[str, FloatArray], cost: Mapping[str, FloatArray], seed: int
) -> list[PolicyRow]:
    """Return the rows of candidate, champion and anchor from their per-task figures, [n] each."""
    return [
        PolicyRow(
            policy.name,
            role,
            policy.content_hash,
            len(success[role]),
            bootstrap_mean(success[role], draws=_DRAWS, seed=seed),
            bootstrap_mean(cost[role], draws=_DRAWS, seed=seed),
        )
        for role, policy in policies.items()
        if len(success[role])
    ]


def compare_policies(
    suite: ReplaySuite,
    train: ReplaySuite | None,
    policies: Mapping[str, Policy],
    task_ids: Sequence[str],
    *,
    seed: int,
) -> Comparison:
    """Replay candidate, champion, anchor and the baselines on some tasks.

    Args:
        suite: a bank made ready; holds the tasks.
        train: its training tasks, to tune baselines on; None = there are none.
        policies: by role.
        task_ids: [n] where to compare.
        seed: of the resamples.
    """
    place = {task_id: row for row, task_id in enumerate(suite.bank.task_ids)}
    rows = np.array([place[task_id] for task_id in task_ids], dtype=np.int64)
    notes: list[str] = []
    played: list[tuple[str, Policy, FloatArray, FloatArray]] = []
    seen: set[str] = set()
    for role, policy in [*policies.items(), *_make_baselines(suite, train, policies["candidate"], notes)]:
        if role == "baseline" and policy.content_hash in seen and policy.name not in (_WEAK, _STRONG):
            continue
        seen.add(policy.content_hash)
        try:
            played.append((role, policy, *_mean_figures(run_replay(suite, policy, rows=rows))))
        except PolicyError as error:
            notes.append(f"{policy.name} ({role}) cannot be replayed: {error}")
    oracle = find_leave_one_out_oracle(suite)
    found = [_describe(role, policy, success, cost, seed) for role, policy, success, cost in played]
    found = _add_curves(found, played, seed, notes)
    found = _add_regrets(found, played, oracle, rows, seed, notes)
    ceilings = [_describe_ceiling(one, rows, seed) for one in (oracle, find_hindsight_ceiling(suite))]
    return Comparison((*found, *(row for row in ceilings if row is not None)), tuple(notes))


def _make_baselines(
    suite: ReplaySuite, train: ReplaySuite | None, candidate: Policy, notes: list[str]
) -> list[tuple[str, Policy]]:
    """Return the baselines, tuned to the candidate's cost on the training tasks."""
    try:
        if train is not None:
            cost = float(run_replay(train, candidate).cost_bounds()[1].mean())
            return [("baseline", policy) for policy in make_baselines(train, max_cost_usd=cost)]
        notes.append("there are no training tasks: random mix and tuned cascade are left out")
    except PolicyError:
        notes.append("the candidate cannot decide: random mix and tuned cascade have no cost to be tuned to")
    plain: list[Policy] = [AlwaysCheap(), AlwaysStrong(), HeuristicPolicy(suite.config.escalation), RetryThenEscalate()]
    return [("baseline", policy) for policy in plain]


def _mean_figures(results: ReplayResults) -> tuple[FloatArray, FloatArray]:
    """Return success and cost of each task, [n], the mean over replays."""
    late, budget = results.timed_out, results.budget_usd[:, None]
    success, cost = results.success_bounds()[0], results.cost_bounds()[1]
    return np.where(late, 0.0, success).mean(axis=1), np.where(late, np.fmax(budget, cost), cost).mean(axis=1)


def _describe(role: str, policy: Policy, success: FloatArray, cost: FloatArray, seed: int) -> PolicyRow:
    means = (bootstrap_mean(values, draws=_DRAWS, seed=seed) for values in (success, cost))
    return PolicyRow(policy.name, role, policy.content_hash, len(success), *means)


def _describe_ceiling(oracle: OracleResults, rows: IntArray, seed: int) -> PolicyRow | None:
    rows = rows[oracle.is_defined[rows]]
    if not len(rows):
        return None
    means = (bootstrap_mean(v[rows].mean(axis=1), draws=_DRAWS, seed=seed) for v in (oracle.success, oracle.cost_usd))
    return PolicyRow(oracle.name, "ceiling", None, len(rows), *means)


_Played = Sequence[tuple[str, Policy, FloatArray, FloatArray]]


def _add_curves(found: list[PolicyRow], played: _Played, seed: int, notes: list[str]) -> list[PolicyRow]:
    """Add each policy's curve between always-cheap and always-strong."""
    ends = {policy.name: (success, cost) for _, policy, success, cost in played if policy.name in (_WEAK, _STRONG)}
    result = []
    for row, (_, policy, success, cost) in zip(found, played, strict=True):
        family = {**ends, policy.name: (success, cost)}
        try:
            metrics = measure_curve(
                list(family),
                np.array([pair[1] for pair in family.values()]),
                np.array([pair[0] for pair in family.values()]),
                weak=_WEAK,
                strong=_STRONG,
                draws=_DRAWS,
                seed=seed,
            )
        except PolicyError as error:
            notes.append(f"no curve: {error}")
            return found
        curve = {"apgr": metrics.apgr, "cpt50": metrics.cpt50, "cpt80": metrics.cpt80, "pgr": metrics.pgr[policy.name]}
        result.append(PolicyRow(**{**vars(row), **curve}))
    return result


def _add_regrets(
    found: list[PolicyRow], played: _Played, oracle: OracleResults, rows: IntArray, seed: int, notes: list[str]
) -> list[PolicyRow]:
    """Add the distance to the leave-one-out oracle, on the tasks where it is defined."""
    defined = oracle.is_defined[rows]
    if not defined.any():
        notes.append("no task has two attempts in every cell: there is no leave-one-out oracle, and no regret to it")
        return found
    best_success, best_cost = (v[rows[defined]].mean(axis=1) for v in (oracle.success, oracle.cost_usd))
    if not defined.all():
        notes.append(f"the leave-one-out oracle is defined on {int(defined.sum())} of {len(rows)} tasks")
    return [
        PolicyRow(
            **{
                **vars(row),
                "regret_success": bootstrap_mean(best_success - success[defined], draws=_DRAWS, seed=seed),
                "regret_usd": bootstrap_mean(cost[defined] - best_cost, draws=_DRAWS, seed=seed),
            }
        )
        for row, (_, _, success, cost) in zip(found, played, strict=True)
    ]
