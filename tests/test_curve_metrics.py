"""Cost-success metrics against cases done by hand, and the coverage of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import load_calibration
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.cortex.evaluation.metrics import bootstrap_mean, measure_curve, trace_curve
from celr_ray.errors import PolicyError

NAN = float("nan")


def family(cost, success):
    """Policies weak, strong, then others; n equal tasks."""
    names = ["weak", "strong", *(f"p{i}" for i in range(len(cost) - 2))]
    return names, np.repeat(np.array(cost, dtype=float)[:, None], 20, 1), np.repeat(np.array(success)[:, None], 20, 1)


def test_metrics_of_a_case_done_by_hand():
    """Cost 1 and 3, success .2 and .6; a router at c = ½ recovers ¾: two trapezia, 3/16 + 7/16 of the gap."""
    found = measure_curve(*family([1, 3, 2], [0.2, 0.6, 0.5]), weak="weak", strong="strong", draws=50)
    assert np.array(found.curve) == pytest.approx(np.array([[0, 0.2], [0.5, 0.5], [1, 0.6]]))
    assert found.apgr.value == pytest.approx(0.375 / 2 + 0.875 / 2)
    assert found.area.value == pytest.approx(0.2 + 0.4 * 0.625)
    assert found.cpt50.value == pytest.approx(0.5 * 0.5 / 0.75)
    assert found.cpt80.value == pytest.approx(0.5 + 0.5 * 0.05 / 0.25)
    assert {name: x.value for name, x in found.pgr.items()} == pytest.approx({"weak": 0, "strong": 1, "p0": 0.75})


def test_a_random_mix_recovers_half_and_pays_its_share():
    found = measure_curve(*family([1, 3], [0.2, 0.6]), weak="weak", strong="strong", draws=50)
    assert (found.apgr.value, found.cpt50.value, found.cpt80.value) == pytest.approx((0.5, 0.5, 0.8))


def test_policies_outside_the_ends():
    """Cheaper and better than weak: counts from c = 0. Dearer than strong: left out. Dominated: no vertex."""
    cost, success = np.array([1, 3, 0.5, 4, 2.5]), np.array([0.2, 0.6, 0.4, 0.9, 0.3])
    assert trace_curve(cost, success, 0, 1) == pytest.approx(np.array([[0, 0.4], [1, 0.6]]))
    better = trace_curve(np.array([1, 3, 2]), np.array([0.2, 0.6, 0.7]), 0, 1)
    assert better == pytest.approx(np.array([[0, 0.2], [0.5, 0.7], [1, 0.7]]))


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 1)), max_size=8))
def test_the_envelope_rises_from_weak_to_strong(others):
    cost = np.array([1.0, 3.0, *(c for c, _ in others)])
    success = np.array([0.2, 0.6, *(s for _, s in others)])
    curve = trace_curve(cost, success, 0, 1)
    assert (curve[0, 0], curve[-1, 0]) == (0, 1)
    assert (np.diff(curve[:, 0]) >= 0).all()
    assert (np.diff(curve[:, 1]) >= 0).all()
    assert curve[-1, 1] >= 0.6
    for c, s in zip((cost - 1) / 2, success, strict=True):
        if 0 <= c <= 1:
            assert np.interp(c, curve[:, 0], curve[:, 1]) >= s - 1e-9 or (curve[:, 0] == c).any()


def test_without_a_gap_there_is_no_recovery_and_rare_gaps_leave_the_interval_open():
    with pytest.raises(PolicyError, match="no gap to recover"):
        measure_curve(*family([1, 3], [0.6, 0.6]), weak="weak", strong="strong")
    cost = np.array([[1.0] * 30, [3.0] * 30])
    success = np.array([[0.0] * 29 + [1.0], [1.0, 1.0] + [0.0] * 28])
    found = measure_curve(["w", "s"], cost, success, weak="w", strong="s", draws=500).apgr
    assert found.undefined_share > 0.1
    assert (found.ci_low, found.ci_high) == (None, None)
    assert found.value == pytest.approx(0.5)


def test_metrics_refuse_what_they_cannot_use():
    names, cost, success = family([1, 3], [0.2, 0.6])
    for bad in (
        (names, cost, np.where(success > 0.5, NAN, success)),
        (names, -cost, success),
        (names, cost, success * 10),
        (["weak", "weak"], cost, success),
        (names, cost[:, :5], success),
    ):
        with pytest.raises(PolicyError):
            measure_curve(*bad, weak="weak", strong="strong")


def test_a_mean_has_the_interval_of_its_law():
    values = np.random.default_rng(0).normal(1, 2, 400)
    found = bootstrap_mean(values, draws=4_000)
    half = 1.96 * values.std() / 20
    assert (found.ci_low, found.ci_high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_mean(values, draws=200) == bootstrap_mean(values, draws=200)


@pytest.mark.slow
def test_the_interval_of_apgr_covers_the_truth():
    assert load_calibration().measure_metrics(200)["coverage"]["ci_high"] >= 0.95
