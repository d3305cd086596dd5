"""How good probabilities are: AUC, Brier score and calibration error, with intervals over tasks. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from celr_ray.report.statistics import Bools, Estimate, Floats, Ints, estimate_auc

__all__ = ["DifficultyError", "DifficultyReport", "ReliabilityBin", "estimate_difficulty_error", "make_reliability"]

N_BINS = 10
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class ReliabilityBin:
    """The rows whose estimates lie within `low` and `high`.

    Attributes:
        low, high: least and greatest estimate.
        n: rows.
        mean_predicted: mean estimate.
        share_failed: what truly failed.
    """

    low: float
    high: float
    n: int
    mean_predicted: float
    share_failed: float


@dataclass(frozen=True)
class DifficultyError:
    """Figures of `DifficultyReport`."""

    auc: Estimate | None
    brier: Estimate
    ece: Estimate
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class DifficultyReport:
    """How good the returned model is on tasks that its training has not seen.

    Attributes:
        seed: of the splits and the bootstrap.
        n_train, n_train_tasks: rows and tasks that the model was made from.
        n, n_tasks: held-out rows and tasks.
        share_failed: of the held-out rows.
        auc: P(a failed run's estimate > a successful one's); None if the held-out rows have one outcome only.
        brier: mean squared error of the probability.
        brier_constant: the same for a model that always says the training rows' share of failures.
        ece: expected calibration error, Σ share of bin · |mean estimate − share failed|. It has a floor above 0: with
            few rows in a bin, even true probabilities differ from the share.
        reliability: the table behind `ece`, bins of about equally many rows.
        calibration: `platt` or `isotonic`.
        strength: C of the logistic regression.
        model_hash: content hash of the model.
    """

    seed: int
    n_train: int
    n_train_tasks: int
    n: int
    n_tasks: int
    share_failed: float
    auc: Estimate | None
    brier: Estimate
    brier_constant: float
    ece: Estimate
    reliability: tuple[ReliabilityBin, ...]
    calibration: str
    strength: float
    model_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return asdict(self)


def estimate_difficulty_error(predicted: Floats, failed: Bools, tasks: Ints, seed: int) -> DifficultyError:
    """Measure probabilities against outcomes.

    Intervals are 95 % percentile intervals of 1,000 bootstrap samples of whole tasks; that of the AUC is widened to
    the closed one of `estimate_auc`, which stays honest for few tasks.

    Args:
        predicted: [B] probabilities of failure.
        failed: [B].
        tasks: [B] task codes.
        seed: of the bootstrap.
    """
    samples = list(_resample(tasks, seed))

    def estimate(figure: Callable[[Ints], float]) -> Estimate:
        low, high = np.nanpercentile([figure(rows) for rows in samples], [2.5, 97.5])
        return Estimate(figure(np.arange(len(failed))), float(low), float(high), len(failed))

    brier = estimate(lambda rows: float(np.mean((predicted[rows] - failed[rows]) ** 2)))
    ece = estimate(lambda rows: expected_error(make_reliability(predicted[rows], failed[rows])))
    auc = estimate_auc(predicted, failed, tasks)
    if auc:
        drawn = estimate(lambda rows: _auc_value(predicted[rows], failed[rows], tasks[rows]))
        auc = Estimate(auc.value, min(auc.ci_low, drawn.ci_low), max(auc.ci_high, drawn.ci_high), auc.n)
    return DifficultyError(auc, brier, ece, make_reliability(predicted, failed))


def make_reliability(predicted: Floats, failed: Bools) -> tuple[ReliabilityBin, ...]:
    """Sort rows by estimate into ten bins of about equal size; equal estimates share a bin."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, N_BINS + 1)[1:-1]))
    codes = np.searchsorted(edges, predicted, side="left")
    bins = []
    for code in np.unique(codes):
        inside = predicted[codes == code]
        share = float(failed[codes == code].mean())
        bins.append(ReliabilityBin(float(inside.min()), float(inside.max()), len(inside), float(inside.mean()), share))
    return tuple(bins)


def expected_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the mean of |mean estimate − share failed|, weighted by rows."""
    return sum(b.n * abs(b.mean_predicted - b.share_failed) for b in bins) / sum(b.n for b in bins)


def _resample(tasks: Ints, seed: int) -> Iterator[Ints]:
    """Yield the rows of bootstrap samples of whole tasks."""
    random = np.random.default_rng(seed)
    order = np.argsort(tasks, kind="stable")
    starts = np.flatnonzero(np.diff(tasks[order], prepend=-1))
    rows_of = np.split(order, starts[1:])
    for _ in range(N_BOOTSTRAP):
        drawn = random.integers(len(rows_of), size=len(rows_of))
        yield np.concatenate([rows_of[task] for task in drawn])


def _auc_value(predicted: Floats, failed: Bools, tasks: Ints) -> float:
    estimate = estimate_auc(predicted, failed, tasks)
    return estimate.value if estimate else float("nan")
