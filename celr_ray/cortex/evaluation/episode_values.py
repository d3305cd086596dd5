"""What off-policy evaluation needs of each episode, and the sums that need all episodes first.

Two passes over the data, both of parts that know nothing of each other: the first adds up sums (`sum_part`), the second
makes one row of numbers for each episode (`value_episodes`), with what the first found. So a part is never longer in
memory than itself, and what is left, some 60 bytes an episode, fits on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from celr_ray.core.episodes import mix_keys
from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.fqe import QFunction, RegressionSums, add_sums, solve_q, sum_regression, value_q
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, compute_weights, read_support

__all__ = [
    "N_FOLDS",
    "EpisodeValues",
    "Fits",
    "PartSums",
    "StepSums",
    "assign_folds",
    "finish_sums",
    "join_values",
    "sum_part",
    "value_episodes",
]

N_FOLDS = 5
"""By default: Q̂ is fitted on four fifths of the tasks."""


@dataclass(frozen=True)
class StepSums:
    """Sums over finished episodes, for each decision number.

    Attributes:
        n: episodes.
        weight: [T] Σ W_t.
        reward: [T] Σ W_t r_t.
    """

    n: int
    weight: FloatArray
    reward: FloatArray

    def __add__(self, other: StepSums) -> StepSums:
        """Return the sums over both sets; after its longest episode, a set keeps its last weights and earns nothing."""
        horizon = max(len(self.weight), len(other.weight))
        weight = sum(np.pad(part.weight, (0, horizon - len(part.weight)), mode="edge") for part in (self, other))
        reward = sum(np.pad(part.reward, (0, horizon - len(part.reward))) for part in (self, other))
        return StepSums(self.n + other.n, np.asarray(weight), np.asarray(reward))


@dataclass(frozen=True)
class PartSums:
    """What the first pass finds.

    Attributes:
        steps: of per-decision weights.
        folds: what Q is fitted from, for each fold.
        n_unsupported: decisions where the policy might do what the behavior policy never does.
    """

    steps: StepSums
    folds: tuple[RegressionSums, ...]
    n_unsupported: int

    def __add__(self, other: PartSums) -> PartSums:
        """Return the sums over both parts."""
        folds = tuple(a + b for a, b in zip(self.folds, other.folds, strict=True))
        return PartSums(self.steps + other.steps, folds, self.n_unsupported + other.n_unsupported)


@dataclass(frozen=True)
class Fits:
    """What the second pass needs to know of all episodes.

    Attributes:
        fqe: value by the Q fitted on all of them.
        fqe_without: [K] for each fold, value by the Q fitted on the others: a jackknife's.
        q_without: [K] those, for DR.
        step_weight: [T] mean W_t.
        step_value: [T] mean W_t r_t / mean W_t.
        seed: of the folds.
    """

    fqe: float
    fqe_without: FloatArray
    q_without: tuple[QFunction, ...]
    step_weight: FloatArray
    step_value: FloatArray
    seed: int


@dataclass(frozen=True)
class EpisodeValues:
    """Numbers of B episodes.

    Attributes:
        task: [B] its task.
        is_cut: [B] its log stops before its end.
        weight: [B] w.
        returns: [B] G.
        pdis: [B] Σ_t W_t r_t.
        pdwis: [B] Σ_t W_t / mean W_t · (r_t − step value): what it adds to the error of per-decision WIS.
        dr: [B] its doubly robust value.
    """

    task: IntArray
    is_cut: BoolArray
    weight: FloatArray
    returns: FloatArray
    pdis: FloatArray
    pdwis: FloatArray
    dr: FloatArray

    def take(self, chosen: BoolArray) -> EpisodeValues:
        """Return some of the episodes."""
        return EpisodeValues(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def join_values(parts: Sequence[EpisodeValues]) -> EpisodeValues:
    """Return the episodes of several parts (at least one), in order."""
    return EpisodeValues(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(EpisodeValues)}
    )


def assign_folds(task: IntArray, n_folds: int, seed: int) -> IntArray:
    """Return the fold of each episode [B]: that of its task, whatever part it stands in."""
    return np.asarray(mix_keys(seed, task) % np.uint64(n_folds), dtype=np.int64)


def sum_part(log: LoggedEpisodes, evaluation: FloatArray, *, n_folds: int = N_FOLDS, seed: int = 0) -> PartSums:
    """Add up the first pass over some episodes.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        n_folds: at least 2.
        seed: of the folds.

    Raises:
        ValueError: fewer than 2 folds.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}; cross-fitting needs 2 at least")
    weights = compute_weights(log, evaluation)
    whole = ~log.is_cut
    cumulative = weights.cumulative[whole]
    steps = StepSums(int(whole.sum()), cumulative.sum(axis=0), (cumulative * weights.reward[whole]).sum(axis=0))
    folds = sum_regression(log, evaluation, assign_folds(log.tasks, n_folds, seed), n_folds)
    return PartSums(steps, folds, int((~read_support(log, evaluation)).sum()))


def finish_sums(sums: PartSums, *, seed: int = 0, q: QFunction | None = None) -> Fits:
    """Fit what the second pass needs.

    Args:
        sums: over all episodes.
        seed: of the folds, as in the first pass.
        q: use this Q̂ everywhere instead of fitting.
    """
    weight, reward = sums.steps.weight, sums.steps.reward
    step_value = np.divide(reward, weight, out=np.full_like(weight, np.nan), where=weight > 0)
    others = [add_sums([part for k, part in enumerate(sums.folds) if k != number]) for number in range(len(sums.folds))]
    q_without = tuple(q or solve_q(part) for part in others)
    whole = add_sums(sums.folds)
    return Fits(
        value_q(whole, q or solve_q(whole)),
        np.array([value_q(part, fitted) for part, fitted in zip(others, q_without, strict=True)]),
        q_without,
        weight / max(sums.steps.n, 1),
        step_value,
        seed,
    )


def value_episodes(log: LoggedEpisodes, evaluation: FloatArray, fits: Fits) -> EpisodeValues:
    """Make the second pass over some episodes.

    Args:
        log: the episodes.
        evaluation: [N, A] the policy's probabilities in the logged states.
        fits: from the first pass over all episodes.
    """
    weights = compute_weights(log, evaluation)
    return EpisodeValues(
        task=log.tasks,
        is_cut=log.is_cut,
        weight=weights.whole,
        returns=weights.returns,
        pdis=(weights.cumulative * weights.reward).sum(axis=1),
        pdwis=_add_influence(weights.cumulative, weights.reward, fits),
        dr=_correct_values(log, evaluation, weights.cumulative, weights.reward, fits),
    )


def _add_influence(cumulative: FloatArray, reward: FloatArray, fits: Fits) -> FloatArray:
    """Return [B] the sum over all T decision numbers of all episodes, also beyond the longest of these."""
    length = cumulative.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN says: no weight left at this decision number
        scaled = cumulative / fits.step_weight[:length]
        own = (scaled * (reward - fits.step_value[:length])).sum(axis=1)
        later = (fits.step_value / fits.step_weight)[length:].sum()
    return np.asarray(own - cumulative[:, -1] * later)


def _correct_values(
    log: LoggedEpisodes, evaluation: FloatArray, cumulative: FloatArray, reward: FloatArray, fits: Fits
) -> FloatArray:
    """Return Σ_t [W_t (r_t − Q̂(s_t, a_t)) + W_{t−1} V̂(s_t)], [B], Q̂ from the folds that an episode is not in."""
    fold = assign_folds(log.tasks, len(fits.q_without), fits.seed)[log.episode]
    predicted = np.zeros(log.mask.shape)
    for number, q in enumerate(fits.q_without):
        rows = fold == number
        predicted[rows] = q.predict(log.obs[rows])
    taken = log.pad(predicted[np.arange(len(log.action)), log.action])
    value = log.pad((predicted * evaluation).sum(axis=1))
    before = np.concatenate([np.ones((log.n_episodes, 1)), cumulative[:, :-1]], axis=1)
    return np.asarray((cumulative * (reward - taken) + before * value).sum(axis=1))
