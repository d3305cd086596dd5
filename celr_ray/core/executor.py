"""The executor's loop: before every call the policy is asked, and only what the runtime allows is done.

All episodes advance together in waves: one call of the policy for all of them, one of the world. The world is what
carries actions out: live models (`core.live`) or recorded outcomes; this loop is the same for both and knows neither
Ray nor vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from celr_ray.core.episodes import EndReason, Episodes, KeyArray, Outcomes, mix_keys
from celr_ray.cortex.actions import N_ACTIONS, BoolArray, FloatArray, IntArray, check_allowed
from celr_ray.cortex.policy import Policy, check_probabilities, sample_actions
from celr_ray.cortex.reward import final_reward, step_reward
from celr_ray.cortex.state import N_FEATURES

__all__ = ["Decisions", "Results", "Verdicts", "World", "draw_uniform", "run_episodes"]


class World(Protocol):
    """What carries actions out. `live` are row numbers [K] of the episodes."""

    def quote_usd(self, episodes: Episodes, live: IntArray) -> FloatArray:
        """Return the worst-case price of each action, [K, A] US$; infinite = it cannot be done."""
        ...

    def act(self, episodes: Episodes, live: IntArray, actions: IntArray) -> Outcomes:
        """Do one allowed action for each episode."""
        ...

    def check(self, episodes: Episodes) -> Verdicts:
        """Run the checkers; called once, after all episodes have ended."""
        ...


@dataclass
class Verdicts:
    """What the checkers say of the last answers of B episodes, accepted or not.

    Attributes:
        success: [B] 0 or 1; NaN = no checker. Where there is no answer, 0.
        correctness: [B] the checker's score, 0 to 1; NaN = no checker.
        unsafe: [B] the checker's run of the answer did what is forbidden.
    """

    success: FloatArray
    correctness: FloatArray
    unsafe: BoolArray


@dataclass
class Decisions:
    """All N decisions of a run, ordered by episode and time.

    Attributes:
        episode: [N] row of the episode.
        t: [N] number of the decision in it, from 0.
        obs: [N, D] state vectors.
        mask: [N, A] what was allowed.
        action: [N] what was done.
        probabilities: [N, A] what the policy gave each action.
        reward: [N] step rewards, the end's at the last one; NaN there without a checker.
        outcomes: what each decision led to.
    """

    episode: IntArray
    t: IntArray
    obs: FloatArray
    mask: BoolArray
    action: IntArray
    probabilities: FloatArray
    reward: FloatArray
    outcomes: Outcomes


@dataclass
class Results:
    """How B episodes ended.

    Attributes:
        success: [B] 0 or 1; NaN without a checker. An unsafe run and one that gave up are failures.
        correctness: [B] the checker's score of the accepted answer, 0 to 1.
        budget_usd: [B] US$ that each might spend.
        cost_usd: [B] US$ spent.
        seconds: [B] time taken.
        unsafe: [B] flag.
        end_reason: [B] `EndReason`.
        total_reward: [B] sum of the rewards.
        decisions: every decision.
    """

    success: FloatArray
    correctness: FloatArray
    budget_usd: FloatArray
    cost_usd: FloatArray
    seconds: FloatArray
    unsafe: BoolArray
    end_reason: IntArray
    total_reward: FloatArray
    decisions: Decisions


def draw_uniform(seed: int, *keys: KeyArray) -> FloatArray:
    """Return numbers in [0, 1) that depend on the seed and the keys alone, not on order or batch."""
    mixed = mix_keys(seed & (2**64 - 1), *keys)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2**53)


@dataclass
class _Wave:
    """One decision of each live episode."""

    live: IntArray
    obs: FloatArray
    mask: BoolArray
    action: IntArray
    probabilities: FloatArray
    reward: FloatArray
    outcomes: Outcomes


def _run_wave(episodes: Episodes, policy: Policy, world: World, seed: int) -> _Wave:
    live = episodes.live
    mask = episodes.mask(live, world.quote_usd(episodes, live))
    obs = episodes.observe(live)
    probabilities = policy.probabilities(obs, mask)
    check_probabilities(probabilities, mask, policy.name)
    keys = episodes.tasks.key[live], episodes.decisions[live].astype(np.uint64)
    action = sample_actions(probabilities, draw_uniform(seed, *keys))
    check_allowed(action, mask, policy.name)
    outcomes = world.act(episodes, live, action)
    cost_before, time_before = _shares_used(episodes, live)
    episodes.apply(live, mask, action, outcomes)
    cost_after, time_after = _shares_used(episodes, live)
    reward = step_reward(cost_after - cost_before, time_after - time_before)
    return _Wave(live, obs, mask, action, probabilities, reward, outcomes)


def _shares_used(episodes: Episodes, live: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return cost and time so far, in units of budget and limit, [K] each; 0 before the first decision.

    So what was paid before it (a probe of the cheap model) is charged to the first decision.
    """
    has_begun = episodes.decisions[live] > 0
    cost = np.minimum(episodes.spent_usd[live] / episodes.tasks.budget_usd[live], 1.0)
    time = np.minimum(episodes.elapsed_s[live] / episodes.tasks.time_limit_s[live], 1.0)
    return cost * has_begun, time * has_begun


def run_episodes(episodes: Episodes, policy: Policy, world: World, *, seed: int = 0) -> Results:
    """Run all episodes to their ends.

    Args:
        episodes: just begun.
        policy: decides; its probabilities are sampled by the seed, the task and the number of the decision.
        world: carries out.
        seed: of the draws.

    Raises:
        PolicyError: the policy gave no probabilities, or chose what is not allowed.
    """
    waves: list[_Wave] = []
    while len(episodes.live):
        waves.append(_run_wave(episodes, policy, world, seed))
    return _finish(episodes, waves, world)


def _finish(episodes: Episodes, waves: list[_Wave], world: World) -> Results:
    """Check the accepted answers, and put the end's reward on each last decision."""
    verdicts = world.check(episodes)
    episodes.unsafe |= verdicts.unsafe
    is_accepted = episodes.end_reason == EndReason.STOPPED
    is_checked = ~np.isnan(verdicts.success)
    correctness = np.where(is_accepted | ~is_checked, verdicts.correctness, 0.0)
    correctness = np.where(episodes.unsafe & ~is_checked, 0.0, correctness)
    success = np.where((is_checked & ~is_accepted) | episodes.unsafe, 0.0, verdicts.success)
    decisions = _gather(waves)
    is_last = decisions.t == episodes.decisions[decisions.episode] - 1
    ends = decisions.episode[is_last]
    decisions.reward[is_last] += final_reward(success[ends], correctness[ends], episodes.unsafe[ends])
    total = np.zeros(len(episodes.tier))
    np.add.at(total, decisions.episode, decisions.reward)
    return Results(
        success=success,
        correctness=correctness,
        budget_usd=episodes.tasks.budget_usd,
        cost_usd=episodes.spent_usd,
        seconds=episodes.elapsed_s,
        unsafe=episodes.unsafe,
        end_reason=episodes.end_reason,
        total_reward=total,
        decisions=decisions,
    )


def _gather(waves: list[_Wave]) -> Decisions:
    """Put the waves together, ordered by episode and time."""
    episode = np.concatenate([wave.live for wave in waves] or [np.zeros(0, dtype=np.int64)])
    t = np.concatenate([np.full(len(wave.live), n) for n, wave in enumerate(waves)] or [episode])
    order = np.lexsort((t, episode))
    if not waves:
        nothing = Outcomes.nothing(0)
        empty = np.zeros((0, N_ACTIONS))
        return Decisions(episode, t, np.zeros((0, N_FEATURES)), empty > 0, episode, empty, np.zeros(0), nothing)
    outcomes = Outcomes(
        **{name: np.concatenate([vars(w.outcomes)[name] for w in waves])[order] for name in vars(waves[0].outcomes)}
    )
    return Decisions(
        episode=episode[order],
        t=t[order],
        obs=np.concatenate([w.obs for w in waves])[order],
        mask=np.concatenate([w.mask for w in waves])[order],
        action=np.concatenate([w.action for w in waves])[order],
        probabilities=np.concatenate([w.probabilities for w in waves])[order],
        reward=np.concatenate([w.reward for w in waves])[order],
        outcomes=outcomes,
    )
