"""The executor's loop: before every call the policy is asked, and only what the runtime allows is done.

All episodes advance together in waves: one call of the policy for all of them, one of the world. The world is what
carries actions out: live models (`core.live`) or recorded outcomes; this loop is the same for both and knows neither
Ray nor vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from celr_ray.core.episodes import EndReason, Episodes, KeyArray, Outcomes, mix_keys
from celr_ray.cortex.actions import N_ACTIONS, BoolArray, FloatArray, IntArray, check_allowed
from celr_ray.cortex.policy import Policy, check_probabilities, sample_actions
from celr_ray.cortex.reward import final_reward, step_reward
from celr_ray.cortex.state import N_FEATURES

__all__ = ["Decisions", "Results", "Verdicts", "World", "draw_uniform", "join_decisions", "run_episodes"]


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
        n_decisions: [B] decisions.
        decisions: every decision; none at all where they were not to be kept.
    """

    success: FloatArray
    correctness: FloatArray
    budget_usd: FloatArray
    cost_usd: FloatArray
    seconds: FloatArray
    unsafe: BoolArray
    end_reason: IntArray
    total_reward: FloatArray
    n_decisions: IntArray
    decisions: Decisions


def draw_uniform(seed: int, *keys: KeyArray | IntArray | int) -> FloatArray:
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


def _run_wave(episodes: Episodes, live: IntArray, policy: Policy, world: World, seed: int) -> _Wave:
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


def run_episodes(
    episodes: Episodes, policy: Policy, world: World, *, seed: int = 0, keep_decisions: bool = True
) -> Results:
    """Run all episodes to their ends.

    Args:
        episodes: just begun.
        policy: decides; its probabilities are sampled by the seed, the task and the number of the decision.
        world: carries out.
        seed: of the draws.
        keep_decisions: return every decision, not only how the episodes ended.

    Raises:
        PolicyError: the policy gave no probabilities, or chose what is not allowed.
    """
    waves: list[_Wave] = []
    total = np.zeros(len(episodes.tier))
    while len(live := episodes.live):
        wave = _run_wave(episodes, live, policy, world, seed)
        total[live] += wave.reward
        if keep_decisions:
            waves.append(wave)
    return _finish(episodes, waves, total, world)


def _finish(episodes: Episodes, waves: list[_Wave], total: FloatArray, world: World) -> Results:
    """Check the accepted answers, and put the end's reward on each last decision."""
    verdicts = world.check(episodes)
    episodes.unsafe |= verdicts.unsafe
    is_accepted = episodes.end_reason == EndReason.STOPPED
    is_checked = ~np.isnan(verdicts.success)
    correctness = np.where(is_accepted | ~is_checked, verdicts.correctness, 0.0)
    correctness = np.where(episodes.unsafe & ~is_checked, 0.0, correctness)
    success = np.where((is_checked & ~is_accepted) | episodes.unsafe, 0.0, verdicts.success)
    final = np.where(episodes.decisions > 0, final_reward(success, correctness, episodes.unsafe), 0.0)
    decisions = _gather(waves)
    is_last = decisions.t == episodes.decisions[decisions.episode] - 1
    decisions.reward[is_last] += final[decisions.episode[is_last]]
    return Results(
        success=success,
        correctness=correctness,
        budget_usd=episodes.tasks.budget_usd,
        cost_usd=episodes.spent_usd,
        seconds=episodes.elapsed_s,
        unsafe=episodes.unsafe,
        end_reason=episodes.end_reason,
        total_reward=total + final,
        n_decisions=episodes.decisions,
        decisions=decisions,
    )


def _gather(waves: list[_Wave]) -> Decisions:
    """Put the waves together, ordered by episode and time."""
    if not waves:
        nothing, none = np.zeros((0, N_ACTIONS)), np.zeros(0, dtype=np.int64)
        obs = np.zeros((0, N_FEATURES))
        return Decisions(none, none, obs, nothing > 0, none, nothing, np.zeros(0), Outcomes.nothing(0))
    joined = join_decisions([_wave_decisions(wave, t) for t, wave in enumerate(waves)], shift=0)
    order = np.lexsort((joined.t, joined.episode))
    columns = {name: value[order] for name, value in vars(joined).items() if name != "outcomes"}
    return Decisions(**columns, outcomes=_take(joined.outcomes, order))


def _wave_decisions(wave: _Wave, t: int) -> Decisions:
    return Decisions(
        wave.live, np.full(len(wave.live), t), wave.obs, wave.mask, wave.action, wave.probabilities, wave.reward,
        wave.outcomes,
    )  # fmt: skip


def _take(outcomes: Outcomes, rows: IntArray) -> Outcomes:
    return Outcomes(**{name: value[rows] for name, value in vars(outcomes).items()})


def join_decisions(parts: Sequence[Decisions], *, shift: int | Sequence[int] = 0) -> Decisions:
    """Put decisions together, in the order given.

    Args:
        parts: at least one.
        shift: added to the row numbers of each part's episodes; a sequence has one number for each part.
    """
    shifts = [shift] * len(parts) if isinstance(shift, int) else shift

    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    outcomes = {name: np.concatenate([vars(part.outcomes)[name] for part in parts]) for name in vars(parts[0].outcomes)}
    return Decisions(
        episode=np.concatenate([part.episode + by for part, by in zip(parts, shifts, strict=True)]),
        **{name: join(name) for name in ("t", "obs", "mask", "action", "probabilities", "reward")},
        outcomes=Outcomes(**outcomes),
    )
