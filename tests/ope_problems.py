"""Three small problems whose values are known exactly, as logs of a behavior policy.

ModelWin: from s1, action a1 leads to s2 (+1) with probability .4 and to s3 (−1) with .6, a2 the other way round; from
s2 and s3 any action leads back. Fully observed. ModelFail: a hidden bit: a1 leads to reward +1, a2 to −1, and the state
vector is the same throughout. Source: Thomas & Brunskill (2016), arXiv 1604.00923, appendix.
MaskedRetry: masks and episodes of different length, as the Cortex has them: try, see whether the answer is right, stop
with it, or pay and try again, three decisions at most.
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


STOP, RETRY, ABORT = 0, 1, 2
NO_ANSWER, WRONG, RIGHT = 0, 1, 2
RETRY_STEPS = 3
RETRY_MASK = np.ones((RETRY_STEPS, 3, 3), dtype=bool)
"""[T, state, action] what is allowed: nothing to stop with at first, no try left at the end."""
RETRY_MASK[:, NO_ANSWER, STOP] = False
RETRY_MASK[-1, :, RETRY] = False
RETRY_RIGHT = 0.6
RETRY_REWARD = np.array([[0.0, -0.1, -1.0], [-1.0, -0.1, -1.0], [1.0, -0.1, -1.0]])
"""[state, action]"""
RETRY_WISHES = np.array([[0.0, 0.9, 0.1], [0.15, 0.8, 0.05], [0.9, 0.05, 0.05]])
"""[state, action] of the evaluation policy, before masking."""
RETRY_EVALUATION = RETRY_WISHES * RETRY_MASK / (RETRY_WISHES * RETRY_MASK).sum(axis=-1, keepdims=True)
RETRY_BEHAVIOR = RETRY_MASK / RETRY_MASK.sum(axis=-1, keepdims=True)


def _retry_value() -> float:
    """Return the exact value, by backward induction."""
    value = np.zeros(3)
    for t in reversed(range(RETRY_STEPS)):
        after = np.array([0.0, (1 - RETRY_RIGHT) * value[WRONG] + RETRY_RIGHT * value[RIGHT], 0.0])
        value = (RETRY_EVALUATION[t] * (RETRY_REWARD + after)).sum(axis=1)
    return float(value[NO_ANSWER])


RETRY_VALUE = _retry_value()


def masked_retry(n: int, seed: int) -> LoggedEpisodes:
    """Episodes of one to three decisions by a policy that takes any allowed action."""
    rng = np.random.default_rng(seed)
    state, alive = np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)
    rows = []
    for t in range(RETRY_STEPS):
        action = (rng.random((n, 1)) >= np.cumsum(RETRY_BEHAVIOR[t][state], axis=1)).sum(axis=1)
        ends = action != RETRY
        rows.append(np.stack([np.arange(n), np.full(n, t), state, action, ends], axis=1)[alive])
        alive = alive & ~ends
        state = np.where(rng.random(n) < RETRY_RIGHT, RIGHT, WRONG)
    episode, clock, where, action, ends = np.concatenate(rows).astype(np.int64).T
    order = np.lexsort((clock, episode))
    episode, clock, where, action, ends = (x[order] for x in (episode, clock, where, action, ends))
    return LoggedEpisodes(
        episode=episode,
        t=clock,
        obs=np.eye(3 * RETRY_STEPS)[clock * 3 + where],
        mask=RETRY_MASK[clock, where],
        action=action,
        reward=RETRY_REWARD[where, action],
        terminated=ends.astype(bool),
        behavior=RETRY_BEHAVIOR[clock, where],
    )


def retry_evaluation(log: LoggedEpisodes) -> np.ndarray:
    """Return the evaluation policy's probabilities in MaskedRetry's logs, [N, A]."""
    return RETRY_EVALUATION.reshape(-1, 3)[log.obs.argmax(axis=1)]


def spread(policy: np.ndarray, log: LoggedEpisodes) -> np.ndarray:
    """Return the same probabilities for every decision, [N, A]."""
    return np.tile(policy, (len(log.action), 1))
