"""A small masked decision problem with exact values, and mixed-quality logs of it: what every algorithm is tested on.

S states, A actions of which each state allows two to five, T steps at most. State and step are both known, so a policy
is a table [T, S, A] and its value follows by dynamic programming. Each log is made by one of several policies, from
random to good. Because state and step are known, the policy that a clone of all logs converges to (each policy weighted
by how often it comes there) has exactly the mean value of the logs.

Values are also given normalised: 0 = uniformly random over legal actions, 1 = the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.evaluation.logged import LoggedEpisodes

N_STATES, N_ACTIONS, HORIZON = 8, 6, 5
MIXTURE = ((0.5, 1.0, 0.0), (0.3, 0.4, 0.0), (0.2, 0.4, 1.0))
"""Shares of the logs, their policy's ε, and whether it follows the optimum (1) or an arbitrary habit (0)."""


@dataclass(frozen=True)
class Mdp:
    """The problem.

    Attributes:
        mask: [S, A] legal actions; the last is legal everywhere and ends the episode.
        transition: [S, A, S + 1] probabilities of the next state; the last column ends the episode.
        reward: [S, A] mean reward.
        first: [S] probabilities of the first state.
    """

    mask: np.ndarray
    transition: np.ndarray
    reward: np.ndarray
    first: np.ndarray


def make_mdp(seed: int) -> Mdp:
    """Draw a problem."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((N_STATES, N_ACTIONS), dtype=bool)
    for state in range(N_STATES):
        mask[state, rng.permutation(N_ACTIONS - 1)[: rng.integers(2, N_ACTIONS - 1)]] = True
    mask[:, -1] = True
    transition = rng.dirichlet(np.full(N_STATES + 1, 0.25), size=(N_STATES, N_ACTIONS))
    transition[..., -1] *= 0.2  # most actions go on
    transition[:, -1] = np.eye(N_STATES + 1)[-1]
    transition /= transition.sum(axis=-1, keepdims=True)
    reward = rng.normal(0, 0.6, size=(N_STATES, N_ACTIONS))
    reward[:, -1] = -0.3
    return Mdp(mask, transition, reward, rng.dirichlet(np.ones(N_STATES)))


def evaluate(mdp: Mdp, policy: np.ndarray) -> float:
    """Return the exact value of a policy [T, S, A]."""
    value = np.zeros(N_STATES + 1)
    for t in reversed(range(HORIZON)):
        q = mdp.reward + mdp.transition @ value
        value = np.append((policy[t] * q).sum(axis=1), 0.0)
    return float(mdp.first @ value[:-1])


def solve(mdp: Mdp) -> np.ndarray:
    """Return the optimal policy [T, S, A]."""
    policy = np.zeros((HORIZON, N_STATES, N_ACTIONS))
    value = np.zeros(N_STATES + 1)
    for t in reversed(range(HORIZON)):
        q = np.where(mdp.mask, mdp.reward + mdp.transition @ value, -np.inf)
        policy[t] = np.eye(N_ACTIONS)[q.argmax(axis=1)]
        value = np.append(q.max(axis=1), 0.0)
    return policy


def random_policy(mdp: Mdp) -> np.ndarray:
    """Return the uniformly random policy over legal actions."""
    return np.tile(mdp.mask / mdp.mask.sum(axis=1, keepdims=True), (HORIZON, 1, 1))


def normalise(mdp: Mdp, value: float) -> float:
    """Return a value in units of the way from the random policy (0) to the optimum (1)."""
    low, high = evaluate(mdp, random_policy(mdp)), evaluate(mdp, solve(mdp))
    return (value - low) / (high - low)


def behavior_policies(mdp: Mdp, seed: int) -> list[np.ndarray]:
    """Return the policies that make the logs."""
    habit = np.random.default_rng((seed, 1)).random((N_STATES, N_ACTIONS))
    habit = np.tile(np.eye(N_ACTIONS)[np.where(mdp.mask, habit, -1).argmax(axis=1)], (HORIZON, 1, 1))
    uniform, best = random_policy(mdp), solve(mdp)
    return [eps * uniform + (1 - eps) * (best if good else habit) for _, eps, good in MIXTURE]


def behavior_value(mdp: Mdp, seed: int) -> float:
    """Return the exact mean value of the logs."""
    values = [evaluate(mdp, policy) for policy in behavior_policies(mdp, seed)]
    return float(np.dot([share for share, _, _ in MIXTURE], values))


def encode(t: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Return the features of steps and states [K]: one of T·S columns is 1."""
    return np.eye(HORIZON * N_STATES, dtype=np.float32)[t * N_STATES + state]


def make_logs(mdp: Mdp, n_episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Draw episodes; the columns are those of the transitions, plus `episode`, `t` and `behavior`."""
    rng = np.random.default_rng((seed, 2))
    policies = np.stack(behavior_policies(mdp, seed))
    who = rng.choice(len(MIXTURE), n_episodes, p=[share for share, _, _ in MIXTURE])
    state = rng.choice(N_STATES, n_episodes, p=mdp.first)
    alive, parts = np.arange(n_episodes), []
    for t in range(HORIZON):
        behavior = policies[who[alive], t, state]
        action = _draw(behavior, rng)
        following = _draw(mdp.transition[state, action], rng)
        ends = (following == N_STATES) | (t == HORIZON - 1)
        parts.append(
            {
                "episode": alive,
                "t": np.full(len(alive), t),
                "obs": np.concatenate([encode(np.full(len(alive), t), state), mdp.mask[state]], axis=1),
                "new_obs": _encode_next(mdp, t + 1, following, ends),
                "actions": action,
                "rewards": mdp.reward[state, action] + rng.normal(0, 0.3, len(alive)),
                "terminateds": ends,
                "truncateds": np.zeros(len(alive), dtype=bool),
                "behavior": behavior,
            }
        )
        alive, state = alive[~ends], following[~ends]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["t"], columns["episode"]))
    return {name: column[order] for name, column in columns.items()}


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cumulative = np.cumsum(probabilities, axis=1)
    return (rng.random(len(cumulative))[:, None] * cumulative[:, -1:] >= cumulative).sum(axis=1)


def _encode_next(mdp: Mdp, t: int, state: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the next observations; after the end all features are 0 and only the last action is allowed."""
    result = np.zeros((len(state), HORIZON * N_STATES + N_ACTIONS), dtype=np.float32)
    result[:, -1] = 1
    on = ~ends
    result[on] = np.concatenate([encode(np.full(on.sum(), t), state[on]), mdp.mask[state[on]]], axis=1)
    return result


def to_logged(columns: dict[str, np.ndarray]) -> LoggedEpisodes:
    """Return logs as the off-policy estimators take them."""
    return LoggedEpisodes(
        episode=columns["episode"].astype(np.int64),
        t=columns["t"].astype(np.int64),
        obs=columns["obs"][:, :-N_ACTIONS].astype(float),
        mask=columns["obs"][:, -N_ACTIONS:] > 0,
        action=columns["actions"].astype(np.int64),
        reward=columns["rewards"],
        terminated=columns["terminateds"],
        behavior=columns["behavior"],
    )


def all_states(mdp: Mdp) -> tuple[np.ndarray, np.ndarray]:
    """Return features and masks of all T·S states, in the order of a table."""
    return np.eye(HORIZON * N_STATES, dtype=np.float32), np.tile(mdp.mask, (HORIZON, 1))
