"""The front doors `StateExtractor` and `MetaPolicy`, the reward's order, and draws from probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, Action
from celr_ray.cortex.policy import EpsilonSoft, MetaPolicy, RandomPolicy, load_policy, sample_actions
from celr_ray.cortex.reward import total_reward
from celr_ray.cortex.state import FEATURE_INDEX, FEATURES, N_FEATURES, StateExtractor
from celr_ray.errors import PolicyError

ALL = list(ACTIONS)
share = st.floats(0, 1)


def test_a_state_holds_every_feature_within_its_bounds():
    state = StateExtractor().extract({"budget_left": 0.25, "difficulty": 0.9, "previous_action": "VERIFY"})
    assert state.shape == (N_FEATURES,)
    assert state[FEATURE_INDEX["budget_left"]] == 0.25
    assert state[FEATURE_INDEX["previous_verify"]] == 1
    assert state[FEATURE_INDEX["previous_none"]] == 0
    assert all(f.low <= value <= f.high for f, value in zip(FEATURES, state, strict=True))
    assert not any("task" in feature.name for feature in FEATURES)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({}, "needs budget_left"),
        ({"budget_left": 2}, "not within 0"),
        ({"budget_left": float("nan")}, "not within 0"),
        ({"budget_left": "much"}, "not a number"),
        ({"budget_left": 1, "success": 1}, "no such state features: success"),
        ({"budget_left": 1, "previous_action": "THINK"}, "none of RECURSE"),
    ],
)
def test_a_wrong_state_is_one_clear_error(context, message):
    with pytest.raises(PolicyError, match=message):
        StateExtractor().extract(context)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"budget_left": 0.04, "has_answer": True}, "ABORT"),
        ({"budget_left": 0.9, "difficulty": 0.3}, "RECURSE"),
        ({"budget_left": 0.9, "difficulty": 0.4}, "ESCALATE"),
        ({"budget_left": 0.9, "has_answer": True, "is_unverified": True, "has_verifier": True}, "VERIFY"),
        ({"budget_left": 0.9, "has_answer": True, "is_unverified": True}, "STOP"),
        ({"budget_left": 0.9, "has_answer": True, "is_verified_passed": True}, "STOP"),
        ({"budget_left": 0.9, "has_answer": True, "is_verified_failed": True, "difficulty": 0.1}, "RECURSE"),
        (
            {"budget_left": 0.9, "has_answer": True, "is_verified_failed": True, "difficulty": 0.9, "retries": 0.4},
            "ESCALATE",
        ),
        (
            {"budget_left": 0.9, "has_answer": True, "is_verified_failed": True, "difficulty": 0.1, "retries": 0.7},
            "RETRY_COMPRESSED",
        ),
    ],
)
def test_the_heuristic_follows_its_thresholds(state, expected):
    assert MetaPolicy("heuristic").decide(state, ALL).name == expected


def test_an_action_that_the_mask_forbids_falls_to_the_next_rule():
    failed = {"budget_left": 0.9, "has_answer": True, "is_verified_failed": True, "difficulty": 0.9, "retries": 0.95}
    meta = MetaPolicy()
    assert meta.decide(failed, ALL).name == "ESCALATE"
    assert meta.decide(failed, [name for name in ALL if name != "ESCALATE"]).name == "RETRY_COMPRESSED"
    assert meta.decide(failed, ["RECURSE", "STOP", "ABORT"]).name == "ABORT"


def test_thresholds_can_be_set():
    eager = MetaPolicy(HeuristicPolicy(EscalationConfig(medium_difficulty=0.05)))
    assert eager.decide({"budget_left": 1, "difficulty": 0.1}, ALL).name == "ESCALATE"
    assert eager.policy.content_hash != HeuristicPolicy().content_hash


@pytest.mark.parametrize("allowed", [[], ["FLY"], [True] * 5, [False] * 6])
def test_a_wrong_mask_is_one_clear_error(allowed):
    with pytest.raises(PolicyError):
        MetaPolicy().decide({"budget_left": 1}, allowed)


def test_a_policy_of_no_known_name_is_refused():
    with pytest.raises(PolicyError, match="no policy 'best'; there are heuristic"):
        load_policy("best")


@given(
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=20),
    uniform=st.floats(0, 1, exclude_max=True),
    epsilon=share,
)
def test_no_draw_is_ever_masked(mask, uniform, epsilon):
    allowed = np.array(mask)
    allowed[:, Action.ABORT] = True
    obs = np.zeros((len(allowed), N_FEATURES))
    for policy in (RandomPolicy(), HeuristicPolicy(), EpsilonSoft(HeuristicPolicy(), epsilon)):
        probabilities = policy.probabilities(obs, allowed)
        assert np.allclose(probabilities.sum(axis=1), 1)
        drawn = sample_actions(probabilities, np.full(len(allowed), uniform))
        assert allowed[np.arange(len(allowed)), drawn].all()


def test_draws_follow_the_probabilities():
    uniform = (np.arange(10_000) + 0.5) / 10_000
    probabilities = np.tile([0.1, 0.0, 0.3, 0.0, 0.6, 0.0], (10_000, 1))
    drawn = np.bincount(sample_actions(probabilities, uniform), minlength=N_ACTIONS)
    assert (drawn / 10_000).tolist() == pytest.approx([0.1, 0, 0.3, 0, 0.6, 0])


@given(cost=share, time=share, correctness=share, other_cost=share, other_time=share, other_correctness=share)
def test_success_outweighs_any_saving_and_safety_any_success(
    cost, time, correctness, other_cost, other_time, other_correctness
):
    success = total_reward([1], [correctness], [cost], [time], [False])[0]
    failure = total_reward([0], [other_correctness], [other_cost], [other_time], [False])[0]
    unsafe = total_reward([1], [other_correctness], [other_cost], [other_time], [True])[0]
    assert success > failure
    assert total_reward([0], [correctness], [cost], [time], [False])[0] > unsafe
    assert unsafe <= -199
    assert np.isnan(total_reward([np.nan], [np.nan], [0], [0], [False])[0])
