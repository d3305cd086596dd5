"""Two small problems whose values are known in closed form, as logs of a behavior policy.

ModelWin: from s1, action a1 leads to s2 (+1) with probability .4 and to s3 (−1) with .6, a2 the other way round; from
s2 and s3 any action leads back. Fully observed. ModelFail: a hidden bit: a1 leads to reward +1, a2 to −1, and the state
vector is the same throughout. Source: Thomas & Brunskill (2016), arXiv 1604.00923, appendix.
"""

from __future__ import annotations

import numpy as np

from celr_ray.cortex.evaluation.logged import LoggedEpisodes

BEHAVIOR = np.array([0.73106, 0.26894])
EVALUATION = np.array([0.1192, 0.8808])
MODEL_FAIL_VALUE = float(EVALUATION @ [1, -1])
MODEL_WIN_STEPS = 3
"""Visits of s1 in an episode."""
MODEL_WIN_VALUE = MODEL_WIN_STEPS * float(EVALUATION @ [0.4 - 0.6, 0.6 - 0.4])


def model_fail(n: int, seed: int, behavior: np.ndarray = BEHAVIOR) -> LoggedEpisodes:
    """Two decisions in states that look alike; only the first one counts, its reward comes with the second."""
    rng = np.random.default_rng(seed)
    first = (rng.random(n) < behavior[1]).astype(np.int64)
    second = (rng.random(n) < behavior[1]).astype(np.int64)
    return LoggedEpisodes(
        episode=np.repeat(np.arange(n), 2),
        t=np.tile([0, 1], n),
        obs=np.ones((2 * n, 1)),
        mask=np.ones((2 * n, 2), dtype=bool),
        action=np.stack([first, second], axis=1).ravel(),
        reward=np.stack([np.zeros(n), 1.0 - 2.0 * first], axis=1).ravel(),
        terminated=np.tile([False, True], n),
        behavior=np.tile(behavior, (2 * n, 1)),
    )


def model_win(n: int, seed: int, behavior: np.ndarray = BEHAVIOR) -> LoggedEpisodes:
    """s1 → s2 or s3 → s1 …, three visits of s1; in s2 and s3 what is done does not matter."""
    rng = np.random.default_rng(seed)
    length = 2 * MODEL_WIN_STEPS
    action = (rng.random((n, length)) < behavior[1]).astype(np.int64)
    to_s2 = rng.random((n, MODEL_WIN_STEPS)) < np.where(action[:, ::2] == 0, 0.4, 0.6)
    reward = np.zeros((n, length))
    reward[:, ::2] = np.where(to_s2, 1.0, -1.0)
    state = np.zeros((n, length), dtype=np.int64)
    state[:, 1::2] = np.where(to_s2, 1, 2)
    clock = np.tile(np.arange(length), (n, 1))  # the value to come depends on the time left
    return LoggedEpisodes(
        episode=np.repeat(np.arange(n), length),
        t=clock.ravel(),
        obs=np.eye(3 * length)[(clock * 3 + state).ravel()],
        mask=np.ones((n * length, 2), dtype=bool),
        action=action.ravel(),
        reward=reward.ravel(),
        terminated=(clock == length - 1).ravel(),
        behavior=np.tile(behavior, (n * length, 1)),
    )


def spread(policy: np.ndarray, log: LoggedEpisodes) -> np.ndarray:
    """Return the same probabilities for every decision, [N, A]."""
    return np.tile(policy, (len(log.action), 1))
