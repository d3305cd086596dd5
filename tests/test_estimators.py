"""Off-policy estimators against closed-form values, identities and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from ope_problems import (
    BEHAVIOR,
    EVALUATION,
    MODEL_FAIL_VALUE,
    MODEL_WIN_VALUE,
    model_fail,
    model_win,
    spread,
)

from celr_ray.cortex.evaluation.bounds import betting_lower_bound, gaffke_lower_bound
from celr_ray.cortex.evaluation.estimators import (
    diagnose,
    estimate_dr,
    estimate_fqe,
    estimate_values,
    screen,
)
from celr_ray.cortex.evaluation.fqe import QFunction, fit_q
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, compute_weights
from celr_ray.errors import PolicyError


@pytest.mark.parametrize("problem", [model_fail, model_win])
def test_with_the_behavior_policy_itself_all_equal_the_mean_return(problem):
    log = problem(200, 0)
    mean = compute_weights(log, log.behavior).returns.mean()
    for estimate in estimate_values(log, log.behavior).values():
        assert estimate.value == pytest.approx(mean)
    dr = estimate_dr(log, log.behavior)
    assert dr.ci_low < mean < dr.ci_high, "its Q̂ terms cancel in expectation only"
    assert diagnose(log, log.behavior).ess == pytest.approx(200)


@pytest.mark.parametrize("problem", [model_fail, model_win])
def test_dr_without_a_model_is_pdis(problem):
    log = problem(300, 1)
    nothing = QFunction(np.zeros((2, log.obs.shape[1] + 1)))
    evaluation = spread(EVALUATION, log)
    pdis = estimate_values(log, evaluation)["pdis"]
    dr = estimate_dr(log, evaluation, q=nothing)
    assert dr.value == pytest.approx(pdis.value)
    assert dr.ci_low == pytest.approx(pdis.ci_low)


def test_wis_moves_with_the_rewards_and_is_does_not():
    log = model_fail(300, 2)
    last = log.terminated
    moved = LoggedEpisodes(**{**vars(log), "reward": log.reward + 5.0 * last})
    evaluation = spread(EVALUATION, log)
    before, after = estimate_values(log, evaluation), estimate_values(moved, evaluation)
    assert after["wis"].value == pytest.approx(before["wis"].value + 5)
    assert after["is"].value != pytest.approx(before["is"].value + 5, abs=1e-3)


@pytest.mark.parametrize(("problem", "truth"), [(model_fail, MODEL_FAIL_VALUE), (model_win, MODEL_WIN_VALUE)])
def test_estimates_come_close_to_the_true_value(problem, truth):
    log = problem(40_000, 3)
    evaluation = spread(EVALUATION, log)
    estimates = {**estimate_values(log, evaluation), "dr": estimate_dr(log, evaluation)}
    for name, estimate in estimates.items():
        half = estimate.ci_high - estimate.value
        assert abs(estimate.value - truth) < 3 * half / 1.96, name


def test_model_fail_has_the_published_value_and_fqe_is_wrong_there():
    assert pytest.approx(-0.7616, abs=1e-4) == MODEL_FAIL_VALUE
    log = model_fail(40_000, 4)
    fqe = estimate_fqe(log, spread(EVALUATION, log)).value
    assert abs(fqe - MODEL_FAIL_VALUE) > 0.2


def test_fqe_is_right_where_the_state_tells_all():
    log = model_win(40_000, 5)
    assert estimate_fqe(log, spread(EVALUATION, log)).value == pytest.approx(MODEL_WIN_VALUE, abs=0.05)


def test_fqe_leaves_out_what_follows_a_cut():
    log = model_win(2000, 6)
    cut = {**vars(log), "terminated": np.zeros(len(log.t), dtype=bool)}
    odd = {**cut, "reward": np.where(log.terminated, 1000.0, log.reward)}
    evaluation = spread(EVALUATION, log)
    fits = [fit_q(LoggedEpisodes(**columns), evaluation).coefficients for columns in (cut, odd)]
    assert np.array_equal(*fits)


def bandit(n: int, seed: int) -> LoggedEpisodes:
    """One decision; what an action earns in each of four states is fixed."""
    rng = np.random.default_rng(seed)
    state, action = rng.integers(0, 4, n), (rng.random(n) < 0.1).astype(np.int64)
    return LoggedEpisodes(
        episode=np.arange(n),
        t=np.zeros(n, dtype=np.int64),
        obs=np.eye(4)[state],
        mask=np.ones((n, 2), dtype=bool),
        action=action,
        reward=np.array([[0.0, 1.0], [1.0, 2.0], [0.5, 0.2], [3.0, 1.0]])[state, action],
        terminated=np.ones(n, dtype=bool),
        behavior=np.tile([0.9, 0.1], (n, 1)),
    )


def test_dr_varies_less_than_pdis_where_the_model_is_good():
    found = {"pdis": [], "dr": []}
    for seed in range(30):
        log = bandit(400, seed)
        evaluation = spread(np.array([0.1, 0.9]), log)
        found["pdis"].append(estimate_values(log, evaluation)["pdis"].value)
        found["dr"].append(estimate_dr(log, evaluation).value)
    assert np.std(found["dr"]) < 0.5 * np.std(found["pdis"])
    assert np.mean(found["dr"]) == pytest.approx(0.1 * 4.5 / 4 + 0.9 * 4.2 / 4, abs=0.02)


def test_a_finished_episode_keeps_its_weight():
    log = LoggedEpisodes(
        episode=np.array([0, 1, 1]),
        t=np.array([0, 0, 1]),
        obs=np.ones((3, 1)),
        mask=np.ones((3, 2), dtype=bool),
        action=np.array([0, 0, 1]),
        reward=np.array([1.0, 0.0, 2.0]),
        terminated=np.array([True, False, True]),
        behavior=np.full((3, 2), 0.5),
    )
    weights = compute_weights(log, np.tile([0.8, 0.2], (3, 1)))
    assert weights.cumulative.tolist() == pytest.approx(np.array([[1.6, 1.6], [1.6, 1.6 * 0.4]]))


def test_what_the_behavior_policy_never_does_is_not_evaluable():
    log = model_fail(500, 7, behavior=np.array([1.0, 0.0]))
    diagnostics = diagnose(log, spread(EVALUATION, log))
    assert not diagnostics.is_evaluable
    assert diagnostics.n_unsupported == 1000
    assert np.isnan(screen(log, spread(EVALUATION, log), (-1, 1)).value_low)


def test_wrongly_logged_probabilities_show_in_the_mean_weight():
    log = model_fail(5000, 8)
    wrong = LoggedEpisodes(**{**vars(log), "behavior": np.full((10_000, 2), 0.5)})
    problems = diagnose(wrong, spread(np.array([0.6, 0.4]), log)).problems
    assert any("logged probabilities are wrong" in problem for problem in problems)
    assert diagnose(log, spread(np.array([0.6, 0.4]), log)).is_evaluable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.array([1, 0])}, "own mask forbids"),
        ({"reward": np.array([np.nan, 1.0])}, "not finite"),
        ({"behavior": np.array([[0.0, 1.0], [1.0, 0.0]])}, "probability of 0"),
        ({"t": np.array([0, 2])}, "without gaps"),
        ({"episode": np.array([0, 1])}, "without gaps"),
    ],
)
def test_bad_logs_are_refused(change, message):
    good = {
        "episode": np.array([0, 0]),
        "t": np.array([0, 1]),
        "obs": np.ones((2, 1)),
        "mask": np.array([[True, False], [True, True]]),
        "action": np.array([0, 0]),
        "reward": np.zeros(2),
        "terminated": np.array([False, True]),
        "behavior": np.array([[1.0, 0.0], [0.5, 0.5]]),
    }
    LoggedEpisodes(**good)
    with pytest.raises(PolicyError, match=message):
        LoggedEpisodes(**{**good, **change})


def test_taking_episodes_numbers_them_anew():
    log = model_win(5, 0).take(np.array([1, 3]))
    assert log.n_episodes == 2
    assert log.episode.tolist() == [0] * 6 + [1] * 6


def test_gaffke_with_one_value_is_uniform_times_it():
    assert gaffke_lower_bound(np.array([2.0]), 0.05, 0) == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["gaffke", "betting"])
def test_bounds_cover_weighted_returns(bound):
    covered = 0
    for seed in range(600):
        log = model_fail(100, seed)
        weights = compute_weights(log, spread(np.array([0.5, 0.5]), log))
        values = weights.whole * (weights.returns + 1)
        low = gaffke_lower_bound(values, 0.05, seed) if bound == "gaffke" else betting_lower_bound(values, 0.05)
        covered += low - 1 <= 0.0
    assert covered / 600 >= 0.93


def test_the_screens_bounds_hold_the_value():
    log = model_fail(2000, 9)
    found = screen(log, spread(np.array([0.5, 0.5]), log), (-1, 1))
    assert found.betting_low <= found.value_low < 0 < found.value_high
    with pytest.raises(PolicyError, match="leave the range"):
        screen(log, log.behavior, (0, 1))
    assert BEHAVIOR.sum() == pytest.approx(1)
