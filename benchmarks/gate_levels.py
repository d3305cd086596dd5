"""Exact levels of the tests of success, by sums over all tables and over all paths of (b, c). No simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from scipy.stats import norm

from celr_ray.cortex.evaluation import statistics as gate

Floats = NDArray[np.float64]
DELTA = 0.05
LEVELS = gate.Levels()


def list_counts(n: int) -> tuple[Floats, Floats]:
    """Return b and c of every table of n pairs."""
    b, c = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    keep = b + c <= n
    return b[keep], c[keep]


def tango_sizes(n: int, delta: float, alpha: float, losses: Sequence[float]) -> list[float]:
    """Return P(reject) at p_b = p_c − δ for each p_c, summed over all tables."""
    b, c = list_counts(n)
    ties = n - b - c
    rejects = norm.sf(gate.tango_scores(b, c, n, delta)) <= alpha
    ways = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(ties + 1)
    sizes = []
    for loss in losses:
        log_p = ways + xlogy(b, loss - delta) + xlogy(c, loss) + xlogy(ties, 1 - 2 * loss + delta)
        sizes.append(float(np.exp(log_p)[rejects].sum()))
    return sizes


def list_losses(delta: float) -> Floats:
    """Return p_c from the least possible one to ½."""
    return np.unique(np.r_[np.linspace(max(delta, 5e-4), 0.1, 120), np.linspace(0.1, 0.5, 80)])


class Paths:
    """Probability of every (b, c) of a sequential test that has not stopped yet."""

    def __init__(self, n: int, wins: float, losses: float) -> None:
        self.p = np.zeros((n + 1, n + 1))
        self.p[0, 0] = 1.0
        self.wins, self.losses = wins, losses
        self.stopped = {"pass_early": 0.0, "futile": 0.0}
        self.tasks = 0.0

    def step(self) -> None:
        """Add one task."""
        self.tasks += self.p.sum()
        grown = self.p * (1 - self.wins - self.losses)
        grown[1:] += self.p[:-1] * self.wins
        grown[:, 1:] += self.p[:, :-1] * self.losses
        self.p = grown

    def stop(self, where: NDArray[np.bool_], reason: str) -> None:
        """Take the paths that end here."""
        self.stopped[reason] += float(self.p[where].sum())
        self.p[where] = 0


def run_sequential(
    pairs: Sequence[tuple[float, float]], sizes: Sequence[int], has_futility: bool
) -> list[list[dict[str, float]]]:
    """Return, for each (p_b, p_c) and each n, the probability of each end and the mean number of tasks; exact."""
    top = max(sizes)
    found: list[list[dict[str, float]]] = [[] for _ in pairs]
    paths = [Paths(top, *pair) for pair in pairs]
    for k in range(1, top + 1):
        b, c = list_counts(k)
        rows = (b.astype(int), c.astype(int))
        wins, loses = np.zeros((top + 1, top + 1), dtype=bool), np.zeros((top + 1, top + 1), dtype=bool)
        wins[rows] = gate.log_wealth(b, c, k, DELTA) >= -np.log(LEVELS.early)
        loses[rows] = gate.log_wealth(c, b, k, -DELTA) >= -np.log(LEVELS.futility)
        for path in paths:
            path.step()
            path.stop(wins, "pass_early")
            if has_futility:
                path.stop(loses & ~wins, "futile")
        if k in sizes:
            passes = np.zeros_like(wins)
            passes[rows] = norm.sf(gate.tango_scores(b, c, k, DELTA)) <= LEVELS.final
            for path, ends in zip(paths, found, strict=True):
                final = float(path.p[passes].sum())
                ends.append(
                    {
                        "n": k,
                        **path.stopped,
                        "pass_final": final,
                        "pass": path.stopped["pass_early"] + final,
                        "mean_tasks": path.tasks,
                    }
                )
    return found


def peek(n: int, wins: float, losses: float, alpha: float, first: int) -> float:
    """Return how often Tango's test, made after each task from the first look on, passes at least once; exact."""
    path = Paths(n, wins, losses)
    for k in range(1, n + 1):
        path.step()
        if k >= first:
            b, c = list_counts(k)
            where = np.zeros_like(path.p, dtype=bool)
            where[b.astype(int), c.astype(int)] = norm.sf(gate.tango_scores(b, c, k, DELTA)) <= alpha
            path.stop(where, "pass_early")
    return path.stopped["pass_early"]
