"""Cost-success curves of threshold families on the same questions: metrics, and paired differences at equal cost.

Plain arrays in, figures out; nothing here knows policies, banks or files. K thresholds, n questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from celr_ray.cortex.actions import BoolArray, FloatArray
from celr_ray.cortex.evaluation.metrics import measure_curve, trace_curve

DRAWS = 2_000
SHARES = np.linspace(0, 1, 21)

Outcome = Mapping[str, FloatArray]
"""Of both tiers: success `cheap`, `strong`, and US$ `cheap_usd`, `strong_usd`, [n] each."""


def rank(score: FloatArray, reference: FloatArray) -> FloatArray:
    """Return the share of the reference that lies above each score, [n]; the lower, the sooner it escalates."""
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, score, "left") + np.searchsorted(ordered, score, "right")
    return np.asarray(1 - below / 2 / len(ordered))


@dataclass
class Curve:
    """A family of policies on all questions, by rising share of strong calls: [K, n] each."""

    usd: FloatArray
    calls: FloatArray
    success: FloatArray


def sweep(ranks: FloatArray, own: Outcome, *, pays_both: bool) -> Curve:
    """Return what each threshold gives; the first escalates nothing, the last everything."""
    up = np.array([ranks < share for share in SHARES[:-1]] + [np.ones(len(ranks), dtype=bool)])
    usd = np.where(up, own["strong_usd"] + own["cheap_usd"] * pays_both, own["cheap_usd"])
    return Curve(usd, up.astype(float), np.where(up, own["strong"], own["cheap"]))


def draw_weights(n: int) -> FloatArray:
    """Return bootstrap weights over tasks [DRAWS + 1, n]; the first row is the sample itself."""
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(DRAWS)]
    return np.vstack([np.ones(n), *counts]) / n


def bound(values: FloatArray, n: int) -> dict[str, Any]:
    """Return the value of the sample with the percentile interval of its resamples."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": values[0], "ci_low": low, "ci_high": high, "n": n}


class Comparison:
    """Differences of success at equal cost, with paired bootstrap intervals over questions."""

    def __init__(self, own: Outcome, curves: Mapping[str, Curve], unit: str) -> None:
        """Resample once for all; unit: usd or calls."""
        self._weights = draw_weights(len(own["cheap"]))
        ends = np.array([own["cheap_usd"], own["strong_usd"]])
        ends = ends if unit == "usd" else np.repeat([[0.0], [1.0]], len(own["cheap"]), axis=1)
        self._lines = {"random mix": self._means(ends, np.array([own["cheap"], own["strong"]]))}
        self._lines |= {name: self._means(getattr(curve, unit), curve.success) for name, curve in curves.items()}
        self._n = len(own["cheap"])

    def _means(self, cost: FloatArray, success: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self._weights @ cost.T, self._weights @ success.T

    def _at(self, name: str, spend: FloatArray) -> FloatArray:
        cost, success = self._lines[name]
        return np.array([np.interp(x, c, s) for x, c, s in zip(spend, cost, success, strict=True)])

    def point(self, cost: FloatArray, success: FloatArray, name: str) -> dict[str, Any]:
        """Return success of a policy [n] minus that of a curve at the policy's mean cost."""
        spend, reached = self._weights @ cost, self._weights @ success
        return bound(reached - self._at(name, spend), self._n)

    def at_spend(self, first: str, second: str, share: float) -> dict[str, Any]:
        """Return the difference of two curves at a share of the way from always-cheap's cost to always-strong's."""
        cost = self._lines["random mix"][0]
        spend = cost[:, 0] + share * (cost[:, 1] - cost[:, 0])
        return bound(self._at(first, spend) - self._at(second, spend), self._n)

    def apgr(self, first: str, second: str) -> dict[str, Any]:
        """Return the difference of the APGR of two curves, each on its monotone envelope."""
        return bound(self._apgr(first) - self._apgr(second), self._n)

    def _apgr(self, name: str) -> FloatArray:
        ends, (cost, success) = self._lines["random mix"], self._lines[name]
        return np.array([find_apgr(*rows) for rows in zip(*ends, cost, success, strict=True)])


def find_apgr(end_cost: FloatArray, end_success: FloatArray, cost: FloatArray, success: FloatArray) -> float:
    """Return the APGR of a curve between always-cheap and always-strong, from means."""
    curve = trace_curve(np.r_[end_cost, cost], np.r_[end_success, success], 0, 1)
    if curve is None:
        return float("nan")
    low, high = end_success
    return float((np.trapezoid(curve[:, 1], curve[:, 0]) - low) / (high - low))


def describe_curve(curve: Curve, own: Outcome, unit: str) -> dict[str, Any]:
    """Return the project's metrics of a curve."""
    n = len(own["cheap"])
    ends = (own["cheap_usd"], own["strong_usd"]) if unit == "usd" else (np.zeros(n), np.ones(n))
    names = ["always-cheap", "always-strong", *(f"{share:.2f}" for share in SHARES)]
    cost = np.vstack([*ends, getattr(curve, unit)])
    success = np.vstack([own["cheap"], own["strong"], curve.success])
    found = measure_curve(names, cost, success, weak=names[0], strong=names[1], draws=DRAWS)
    metrics = {name: asdict(getattr(found, name)) for name in ("apgr", "cpt50", "cpt80")}
    return {name: {key: m[key] for key in ("value", "ci_low", "ci_high")} for name, m in metrics.items()}


def flatter(own: Outcome) -> dict[str, float]:
    """Return what the envelope makes of scores that say nothing: APGR over share of calls, mean and range of 200."""
    rng, ends = np.random.default_rng(0), np.array([own["cheap"].mean(), own["strong"].mean()])
    found = []
    for _ in range(200):
        curve = sweep(rng.random(len(own["cheap"])), own, pays_both=True)
        found.append(find_apgr(np.array([0.0, 1.0]), ends, curve.calls.mean(axis=1), curve.success.mean(axis=1)))
    return {
        "mean": float(np.mean(found)),
        "low": float(np.quantile(found, 0.025)),
        "high": float(np.quantile(found, 0.975)),
    }


def find_auc(ranks: FloatArray, wrong: BoolArray) -> float:
    """Return P(a wrong cheap answer ranks before a right one)."""
    order = rankdata(-ranks)
    return float((order[wrong].mean() - (wrong.sum() + 1) / 2) / (~wrong).sum())
