"""How often the gate's tests err: exact sizes where they can be computed, else simulated ones with their intervals.

    success       Tango's exact size over all p_c, and the whole sequential procedure (e-process, futility, last test)
                  by a sum over all paths of (b, c); no simulation
    clustered     Student's t over per-task means, alone and with Gaffke's bound, where tasks lose rarely but wholly
    cost          t, bootstrap-t and Gaffke where the mean cost is equal and the typical one lower; beside them the
                  log-ratio t and Wilcoxon tests, which we do not use
    arrival       a worse policy whose failures take twice as long: evaluated as results arrive, and by the prefix rule
    metrics       coverage of the bootstrap interval of APGR

Every figure is a rate of a false claim at the border of its null hypothesis unless its name says power or coverage.

    python benchmarks/gate_calibration_tests.py --repeats 2000 --out benchmarks/results/gate_calibration_tests.json
"""

from __future__ import annotations

import argparse
import functools
import heapq
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gate_levels import DELTA, LEVELS, list_losses, peek, run_sequential, tango_sizes
from measure import describe_machine, find_versions, write_result
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import wilcoxon

from celr_ray.cortex.evaluation import statistics as gate
from celr_ray.cortex.evaluation.bounds import gaffke_p_value
from celr_ray.cortex.evaluation.metrics import measure_curve

Floats = NDArray[np.float64]
SIZES = (50, 100, 200, 300, 500)
COST_SPREAD = 0.5
COST_MEAN = float(np.exp(COST_SPREAD**2 / 2))
CAP = 4 * COST_MEAN
"""The gate's cap: four times the anchor's mean cost."""


def measure_success() -> dict[str, Any]:
    """Return exact sizes and powers of the tests of success."""
    tango: dict[str, Any] = {}
    for delta in (DELTA, 0.0):
        losses = list_losses(delta)
        for alpha in (0.05, 0.04, 0.02):
            worst = {n: max(tango_sizes(n, delta, alpha, losses)) for n in SIZES}
            tango[f"delta {delta:g}, alpha {alpha:g}"] = {"largest_size": worst, "excess": max(worst.values()) - alpha}
    border = [(loss - DELTA, loss) for loss in (0.05, 0.055, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)]
    equal = [(rate, rate) for rate in (0.01, 0.02, 0.05, 0.1, 0.2)]
    better = [(0.1, 0.05), (0.15, 0.1)]
    lazy = [(0.02, 0.2), (0.05, 0.4)]
    at_border = {has: run_sequential(border, SIZES, has) for has in (True, False)}
    others = run_sequential([*equal, *better, *lazy], SIZES, True)
    return {
        "tango": tango,
        "sequential": {
            "levels": vars(LEVELS),
            "false_pass_largest": max(end["pass"] for ends in at_border[True] for end in ends),
            "false_pass_largest_without_futility": max(end["pass"] for ends in at_border[False] for end in ends),
            "false_early_pass_largest": max(end["pass_early"] for ends in at_border[False] for end in ends),
            "false_futility_largest": max(end["futile"] for ends in at_border[True] for end in ends),
            "at_the_border": name_pairs(border, at_border[True]),
            "power": name_pairs([*equal, *better, *lazy], others),
        },
        "tango_at_every_task_from_20_on": {n: peek(n, 0.05, 0.1, 0.05, 20) for n in (100, 300)},
    }


def name_pairs(pairs: Sequence[tuple[float, float]], found: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Return the ends by the rates they belong to."""
    return {f"b {b:.3g}, c {c:.3g}": ends for (b, c), ends in zip(pairs, found, strict=True)}


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """Return a simulated rate with its exact 95 % interval."""
    k, n = int(np.sum(hits)), len(hits)
    low = 1 - gate.clopper_pearson_upper(n - k, n, 0.025)
    return {"rate": k / n, "ci_low": low, "ci_high": gate.clopper_pearson_upper(k, n, 0.025), "repeats": n}


def draw_breaks(rng: np.random.Generator, n: int, replays: int) -> Floats:
    """Return per-task differences: one task in twenty breaks wholly, the others stay as they are; mean −.05."""
    return np.where(rng.random(n) < DELTA, -1.0, 0.0)


def draw_noisy(rng: np.random.Generator, n: int, replays: int) -> Floats:
    """Return per-task differences of policies that both succeed by chance, on tasks of all difficulties; mean −.05."""
    skill = rng.beta(2, 1, n)
    old = rng.binomial(replays, skill) / replays
    return np.asarray(rng.binomial(replays, skill * (1 - DELTA * 1.5)) / replays - old)


def measure_clustered(repeats: int) -> dict[str, Any]:
    """Return simulated sizes of the tests over several replays."""
    result: dict[str, Any] = {}
    for name, draw in (("one task in twenty breaks", draw_breaks), ("chance on every task", draw_noisy)):
        for n in (50, 100, 300):
            rng = np.random.default_rng(n)
            t_only, both = [], []
            for seed in range(repeats):
                values = draw(rng, n, 4)
                passes = gate.clustered_t(values, DELTA).p_value <= 0.05
                t_only.append(passes)
                both.append(passes and gaffke_p_value(1 + values, 1 - DELTA, seed) <= 0.05)
            result[f"{name}, n {n}"] = {"t": rate(t_only), "t_and_gaffke": rate(both)}
    return result


def draw_costs(rng: np.random.Generator, n: int, share: float, factor: float, noise: float) -> tuple[Floats, Floats]:
    """Return costs of equal means under the cap: a share explodes to `factor` means, the rest is a little cheaper."""
    return draw_scaled(rng, n, share, factor, noise, equal_scale(share, factor, noise))


def draw_scaled(
    rng: np.random.Generator, n: int, share: float, factor: float, noise: float, scale: float
) -> tuple[Floats, Floats]:
    """Return costs of a candidate that costs `scale` of the base, with noise, where it does not explode."""
    base = draw_base(rng, n)
    new = scale * base * (rng.gamma(1 / noise**2, noise**2, n) if noise else 1)
    return np.minimum(np.where(rng.random(n) < share, factor * COST_MEAN, new), CAP), base


@functools.cache
def equal_scale(share: float, factor: float, noise: float) -> float:
    """Return the scale at which both policies cost the same on average, on a million tasks."""

    def excess(scale: float) -> float:
        new, base = draw_scaled(np.random.default_rng(1), 1_000_000, share, factor, noise, scale)
        return float(new.mean() - base.mean())

    return float(brentq(excess, 0.1, 2))


def draw_base(rng: np.random.Generator, n: int) -> Floats:
    """Return log-normal costs under the cap."""
    return np.minimum(rng.lognormal(0, COST_SPREAD, n), CAP)


def measure_cost_case(n: int, repeats: int, draw: Callable[[np.random.Generator], Any]) -> dict[str, Any]:
    """Return the rates of a claim of lower cost by each test."""
    rng = np.random.default_rng(n)
    hits: dict[str, list[bool]] = {name: [] for name in ("t", "t_and_bootstrap_t", "gaffke", "log_ratio_t", "wilcoxon")}
    for seed in range(repeats):
        new, base = draw(rng)
        values = gate.compare_costs(new, base, 1.0)
        _, p_bootstrap = gate.bootstrap_t_upper(values, seed=seed, draws=999)
        p_t = gate.clustered_t(-values).p_value
        hits["t"].append(p_t <= 0.05)
        hits["t_and_bootstrap_t"].append(max(p_t, p_bootstrap) <= 0.05)
        hits["gaffke"].append(gaffke_p_value(np.maximum(CAP - values, 0), CAP, seed) <= 0.05)
        hits["log_ratio_t"].append(gate.clustered_t(np.log(base / new)).p_value <= 0.05)
        hits["wilcoxon"].append(wilcoxon(values, alternative="less").pvalue <= 0.05)
    return {name: rate(found) for name, found in hits.items()}


def measure_cost(repeats: int) -> dict[str, Any]:
    """Return simulated sizes and powers of the tests of cost."""
    result: dict[str, Any] = {}
    for n in (200, 500):
        for share, factor, noise in (
            (0.0, 0.0, 0.5),
            (0.01, 4.0, 0.0),
            (0.02, 4.0, 0.0),
            (0.05, 4.0, 0.0),
            (0.02, 4.0, 0.3),
            (0.05, 4.0, 0.3),
        ):
            name = f"n {n}, {share:.0%} at {factor:g} means, noise {noise:g}"
            result[name] = measure_cost_case(
                n, repeats, lambda rng, n=n, s=share, f=factor, v=noise: draw_costs(rng, n, s, f, v)
            )
    for n in (200, 300, 500):
        for saving, noise in ((0.25, 0.5), (0.1, 0.3), (0.05, 0.1)):
            result[f"power, n {n}: {saving:.0%} cheaper, noise {noise:g}"] = measure_cost_case(
                n, repeats // 4, lambda rng, n=n, s=saving, v=noise: draw_scaled(rng, n, 0.0, 0.0, v, 1 - s)
            )
    return result


def measure_cost_process(repeats: int) -> dict[str, Any]:
    """Return how often the e-process of cost ever passes where the mean costs are equal."""
    result = {}
    for share, factor, noise in ((0.0, 0.0, 0.5), (0.02, 4.0, 0.0)):
        rng = np.random.default_rng(5)
        ever = []
        for _ in range(repeats):
            values = np.subtract(*draw_costs(rng, 500, share, factor, noise))
            bets = (np.arange(25) + 0.5)[:, None] / 25 * 0.99 / CAP
            wealth = np.exp(np.cumsum(np.log1p(-bets * values), axis=1)).mean(axis=0)
            ever.append(bool(wealth.max() >= 1 / LEVELS.early))
        result[f"{share:.0%} at {factor:g} means, noise {noise:g}"] = rate(ever)
    return result


def measure_arrival(repeats: int, n: int = 300, workers: int = 64, loss: float = 0.1) -> dict[str, Any]:
    """Return how often a policy passes early that is worse by 10 points and whose failures take twice as long."""
    rng = np.random.default_rng(7)
    by_arrival, by_prefix = [], []
    for _ in range(repeats):
        old = rng.random(n) < 0.7
        new = rng.random(n) < 0.7 - loss
        differences = new.astype(float) - old
        order = arrange(np.where(new, 1.0, 2.0) * rng.uniform(0.9, 1.1, n), workers)
        by_arrival.append(passes_early(differences[order]))
        monitor: gate.PrefixMonitor[float] = gate.PrefixMonitor([str(unit) for unit in range(n)])
        grown = [x for unit in order for _, x in monitor.add(str(unit), differences[unit])]
        by_prefix.append(passes_early(np.array(grown)))
    return {"in_order_of_arrival": rate(by_arrival), "by_the_prefix_rule": rate(by_prefix), "workers": workers}


def arrange(seconds: Floats, workers: int) -> list[int]:
    """Return units in the order in which they end, begun in turn on the first worker that is free."""
    free = [0.0] * workers
    ends = []
    for unit, duration in enumerate(seconds):
        end = heapq.heappop(free) + duration
        heapq.heappush(free, end)
        ends.append((end, unit))
    return [unit for _, unit in sorted(ends)]


def passes_early(differences: Floats) -> bool:
    """Tell whether K ≥ 1/α at any length."""
    b, c = np.cumsum(differences > 0), np.cumsum(differences < 0)
    wealth = gate.log_wealth(b, c, np.arange(1, len(differences) + 1), DELTA)
    return bool(wealth.max() >= -np.log(LEVELS.early))


def measure_metrics(repeats: int, n: int = 200) -> dict[str, Any]:
    """Return the coverage of the 95 % interval of APGR over samples of a large population of tasks."""
    rng = np.random.default_rng(11)
    population = draw_family(rng, 200_000)
    truth = measure_curve(FAMILY, *population, weak="weak", strong="strong", draws=1).apgr.value
    covers = []
    for seed in range(repeats):
        rows = rng.integers(population[0].shape[1], size=n)
        found = measure_curve(
            FAMILY, *(part[:, rows] for part in population), weak="weak", strong="strong", draws=400, seed=seed
        ).apgr
        covers.append((found.ci_low or -np.inf) <= truth <= (found.ci_high or np.inf))
    return {"apgr": truth, "coverage": rate(covers), "n": n}


FAMILY = ("weak", "strong", "0.25", "0.5", "0.75")


def draw_family(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Return costs and successes of a router's thresholds that knows difficulty with some noise."""
    difficulty = rng.random(n)
    weak, strong = rng.random(n) > 0.2 + 0.7 * difficulty, rng.random(n) > 0.1 + 0.4 * difficulty
    signal = difficulty + rng.normal(0, 0.3, n)
    routed = [np.zeros(n, dtype=bool), np.ones(n, dtype=bool)] + [signal > x for x in (0.25, 0.5, 0.75)]
    cost = np.array([np.where(up, 1.0, 0.1) for up in routed])
    return cost, np.array([np.where(up, strong, weak) for up in routed], dtype=float)


def round_all(value: Any) -> Any:
    """Round every number in a JSON value to five places."""
    if isinstance(value, dict):
        return {str(key): round_all(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [round_all(part) for part in value]
    return round(float(value), 5) if isinstance(value, float) else value


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2_000, help="of each simulation")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    start = time.process_time()
    result = {
        "command": f"python benchmarks/gate_calibration_tests.py --repeats {options.repeats}",
        "success_exact": measure_success(),
        "clustered": measure_clustered(options.repeats),
        "cost": measure_cost(options.repeats),
        "cost_e_process": measure_cost_process(options.repeats),
        "arrival": measure_arrival(options.repeats),
        "metrics": measure_metrics(min(options.repeats, 500)),
    }
    write_result(
        options.out,
        {
            **round_all(result),
            "cpu_s": round(time.process_time() - start),
            "machine": describe_machine(),
            "versions": find_versions(sys.executable, ["celr-ray", "numpy", "scipy"]),
        },
    )


if __name__ == "__main__":
    main()
