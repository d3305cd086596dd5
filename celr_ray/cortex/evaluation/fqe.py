"""Fitted Q evaluation: the value of a policy by regression, backwards from the ends of episodes.

    Q ← E[r + (1 − done) Σ_a' π_e(a'|s') Q(s', a')],   value = E over first states of Σ_a π_e(a|s) Q(s, a)

Q is linear in the state, φ = [features, 1], with coefficients θ_a of its own for each action. Then a backup needs the
data only through three sums over the decisions in which a was taken,

    G_a = Σ φ φᵀ      b_a = Σ φ r      F_a = Σ φ ψ'ᵀ,  ψ' = π_e(·|s') ⊗ φ(s'), 0 after an end
    θ_a ← (G_a + ridge)⁻¹ (b_a + F_a θ)

so it is fitted on data larger than memory in one pass: the sums of the parts add up, and the value is theirs too.

Trusts the state vector to hold all that matters and the regression to fit it; where it does not (ModelFail's hidden
bit), the value is wrong whatever n, and no interval shows it.

Source: Le, Voloshin & Yue (2019), arXiv 1903.08738; the sums are those of Lagoudakis & Parr (2003), LSTDQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, check_evaluation

__all__ = ["QFunction", "RegressionSums", "add_sums", "fit_q", "solve_q", "sum_regression", "value_q"]

_RIDGE = 1e-3


@dataclass(frozen=True)
class QFunction:
    """A ridge regression for each action on the state vector and a constant.

    Attributes:
        coefficients: [A, D + 1].
    """

    coefficients: FloatArray

    def predict(self, obs: FloatArray) -> FloatArray:
        """Return Q of every action, [K, A], for states [K, D]."""
        return np.asarray(_design(obs) @ self.coefficients.T)


@dataclass(frozen=True)
class RegressionSums:
    """What the fit needs to know of the data; P = D + 1.

    Attributes:
        gram: [A, P, P] G.
        reward: [A, P] b.
        following: [A, P, A·P] F.
        start: [A·P] Σ π_e(·|s) ⊗ φ(s) over first states.
        n: episodes.
        horizon: decisions of the longest episode.
    """

    gram: FloatArray
    reward: FloatArray
    following: FloatArray
    start: FloatArray
    n: int
    horizon: int

    def __add__(self, other: RegressionSums) -> RegressionSums:
        """Return the sums over both sets of episodes."""
        return RegressionSums(
            self.gram + other.gram,
            self.reward + other.reward,
            self.following + other.following,
            self.start + other.start,
            self.n + other.n,
            max(self.horizon, other.horizon),
        )


def add_sums(sums: Sequence[RegressionSums]) -> RegressionSums:
    """Return the sums over several sets of episodes (at least one)."""
    return reduce(RegressionSums.__add__, sums)


def _design(obs: FloatArray) -> FloatArray:
    return np.concatenate([obs, np.ones((len(obs), 1))], axis=1)


def sum_regression(
    log: LoggedEpisodes, evaluation: FloatArray, fold: IntArray | None = None, n_folds: int = 1
) -> tuple[RegressionSums, ...]:
    """Sum what a fit needs, for each fold of episodes.

    The last decision of a cut log is left out: what follows it is unknown.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        fold: [B] 0 to n_folds − 1; None = all in fold 0.
        n_folds: how many there are.
    """
    check_evaluation(log, evaluation)
    design = _design(log.obs)
    has_next = np.append(log.t[1:] > 0, False) & ~log.terminated
    is_known = has_next | log.terminated
    fold_of = np.zeros(len(log.t), dtype=np.int64) if fold is None else fold[log.episode]
    return tuple(
        _sum_rows(log, evaluation, design, has_next, is_known & (fold_of == number), (log.t == 0) & (fold_of == number))
        for number in range(n_folds)
    )


def _sum_rows(
    log: LoggedEpisodes,
    evaluation: FloatArray,
    design: FloatArray,
    has_next: BoolArray,
    is_used: BoolArray,
    is_first: BoolArray,
) -> RegressionSums:
    n_actions, width = evaluation.shape[1], design.shape[1]
    gram = np.zeros((n_actions, width, width))
    reward = np.zeros((n_actions, width))
    following = np.zeros((n_actions, width, n_actions * width))
    for action in range(n_actions):
        taken = is_used & (log.action == action)
        rows, before = np.flatnonzero(taken), np.flatnonzero(taken & has_next)
        gram[action] = design[rows].T @ design[rows]
        reward[action] = design[rows].T @ log.reward[rows]
        for then in range(n_actions):
            weighted = evaluation[before + 1, then, None] * design[before + 1]
            following[action, :, then * width : (then + 1) * width] = design[before].T @ weighted
    start = (evaluation[is_first].T @ design[is_first]).ravel()
    horizon = int(log.t[is_used].max(initial=-1)) + 1
    return RegressionSums(gram, reward, following, start, int(is_first.sum()), horizon)


def solve_q(sums: RegressionSums, *, ridge: float = _RIDGE) -> QFunction:
    """Fit Q from the sums.

    Args:
        sums: over the episodes to fit on.
        ridge: penalty on coefficients, in units of a decision's weight in the fit.

    Returns:
        The fit after as many backups as the longest episode has decisions: enough for finite episodes.
    """
    n_actions, width = sums.reward.shape
    gram = sums.gram + ridge * np.eye(width)
    solved = np.linalg.solve(gram, np.concatenate([sums.reward[:, :, None], sums.following], axis=2))
    reward, following = solved[:, :, 0], solved[:, :, 1:]
    coefficients = np.zeros((n_actions, width))
    for _ in range(sums.horizon):
        coefficients = reward + following @ coefficients.ravel()
    return QFunction(coefficients)


def value_q(sums: RegressionSums, q: QFunction) -> float:
    """Return the mean value of the first states; NaN without episodes."""
    return float(sums.start @ q.coefficients.ravel()) / sums.n if sums.n else float("nan")


def fit_q(log: LoggedEpisodes, evaluation: FloatArray, *, ridge: float = _RIDGE) -> QFunction:
    """Fit Q of an evaluation policy on all episodes.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        ridge: penalty on coefficients, in units of a decision's weight in the fit.
    """
    return solve_q(sum_regression(log, evaluation)[0], ridge=ridge)
