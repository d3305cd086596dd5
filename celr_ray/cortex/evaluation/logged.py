"""Logged episodes as off-policy evaluation needs them: who did what with which probability, and importance weights.

    ρ_t = π_e(a_t|s_t) / π_b(a_t|s_t)        W_t = Π_{u≤t} ρ_u        w = W of the last step        γ = 1

An episode that has ended keeps its weight for later steps: its rewards there are 0 for certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.errors import PolicyError

__all__ = ["LoggedEpisodes", "Weights", "check_evaluation", "compute_weights", "join_logs", "read_support"]

_TOLERANCE = 1e-6


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
        task: [B] a number for each task; episodes of one task are no independent evidence, so intervals, bounds and
            folds keep them together. None = every episode is a task of its own.
    """

    episode: IntArray
    t: IntArray
    obs: FloatArray
    mask: BoolArray
    action: IntArray
    reward: FloatArray
    terminated: BoolArray
    behavior: FloatArray
    task: IntArray | None = None

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
        if self.task is not None and len(self.task) != self.n_episodes:
            raise PolicyError(f"{len(self.task)} task numbers for {self.n_episodes} episodes")
        taken = self.behavior[np.arange(n), self.action]
        self._refuse(~np.isfinite(self.reward), "a reward that is not finite")
        self._refuse(~self.mask[np.arange(n), self.action], "an action that its own mask forbids")
        self._refuse(~(taken > 0), "a probability of 0 for what was done")
        self._refuse(~_is_distribution(self.behavior, self.mask), "behavior probabilities that are none under the mask")

    def _refuse(self, bad: BoolArray, what: str) -> None:
        """Raise PolicyError if any decision is bad."""
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            where = f"first episode {self.episode[at]} t {self.t[at]}"
            raise PolicyError(f"{int(bad.sum())} logged decisions have {what}, {where}")

    @property
    def n_episodes(self) -> int:
        """Return B."""
        return int(self.episode[-1]) + 1

    @property
    def horizon(self) -> int:
        """Return T, the decisions of the longest episode."""
        return int(self.t.max()) + 1

    @property
    def is_cut(self) -> BoolArray:
        """Return [B] whether the log of an episode stops before its end: what it would have earned is unknown."""
        last = np.append(self.t[1:] == 0, True)
        return np.asarray(~self.terminated[last])

    @property
    def tasks(self) -> IntArray:
        """Return the task of each episode, [B]."""
        return np.arange(self.n_episodes) if self.task is None else self.task

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
        columns = {name: value[rows] for name, value in vars(self).items() if name != "task"}
        columns["episode"] = number[self.episode[rows]]
        return LoggedEpisodes(**columns, task=None if self.task is None else self.task[chosen])


def join_logs(parts: Sequence[LoggedEpisodes]) -> LoggedEpisodes:
    """Return the episodes of several logs (at least one) as one; `task` stays None only if it is None in all."""
    columns = {
        name: np.concatenate([vars(part)[name] for part in parts])
        for name in vars(parts[0])
        if name not in ("episode", "task")
    }
    task = None if all(part.task is None for part in parts) else np.concatenate([part.tasks for part in parts])
    return LoggedEpisodes(**columns, episode=np.cumsum(columns["t"] == 0) - 1, task=task)


def _is_distribution(probabilities: FloatArray, mask: BoolArray) -> BoolArray:
    """Return [N] whether a row is finite, not negative, sums to 1 and is zero where masked."""
    is_number = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    sums_to_one = np.abs(probabilities.sum(axis=1) - 1) < _TOLERANCE
    return np.asarray(is_number & sums_to_one & ~((probabilities > 0) & ~mask).any(axis=1))


def check_evaluation(log: LoggedEpisodes, evaluation: FloatArray) -> None:
    """Check the probabilities of a policy that is to be evaluated: [N, A], rows sum to 1, zero where masked.

    A policy that wants what the mask forbids has weights that do not mean anything: its estimate would be of a policy
    that cannot run.

    Raises:
        PolicyError: it is not so.
    """
    if evaluation.shape != log.mask.shape:
        raise PolicyError(f"probabilities of shape {evaluation.shape} for decisions of shape {log.mask.shape}")
    if not (good := _is_distribution(evaluation, log.mask)).all():
        at = int(np.flatnonzero(~good)[0])
        raise PolicyError(
            f"the policy to evaluate gives no probabilities under the mask at {int((~good).sum())} decisions, first "
            f"episode {log.episode[at]} t {log.t[at]}: {evaluation[at].tolist()} under {log.mask[at].tolist()}"
        )


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

    Raises:
        PolicyError: they are none.
    """
    check_evaluation(log, evaluation)
    rows = np.arange(len(log.action))
    ratio = evaluation[rows, log.action] / log.behavior[rows, log.action]
    cumulative: FloatArray = np.cumprod(log.pad(ratio, fill=1.0), axis=1, dtype=np.float64)
    return Weights(cumulative, log.pad(log.reward))


def read_support(log: LoggedEpisodes, evaluation: FloatArray) -> BoolArray:
    """Return [N] whether the behavior policy could have done all that the evaluation policy might do there."""
    return np.asarray(~((evaluation > 0) & (log.behavior <= 0)).any(axis=1))
