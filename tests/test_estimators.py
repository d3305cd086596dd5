"""Off-policy estimators against closed-form values, identities and simulated coverage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ope_problems import (
    BEHAVIOR,
    EVALUATION,
    MODEL_FAIL_VALUE,
    MODEL_WIN_VALUE,
    RETRY_VALUE,
    masked_retry,
    model_fail,
    model_win,
    retry_evaluation,
    spread,
)

from celr_ray.cortex.evaluation.bounds import betting_lower_bound, gaffke_lower_bound
from celr_ray.cortex.evaluation.estimators import (
    ESTIMATORS,
    diagnose,
    estimate_all,
    estimate_dr,
    estimate_fqe,
    estimate_values,
    screen,
)
from celr_ray.cortex.evaluation.fqe import QFunction, fit_q
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, compute_weights
from celr_ray.cortex.evaluation.screening import Diagnostics, Screen, Verdict, veto
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


def test_all_come_close_where_masks_bind_and_episodes_differ_in_length():
    log = masked_retry(40_000, 3)
    for name, estimate in estimate_all(log, retry_evaluation(log), (-1.3, 1.0)).estimates.items():
        half = max(estimate.ci_high - estimate.value, 0.005)
        assert abs(estimate.value - RETRY_VALUE) < 1.6 * half, name


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


def test_probabilities_that_no_policy_can_have_are_refused():
    log = masked_retry(20, 0)
    good = retry_evaluation(log)
    for bad in (good * 0.9, np.full(good.shape, 1 / 3), good * np.nan, good[1:]):
        with pytest.raises(PolicyError, match=r"gives no probabilities under the mask|of shape"):
            estimate_values(log, bad)


def cut_some(log: LoggedEpisodes, share: float, seed: int) -> LoggedEpisodes:
    """Drop the last decision of some of the episodes that have two."""
    last = np.append(log.t[1:] == 0, True)
    is_cut = np.random.default_rng(seed).random(log.n_episodes) < share
    is_cut &= np.bincount(log.episode) > 1
    keep = ~(last & is_cut[log.episode])
    columns = {name: value[keep] for name, value in vars(log).items() if name != "task"}
    return LoggedEpisodes(**columns)


def test_cut_logs_are_counted_and_as_bad_or_as_good_as_can_be_in_the_bounds():
    log = model_fail(2000, 11)
    evaluation = np.array([0.6, 0.4])
    cut = cut_some(log, 0.04, 0)
    report = estimate_all(cut, spread(evaluation, cut), (-1, 1))
    assert report.screen.diagnostics.n_cut == cut.is_cut.sum() > 0
    assert report.estimates["is"].n == 2000 - cut.is_cut.sum()
    whole = screen(log, spread(evaluation, log), (-1, 1))
    assert report.screen.value_low < whole.value_low < 0.2 < whole.value_high < report.screen.value_high
    many = cut_some(log, 0.5, 0)
    problems = diagnose(many, spread(evaluation, many)).problems
    assert any("stop before their end" in problem for problem in problems)


def test_more_episodes_of_the_same_tasks_are_no_more_evidence():
    once = model_win(300, 12)
    evaluation = np.array([0.5, 0.5])
    rows = np.concatenate([np.arange(len(once.t))] * 3)
    columns = {name: value[rows] for name, value in vars(once).items() if name != "task"}
    thrice = LoggedEpisodes(**{**columns, "episode": np.cumsum(columns["t"] == 0) - 1}, task=np.arange(900) % 300)
    before = estimate_all(once, spread(evaluation, once), (-3, 3))
    after = estimate_all(thrice, spread(evaluation, thrice), (-3, 3))
    for name in ("is", "wis", "pdis", "pdwis"):
        assert dataclasses.astuple(after.estimates[name])[:3] == pytest.approx(
            dataclasses.astuple(before.estimates[name])[:3]
        )
    assert after.screen.value_low == pytest.approx(before.screen.value_low)
    assert after.screen.betting_high == pytest.approx(before.screen.betting_high)


def make_screen(low: float, high: float, problems: tuple[str, ...] = ()) -> Screen:
    return Screen(Diagnostics(100, 0, 80.0, 0.1, 0.0, 1.0, 0.0, 0, problems), low, high, low, high)


def test_the_veto_needs_bounds_that_do_not_touch_and_two_evaluable_policies():
    champion = make_screen(0.5, 0.9)
    assert veto(make_screen(0.0, 0.4), champion).verdict is Verdict.REJECTED
    for high in (0.5, 0.6, 2.0):
        assert veto(make_screen(0.0, high), champion).verdict is Verdict.NOT_REJECTED
    unknown = make_screen(np.nan, np.nan, ("too few",))
    for pair, who in (((unknown, champion), "candidate"), ((champion, unknown), "champion")):
        found = veto(*pair)
        assert found.verdict is Verdict.NOT_EVALUABLE
        assert f"{who}: too few" in found.reason


def test_a_clearly_worse_candidate_is_vetoed_and_the_behavior_policy_is_not():
    log = model_win(3000, 13)
    worse, better = spread(np.array([1.0, 0.0]), log), spread(np.array([0.5, 0.5]), log)
    screens = [screen(log, policy, (-3, 3)) for policy in (worse, better, log.behavior)]
    assert veto(screens[0], screens[1]).verdict is Verdict.REJECTED
    assert veto(screens[1], screens[2]).verdict is Verdict.NOT_REJECTED
    assert veto(screens[2], screens[2]).verdict is Verdict.NOT_REJECTED


@settings(max_examples=25)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.randoms())
def test_bounds_do_not_depend_on_the_order_and_lie_below_the_mean(values, rng):
    shuffled = list(values)
    rng.shuffle(shuffled)
    first, second = np.array(values), np.array(shuffled)
    assert gaffke_lower_bound(first, 0.05, 0) == gaffke_lower_bound(second, 0.05, 0)
    assert betting_lower_bound(first, 0.05) == pytest.approx(betting_lower_bound(second, 0.05), rel=1e-9, abs=1e-12)
    assert 0 <= betting_lower_bound(first, 0.05) <= first.mean() + 1e-9
    assert 0 <= gaffke_lower_bound(first, 0.05, 0) <= first.max()


def test_bounds_of_very_many_values_are_quick_and_hardly_lower():
    values = np.random.default_rng(0).lognormal(0, 1.5, 300_000)
    mean, error = values.mean(), values.std() / np.sqrt(len(values))
    for low in (gaffke_lower_bound(values, 0.05, 0), betting_lower_bound(values, 0.05)):
        assert mean - 6 * error < low < mean - error
    normal = mean - 1.645 * error
    assert gaffke_lower_bound(values, 0.05, 0) == pytest.approx(normal, abs=error)


def test_fqe_by_sums_is_the_regression_on_the_rows():
    log = masked_retry(300, 15)
    evaluation = retry_evaluation(log)
    design = np.concatenate([log.obs, np.ones((len(log.t), 1))], axis=1)
    coefficients = np.zeros((3, design.shape[1]))
    for _ in range(log.horizon):
        value = (design @ coefficients.T * evaluation).sum(axis=1)
        target = log.reward + np.where(log.terminated, 0.0, np.append(value[1:], 0.0))
        for action in range(3):
            rows = log.action == action
            gram = design[rows].T @ design[rows] + 1e-3 * np.eye(design.shape[1])
            coefficients[action] = np.linalg.solve(gram, design[rows].T @ target[rows])
    assert fit_q(log, evaluation).predict(log.obs) == pytest.approx(design @ coefficients.T, abs=1e-9)
    first = (design @ coefficients.T * evaluation).sum(axis=1)[log.t == 0].mean()
    assert estimate_fqe(log, evaluation).value == pytest.approx(first, abs=1e-9)


def test_the_jackknife_knows_how_fqe_varies():
    found = [estimate_fqe(log, retry_evaluation(log)) for log in (masked_retry(200, seed) for seed in range(100))]
    covered = [x.ci_low <= RETRY_VALUE <= x.ci_high for x in found]
    assert np.mean(covered) > 0.85
    half = np.mean([x.ci_high - x.value for x in found])
    assert 1.5 < half / np.std([x.value for x in found]) < 4.5


def test_a_report_has_every_estimate():
    log = model_win(50, 14)
    assert tuple(estimate_all(log, log.behavior, (-3, 3)).estimates) == ESTIMATORS


def test_bounds_that_contradict_each_other_are_no_evidence():
    found = []
    for seed in (2, 116, 229):  # the logs of 300 whose effective sample is large enough by chance hold such ones
        log = model_fail(200, seed)
        found.append(screen(log, spread(EVALUATION, log), (-1, 1), seed=seed))
    for crossed in found[:2]:
        assert any("is above the upper one" in problem for problem in crossed.diagnostics.problems)
        assert np.isnan(crossed.value_low)
        assert veto(crossed, found[2]).verdict is Verdict.NOT_EVALUABLE
    assert found[2].diagnostics.is_evaluable
    assert found[2].value_low < found[2].value_high
