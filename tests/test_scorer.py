"""Rule scores: by hand on single runs, by property on all, and the row door equal to the table door."""

import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ingest, read_table

from celr_ray import TrajectoryScorer
from celr_ray.config import ScoreConfig
from celr_ray.errors import RecordError
from celr_ray.schema import SCORE_COLUMNS, TRAJECTORY_SCHEMA
from celr_ray.training.scorer import score_table


def plan_log(status="SUCCESS", retries=(0, 0), cost=0.1, budget=0.5, states=("COMPLETED", "COMPLETED")):
    steps = [
        {"id": str(i), "description": "do", "status": state, "output": "done", "retry_count": retry}
        for i, (retry, state) in enumerate(zip(retries, states, strict=True))
    ]
    log = {"task_id": "t", "original_request": "Do it", "final_status": status, "plan": steps, "total_cost": cost}
    return log if budget is None else {**log, "budget_limit_usd": budget}


def test_success_and_failure():
    scorer = TrajectoryScorer()
    assert scorer.score(plan_log("SUCCESS")).success_score == 1.0
    assert scorer.score(plan_log("FAILED")).success_score == 0.0
    assert scorer.score(plan_log("STUCK")).success_score == 0.0
    assert scorer.score(plan_log("RUNNING")).success_score is None


@pytest.mark.parametrize(("retries", "expected"), [((0, 0), 1.0), ((1, 0), 0.5), ((1, 2), 0.25)])
def test_efficiency(retries, expected):
    assert TrajectoryScorer().score(plan_log(retries=retries)).efficiency_score == expected


@pytest.mark.parametrize(("cost", "expected"), [(0.0, 1.0), (0.1, 0.8), (0.5, 0.0), (2.0, 0.0)])
def test_cost(cost, expected):
    assert TrajectoryScorer().score(plan_log(cost=cost)).cost_score == pytest.approx(expected)


def test_no_budget_is_null_and_recorded_unless_one_is_configured():
    score = TrajectoryScorer().score(plan_log(budget=None))
    assert score.cost_score is None
    assert score.missing_scores == ["cost"]
    configured = TrajectoryScorer(ScoreConfig(default_budget_usd=0.2)).score(plan_log(budget=None))
    assert configured.cost_score == pytest.approx(0.5)
    assert configured.missing_scores == []


def test_completion():
    assert TrajectoryScorer().score(plan_log(states=("COMPLETED", "PENDING"))).completion_score == 0.5


def test_composite_is_the_weighted_mean():
    score = TrajectoryScorer().score(plan_log(retries=(1, 0), cost=0.1, states=("COMPLETED", "FAILED")))
    assert score.composite_score == pytest.approx(0.6 * 1 + 0.15 * 0.5 + 0.15 * 0.8 + 0.1 * 0.5)


def test_composite_is_renormalised_over_the_parts_that_exist():
    score = TrajectoryScorer().score(plan_log("FAILED", budget=None))
    assert score.composite_score == pytest.approx((0.15 * 1 + 0.1 * 1) / (0.6 + 0.15 + 0.1))


def test_weights_must_sum_to_one():
    with pytest.raises(ValueError, match=r"sum to 1, they sum to 1.4"):
        ScoreConfig(weight_success=1.0)


def test_rank_is_best_first_and_deterministic():
    logs = [plan_log("FAILED"), plan_log("SUCCESS"), plan_log("SUCCESS", retries=(2, 2)), plan_log("SUCCESS", cost=0.4)]
    ranked = TrajectoryScorer().rank(logs)
    composites = [score.composite_score for score in ranked]
    assert composites == sorted(composites, reverse=True)
    assert ranked == TrajectoryScorer().rank(logs[::-1])


def test_an_unknown_record_is_an_error():
    with pytest.raises(RecordError, match="unknown shape"):
        TrajectoryScorer().score({"what": "ever"})


def test_row_door_and_table_door_give_identical_numbers(tmp_path, demo_logs):
    config = ScoreConfig(default_budget_usd=0.07)
    ingest(tmp_path, demo_logs, score=config)
    rows = read_table(tmp_path, "trajectories").to_pylist()
    scorer = TrajectoryScorer(config)
    for row in rows:
        assert scorer.score(row).model_dump() == {
            name: row[name] for name in ("trajectory_id", *SCORE_COLUMNS, "missing_scores")
        }


numbers = st.none() | st.floats(0, 1e6)
counts = st.none() | st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.booleans(), st.none() | st.floats(-5, 5), numbers, numbers, counts, counts, counts),
        min_size=1,
        max_size=20,
    )
)
def test_scores_lie_in_0_1_and_missing_parts_are_named(values):
    names = ("success", "reward", "cost_usd", "budget_limit_usd", "n_retries", "n_steps", "n_steps_completed")
    empty = {
        "trajectory_id": "i",
        "task_id": "t",
        "source_uri": "",
        "source_format": "",
        "source_offset": 0,
        "source_index": 0,
        "messages": [],
        "status": "UNKNOWN",
        "n_hidden_messages": 0,
        "bucket": 0,
        "missing_scores": [],
    }
    rows = [{**empty, **dict(zip(names, value, strict=True))} for value in values]
    table = score_table(pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA), ScoreConfig())
    assert table.schema == TRAJECTORY_SCHEMA
    for row in table.to_pylist():
        for name in SCORE_COLUMNS:
            assert row[name] is None or (0 <= row[name] <= 1 and not math.isnan(row[name]))
        parts = [p for p in ("success", "efficiency", "cost", "completion") if row[f"{p}_score"] is None]
        assert row["missing_scores"] == parts
        assert (row["composite_score"] is None) == (len(parts) == 4)
