"""Cold start: with too few logs to learn from, the static heuristic is cloned into a network.

States come from the decision process itself, run by the heuristic with exploration through a world of random outcomes:
tiers, prices, answers, verdicts and failures of every kind, so that the clone has seen what real runs may bring. The
clone is worth no more than the heuristic; it is there so that the path from training to deployment is the same from
the first day, and so that later trainings have something to start from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celr_ray.core.episodes import UNVERIFIED, Episodes, KeyArray, Limits, Outcomes, TaskColumns
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.core.executor import Decisions, Verdicts, run_episodes
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action, FloatArray, IntArray
from celr_ray.cortex.artefact import save_artefact
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.policy import EpsilonSoft
from celr_ray.cortex.state import N_FEATURES
from celr_ray.cortex.support import fit_support
from celr_ray.cortex.trials import (
    Report,
    Trial,
    TrialData,
    describe_result,
    make_trial_artefact,
    policy_uri,
    train_weights,
)
from celr_ray.errors import PolicyError

__all__ = [
    "MIN_AGREEMENT",
    "Agreement",
    "check_agreement",
    "measure_agreement",
    "run_clone",
    "sample_decisions",
    "sample_transitions",
]

MIN_AGREEMENT = 0.99
"""Share of fresh valid states in which a clone must decide as the heuristic."""

_EPSILON = 0.5
_EPISODES_AT_ONCE = 1024
_MAX_TIERS = 4
_CLONE_STATES = 60_000


@dataclass(frozen=True)
class Agreement:
    """How well a network does what the heuristic does, in states that neither was trained on.

    Attributes:
        overall: share of states in which the policy decides as the heuristic.
        own: the same of the network alone, where it decides for itself.
        fallback_rate: share of states that the policy leaves to the heuristic itself.
        n: states.
    """

    overall: float
    own: float
    fallback_rate: float
    n: int


class _RandomWorld:
    """A world whose outcomes are drawn at random, each kind often enough."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self._rng = rng
        self._price = rng.uniform(0.005, 0.4, size=n)
        """Price of an attempt on the cheapest tier, as a share of the budget."""

    def quote_usd(self, episodes: Episodes, live: IntArray) -> FloatArray:
        """Return prices, [K, A]; the next tier costs twice as much."""
        price = self._price[live] * 2.0 ** episodes.tier[live] * episodes.tasks.budget_usd[live]
        quotes = np.repeat(price[:, None], N_ACTIONS, axis=1)
        quotes[:, Action.ESCALATE] *= 2
        quotes[:, Action.VERIFY] *= self._rng.integers(0, 2, size=len(live))
        return quotes

    def act(self, episodes: Episodes, live: IntArray, actions: IntArray) -> Outcomes:
        """Draw what the actions lead to."""
        rng, k = self._rng, len(live)
        found = Outcomes.nothing(k)
        is_attempt, is_verify = np.isin(actions, ATTEMPTS), actions == Action.VERIFY
        calls = is_attempt | is_verify
        price = self._price[live] * 2.0 ** episodes.tier[live] * episodes.tasks.budget_usd[live]
        found.cost_usd = np.where(calls, np.minimum(price, episodes.left_usd(live)) * rng.uniform(0.2, 1, size=k), 0.0)
        found.seconds = np.where(calls, episodes.tasks.time_limit_s[live] * rng.uniform(0, 0.2, size=k), 0.0)
        found.has_answer = is_attempt & (rng.random(k) < 0.9)
        found.has_code = found.has_answer & (rng.random(k) < 0.7)
        found.answer_key = rng.integers(1, 2**62, size=k).astype(np.uint64)
        is_known = rng.random(k) < 0.7
        found.confidence = np.where(found.has_answer & is_known, rng.random(k), np.nan)
        found.context_used = np.where(is_attempt, rng.random(k), 0.0)
        found.passed = np.where(is_verify & (rng.random(k) < 0.95), rng.integers(0, 2, size=k), UNVERIFIED)
        return found

    def check(self, episodes: Episodes) -> Verdicts:
        """Say that all answers are wrong: what is cloned are decisions, not outcomes."""
        n = len(episodes.tier)
        return Verdicts(np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool))


def _draw_tasks(rng: np.random.Generator, n: int) -> TaskColumns:
    key: KeyArray = rng.integers(0, 2**63, size=n).astype(np.uint64)
    is_probed = rng.random(n) < 0.3
    is_known = rng.random(n) < 0.8
    return TaskColumns(
        key=key,
        budget_usd=np.ones(n),
        time_limit_s=np.ones(n),
        difficulty=np.where(is_known, rng.random(n), 0.5),
        is_difficulty_known=is_known,
        risk=np.where(rng.random(n) < 0.5, 0.0, rng.random(n)),
        is_coding=rng.random(n) < 0.4,
        has_verifier=rng.random(n) < 0.7,
        needs_code=rng.random(n) < 0.3,
        probe_agreement=np.where(is_probed, rng.integers(0, 2, size=n).astype(float), np.nan),
        probe_confidence=np.where(is_probed, rng.random(n), np.nan),
        probe_usd=np.where(is_probed, rng.uniform(0, 0.2, size=n), 0.0),
        probe_s=np.zeros(n),
    )


def sample_decisions(n: int, escalation: EscalationConfig, *, seed: int) -> Decisions:
    """Return at least n decisions of an exploring heuristic in a world of random outcomes.

    Args:
        n: least number of decisions.
        escalation: the heuristic's thresholds.
        seed: of everything drawn.
    """
    rng = np.random.default_rng(seed)
    policy = EpsilonSoft(HeuristicPolicy(escalation), _EPSILON)
    found: list[Decisions] = []
    while sum(len(decisions.t) for decisions in found) < n:
        tasks = _draw_tasks(rng, _EPISODES_AT_ONCE)
        n_tiers = 1 + len(found) % _MAX_TIERS
        episodes = Episodes(tasks, n_tiers, Limits(), escalation, start_tier=0)
        results = run_episodes(episodes, policy, _RandomWorld(rng, _EPISODES_AT_ONCE), seed=int(rng.integers(2**31)))
        found.append(results.decisions)
    return _join(found)


def _join(found: list[Decisions]) -> Decisions:
    first = found[0]
    columns = {
        name: np.concatenate([getattr(decisions, name) for decisions in found])
        for name in vars(first)
        if name != "outcomes"
    }
    return Decisions(**columns, outcomes=first.outcomes)


def sample_transitions(n: int, escalation: EscalationConfig, *, seed: int) -> dict[str, NDArray[Any]]:
    """Return states with what the heuristic would do there, as training columns for BC.

    Args:
        n: least number of states.
        escalation: the heuristic's thresholds.
        seed: of the states.
    """
    decisions = sample_decisions(n, escalation, seed=seed)
    wanted = HeuristicPolicy(escalation).probabilities(decisions.obs, decisions.mask).argmax(axis=1)
    obs = np.concatenate([decisions.obs, decisions.mask], axis=1).astype(np.float32)
    n_rows = len(obs)
    return {
        "obs": obs,
        "new_obs": obs,
        "actions": wanted,
        "rewards": np.zeros(n_rows, dtype=np.float32),
        "terminateds": np.ones(n_rows, dtype=bool),
        "truncateds": np.zeros(n_rows, dtype=bool),
    }


def measure_agreement(policy: LearnedPolicy, escalation: EscalationConfig, *, seed: int, n: int = 20_000) -> Agreement:
    """Compare a policy's likeliest action with the heuristic's in fresh valid states.

    Args:
        policy: the clone.
        escalation: the heuristic's thresholds.
        seed: of the states; another than the training's.
        n: least number of states.
    """
    decisions = sample_decisions(n, escalation, seed=seed)
    wanted = HeuristicPolicy(escalation).probabilities(decisions.obs, decisions.mask).argmax(axis=1)
    is_equal = policy.probabilities(decisions.obs, decisions.mask).argmax(axis=1) == wanted
    is_own = ~policy.is_fallback(decisions.obs)
    own = float(is_equal[is_own].mean()) if is_own.any() else 0.0
    return Agreement(float(is_equal.mean()), own, float(1 - is_own.mean()), len(wanted))


def check_agreement(agreement: Agreement) -> None:
    """Refuse a clone that is none.

    Raises:
        PolicyError: it decides otherwise too often.
    """
    if min(agreement.overall, agreement.own) < MIN_AGREEMENT:
        raise PolicyError(
            f"the clone of the heuristic agrees with it in {agreement.own:.2%} of fresh states, not in "
            f"{MIN_AGREEMENT:.0%}: raise --train.bc-updates or --train.hidden, or take their defaults"
        )


def run_clone(trial: Trial, data: TrialData, report: Report | None = None) -> dict[str, Any]:
    """Clone the heuristic, check that it is cloned, and write the artefact.

    Args:
        trial: its seed gives states, weights and minibatches.
        data: name, thresholds and steps; its transitions are not looked at.
        report: is told the losses at each point of the curve.

    Returns:
        Trial, content hash, curve and agreement, as JSON values.

    Raises:
        PolicyError: the clone decides otherwise than the heuristic too often.
    """
    from celr_ray.cortex.algorithms.feeding import MemorySource

    columns = sample_transitions(_CLONE_STATES, data.escalation, seed=trial.seed)
    weights, curve = train_weights(trial, data, MemorySource(columns), warm_start=None, report=report)
    support = fit_support(columns["obs"][:, :N_FEATURES])
    artefact = make_trial_artefact(trial, replace(data, data_hash=None), weights, support, curve)
    agreement = measure_agreement(LearnedPolicy(artefact), data.escalation, seed=trial.seed + 1)
    check_agreement(agreement)
    save_artefact(policy_uri(data.out, trial), artefact)
    return {**describe_result(trial, artefact, curve), "agreement": vars(agreement)}
