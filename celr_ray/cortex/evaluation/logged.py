"""Logged episodes as off-policy evaluation needs them: who did what with which probability, and importance weights.

    ρ_t = π_e(a_t|s_t) / π_b(a_t|s_t)        W_t = Π_{u≤t} ρ_u        w = W of the last step        γ = 1

An episode that has ended keeps its weight for later steps: its rewards there are 0 for certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.errors import PolicyError

__all__ = ["LoggedEpisodes", "Weights", "compute_weights", "read_support"]


@dataclass(frozen=True)
class LoggedEpisodes:
    """N decisions of B episodes, ordered by episode and time.

    Attributes:
        episode: [N] 0 to B − 1, each present.
        t: [N] number of the decision in its episode, from 0 without gaps.
        obs: [N, D] state vectors.
        mask: [N, A] allowed actions.
        action: [N] what was done.
        reward: [N].
        terminated: [N] true at an episode's real end, false where the log was cut.
        behavior: [N, A] probabilities of the behavior policy, zero where masked.
    """

    episode: IntArray
    t: IntArray
    obs: FloatArray
    mask: BoolArray
    action: IntArray
    reward: FloatArray
    terminated: BoolArray
    behavior: FloatArray

    def __post_init__(self) -> None:
        """Check order, finiteness and that nothing masked was done.

        Raises:
            PolicyError: the log is not as described; the message says where.
        """
        n = len(self.episode)
        if n == 0:
            raise PolicyError("there are no logged decisions to evaluate on")
        starts = np.flatnonzero(self.t == 0)
        expected = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n))) if starts[:1] == 0 else None
        in_order = expected is not None and (self.t == expected).all()
        if not in_order or not (self.episode == np.cumsum(self.t == 0) - 1).all():
            raise PolicyError("decisions must be ordered by episode and time, episodes numbered from 0 without gaps")
        rows = np.arange(n)
        for name, bad in (
            ("a reward that is not finite", ~np.isfinite(self.reward)),
            ("an action that its own mask forbids", ~self.mask[rows, self.action]),
            ("a probability of 0 for what was done", ~(self.behavior[rows, self.action] > 0)),
        ):
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                raise PolicyError(
                    f"{int(bad.sum())} logged decisions have {name}, first episode {self.episode[at]} t {self.t[at]}"
                )

    @property
    def n_episodes(self) -> int:
        """Return B."""
        return int(self.episode[-1]) + 1

    @property
    def horizon(self) -> int:
        """Return T, the decisions of the longest episode."""
        return int(self.t.max()) + 1

    def pad(self, values: FloatArray, fill: float = 0.0) -> FloatArray:
        """Return values [N] as [B, T], `fill` after an episode's end."""
        padded = np.full((self.n_episodes, self.horizon), fill)
        padded[self.episode, self.t] = values
        return padded

    def take(self, episodes: IntArray) -> LoggedEpisodes:
        """Return some episodes [K], each once, numbered anew in their old order."""
        chosen = np.zeros(self.n_episodes, dtype=bool)
        chosen[episodes] = True
        rows = np.flatnonzero(chosen[self.episode])
        number = np.cumsum(chosen) - 1
        columns = {name: value[rows] for name, value in vars(self).items()}
        return LoggedEpisodes(**{**columns, "episode": number[self.episode[rows]]})


@dataclass(frozen=True)
class Weights:
    """Importance weights of B episodes of at most T decisions.

    Attributes:
        cumulative: [B, T] W_t; after an episode's end its last one.
        reward: [B, T]; 0 after the end.
    """

    cumulative: FloatArray
    reward: FloatArray

    @property
    def whole(self) -> FloatArray:
        """Return w [B], the weight of each whole episode."""
        return self.cumulative[:, -1]

    @property
    def returns(self) -> FloatArray:
        """Return G [B], the sum of each episode's rewards."""
        return np.asarray(self.reward.sum(axis=1))


def compute_weights(log: LoggedEpisodes, evaluation: FloatArray) -> Weights:
    """Return the importance weights of an evaluation policy.

    Args:
        log: the episodes.
        evaluation: [N, A] its probabilities in the logged states, zero where masked.
    """
    rows = np.arange(len(log.action))
    ratio = evaluation[rows, log.action] / log.behavior[rows, log.action]
    cumulative: FloatArray = np.cumprod(log.pad(ratio, fill=1.0), axis=1, dtype=np.float64)
    return Weights(cumulative, log.pad(log.reward))


def read_support(log: LoggedEpisodes, evaluation: FloatArray) -> BoolArray:
    """Return [N] whether the behavior policy could have done all that the evaluation policy might do there."""
    return np.asarray(~((evaluation > 0) & (log.behavior <= 0)).any(axis=1))
