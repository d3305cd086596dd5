"""Early stop: e-processes against their formula and exact levels, and the rule of the longest complete prefix."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import load_calibration
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.cortex.evaluation import statistics as gate
from celr_ray.errors import PolicyError

NAN = float("nan")


@pytest.fixture(scope="module")
def calibration():
    return load_calibration()


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=80), st.sampled_from([0.0, 0.05, 0.1]))
def test_wealth_is_the_formula(differences, delta):
    process = gate.EProcess(-delta, -1.0)
    for x in differences:
        process.update(x)
    b, c = differences.count(1), differences.count(-1)
    bets = (np.arange(25) + 0.5) / 25 * 0.99 / (1 - delta)
    ties = len(differences) - b - c
    wealth = np.mean((1 + bets * (1 + delta)) ** b * (1 - bets * (1 - delta)) ** c * (1 + bets * delta) ** ties)
    assert np.exp(process.log_wealth) == pytest.approx(wealth, rel=1e-9)
    assert np.exp(gate.log_wealth(b, c, len(differences), delta)) == pytest.approx(wealth, rel=1e-9)


@given(st.floats(0, 0.2), st.floats(0, 0.3))
def test_wealth_is_worth_one_on_average_at_the_border(delta, wins):
    """The mean of one factor over the distribution at the border is 1; the product's then is, too."""
    losses = wins + delta
    one = [np.exp(gate.log_wealth(b, c, 1, delta)) for b, c in ((1, 0), (0, 1), (0, 0))]
    assert np.dot(one, [wins, losses, 1 - wins - losses]) == pytest.approx(1)


def test_the_whole_procedure_holds_its_level_exactly(calibration):
    border = [(loss - 0.05, loss) for loss in (0.05, 0.06, 0.1, 0.2, 0.4)]
    for ends in calibration.run_sequential(border, (50, 120), True):
        for end in ends:
            assert end["pass_early"] <= 0.01
            assert end["futile"] <= 0.05
            assert end["pass"] <= 0.05
    assert calibration.peek(120, 0.05, 0.1, 0.05, 20) > 0.15, "Tango after each task does not"


def test_the_class_does_what_the_exact_sum_says(calibration):
    exact = calibration.run_sequential([(0.1, 0.05)], (60,), True)[0][0]
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(800):
        test = gate.watch_success(60, 0.05)
        for x in rng.choice([1.0, -1.0, 0.0], p=[0.1, 0.05, 0.85], size=60):
            test.update(x)
        ends.append(test.decision)
    for name in ("pass_early", "pass_final", "futile"):
        share = np.mean([end == name for end in ends])
        assert abs(share - exact[name]) <= 4 * np.sqrt(exact[name] / 800) + 1e-3, name


def test_a_lazy_policy_ends_early_and_a_better_one_passes_early():
    lazy = gate.watch_success(300, 0.05)
    assert [lazy.update(-1.0 if i % 2 else 0.0) for i in range(60)][-1] is gate.Decision.FUTILE
    better = gate.watch_success(300, 0.05)
    while better.decision is gate.Decision.CONTINUE:
        better.update(float(better.n % 5 == 0))
    assert better.decision is gate.Decision.PASS_EARLY
    assert better.n < 60
    after = better.n
    assert better.update(-1.0) is gate.Decision.PASS_EARLY, "a decision is final"
    assert better.n == after


def test_the_last_test_decides_when_nothing_did_before():
    test = gate.watch_success(100, 0.05)
    for _ in range(100):
        test.update(0.0)
    assert test.decision is gate.Decision.PASS_FINAL
    assert test.p_value == pytest.approx(gate.tango(0, 0, 100, 0.05).p_value)
    replayed = gate.watch_success(40, 0.05, replays=4)
    for _ in range(40):
        replayed.update(0.0)
    assert replayed.decision is gate.Decision.NOT_PROVEN
    assert replayed.p_value > 0.1
    unchanged = gate.watch_success(300, 0.0, gate.Levels().share(2))
    for _ in range(300):
        unchanged.update(0.0)
    assert unchanged.decision is gate.Decision.NOT_PROVEN, "an unchanged policy is better in nothing"


def test_cost_passes_early_at_a_cap_and_only_at_the_end_without():
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 0.5, 300).clip(max=4)
    early, late, strict = (
        gate.watch_cost(300, 1.02, cap=4.0),
        gate.watch_cost(300, 1.02, cap=None),
        gate.watch_cost(300, 1.02, cap=4.0, is_strict=True),
    )
    dear = gate.watch_cost(300, 1.02, cap=4.0)
    for cost in base:
        for test in (early, late, strict):
            test.update(1.02 * cost - 0.3 * cost)
        dear.update(1.02 * cost - min(2.5 * cost, 4.0))
    assert early.decision is strict.decision is gate.Decision.PASS_EARLY
    assert early.n < 300
    assert (late.decision, late.n) == (gate.Decision.PASS_FINAL, 300)
    assert late.p_value == gate.cost_upper_bounds(0.3 * base, base, 1.02, 0.04).p_value
    assert dear.decision is gate.Decision.FUTILE


def test_an_e_process_refuses_what_would_break_it():
    for value in (NAN, -5.0, -np.inf):
        with pytest.raises(PolicyError):
            gate.EProcess(0.0, -4.0).update(value)
    with pytest.raises(PolicyError):
        gate.EProcess(0.0, 0.0)
    with pytest.raises(PolicyError):
        gate.watch_success(10, 0.05).update(NAN)
    with pytest.raises(PolicyError, match="cap"):
        gate.watch_cost(10, 1.0, cap=None, is_strict=True)
    with pytest.raises(PolicyError):
        gate.Levels(early=0.0)


# --- the prefix rule


@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 7))
def test_no_order_of_arrival_and_no_batching_changes_a_decision(random, n, batch):
    order = [f"task {i}" for i in range(n)]
    results = {name: random.choice([-1.0, 0.0, 0.0, 1.0, 1.0]) for name in order}
    expected = [results[name] for name in order]

    def run(arrivals):
        monitor, test = gate.PrefixMonitor(order), gate.watch_success(n, 0.05)
        seen, decided_at = [], None
        for start in range(0, n, batch):
            for name in arrivals[start : start + batch]:
                for unit, value in monitor.add(name, results[name]):
                    assert unit == order[len(seen)]
                    seen.append(value)
                    if test.update(value) is not gate.Decision.CONTINUE and decided_at is None:
                        decided_at = len(seen)
        assert monitor.is_complete
        assert not monitor.missing
        return seen, test.decision, test.n, decided_at, test.p_value

    shuffled = random.sample(order, n)
    assert run(shuffled) == run(order) == run(order[::-1])
    assert run(shuffled)[0] == expected


def test_nothing_is_given_out_before_what_comes_first():
    monitor = gate.PrefixMonitor(["a", "b", "c", "d"])
    assert monitor.add("c", 3) == []
    assert monitor.add("b", 2) == []
    assert (monitor.complete, monitor.missing) == (0, ("a", "d"))
    assert monitor.add("a", 1) == [("a", 1), ("b", 2), ("c", 3)]
    assert (monitor.complete, monitor.missing) == (3, ("d",))
    for unit in ("a", "x"):
        with pytest.raises(PolicyError):
            monitor.add(unit, 1)
    with pytest.raises(PolicyError):
        gate.PrefixMonitor(["a", "a"])


def test_order_of_arrival_passes_a_worse_policy_and_the_prefix_does_not(calibration):
    found = calibration.measure_arrival(100)
    assert found["in_order_of_arrival"]["rate"] > 0.8
    assert found["by_the_prefix_rule"]["rate"] <= 0.01


@pytest.mark.slow
def test_levels_over_the_whole_range(calibration):
    exact = calibration.measure_success()
    for name, sizes in exact["tango"].items():
        assert sizes["excess"] <= 0.01, name
    sequential = exact["sequential"]
    assert sequential["false_early_pass_largest"] <= 0.01
    assert sequential["false_pass_largest"] <= 0.05
    assert sequential["false_pass_largest_without_futility"] <= 0.05
    assert sequential["false_futility_largest"] <= 0.05


@pytest.mark.slow
def test_the_process_of_cost_holds_its_level(calibration):
    for name, found in calibration.measure_cost_process(1_000).items():
        assert found["ci_low"] <= 0.01, name
