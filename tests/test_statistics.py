"""The gate's statistics against published values, other libraries, brute force, identities and exact levels."""

from __future__ import annotations

import importlib.util
import itertools
import sys

import numpy as np
import pytest
from conftest import ROOT
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
from celr_ray.cortex.evaluation.metrics import bootstrap_mean, measure_curve, trace_curve
from celr_ray.errors import PolicyError

NAN = float("nan")
counts = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@pytest.fixture(scope="module")
def calibration():
    """The benchmark's simulators and exact levels."""
    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("gate_calibration_tests", folder / "gate_calibration_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(folder))


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


@pytest.mark.parametrize(
    ("b", "c", "n", "delta"), [(3, 7, 60, 0.05), (0, 4, 50, 0.1), (20, 1, 80, 0.02), (5, 4, 9, 0)]
)
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


def test_the_point_rule_alone_passes_the_unchanged(calibration):
    """What the tests are for: without them b ≥ c passes a candidate that is 5 points worse."""
    b, c = calibration.list_counts(100)
    ways = stats.multinomial.pmf(np.column_stack([b, c, 100 - b - c]), 100, [0.05, 0.1, 0.85])
    assert ways[b >= c].sum() > 0.1
    assert ways[stats.norm.sf(gate.tango_scores(b, c, 100, 0.05)) <= 0.05].sum() < 0.052


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


# --- early stop


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


# --- cost-success metrics


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


# --- long ones


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
def test_simulated_levels_of_cost_and_coverage_of_apgr(calibration):
    for name, tests in calibration.measure_cost(400).items():
        if not name.startswith("power"):
            assert tests["gaffke"]["ci_low"] <= 0.05, name
            if "1% at" not in name:
                assert tests["t_and_bootstrap_t"]["ci_low"] <= 0.06, name
    for name, found in calibration.measure_cost_process(1_000).items():
        assert found["ci_low"] <= 0.01, name
    assert calibration.measure_metrics(200)["coverage"]["ci_high"] >= 0.95
