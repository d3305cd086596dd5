"""Masked BC, CQL and IQL: the contract that all three keep, checkpoints, warm start, odd data, several Learners."""

from __future__ import annotations

import numpy as np
import pytest
import tabular_mdp as tabular
import torch
from tabular_training import CANDIDATES, CONFIGS, choose_probabilities, configure, select, true_value
from transition_rows import number_rows, write_parquet

from celr_ray.cortex.algorithms.algorithm import (
    MaskedBC,
    MaskedBCConfig,
    MaskedCQL,
    MaskedCQLConfig,
    MaskedIQLConfig,
)
from celr_ray.cortex.algorithms.export import Weights, forward
from celr_ray.cortex.algorithms.feeding import MemorySource, ParquetSource
from celr_ray.errors import PolicyError

SEED = 3
N_ACTIONS = tabular.N_ACTIONS


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks gain nothing by threads, and sums of one thread are the same in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """A tabular problem, 3,000 mixed-quality episodes to train on, and the exact value of what made them."""
    mdp = tabular.make_mdp(SEED)
    logs = tabular.make_logs(mdp, 3000, SEED)
    return mdp, MemorySource(logs), tabular.normalise(mdp, tabular.behavior_value(mdp, SEED))


@pytest.fixture(scope="module")
def trained(problem):
    """One algorithm of each kind after one iteration."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    algorithms = {name: configure(name, problem[1]).build_algo() for name in CONFIGS}
    results = {name: algorithm.train() for name, algorithm in algorithms.items()}
    yield algorithms, results
    for algorithm in algorithms.values():
        algorithm.stop()
    torch.set_num_threads(before)


def test_values_are_ordered_as_they_must_be(problem, trained):
    mdp, _, behavior = problem
    values = {name: true_value(mdp, algorithm) for name, algorithm in trained[0].items()}
    assert values["bc"] == pytest.approx(behavior, abs=0.05)
    for name in ("cql", "iql"):
        assert values[name] > max(behavior, values["bc"])
        assert values[name] >= 0.9


def test_a_clone_is_near_the_mean_behavior_in_each_state(problem, trained):
    columns = tabular.make_logs(problem[0], 3000, SEED)
    features, mask = tabular.all_states(problem[0])
    clone = choose_probabilities(trained[0]["bc"], trained[0]["bc"].export(), features, mask)
    row = columns["obs"][:, : len(features)].argmax(axis=1)
    counts = np.bincount(row, minlength=len(features))
    behavior = np.zeros_like(clone)
    np.add.at(behavior, row, columns["behavior"])
    behavior /= np.maximum(counts, 1)[:, None]
    distance = 0.5 * abs(clone - behavior).sum(axis=1)
    assert (distance * counts).sum() / counts.sum() < 0.06


@pytest.mark.parametrize("name", CONFIGS)
def test_no_masked_action_in_a_million_decisions(trained, name):
    module = trained[0][name].get_module()
    generator = torch.Generator().manual_seed(0)
    n_features = module.n_features
    for _ in range(10):
        obs = torch.randn(100_000, n_features + N_ACTIONS, generator=generator)
        obs[:50_000, :n_features] *= 1e4  # far outside of what was trained on
        mask = torch.rand(100_000, N_ACTIONS, generator=generator) < 0.3
        mask[torch.arange(100_000), torch.randint(N_ACTIONS, (100_000,), generator=generator)] = True
        obs[:, n_features:] = mask
        out = module.forward_inference({"obs": obs})
        actions = out.get("actions")
        if actions is None:
            distribution = module.get_inference_action_dist_cls().from_logits(out["action_dist_inputs"])
            actions = distribution.sample()
        assert mask.gather(1, actions[:, None]).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_numpy_scores_are_those_of_torch(problem, trained, name):
    algorithm = trained[0][name]
    module, weights = algorithm.get_module(), algorithm.export()
    obs = problem[1].columns["obs"][:5000]
    with torch.no_grad():
        expected = module.decider()(module.split(torch.from_numpy(obs))[0]).numpy()
    found = forward(weights, obs[:, :-N_ACTIONS])
    assert found == pytest.approx(expected, abs=1e-5)
    assert [len(bias) for _, bias in weights.layers] == [64, N_ACTIONS]
    assert weights.mean.dtype == weights.layers[0][0].dtype == np.float32


def equal(one: Weights, two: Weights) -> bool:
    pairs = [(a, b) for x, y in zip(one.layers, two.layers, strict=True) for a, b in zip(x, y, strict=True)]
    return all(np.array_equal(a, b) for a, b in [(one.mean, two.mean), (one.scale, two.scale), *pairs])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_restored_algorithm_decides_alike_and_goes_on_alike(problem, name, tmp_path):
    source = problem[1]
    algorithm = configure(name, source, updates=30).build_algo()
    algorithm.train()
    path = algorithm.save_to_path(str(tmp_path))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 1_500_000, "no transitions in a checkpoint"
    restored = type(algorithm).from_checkpoint(path, transitions=source)
    assert equal(restored.export(), algorithm.export())
    results = [one.train() for one in (algorithm, restored)]
    assert equal(restored.export(), algorithm.export())
    assert results[0]["training_iteration"] == results[1]["training_iteration"] == 2
    totals = [result["learners"]["default_policy"]["total"] for result in results]
    assert totals[0] == totals[1]
    again = configure(name, source, updates=30).build_algo()
    again.restore_from_path(path)
    again.train()
    assert equal(again.export(), algorithm.export())


def test_transitions_in_memory_are_no_part_of_a_checkpoint(problem, tmp_path):
    algorithm = configure("bc", problem[1], updates=2).build_algo()
    restored = MaskedBC.from_checkpoint(algorithm.save_to_path(str(tmp_path)))
    assert equal(restored.export(), algorithm.export())
    with pytest.raises(PolicyError, match="give them again"):
        restored.train()


def test_transitions_in_files_are_found_again(tmp_path):
    source = ParquetSource(write_parquet(tmp_path / "data", number_rows(200), 20), window_rows=64)
    algorithm = configure("cql", source, updates=5, train_batch_size_per_learner=16).build_algo()
    algorithm.train()
    restored = MaskedCQL.from_checkpoint(algorithm.save_to_path(str(tmp_path / "checkpoint")))
    for one in (algorithm, restored):
        one.train()
    assert equal(restored.export(), algorithm.export())


@pytest.mark.parametrize("name", CONFIGS)
def test_same_seed_same_policy(problem, name):
    weights = []
    for seed in (5, 5, 6):
        algorithm = configure(name, problem[1], seed=seed, updates=20).build_algo()
        algorithm.train()
        weights.append(algorithm.export())
    assert equal(weights[0], weights[1])
    assert not equal(weights[0], weights[2])


def test_results_have_the_curves(trained):
    for result, parts in zip(
        trained[1].values(),
        ({"total", "accuracy"}, {"total", "td", "conservative"}, {"total", "value", "critic", "policy"}),
        strict=True,
    ):
        curves = result["learners"]["default_policy"]
        assert parts <= set(curves)
        assert curves["num_module_steps_trained_lifetime"] == 800 * 256


def test_streamed_training_learns_the_same(problem, trained, tmp_path):
    mdp, source, behavior = problem
    uri = write_parquet(tmp_path, source.columns, 1000)
    algorithm = configure("cql", ParquetSource(uri, n_actions=N_ACTIONS, window_rows=3000)).build_algo()
    algorithm.train()
    value = true_value(mdp, algorithm)
    assert value > behavior
    assert value == pytest.approx(true_value(mdp, trained[0]["cql"]), abs=0.1)


# --- warm start ---------------------------------------------------------------------------------------------------


def test_cql_and_iql_start_from_a_clone(problem, trained):
    mdp, source, _ = problem
    clone = trained[0]["bc"].export()
    features, mask = tabular.all_states(mdp)
    logits = forward(clone, features)
    iql_start = configure("iql", source).warm_start(clone).build_algo()
    assert equal(iql_start.export(), clone)
    cql_start = configure("cql", source).warm_start(clone).build_algo()
    q = forward(cql_start.export(), features)
    assert (np.where(mask, q, -np.inf).argmax(axis=1) == np.where(mask, logits, -np.inf).argmax(axis=1)).all()
    obs = source.columns["obs"]
    legal = forward(cql_start.export(), obs[:, :-N_ACTIONS])[obs[:, -N_ACTIONS:] > 0]
    assert legal.std() == pytest.approx(source.look().reward_scale, rel=0.1)
    module = cql_start.get_module()
    assert all(torch.equal(target, followed) for target, followed in module.targets())
    cql_start.train()
    assert true_value(mdp, cql_start) >= 0.9


def test_a_warm_start_is_not_repeated_by_a_checkpoint(problem, trained, tmp_path):
    algorithm = configure("cql", problem[1], updates=5).warm_start(trained[0]["bc"].export()).build_algo()
    algorithm.train()
    restored = MaskedCQL.from_checkpoint(algorithm.save_to_path(str(tmp_path)), transitions=problem[1])
    assert equal(restored.export(), algorithm.export())


def test_a_clone_of_other_sizes_is_refused(trained):
    clone = trained[0]["bc"].export()
    with pytest.raises(PolicyError, match="cannot start from a network of sizes"):
        configure("iql", MemorySource(number_rows(20))).warm_start(clone).build_algo()


# --- odd data and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_ten_transitions_train(name):
    algorithm = configure(name, MemorySource(number_rows(10)), updates=20).build_algo()
    assert np.isfinite(algorithm.train()["learners"]["default_policy"]["total"])


@pytest.mark.parametrize("name", CONFIGS)
def test_one_action_everywhere_is_what_is_learnt(name):
    columns = {**number_rows(200), "actions": np.full(200, 2), "rewards": np.full(200, -1.0)}
    columns["terminateds"] = np.ones(200, dtype=bool)
    algorithm = configure(name, MemorySource(columns), updates=200).build_algo()
    algorithm.train()
    scores = forward(algorithm.export(), columns["obs"][:, :3])
    assert (scores.argmax(axis=1) == 2).all(), "what was never tried is not preferred, however bad the logs are"


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (MaskedCQLConfig, {"alpha": -1.0}, "alpha is -1.0"),
        (MaskedCQLConfig, {"gamma": 1.5}, "gamma is 1.5"),
        (MaskedIQLConfig, {"expectile": 1.0}, "expectile is 1.0"),
        (MaskedIQLConfig, {"beta": float("nan")}, "beta is nan"),
        (MaskedBCConfig, {"updates_per_iteration": 0}, "updates_per_iteration is 0"),
    ],
)
def test_settings_out_of_range_are_refused(config, settings, message):
    with pytest.raises(PolicyError, match=message):
        config().transitions(MemorySource(number_rows(20))).training(**settings).build_algo()


def test_without_transitions_there_is_no_algorithm():
    with pytest.raises(PolicyError, match="has no transitions"):
        MaskedBCConfig().build_algo()


def test_a_diverging_training_says_so():
    columns = number_rows(50)
    columns["rewards"] = np.full(50, 3e38)
    config = MaskedCQLConfig().transitions(MemorySource(columns)).training(updates_per_iteration=3)
    with pytest.raises(PolicyError, match="training diverged"):
        config.build_algo().train()


# --- several Learners ---------------------------------------------------------------------------------------------


def train_with(n_learners: int, source, name: str = "cql", updates: int = 10):
    config = configure(name, source, updates=updates, train_batch_size_per_learner=256 // max(1, n_learners))
    algorithm = config.learners(num_learners=n_learners).build_algo()
    result = algorithm.train()
    return algorithm, result["learners"]["default_policy"]["total"]


def distance(one: Weights, two: Weights) -> float:
    return max(
        float(abs(a - b).max()) for x, y in zip(one.layers, two.layers, strict=True) for a, b in zip(x, y, strict=True)
    )


def check_learners(source, name: str, tmp_path) -> None:
    local, local_loss = train_with(0, source, name)
    remote, remote_loss = train_with(1, source, name)
    assert equal(remote.export(), local.export())
    assert remote_loss == local_loss
    remote.stop()
    pair, pair_loss = train_with(2, source, name)
    assert distance(pair.export(), local.export()) < 1e-4, "averaged gradients of two halves, up to rounding"
    assert pair_loss == pytest.approx(local_loss, rel=1e-4)
    path = pair.save_to_path(str(tmp_path))
    pair.train()
    expected = pair.export()
    pair.stop()  # its CPUs are needed
    restored = type(pair).from_checkpoint(path, transitions=source)
    restored.train()
    assert equal(restored.export(), expected)
    restored.stop()


def test_remote_learners_learn_the_same(local_ray, problem, tmp_path):
    check_learners(problem[1], "cql", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bc", "iql"])
def test_remote_learners_of_the_others(local_ray, problem, name, tmp_path):
    check_learners(problem[1], name, tmp_path)


@pytest.mark.slow
def test_remote_learners_stream(local_ray, problem, tmp_path):
    uri = write_parquet(tmp_path / "data", problem[1].columns, 1000)
    check_learners(ParquetSource(uri, n_actions=N_ACTIONS, window_rows=3000), "cql", tmp_path / "checkpoint")


def test_too_many_learners_are_refused(local_ray, problem):
    with pytest.raises(PolicyError, match="3 Learners need as many CPUs, the Ray cluster has 2"):
        configure("bc", problem[1]).learners(num_learners=3).build_algo()


# --- selection without the truth ----------------------------------------------------------------------------------


def test_selected_without_the_truth_it_is_better_than_its_teachers():
    run = select(0, 1500, 750, updates=400, candidates=CANDIDATES[:2] + CANDIDATES[-1:])
    assert run["value"] >= 0.9
    assert run["value"] > max(run["behavior"], run["bc"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_nine_tenths_of_the_optimum_are_reached(seed):
    run = select(seed, 3000, 1500)
    assert run["value"] >= 0.9
    assert run["value"] > max(run["behavior"], run["bc"])
