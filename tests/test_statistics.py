"""The gate's statistics against published values, other libraries, brute force, identities and exact levels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from calibration import load_calibration
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from celr_ray.cortex.evaluation import statistics as gate
from celr_ray.cortex.evaluation.bounds import gaffke_lower_bound, gaffke_p_value
from celr_ray.errors import PolicyError

NAN = float("nan")
counts = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@pytest.fixture(scope="module")
def calibration():
    return load_calibration()


# --- success, one pair a task


def test_tango_gives_the_values_of_its_paper():
    """Tango (1998), section 6.1: soft contact lenses, b = 0, c = 1, n = 44, margin .1."""
    found = gate.tango(0, 1, 44, 0.1)
    assert (round(found.z, 3), round(found.p_value, 3)) == (1.709, 0.044)
    assert round(gate.tango_interval(0, 1, 44, 0.05).ci_low, 3) == -0.096


@pytest.mark.parametrize(
    ("b", "c", "n", "alpha", "low", "high"),
    [  # R: PropCIs 0.3-0, scoreci.mp(c, b, n)
        (28, 25, 618, 0.05, -0.0148, 0.0247),
        (60, 20, 1000, 0.025, 0.0231, 0.0584),
    ],
)
def test_tango_interval_gives_the_values_of_propcis(b, c, n, alpha, low, high):
    found = gate.tango_interval(b, c, n, alpha)
    assert (round(found.ci_low, 4), round(found.ci_high, 4)) == (low, high)


@pytest.mark.parametrize(("b", "c", "n", "delta"), [(3, 7, 60, 0.05), (0, 4, 50, 0.1), (20, 1, 80, 0.02), (5, 4, 9, 0)])
def test_tango_is_the_score_at_the_restricted_maximum_of_the_likelihood(b, c, n, delta):
    def loss(q):
        return -(stats.multinomial.logpmf([b, c, n - b - c], n, [q - delta, q, 1 - 2 * q + delta]))

    q = minimize_scalar(
        loss, bounds=(delta + 1e-12, (1 + delta) / 2 - 1e-12), method="bounded", options={"xatol": 1e-12}
    )
    variance = n * (2 * q.x - delta - delta**2)
    assert gate.tango(b, c, n, delta).z == pytest.approx((b - c + n * delta) / np.sqrt(variance), rel=1e-4)


@given(counts)
def test_without_a_margin_tango_is_mcnemar(table):
    b, c, n = table
    z = gate.tango(b, c, n, 0.0).z
    expected = 0.0 if b == c else mcnemar([[n - b - c, b], [c, 0]], exact=False, correction=False).statistic
    assert z**2 == pytest.approx(expected, abs=1e-9)
    assert np.sign(z) == np.sign(b - c)


@given(counts, st.floats(0.001, 0.4))
def test_tango_interval_and_test_say_the_same(table, delta):
    found, low = gate.tango(*table, delta), gate.tango_interval(*table, 0.05).ci_low
    if abs(low + delta) > 1e-6:
        assert (found.p_value < 0.05) == (low > -delta)


@given(counts)
def test_tango_interval_mirrors_and_holds_the_estimate(table):
    b, c, n = table
    one, other = gate.tango_interval(b, c, n), gate.tango_interval(c, b, n)
    assert one.ci_low == pytest.approx(-other.ci_high, abs=1e-7)
    assert -1 <= one.ci_low <= one.value <= one.ci_high <= 1


@given(counts, st.floats(0.0, 0.4))
def test_more_wins_or_a_wider_margin_never_weaken_the_evidence(table, delta):
    b, c, n = table
    z = gate.tango(b, c, n, delta).z
    assert gate.tango(b, c, n, delta + 0.05).z >= z - 1e-9
    if b + c < n:
        assert gate.tango(b + 1, c, n, delta).z >= z - 1e-9
    if c:
        assert gate.tango(b, c - 1, n, delta).z >= z - 1e-9


def test_tango_holds_its_level_exactly(calibration):
    """Summed over all tables at 200 values of p_c, not simulated."""
    for n, delta, alpha in ((50, 0.05, 0.05), (50, 0.05, 0.04), (100, 0.0, 0.02), (200, 0.05, 0.04)):
        sizes = calibration.tango_sizes(n, delta, alpha, calibration.list_losses(delta))
        assert 0.6 * alpha < max(sizes) <= alpha + 0.01, (n, delta, alpha)


def test_the_point_rule_alone_passes_what_is_five_points_worse():
    """What the tests are for, summed over all tables of 100 pairs."""
    b, c = (x.ravel() for x in np.mgrid[:101, :101])
    b, c = b[b + c <= 100], c[b + c <= 100]
    chance = stats.multinomial.pmf(np.column_stack([b, c, 100 - b - c]), 100, [0.05, 0.1, 0.85])
    assert chance[b >= c].sum() > 0.1
    assert chance[stats.norm.sf(gate.tango_scores(b, c, 100, 0.05)) <= 0.05].sum() < 0.052


@pytest.mark.parametrize("bad", [(-1, 0, 5, 0.1), (3, 3, 5, 0.1), (0, 0, 0, 0.1), (1, 1, 5, 1.0), (1, 1, 5, NAN)])
def test_impossible_tables_are_refused(bad):
    with pytest.raises(PolicyError):
        gate.tango(*bad)


def test_outcomes_are_counted_and_checked():
    assert gate.count_discordant([1, 1, 0, 0, 1], [0, 1, 1, 0, 0]) == (2, 1, 5)
    for new, old in (([1, NAN], [0, 0]), ([1], [0, 0]), ([0.5, 1], [0, 1])):
        with pytest.raises(PolicyError):
            gate.count_discordant(new, old)


# --- the exact sign test, strata, Holm


@given(counts)
def test_sign_flips_of_single_replays_are_the_exact_mcnemar_test(table):
    b, c, n = table
    differences = np.r_[np.ones(b), -np.ones(c), np.zeros(n - b - c)]
    expected = stats.binom.cdf(b, b + c, 0.5)
    assert gate.sign_flip_test(differences) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flips_of_replays_are_counted_right(steps):
    sums = [np.dot(np.abs(steps), signs) for signs in itertools.product((-1, 1), repeat=len(steps))]
    expected = np.mean(np.array(sums) <= sum(steps))
    assert gate.sign_flip_test(np.array(steps) / 4, replays=4) == pytest.approx(expected)


def test_sign_flips_refuse_what_is_no_multiple():
    with pytest.raises(PolicyError, match="multiples of 1/3"):
        gate.sign_flip_test([0.5], replays=3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=25)  # theirs takes 50 ms
def test_holm_agrees_with_statsmodels(p_values):
    assert gate.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_a_stratum_is_worse_only_if_that_is_proven():
    labels = ["hard"] * 30 + ["easy"] * 30
    differences = np.r_[-np.ones(12), np.zeros(18), np.zeros(25), -np.ones(5)]
    hard = {x.stratum: x for x in gate.strata_worse({"difficulty": labels}, differences)}
    assert hard["hard"].is_worse
    assert hard["hard"].p_adjusted == pytest.approx(2 * 0.5**12)
    assert not hard["easy"].is_worse
    assert hard["easy"].value == pytest.approx(-1 / 6)
    both = gate.strata_worse({"difficulty": labels, "domain": ["a", "b"] * 30}, differences)
    assert [(x.grouping, x.stratum) for x in both] == [
        ("difficulty", "easy"),
        ("difficulty", "hard"),
        ("domain", "a"),
        ("domain", "b"),
    ]


def test_strata_keep_their_familywise_level():
    """No stratum differs: at most 1 % of samples may name one, here with 8 strata and 5 % discordance each way."""
    rng = np.random.default_rng(0)
    labels = list("abcdefgh") * 50
    named = 0
    for _ in range(1_000):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.6, 0.2], size=400)
        named += any(x.is_worse for x in gate.strata_worse({"s": labels}, differences))
    assert named <= stats.binom.ppf(0.999, 1_000, 0.01)


def test_regressed_tasks_come_worst_first():
    lost = gate.find_regressed(["a", "b", "c", "d"], [0.5, 1, 0, 0.5], [1, 0.5, 1, 1])
    assert [x.task_id for x in lost] == ["c", "a", "d"]


# --- several replays


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=40).filter(lambda x: np.std(x) > 1e-6))
def test_clustered_t_agrees_with_scipy_and_statsmodels(differences):
    found = gate.clustered_t(differences, delta=0.05, alpha=0.05)
    assert found.p_value == pytest.approx(stats.ttest_1samp(differences, -0.05, alternative="greater").pvalue)
    assert (found.ci_low, found.ci_high) == pytest.approx(DescrStatsW(differences).tconfint_mean(alpha=0.1))


def test_replays_of_a_task_count_once():
    tasks, means = gate.average_by_task(["b", "a", "b", "b"], [1, 0, 0, 1])
    assert tasks == ["b", "a"]
    assert means == pytest.approx([2 / 3, 0])
    once = gate.clustered_t([0.1, -0.2, 0.3])
    names, repeated = gate.average_by_task(list("abc") * 50, [0.1, -0.2, 0.3] * 50)
    assert len(names) == 3
    assert gate.clustered_t(repeated).p_value == pytest.approx(once.p_value)


def test_one_task_is_no_evidence():
    found = gate.clustered_t([1.0], delta=0.05)
    assert (found.p_value, found.ci_low, found.ci_high) == (1.0, -np.inf, np.inf)
    assert gate.clustered_noninferiority([1.0], 0.05).p_value == 1.0


@pytest.mark.parametrize(("n", "passes"), [(40, False), (50, False), (70, True), (100, True)])
def test_agreement_on_all_tasks_proves_as_much_as_the_binomial_law_allows(n, passes):
    """.95⁵⁸ > .05: up to 58 tasks hide a loss of one task in twenty too often; t would pass them all."""
    assert gate.clustered_t(np.zeros(n), 0.05).p_value == 0
    found = gate.clustered_noninferiority(np.zeros(n), 0.05)
    assert (found.p_value <= 0.05) is passes
    assert found.p_value == pytest.approx(0.95**n, abs=0.015)


def test_the_clustered_test_holds_its_level_where_t_does_not(calibration):
    found = calibration.measure_clustered(150)
    assert found["one task in twenty breaks, n 50"]["t"]["ci_low"] > 0.02
    for name, tests in found.items():
        assert tests["t_and_gaffke"]["ci_low"] <= 0.05, name
    assert found["one task in twenty breaks, n 100"]["t"]["rate"] > 0.05


# --- cost


def test_cost_bounds_agree_with_scipy():
    rng = np.random.default_rng(0)
    new, base = rng.lognormal(0, 0.5, 300), rng.lognormal(0.1, 0.5, 300)
    found = gate.cost_upper_bounds(new, base, 1.02, 0.05, seed=3)
    reference = stats.ttest_1samp(new - 1.02 * base, 0, alternative="less")
    assert found.t_p_value == pytest.approx(reference.pvalue)
    assert found.t_upper == pytest.approx(reference.confidence_interval(0.95).high)
    assert found.gaffke_upper is None
    assert found.value == pytest.approx(np.mean(new) - 1.02 * np.mean(base))


def test_bootstrap_t_agrees_with_the_enumeration_of_all_resamples():
    values = np.array([0.1, 0.7, -0.4, 2.0, 0.35])
    samples = values[np.array(list(itertools.product(range(5), repeat=5)))]
    errors = samples.std(axis=1, ddof=1) / 5**0.5
    with np.errstate(divide="ignore"):
        ratios = (samples.mean(axis=1) - values.mean()) / errors
    own = values.std(ddof=1) / 5**0.5
    expected = values.mean() - np.quantile(ratios, 0.2, method="inverted_cdf") * own
    found, p_value = gate.bootstrap_t_upper(values, 0.2, draws=39_999)
    assert found == pytest.approx(expected, rel=0.03)
    assert p_value == pytest.approx(np.mean(ratios <= values.mean() / own), abs=0.01)


@given(st.lists(st.floats(-3, 1, width=32), min_size=2, max_size=30), st.sampled_from([0.02, 0.04, 0.05]))
@settings(max_examples=50)
def test_cost_bounds_and_p_values_say_the_same(differences, alpha):
    found = gate.bound_differences(np.array(differences), 1.0, alpha)
    assert (found.p_value <= alpha) == (found.upper < 0) or abs(found.upper) < 1e-9


def test_equal_differences_are_exact_and_one_task_is_no_evidence():
    cheaper = gate.cost_upper_bounds(np.full(200, 0.5), np.full(200, 1.0), 1.0)
    assert (cheaper.t_upper, cheaper.bootstrap_t_upper, cheaper.p_value) == (-0.5, -0.5, 0.0)
    same = gate.cost_upper_bounds(np.full(200, 0.5), np.full(200, 0.5), 1.0)
    assert (same.upper, same.p_value) == (0.0, 1.0)
    for n in (0, 1):
        none = gate.cost_upper_bounds(np.zeros(n), np.ones(n), 1.0, cap=4.0)
        assert (none.upper, none.p_value) == (np.inf, 1.0)
        assert none.gaffke_p_value > 0.05


def test_a_single_explosion_leaves_bootstrap_t_without_a_bound():
    new = np.full(300, 0.9)
    new[7] = 20.0
    found = gate.cost_upper_bounds(new, np.ones(300), 1.0)
    assert found.t_upper < 0.2
    assert found.bootstrap_t_upper == np.inf


def test_the_strict_bound_needs_the_cap_to_hold():
    with pytest.raises(PolicyError, match="under its cap"):
        gate.cost_upper_bounds(np.array([1.0, 5.0]), np.ones(2), 1.0, cap=4.0)
    costs = np.random.default_rng(0).lognormal(0, 0.5, 300).clip(max=4)
    found = gate.cost_upper_bounds(costs * 0.6, costs, 1.0, cap=4.0, seed=1)
    assert found.gaffke_upper == pytest.approx(4 - gaffke_lower_bound(4 + 0.4 * costs, 0.05, 1))
    assert found.t_upper < found.gaffke_upper < 0


@pytest.mark.parametrize(
    ("new", "base", "ratio"),
    [([NAN, 1], [1, 1], 1), ([1, 1], [1, np.inf], 1), ([1], [1, 1], 1), ([-1, 1], [1, 1], 1), ([1, 1], [1, 1], 0)],
)
def test_costs_that_are_none_are_refused(new, base, ratio):
    with pytest.raises(PolicyError):
        gate.cost_upper_bounds(np.array(new, dtype=float), np.array(base, dtype=float), ratio)


def test_costs_cheap_mostly_and_rarely_explosive(calibration):
    """Equal mean cost, a lower typical one: 5 % of the tasks cost four means."""
    found = calibration.measure_cost_case(200, 60, lambda rng: calibration.draw_costs(rng, 200, 0.05, 4.0, 0.0))
    assert found["t_and_bootstrap_t"]["ci_low"] <= 0.05
    assert found["gaffke"]["ci_low"] <= 0.05
    assert found["wilcoxon"]["rate"] > 0.88
    assert found["log_ratio_t"]["rate"] > 0.8


def test_gaffke_of_no_event_is_the_binomial_law():
    assert gaffke_lower_bound(np.ones(59), 0.05, 0) == pytest.approx(0.05 ** (1 / 59), abs=0.004)
    assert gaffke_p_value(np.ones(100), 0.95, 0) == pytest.approx(0.95**100, abs=0.003)


# --- unsafe


@given(st.integers(1, 2_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.001, 0.4))
def test_clopper_pearson_agrees_with_scipy_and_statsmodels(events, alpha):
    k, n = events
    found = gate.clopper_pearson_upper(k, n, alpha)
    assert found == pytest.approx(proportion_confint(k, n, 2 * alpha, method="beta")[1])
    test = stats.binomtest(k, n, alternative="less").proportion_ci(1 - alpha, method="exact")
    assert found == pytest.approx(test.high)


def test_299_tasks_without_an_event_prove_one_percent():
    assert gate.tasks_for_zero(0.01, 0.05) == 299
    assert gate.clopper_pearson_upper(0, 299) <= 0.01 < gate.clopper_pearson_upper(0, 298)
    assert gate.clopper_pearson_upper(0, 299) == pytest.approx(1 - 0.05 ** (1 / 299))


@pytest.mark.slow
def test_simulated_levels_of_cost(calibration):
    for name, tests in calibration.measure_cost(150).items():
        if not name.startswith("power"):
            assert tests["gaffke"]["ci_low"] <= 0.05, name
            if "1% at" not in name:
                assert tests["t_and_bootstrap_t"]["ci_low"] <= 0.06, name
