"""Interval estimates for the report: success rate, AUC, Cohen's kappa. Pure numpy.

Every estimate carries its 95 % interval and n. Runs of one task are alike, so the intervals of AUC and
kappa count tasks, not runs, as the independent pieces. Must not read files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""97.5 % point of the normal distribution."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the number of runs behind it."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def estimate_proportion(n_hits: int, n: int) -> Estimate | None:
    """Estimate a proportion with Wilson's score interval; runs count as independent.

    Source: Wilson (1927), JASA 22, 209–212.

    Returns:
        None if n is 0.
    """
    if n == 0:
        return None
    share = n_hits / n
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def estimate_auc(scores: Floats, labels: Bools, clusters: Ints) -> Estimate | None:
    """Estimate P(score of a positive > score of a negative), ties counting half.

    The interval is the wider of two: (1) DeLong's variance with runs summed within clusters, on the logit
    scale (Obuchowski 1997), which is right for many tasks with several runs each; (2) Newcombe's score
    interval with the Hanley–McNeil variance, which stays honest for few runs and at AUC 0 or 1, where (1) has
    no width. It fails (is too narrow) with only a handful of tasks.

    Args:
        scores: [B], higher is better.
        labels: [B], true = positive.
        clusters: [B], task codes from 0.

    Returns:
        None if one of the two classes is empty.

    Source: Obuchowski, Biometrics 53 (1997) 567–578; Newcombe, Stat. Med. 25 (2006) 559–573, method 5.
    """
    n_pos = int(labels.sum())
    n_neg = len(labels) - n_pos
    if n_pos == 0 or n_neg == 0:
        return None
    values, code = np.unique(scores, return_inverse=True)
    pos = np.bincount(code[labels], minlength=len(values)).astype(float)
    neg = np.bincount(code[~labels], minlength=len(values)).astype(float)
    wins_of_pos = (np.cumsum(neg) - neg / 2) / n_neg
    wins_over_neg = (n_pos - np.cumsum(pos) + pos / 2) / n_pos
    auc = float(wins_of_pos @ pos / n_pos)
    influence = np.where(labels, (wins_of_pos[code] - auc) / n_pos, (wins_over_neg[code] - auc) / n_neg)
    low, high = _auc_score_interval(auc, n_pos, n_neg)
    variance = _clustered_variance(influence, clusters)
    if variance > 0 and 0 < auc < 1:
        logit = math.log(auc / (1 - auc))
        half = Z95 * math.sqrt(variance) / (auc * (1 - auc))
        low, high = min(low, _expit(logit - half)), max(high, _expit(logit + half))
    return Estimate(auc, low, high, len(labels))


def estimate_kappa(predicted: Bools, actual: Bools, clusters: Ints) -> Estimate | None:
    """Estimate Cohen's kappa = (agreement − chance agreement) / (1 − chance agreement).

    The interval is value ± 1.96 standard errors by the delta method, runs summed within clusters; it has no
    width where every run agrees.

    Args:
        predicted: [B].
        actual: [B].
        clusters: [B], task codes from 0.

    Returns:
        None if chance alone would agree always (no rows, or both sides constant and equal).
    """
    n = len(actual)
    if n == 0:
        return None
    share_predicted, share_actual = float(predicted.mean()), float(actual.mean())
    agree = predicted == actual
    observed = float(agree.mean())
    chance = share_predicted * share_actual + (1 - share_predicted) * (1 - share_actual)
    if chance >= 1:
        return None
    kappa = (observed - chance) / (1 - chance)
    chance_slope = (2 * share_predicted - 1) * (actual - share_actual)
    chance_slope = chance_slope + (2 * share_actual - 1) * (predicted - share_predicted)
    influence = (agree - observed) * (1 - chance) - (1 - observed) * chance_slope
    half = Z95 * math.sqrt(_clustered_variance(influence / (n * (1 - chance) ** 2), clusters))
    return Estimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n)


def _clustered_variance(influence: Floats, clusters: Ints) -> float:
    """Variance of a sum of influences whose clusters are independent; 0 with fewer than two clusters."""
    present = np.unique(clusters)
    if len(present) < 2:
        return 0.0
    sums = np.bincount(np.searchsorted(present, clusters), weights=influence)
    return float(len(present) / (len(present) - 1) * np.sum(sums**2))


def _auc_score_interval(auc: float, n_pos: int, n_neg: int) -> tuple[float, float]:
    low = _auc_score_bound(auc, n_pos, n_neg)
    return low, 1 - _auc_score_bound(1 - auc, n_pos, n_neg)


def _auc_score_bound(auc: float, n_pos: int, n_neg: int) -> float:
    """Find the smallest true AUC from which the observed one is 1.96 standard errors away, by bisection."""
    spread = (n_pos + n_neg) / 2 - 1
    low, high = 0.0, auc
    for _ in range(60):
        true = (low + high) / 2
        factor = 1 + spread * (1 - true) / (2 - true) + spread * true / (1 + true)
        error = math.sqrt(true * (1 - true) * factor / (n_pos * n_neg))
        if auc - true > Z95 * error:
            low = true
        else:
            high = true
    return low


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
