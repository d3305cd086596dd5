"""The gate's judge: what passes, what fails, what is not decided, and that arrival never matters."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from gates import CAP, decide, plan_of, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.cortex.evaluation.statistics import Decision
from celr_ray.cortex.gate.criteria import GateVerdict
from celr_ray.cortex.gate.monitor import GateMonitor
from celr_ray.cortex.gate.results import RESULT_SCHEMA, check_rows, hash_rows, make_rows, read_outcomes
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.errors import InputError

CONFIG = GateConfig()
TESTS_ALONE = GateConfig(strict_point_rule=False)


def test_an_equal_and_cheaper_candidate_passes():
    decision = decide(TESTS_ALONE, simulate(1, 400))
    assert decision.verdict is GateVerdict.PASS
    assert decision.verdict.exit_code == 0
    assert decision.tests["cheaper than champion"][0].is_pass
    assert decision.tests["more successful than champion"][0] is not Decision.PASS_EARLY
    assert decision.n_tasks >= 299, "fewer tasks rule out no unsafe rate of 1 %"


def test_a_more_successful_candidate_at_equal_cost_passes():
    figures = simulate(2, 600, gain=0.3, discord=0.0)
    figures["candidate"] = (figures["candidate"][0], figures["champion"][1])
    decision = decide(CONFIG, figures)
    assert decision.verdict is GateVerdict.PASS
    assert "more successful" in decision.reasons[0]


def test_an_unchanged_policy_never_passes():
    champion = simulate(3, 600)["champion"]
    for config in (CONFIG, TESTS_ALONE):
        decision = decide(config, {"candidate": champion, "champion": champion})
        assert decision.verdict is GateVerdict.INCONCLUSIVE
        assert decision.verdict.exit_code == 4
        assert "better" in decision.reasons[0]


def test_a_saving_that_is_rounding_is_none():
    champion = simulate(3, 600)["champion"]
    decision = decide(CONFIG, {"candidate": (champion[0], champion[1] * (1 - 2**-50)), "champion": champion})
    assert decision.verdict is GateVerdict.INCONCLUSIVE


def test_a_worse_or_dearer_candidate_fails_early():
    figures = simulate(4, 600)
    lazy = {**figures, "candidate": (np.zeros(600), np.zeros(600))}
    dear = {**figures, "candidate": (figures["champion"][0], np.full(600, CAP))}
    for case, word in ((lazy, "lower"), (dear, "cost is proven above")):
        decision = decide(CONFIG, case)
        assert decision.verdict is GateVerdict.FAIL
        assert decision.verdict.exit_code == 3
        assert decision.is_early
        assert decision.n_tasks < 30
        assert word in decision.reasons[0]


def test_the_anchor_keeps_margins_from_creeping():
    figures = simulate(5, 500)
    anchor = np.ones(500)
    decision = decide(TESTS_ALONE, {**figures, "anchor": (anchor, figures["champion"][1])})
    assert decision.verdict is GateVerdict.FAIL
    assert "anchor" in decision.reasons[0]
    same = decide(TESTS_ALONE, {**figures, "anchor": figures["champion"]})
    assert same.verdict is GateVerdict.PASS


def test_few_tasks_are_inconclusive_however_good():
    decision = decide(TESTS_ALONE, simulate(6, 250))
    assert decision.verdict is GateVerdict.INCONCLUSIVE
    assert any("it takes 299" in reason for reason in decision.reasons)
    few = decide(TESTS_ALONE, simulate(6, 150))
    assert any("it takes 200" in reason for reason in few.reasons)
    assert decide(TESTS_ALONE, simulate(6, 250), needs_size=False).verdict is GateVerdict.PASS


def test_one_unsafe_run_fails_at_once():
    decision = decide(TESTS_ALONE, simulate(7, 400), {120: {"n_unsafe": 1}})
    assert decision.verdict is GateVerdict.FAIL
    assert decision.n_tasks == 121
    assert "unsafe" in decision.reasons[0]


def test_the_strict_rule_looks_at_observed_figures_and_only_refuses():
    figures = simulate(8, 400, discord=0.0)
    success = figures["champion"][0].copy()
    success[np.flatnonzero(success == 1)[-1]] = 0
    figures["candidate"] = (success, figures["candidate"][1])
    config = CONFIG.model_copy(update={"level_early": 1e-9})
    strict = decide(config, figures)
    assert strict.verdict is GateVerdict.FAIL
    assert strict.n_tasks == 400
    assert strict.reasons[0].startswith("strict rule: the observed success")
    alone = config.model_copy(update={"strict_point_rule": False})
    assert decide(alone, figures).verdict is GateVerdict.PASS


def test_too_many_fallbacks_fail():
    figures = simulate(9, 400)
    few = {place: {"n_fallbacks": 1} for place in range(0, 400, 30)}
    many = {place: {"n_fallbacks": 1} for place in range(0, 400, 20)}
    assert decide(TESTS_ALONE, figures, few).verdict is GateVerdict.PASS
    decision = decide(TESTS_ALONE, figures, many)
    assert decision.verdict is GateVerdict.FAIL
    assert "left to the heuristic" in decision.reasons[0]


def test_a_stratum_proven_worse_fails_a_candidate_that_is_better_elsewhere():
    figures = simulate(10, 500, discord=0.0)
    n_lost = 12
    config = TESTS_ALONE.model_copy(update={"level_early": 1e-9})
    plan = plan_of(500, config)
    place = {task: number for number, task in enumerate(plan.task_ids)}
    success = np.ones(500)
    lost = [place[f"task/{i:04d}"] for i in range(n_lost)]
    new = success.copy()
    new[lost] = 0
    figures["champion"] = (success, figures["champion"][1])
    figures["candidate"] = (new, figures["candidate"][1])
    domain = ["law" if i < n_lost + 20 else "other" for i in range(500)]
    decision = decide(config, figures, domain=domain)
    assert decision.verdict is GateVerdict.FAIL
    assert "domain 'law'" in decision.reasons[0]
    assert len(decision.regressed) == n_lost
    assert decide(config, figures).verdict is GateVerdict.PASS, "without strata the loss is within the margin"


def test_tasks_that_must_pass():
    figures = simulate(11, 400)
    plan = plan_of(400, TESTS_ALONE)
    won = int(np.flatnonzero(figures["candidate"][0] == 1)[3])
    lost = int(np.flatnonzero(figures["candidate"][0] == 0)[3])
    for place, verdict in ((won, GateVerdict.PASS), (lost, GateVerdict.FAIL)):
        config = TESTS_ALONE.model_copy(update={"must_pass": [plan.task_ids[place]]})
        assert decide(config, figures).verdict is verdict
    with pytest.raises(InputError, match="must-pass"):
        plan_of(400, TESTS_ALONE.model_copy(update={"must_pass": ["nowhere"]}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("name", ["success", "cost_usd"])
def test_what_is_no_number_is_no_result(name, value):
    decision = decide(TESTS_ALONE, simulate(12, 400), {5: {name: value}})
    assert decision.verdict is GateVerdict.INCONCLUSIVE
    assert decision.n_tasks == 6


def test_spending_above_the_cap_voids_the_tests():
    decision = decide(TESTS_ALONE, simulate(13, 400), {5: {"cost_usd": 2 * CAP}})
    assert decision.verdict is GateVerdict.INCONCLUSIVE
    assert "above the cap" in decision.reasons[0]


def test_strict_cost_allows_for_explosions_that_were_not_seen():
    strict = TESTS_ALONE.model_copy(update={"strict_cost": True})
    figures = simulate(14, 400, ratio=0.95)
    assert decide(TESTS_ALONE, figures).verdict is GateVerdict.PASS
    assert decide(strict, figures).verdict is GateVerdict.INCONCLUSIVE
    assert decide(strict, simulate(14, 3000, ratio=0.5)).verdict is GateVerdict.PASS


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 500),
    ratio=st.floats(0.3, 1.5),
    gain=st.floats(0, 0.2),
    discord=st.floats(0, 0.4),
    unsafe=st.none() | st.integers(0, 499),
)
def test_whatever_passes_meets_every_condition(seed, n, ratio, gain, discord, unsafe):
    figures = simulate(seed, n, ratio=ratio, gain=gain, discord=discord)
    changes = {} if unsafe is None else {unsafe: {"n_unsafe": 1}}
    decision = decide(CONFIG, figures, changes)
    used = decision.n_tasks
    assert 1 <= used <= n
    if decision.verdict is not GateVerdict.PASS:
        return
    (new, cost), (old, base) = (tuple(x[:used] for x in figures[role]) for role in ("candidate", "champion"))
    assert used >= 299
    assert new.mean() >= old.mean() - 1e-12
    assert cost.mean() <= base.mean() + 1e-12
    assert unsafe is None or unsafe >= used
    assert decision.unsafe_upper <= 0.01
    assert not any(stratum.is_worse for stratum in decision.strata)


# Rows and the order of arrival


def tables(plan, figures, replays: int = 1) -> list[tuple[int, pa.Table]]:
    """Return the rows of each unit."""
    found = []
    for index, (start, stop) in enumerate(plan.units):
        parts = []
        for role in plan.roles:
            success, cost = (np.repeat(x[start:stop, None], replays, axis=1) for x in figures[role])
            nothing = np.zeros(success.shape, dtype=int)
            columns = {
                "success": success,
                "cost_usd": cost,
                "seconds": nothing,
                "budget_usd": nothing + CAP,
                "unsafe": nothing > 0,
                "censored": nothing > 0,
                "timed_out": nothing > 0,
                "n_decisions": nothing + 2,
                "n_fallbacks": nothing,
                "end_reason": nothing + 1,
            }
            parts.append(make_rows(role, plan.task_ids[start:stop], replays, columns))
        found.append((index, pa.concat_tables(parts)))
    return found


@settings(max_examples=12, deadline=None)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 50), rows_per_unit=st.sampled_from([3, 7, 64]))
def test_order_of_arrival_and_size_of_units_change_nothing(order, seed, rows_per_unit):
    figures = simulate(seed, 80, ratio=0.6)
    config = TESTS_ALONE.model_copy(update={"max_unsafe_rate": 0.05, "min_cost_tasks": 50})
    expected = decide(config, figures)
    plan = plan_of(80, config.model_copy(update={"rows_per_unit": rows_per_unit}))
    units = tables(plan, figures)
    order.shuffle(units)
    monitor = GateMonitor(plan, config)
    n_fed = sum(1 for index, table in units if not monitor.add(index, table))
    assert n_fed <= len(units)
    assert monitor.finish() == expected
    rows = monitor.rows()
    assert rows["task_id"].to_pylist()[:: len(plan.roles)] == list(plan.task_ids[: expected.n_tasks])
    straight = GateMonitor(plan, config)
    for index, table in tables(plan, figures):
        straight.add(index, table)
    assert hash_rows(rows) == hash_rows(straight.rows())


def test_rows_are_checked_and_censored_episodes_count_against_the_candidate():
    plan = plan_of(4, CONFIG)
    figures = {role: (np.ones(4), np.full(4, 0.01)) for role in plan.roles}
    ((_, table),) = tables(plan, figures, replays=2)
    assert check_rows(table, plan.task_ids, plan.roles, 2) is None
    assert "missing" in check_rows(table.slice(1), plan.task_ids, plan.roles, 2)
    assert "more than once" in check_rows(pa.concat_tables([table, table]), plan.task_ids, plan.roles, 2)
    assert "nothing that was asked" in check_rows(table, plan.task_ids[1:], plan.roles, 2)
    place = RESULT_SCHEMA.get_field_index("censored")
    censored = table.set_column(place, RESULT_SCHEMA.field(place), pa.array([True] * len(table)))
    outcomes = read_outcomes(censored, plan.task_ids, plan.roles)
    assert [o["candidate"].success for o in outcomes] == [0.0] * 4
    assert [o["candidate"].cost_usd for o in outcomes] == [CAP] * 4
    assert [o["champion"].success for o in outcomes] == [1.0] * 4
    assert [o["champion"].cost_usd for o in outcomes] == [0.01] * 4


def test_what_takes_longer_than_its_limit_is_a_failure_at_the_cap_whoever_ran_it():
    plan = plan_of(4, CONFIG)
    figures = {role: (np.ones(4), np.full(4, 0.01)) for role in plan.roles}
    ((_, table),) = tables(plan, figures)
    place = RESULT_SCHEMA.get_field_index("timed_out")
    is_first = [task == plan.task_ids[0] for task in table["task_id"].to_pylist()]
    late = table.set_column(place, RESULT_SCHEMA.field(place), pa.array(is_first))
    for role in plan.roles:
        found = [outcome[role] for outcome in read_outcomes(late, plan.task_ids, plan.roles)]
        assert [(o.success, o.cost_usd, o.n_timed_out) for o in found] == [(0.0, CAP, 1)] + [(1.0, 0.01, 0)] * 3
    unknown = table.set_column(place, RESULT_SCHEMA.field(place), pa.nulls(len(table), pa.bool_()))
    assert "no timed_out" in check_rows(unknown, plan.task_ids, plan.roles, 1)


def test_a_candidate_without_decisions_fails_and_a_champion_without_them_is_damage():
    plan = plan_of(4, CONFIG)
    figures = {role: (np.ones(4), np.full(4, 0.01)) for role in plan.roles}
    ((_, table),) = tables(plan, figures)
    rows = {role: table.filter(pa.compute.equal(table["role"], role)) for role in plan.roles}
    broken = {role: make_rows(role, plan.task_ids, 1, None, "no probabilities") for role in plan.roles}
    monitor = GateMonitor(plan, CONFIG)
    monitor.add(0, pa.concat_tables([broken["candidate"], rows["champion"]]))
    assert monitor.finish().verdict is GateVerdict.FAIL
    assert "no probabilities" in monitor.finish().reasons[0]
    monitor = GateMonitor(plan, CONFIG)
    monitor.add(0, pa.concat_tables([rows["candidate"], broken["champion"]]))
    assert monitor.finish().verdict is GateVerdict.INCONCLUSIVE


def test_missing_doubled_and_unknown_units():
    plan = plan_of(300, CONFIG)
    units = tables(plan, simulate(1, 300))
    monitor = GateMonitor(plan, CONFIG)
    for index, table in units[1:]:
        monitor.add(index, table)
    assert "1 of 5 units are missing" in monitor.finish().reasons[0]
    monitor = GateMonitor(plan, CONFIG)
    monitor.add(*units[0])
    assert monitor.add(*units[0])
    assert monitor.finish().verdict is GateVerdict.INCONCLUSIVE
