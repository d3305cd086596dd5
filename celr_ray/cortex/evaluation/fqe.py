"""Fitted Q evaluation: the value of a policy by regression, backwards from the ends of episodes.

    Q ← E[r + (1 − done) Σ_a' π_e(a'|s') Q(s', a')],   value = E over first states of Σ_a π_e(a|s) Q(s, a)

Trusts the state vector to hold all that matters and the regression to fit it; where it does not (ModelFail's hidden
bit), the value is wrong whatever n, and no interval shows it.

Source: Le, Voloshin & Yue (2019), arXiv 1903.08738.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import FloatArray, IntArray
from celr_ray.cortex.evaluation.logged import LoggedEpisodes

__all__ = ["QFunction", "fit_q"]


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


def _design(obs: FloatArray) -> FloatArray:
    return np.concatenate([obs, np.ones((len(obs), 1))], axis=1)


def fit_q(log: LoggedEpisodes, evaluation: FloatArray, *, ridge: float = 1e-6) -> QFunction:
    """Fit Q of an evaluation policy.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        ridge: penalty on coefficients, in units of a decision's weight in the fit.

    Returns:
        The fit after as many backups as the longest episode has decisions: enough for finite episodes.
    """
    design = _design(log.obs)
    n_actions = log.mask.shape[1]
    has_next = np.append(log.t[1:] > 0, False) & ~log.terminated
    is_known = has_next | log.terminated  # what follows the last decision of a cut log is not
    rows_of = [np.flatnonzero(is_known & (log.action == action)) for action in range(n_actions)]
    solvers = [_make_solver(design, rows, ridge) for rows in rows_of]
    coefficients = np.zeros((n_actions, design.shape[1]))
    for _ in range(log.horizon):
        value = (design @ coefficients.T * evaluation).sum(axis=1)
        target = log.reward + np.where(has_next, np.append(value[1:], 0.0), 0.0)
        coefficients = np.stack([solve @ target[rows] for rows, solve in solvers])
    return QFunction(coefficients)


def _make_solver(design: FloatArray, rows: IntArray, ridge: float) -> tuple[IntArray, FloatArray]:
    """Return the rows of one action and the matrix that turns their targets into coefficients."""
    part = design[rows]
    gram = part.T @ part + ridge * np.eye(design.shape[1])
    return rows, np.asarray(np.linalg.solve(gram, part.T), dtype=np.float64)
