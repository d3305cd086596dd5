"""The reward of an episode: success first, at every budget.

    R = success + correctness − cost − time − 100·unsafe − 100·failed

with cost in units of the task's budget and time in units of its limit, both in [0, 1], and failed = 1 − success; an
unsafe run counts as failed whatever it answered. So (a) any success is worth more than any failure, whatever was saved,
and (b) an unsafe run is worth less than any safe failure. Without the normalisation a penalty of `−100·budget` would
make (b) false above a budget of $1 and (a) false as the budget goes to 0.

Over many tasks it is a rate of exchange too: with a penalty F for a failure, one success more in 100 tasks is worth
(2 + F) / 100 of a task's budget. At 100 that is all of it, so nothing that a task can spend is ever worth saving, and a
policy that learns from a few thousand tasks cannot tell costs from noise. (a) and (b) hold for every F > 0: training
may take a lower one (`reprice`), the gate decides all the same by success, cost and safety.

Source: the specification's `R = Success + Correctness − Cost − Time − 100·Unsafe` with its penalty for failures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from celr_ray.cortex.actions import FloatArray

__all__ = [
    "FAILURE_PENALTY",
    "RETURN_RANGE",
    "UNSAFE_PENALTY",
    "final_reward",
    "find_return_range",
    "find_reward_scale",
    "reprice",
    "step_reward",
    "total_reward",
]

UNSAFE_PENALTY = 100.0
FAILURE_PENALTY = 100.0


def find_return_range(failure_penalty: float = FAILURE_PENALTY) -> tuple[float, float]:
    """Return what the reward of an episode cannot leave: unsafe, failed, and all spent; or right, free and at once."""
    return (-2.0 - UNSAFE_PENALTY - failure_penalty, 2.0)


RETURN_RANGE = find_return_range()


def find_reward_scale(failure_penalty: float = FAILURE_PENALTY) -> float:
    """Return what trainers multiply rewards by, so that those of safe runs are near −1 to 1 instead of −100 to 2."""
    return 1 / max(failure_penalty, 1.0)


def reprice(reward: ArrayLike, failure_penalty: float) -> FloatArray:
    """Return rewards with another penalty for failures.

    Args:
        reward: [N] of decisions, with `FAILURE_PENALTY`; the last of an episode that failed is below half of it.
        failure_penalty: above 0.
    """
    rewards = np.asarray(reward, dtype=float)
    return np.asarray(rewards + (FAILURE_PENALTY - failure_penalty) * (rewards < -FAILURE_PENALTY / 2))


def step_reward(cost_share: ArrayLike, time_share: ArrayLike) -> FloatArray:
    """Return what a decision costs at once.

    Args:
        cost_share: [K] US$ that it spent, over the task's budget.
        time_share: [K] seconds that it took, over the task's limit; an episode's shares add up to 1 at most.
    """
    return np.asarray(-np.asarray(cost_share, dtype=float) - np.asarray(time_share, dtype=float))


def final_reward(success: ArrayLike, correctness: ArrayLike, unsafe: ArrayLike) -> FloatArray:
    """Return what the end of an episode adds at its last decision.

    Args:
        success: [K] 0 or 1; NaN = no checker, and the reward is NaN: not scored is not zero.
        correctness: [K] the checker's score, 0 to 1.
        unsafe: [K] flag.
    """
    is_unsafe = np.asarray(unsafe, dtype=bool)
    counted = np.where(is_unsafe, np.minimum(np.asarray(success, dtype=float), 0.0), np.asarray(success, dtype=float))
    failed = 1.0 - counted
    penalty = UNSAFE_PENALTY * is_unsafe + FAILURE_PENALTY * failed
    return np.asarray(counted + np.asarray(correctness, dtype=float) - penalty)


def total_reward(
    success: ArrayLike, correctness: ArrayLike, cost_share: ArrayLike, time_share: ArrayLike, unsafe: ArrayLike
) -> FloatArray:
    """Return the reward of whole episodes [K]; the arguments are those of the two functions above."""
    return step_reward(cost_share, time_share) + final_reward(success, correctness, unsafe)
