"""The reward of an episode: success first, at every budget.

    R = success + correctness − cost − time − 100·unsafe − 100·failed

with cost in units of the task's budget and time in units of its limit, both in [0, 1], and failed = 1 − success; an
unsafe run counts as failed whatever it answered. So (a) any success is worth more than any failure, whatever was saved,
and (b) an unsafe run is worth less than any safe failure. Without the normalisation a penalty of `−100·budget` would
make (b) false above a budget of $1 and (a) false as the budget goes to 0.

Source: the specification's `R = Success + Correctness − Cost − Time − 100·Unsafe` with its penalty for failures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from celr_ray.cortex.actions import FloatArray

__all__ = [
    "FAILURE_PENALTY",
    "RETURN_RANGE",
    "REWARD_SCALE",
    "UNSAFE_PENALTY",
    "final_reward",
    "step_reward",
    "total_reward",
]

UNSAFE_PENALTY = 100.0
FAILURE_PENALTY = 100.0
REWARD_SCALE = 0.01
"""Trainers learn from rewards times this: near −1 to 1 instead of −100 to 2."""
RETURN_RANGE = (-2.0 - UNSAFE_PENALTY - FAILURE_PENALTY, 2.0)
"""What the reward of an episode cannot leave: unsafe, failed, and all spent; or right, free and at once."""


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
