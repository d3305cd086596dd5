"""Networks, supports and the learned policy: equal to PyTorch and in every batch; the heuristic for what is new."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import play, random_network, sample_artefact, sample_support

from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.artefact import make_artefact
from celr_ray.cortex.evaluation.replay_run import FallbackPolicy
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.network import Network
from celr_ray.cortex.policy import EpsilonSoft, MetaPolicy, find_fallbacks
from celr_ray.cortex.state import FEATURE_INDEX, N_FEATURES, encode_state
from celr_ray.cortex.support import SupportConfig, fit_support
from celr_ray.errors import PolicyError

# The network


def test_scores_are_those_of_pytorch():
    import torch

    network = random_network(0)
    obs = np.random.default_rng(1).random((500, N_FEATURES))
    layers: list[torch.nn.Module] = []
    for weight, bias in network.layers:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [layer, torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    standard = (torch.tensor(obs, dtype=torch.float32) - torch.tensor(network.mean)) / torch.tensor(network.scale)
    expected = module(standard).detach().numpy()
    np.testing.assert_allclose(network.scores(obs), expected, atol=1e-5)


def test_a_state_has_the_same_scores_in_every_batch():
    network = random_network(2, (128, 128))
    obs = np.random.default_rng(3).random((3000, N_FEATURES))
    whole = network.scores(obs)
    for size in (1, 7, 1000):
        parts = np.concatenate([network.scores(obs[start : start + size]) for start in range(0, len(obs), size)])
        assert np.array_equal(whole, parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.full(N_FEATURES, np.nan)}, "mean of the network holds numbers that are not finite"),
        ({"scale": np.zeros(N_FEATURES)}, "a scale of the network is not above 0"),
        ({"scale": np.ones(4)}, "33 means and 4 scales"),
        ({"mean": np.zeros((2, 2))}, "needs 1 dimensions"),
        ({"layers": ()}, "decides nothing"),
        ({"layers": ((np.ones((6, 5)), np.ones(6)),)}, "33 numbers go in"),
        ({"layers": ((np.full((6, 33), np.inf), np.ones(6)),)}, "not finite"),
    ],
)
def test_wrong_weights_are_one_clear_error(change, message):
    network = random_network(0)
    fields = {"mean": network.mean, "scale": network.scale, "layers": network.layers, **change}
    with pytest.raises(PolicyError, match=message):
        Network(**fields)


def test_states_of_another_shape_are_refused():
    with pytest.raises(PolicyError, match=r"\[K, 33\]; got \(2, 5\)"):
        random_network(0).scores(np.zeros((2, 5)))


# What was seen


def test_states_like_those_of_the_training_are_known():
    held_out, _ = play(2, 1000)
    rejected = 1 - sample_support().contains(held_out).mean()
    assert rejected <= 0.015
    assert sample_support().contains(play(1, 1000)[0]).mean() > 0.999


def test_a_support_is_the_same_for_32_bit_features():
    obs, _ = play(2, 1000)
    seen = fit_support(play(1, 1000)[0].astype(np.float32))
    assert np.array_equal(seen.contains(obs), seen.contains(obs.astype(np.float32).astype(np.float64)))
    assert np.array_equal(seen.contains(obs), sample_support().contains(obs))


@pytest.mark.parametrize(
    "change",
    [
        {"is_verified_passed": 1.0, "is_verified_failed": 1.0},
        {"has_answer": 0.5},
        {"budget_left": -0.5},
        {"difficulty": 3.0},
        {"tier": 0.25},
        {"previous_none": 1.0, "previous_stop": 1.0},
        {"is_unverified": 1.0, "has_answer": 0.0},
    ],
)
def test_states_that_cannot_be_are_unknown(change):
    obs = play(2, 1000)[0].copy()
    for name, value in change.items():
        obs[:, FEATURE_INDEX[name]] = value
    assert sample_support().contains(obs).mean() < 0.001


def test_random_vectors_are_unknown():
    random = np.random.default_rng(0)
    obs, _ = play(2, 1000)
    assert not sample_support().contains(random.random((2000, N_FEATURES))).any()
    mixed = obs[random.integers(len(obs), size=(2000, N_FEATURES)), np.arange(N_FEATURES)]
    assert sample_support().contains(mixed).mean() < 0.05


def test_few_states_do_not_forbid_pairs_that_they_lack():
    few = fit_support(play(1, 100)[0])
    assert few.facts["looks"] == ["range", "levels", "distance"]
    assert few.facts["left_out"] > SupportConfig().max_left_out
    assert sample_support().facts["looks"] == ["range", "levels", "pairs", "distance"]


def test_one_state_supports_itself():
    state = play(1, 100)[0][:1]
    assert fit_support(state).contains(state).all()


@pytest.mark.parametrize("obs", [np.zeros((0, 3)), np.zeros(3), np.full((2, 3), np.nan)])
def test_a_support_needs_finite_states(obs):
    with pytest.raises(PolicyError, match="finite states"):
        fit_support(obs)


# The learned policy


def test_softmax_and_best_are_those_of_the_masked_scores():
    obs, mask = play(1, 1000)
    obs, mask = obs[:300], mask[:300]
    network = random_network(5)
    scores = network.scores(obs).astype(np.float64)
    weights = np.exp(scores) * mask
    soft = LearnedPolicy(sample_artefact(5))
    np.testing.assert_allclose(soft.probabilities(obs, mask), weights / weights.sum(axis=1, keepdims=True), rtol=1e-9)
    best = LearnedPolicy(sample_artefact(5, decision="greedy")).probabilities(obs, mask)
    assert np.array_equal(best.argmax(axis=1), np.where(mask, scores, -1e9).argmax(axis=1))
    assert set(np.unique(best)) == {0.0, 1.0}


def test_the_first_of_equal_scores_wins():
    layers = (np.zeros((N_ACTIONS, N_FEATURES)), np.zeros(N_ACTIONS))
    network = Network.from_mlp(np.zeros(N_FEATURES), np.ones(N_FEATURES), [layers])
    policy = LearnedPolicy(make_artefact(network, sample_support(), name="flat", algorithm="cql", decision="greedy"))
    obs = play(1, 1000)[0][:1]
    mask = np.array([[False, False, True, True, False, True]])
    assert policy.probabilities(obs, mask).tolist() == [[0, 0, 1, 0, 0, 0]]


@given(
    seed=st.integers(0, 2**32),
    decision=st.sampled_from(["softmax", "greedy"]),
    damage=st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e30]),
)
@settings(max_examples=40)
def test_no_masked_action_has_a_chance_whatever_the_state(seed, decision, damage):
    random = np.random.default_rng(seed)
    obs = random.random((200, N_FEATURES))
    obs[random.random(obs.shape) < 0.02] = damage
    mask = random.random((200, N_ACTIONS)) < 0.4
    mask[:, -1] = True
    policy = LearnedPolicy(sample_artefact(seed % 7, decision=decision))
    probabilities = policy.probabilities(obs, mask)
    assert (probabilities[~mask] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert policy.fallbacks.n_decisions == 200


def test_unknown_and_broken_states_are_the_heuristics_and_counted():
    obs, mask = play(2, 1000)
    known = sample_support().contains(obs)
    obs = obs[known][:100].copy()
    mask = mask[known][:100]
    obs[3, FEATURE_INDEX["confidence"]] = np.nan
    obs[4, FEATURE_INDEX["risk"]] = np.inf
    obs[5, FEATURE_INDEX["difficulty"]] = 5.0
    escalation = EscalationConfig(medium_difficulty=0.2)
    policy = LearnedPolicy(sample_artefact(1, escalation=escalation))
    probabilities = policy.probabilities(obs, mask)
    rows = [3, 4, 5]
    assert np.array_equal(probabilities[rows], HeuristicPolicy(escalation).probabilities(obs[rows], mask[rows]))
    assert (policy.fallbacks.nan, policy.fallbacks.out_of_distribution, policy.fallbacks.n_decisions) == (2, 1, 100)
    assert policy.fallbacks.rate == 0.03
    assert np.flatnonzero(policy.is_fallback(obs)).tolist() == rows
    assert policy.fallbacks.n_decisions == 100
    assert isinstance(policy, FallbackPolicy)
    assert np.flatnonzero(find_fallbacks(EpsilonSoft(policy, 0.2), obs)).tolist() == rows
    assert not find_fallbacks(HeuristicPolicy(), obs).any()


def test_one_by_one_and_in_batches_the_same_is_decided():
    obs, mask = play(2, 1000)
    policy = LearnedPolicy(sample_artefact(3))
    whole = policy.probabilities(obs, mask)
    singles = np.concatenate([policy.probabilities(obs[i : i + 1], mask[i : i + 1]) for i in range(500)])
    assert np.array_equal(whole[:500], singles)
    meta = MetaPolicy(policy)
    actions = meta.decide_batch(obs, mask)
    assert [meta.decide(obs[i], mask[i]) for i in range(200)] == actions[:200].tolist()


def test_named_features_give_the_same_state_as_columns():
    context = {"budget_left": 0.7, "tier": 0.5, "has_answer": True, "previous_action": "RECURSE"}
    columns = {name: [0.0] for name in FEATURE_INDEX} | {"budget_left": [0.7], "tier": [0.5], "has_answer": [1.0]}
    columns |= {"time_left": [1.0], "difficulty": [0.5]}
    assert np.array_equal(MetaPolicy()._extractor.extract(context), encode_state(columns, [0])[0])


@pytest.mark.parametrize(
    ("obs", "mask", "message"),
    [
        (np.zeros((2, 5)), np.ones((2, 6), bool), "states are"),
        (np.zeros((2, N_FEATURES)), np.ones((3, 6), bool), "states are"),
        (np.zeros((2, N_FEATURES)), np.zeros((2, 6), bool), "a mask allows nothing"),
    ],
)
def test_batches_of_wrong_shapes_are_one_clear_error(obs, mask, message):
    with pytest.raises(PolicyError, match=message):
        MetaPolicy().decide_batch(obs, mask)
