"""The decision process under random and fixed policies, with a world of seeded outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.core.episodes import EndReason, Episodes, Limits, Outcomes, TaskColumns
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, EscalationConfig, HeuristicPolicy
from celr_ray.core.executor import Results, Verdicts, draw_uniform, run_episodes
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action
from celr_ray.cortex.policy import EpsilonSoft, Policy, RandomPolicy
from celr_ray.errors import PolicyError


@dataclass
class SeededWorld:
    """Prices, answers and verdicts drawn by seed, task and number of the decision; quotes are true worst cases."""

    seed: int
    n_tiers: int
    price_usd: float = 0.01
    p_right: float = 0.5
    n_answers: int = 1000
    p_unsafe: float = 0.0
    checked: bool = True
    overcharge: float = 1.0

    def quote_usd(self, episodes: Episodes, live: np.ndarray) -> np.ndarray:
        quotes = np.zeros((len(live), N_ACTIONS))
        for action in (Action.RECURSE, Action.RETRY_COMPRESSED):
            quotes[:, action] = self.price_usd * 10.0 ** episodes.tier[live]
        quotes[:, Action.ESCALATE] = self.price_usd * 10.0 ** episodes.target_tier(live)
        quotes[:, Action.VERIFY] = self.price_usd / 10
        return quotes

    def _draw(self, episodes: Episodes, live: np.ndarray, what: int) -> np.ndarray:
        key = np.full(len(live), what, dtype=np.uint64)
        return draw_uniform(self.seed, episodes.tasks.key[live], episodes.decisions[live].astype(np.uint64), key)

    def act(self, episodes: Episodes, live: np.ndarray, actions: np.ndarray) -> Outcomes:
        outcomes = Outcomes.nothing(len(live))
        attempt = np.isin(actions, ATTEMPTS)
        quotes = self.quote_usd(episodes, live)[np.arange(len(live)), actions]
        outcomes.cost_usd = quotes * self._draw(episodes, live, 1) * self.overcharge
        outcomes.seconds = np.where(actions < Action.STOP, 5 * self._draw(episodes, live, 2), 0.0)
        outcomes.has_answer = attempt & (self._draw(episodes, live, 3) < 0.9)
        outcomes.answer_key = (self._draw(episodes, live, 4) * self.n_answers).astype(np.uint64)
        verdict = (self._draw(episodes, live, 5) < 0.5).astype(np.int64)
        outcomes.passed = np.where(actions == Action.VERIFY, verdict, -1)
        outcomes.unsafe = attempt & (self._draw(episodes, live, 6) < self.p_unsafe)
        return outcomes

    def check(self, episodes: Episodes) -> Verdicts:
        everyone = np.arange(len(episodes.tier))
        nothing = np.zeros(len(everyone), dtype=bool)
        if not self.checked:
            return Verdicts(np.full(len(everyone), np.nan), np.full(len(everyone), np.nan), nothing)
        right = self._draw(episodes, everyone, 7) < self.p_right
        return Verdicts(right.astype(float), np.where(right, 1.0, 0.4), nothing)


def make_tasks(n: int, budget_usd: float = 1.0, difficulty: float = 0.3, has_verifier: bool = True) -> TaskColumns:
    return TaskColumns(
        key=np.arange(1, n + 1, dtype=np.uint64),
        budget_usd=np.full(n, budget_usd),
        time_limit_s=np.full(n, 30.0),
        difficulty=np.full(n, difficulty),
        is_difficulty_known=np.ones(n, dtype=bool),
        risk=np.zeros(n),
        is_coding=np.zeros(n, dtype=bool),
        has_verifier=np.full(n, has_verifier),
        needs_code=np.zeros(n, dtype=bool),
        probe_agreement=np.full(n, np.nan),
        probe_confidence=np.full(n, np.nan),
        probe_usd=np.zeros(n),
        probe_s=np.zeros(n),
    )


def run(policy: Policy, world: SeededWorld, tasks: TaskColumns, limits: Limits | None = None) -> Results:
    limits = limits or Limits()
    episodes = Episodes(tasks, world.n_tiers, limits, EscalationConfig(), start_tier=policy.start_tier)
    return run_episodes(episodes, policy, world, seed=world.seed)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_tiers=st.integers(1, 4),
    budget=st.sampled_from([1e-4, 0.005, 0.02, 0.3, 5.0]),
    n_answers=st.sampled_from([1, 2, 1000]),
    limits=st.builds(
        Limits,
        attempts_per_tier=st.integers(1, 4),
        verifications_per_answer=st.integers(1, 2),
        decisions=st.integers(2, 20),
    ),
)
def test_no_random_policy_can_break_the_caps(
    seed: int, n_tiers: int, budget: float, n_answers: int, limits: Limits
) -> None:
    world = SeededWorld(seed, n_tiers, n_answers=n_answers, p_unsafe=0.05)
    results = run(RandomPolicy(), world, make_tasks(40, budget), limits)
    decisions = results.decisions
    assert (results.end_reason != EndReason.RUNNING).all()
    assert (results.cost_usd <= budget * (1 + 1e-9)).all()
    assert decisions.mask[np.arange(len(decisions.t)), decisions.action].all()
    assert decisions.mask[:, Action.ABORT].all()
    per_episode = np.bincount(decisions.episode, minlength=40)
    assert per_episode.max() <= limits.decisions
    verified = decisions.action == Action.VERIFY
    attempts = np.isin(decisions.action, ATTEMPTS)
    assert np.bincount(decisions.episode[attempts], minlength=40).max() <= limits.attempts_per_tier * n_tiers
    assert decisions.mask[verified, Action.STOP].all(), "VERIFY needs an answer"
    unsafe = results.unsafe.astype(bool)
    assert (results.success[unsafe] == 0).all()
    wins, losses = results.total_reward[results.success == 1], results.total_reward[results.success == 0]
    if len(wins) and len(losses):
        assert wins.min() > losses.max()
    honest = results.total_reward[(results.success == 0) & ~unsafe]
    if unsafe.any() and len(honest):
        assert results.total_reward[unsafe].max() < honest.min()


def test_an_episode_is_the_same_alone_and_among_others() -> None:
    world = SeededWorld(3, 2)
    together = run(RandomPolicy(), world, make_tasks(30))
    tasks = make_tasks(30)
    alone = TaskColumns(**{name: value[7:8] for name, value in vars(tasks).items()})
    single = run(RandomPolicy(), world, alone)
    assert single.total_reward[0] == together.total_reward[7]
    assert (single.decisions.action == together.decisions.action[together.decisions.episode == 7]).all()


def test_a_budget_below_the_cheapest_call_leaves_only_abort() -> None:
    results = run(RandomPolicy(), SeededWorld(0, 2), make_tasks(5, budget_usd=1e-6))
    assert (results.end_reason == EndReason.UNAFFORDABLE).all()
    assert (results.decisions.mask.sum(axis=1) == 1).all()
    assert (results.success == 0).all()


def test_a_call_that_costs_more_than_its_worst_case_and_than_is_left_ends_the_episode_as_a_failure() -> None:
    results = run(HeuristicPolicy(), SeededWorld(0, 2, p_right=1.0, overcharge=30.0), make_tasks(200, 0.05))
    over = results.end_reason == EndReason.OVER_BUDGET
    assert 0 < over.sum() < len(over), "the test needs both kinds"
    assert ((results.cost_usd > results.budget_usd) == over).all()
    assert (results.success[over] == 0).all()
    assert (results.correctness[over] == 0).all()
    last = results.decisions.t == results.n_decisions[results.decisions.episode] - 1
    assert np.isin(results.decisions.action[last & over[results.decisions.episode]], [*ATTEMPTS, Action.VERIFY]).all()
    assert results.total_reward[over].max() <= -100
    assert results.total_reward[over].min() >= -102
    assert results.total_reward[results.success == 1].min() > results.total_reward[over].max()


def test_the_same_answer_verdict_and_context_end_the_episode() -> None:
    class Loop:
        name, content_hash, start_tier = "loop", "0", 0

        def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
            order = [Action.VERIFY, Action.RETRY_COMPRESSED, Action.RECURSE, Action.ABORT]
            chosen = [next(action for action in order if row[action]) for row in mask]
            return np.eye(N_ACTIONS)[chosen]

    world = SeededWorld(1, 1, n_answers=1)
    results = run(Loop(), world, make_tasks(50, 100.0), Limits(attempts_per_tier=6))
    assert (results.end_reason == EndReason.REPEATED_STATE).any()
    assert (results.success[results.end_reason == EndReason.REPEATED_STATE] == 0).all()


def test_without_a_checker_success_and_reward_stay_unknown() -> None:
    results = run(HeuristicPolicy(), SeededWorld(0, 2, checked=False), make_tasks(5))
    assert np.isnan(results.success).all()
    assert np.isnan(results.total_reward).all()


@pytest.mark.parametrize(("policy", "tier"), [(AlwaysCheap(), 0.0), (AlwaysStrong(), 1.0)])
def test_fixed_policies_take_one_answer_of_their_tier(policy: Policy, tier: float) -> None:
    results = run(policy, SeededWorld(0, 3), make_tasks(20, 100.0))
    column = results.decisions.obs[:, 11]
    assert (column == tier).all()
    assert set(results.decisions.action) <= {Action.RECURSE, Action.STOP, Action.ABORT}


@pytest.mark.parametrize(
    ("difficulty", "budget", "first", "tier"),
    [(0.2, 100.0, "RECURSE", 0.0), (0.5, 100.0, "ESCALATE", 0.5), (0.9, 100.0, "ESCALATE", 1.0)],
)
def test_the_heuristic_starts_by_difficulty(difficulty: float, budget: float, first: str, tier: float) -> None:
    world = SeededWorld(0, 3)
    results = run(HeuristicPolicy(), world, make_tasks(1, budget, difficulty))
    assert Action(int(results.decisions.action[0])).name == first
    assert results.decisions.obs[1, 11] == tier


def test_exploration_takes_every_allowed_and_safe_action_and_nothing_else() -> None:
    def never_escalate(obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        safe = np.ones_like(mask)
        safe[:, Action.ESCALATE] = False
        return safe

    policy = EpsilonSoft(HeuristicPolicy(), 0.2, never_escalate)
    decisions = run(policy, SeededWorld(0, 2), make_tasks(2000, 100.0)).decisions
    safe = decisions.mask.copy()
    safe[:, Action.ESCALATE] = False
    least = 0.2 / safe.sum(axis=1)
    assert np.allclose(decisions.probabilities.sum(axis=1), 1)
    assert (decisions.probabilities[safe] >= np.repeat(least, safe.sum(axis=1)) - 1e-12).all()
    assert (decisions.probabilities[~decisions.mask] == 0).all()
    taken = np.bincount(decisions.action, minlength=N_ACTIONS) / len(decisions.action)
    assert np.allclose(taken, decisions.probabilities.mean(axis=0), atol=0.02)


@pytest.mark.parametrize("bad", [np.nan, -0.5, 2.0])
def test_a_policy_that_gives_no_probabilities_is_refused(bad: float) -> None:
    class Broken(RandomPolicy):
        name = "broken"

        def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> Any:
            return np.full(mask.shape, bad)

    with pytest.raises(PolicyError, match="broken"):
        run(Broken(), SeededWorld(0, 2), make_tasks(3))


def test_a_policy_that_wants_a_masked_action_is_refused() -> None:
    class Masked(RandomPolicy):
        name = "masked"

        def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> Any:
            return np.eye(N_ACTIONS)[np.full(len(mask), Action.STOP)]

    with pytest.raises(PolicyError, match="STOP"):
        run(Masked(), SeededWorld(0, 2), make_tasks(3))
