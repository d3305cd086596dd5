"""Masked BC, CQL and IQL: losses against plain loops, feeding, the contract that all three keep, bad input."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tabular_mdp as tabular
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular_training import CANDIDATES, CONFIGS, choose_probabilities, configure, select, true_value

from celr_ray.cortex.algorithms import losses
from celr_ray.cortex.algorithms.algorithm import (
    MaskedBC,
    MaskedBCConfig,
    MaskedCQL,
    MaskedCQLConfig,
    MaskedIQLConfig,
)
from celr_ray.cortex.algorithms.columns import COLUMNS
from celr_ray.cortex.algorithms.export import Weights, forward
from celr_ray.cortex.algorithms.feeding import MemorySource, Order, ParquetSource
from celr_ray.errors import InputError, PolicyError

SEED = 3
N_ACTIONS = tabular.N_ACTIONS


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks gain nothing by threads, and sums of one thread are the same in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- losses -------------------------------------------------------------------------------------------------------


def draw(seed: int, rows: int = 7):
    """Return random scores, masks and actions as tensors."""
    rng = np.random.default_rng(seed)
    mask = rng.random((2, rows, N_ACTIONS)) < 0.5
    mask[..., rng.integers(N_ACTIONS)] = True
    actions = np.array([rng.choice(np.flatnonzero(row)) for row in mask[0]])
    ends = rng.random(rows) < 0.3
    return {
        "scores": torch.tensor(rng.normal(size=(3, rows, N_ACTIONS)), requires_grad=True),
        "mask": torch.tensor(mask[0]),
        "next_mask": torch.tensor(mask[1]),
        "actions": torch.tensor(actions),
        "rewards": torch.tensor(rng.normal(size=rows)),
        "terminateds": torch.tensor(ends),
        "truncateds": torch.tensor(~ends & (rng.random(rows) < 0.3)),
    }


def td_rows(x):
    return (x[name] for name in ("actions", "rewards", "terminateds", "truncateds"))


def cql(x, scores=None, double=True, **kwargs):
    q, target, online = x["scores"] if scores is None else scores
    settings = {"alpha": 0.7, "gamma": 0.9, "online_next_q": online if double else None, **kwargs}
    return losses.cql_loss(q, target, x["mask"], x["next_mask"], *td_rows(x), **settings)


@given(st.integers(0, 10_000), st.booleans())
def test_cql_loss_equals_a_plain_loop(seed, double):
    x = draw(seed)
    q, target, online = x["scores"].detach().numpy()
    td, conservative = [], []
    for row, action in enumerate(x["actions"].tolist()):
        legal, after = np.flatnonzero(x["mask"][row]), np.flatnonzero(x["next_mask"][row])
        best = after[np.argmax((online if double else target)[row, after])]
        goal = float(x["rewards"][row]) + (0 if x["terminateds"][row] else 0.9 * target[row, best])
        td.append(0.0 if x["truncateds"][row] else 0.5 * (q[row, action] - goal) ** 2)
        conservative.append(np.log(np.exp(q[row, legal]).sum()) - q[row, action])
    found = cql(x, double=double)
    assert found.td.item() == pytest.approx(np.mean(td))
    assert found.conservative.item() == pytest.approx(np.mean(conservative))
    assert found.total.item() == pytest.approx(np.mean(td) + 0.7 * np.mean(conservative))
    assert found.conservative >= 0


@given(st.integers(0, 10_000))
def test_bc_loss_equals_a_plain_loop(seed):
    x = draw(seed)
    logits = x["scores"][0].detach()
    expected = [
        -float(torch.log_softmax(logits[row, x["mask"][row]], 0)[x["mask"][row, :action].sum()])
        for row, action in enumerate(x["actions"].tolist())
    ]
    assert losses.bc_loss(logits, x["mask"], x["actions"]).total.item() == pytest.approx(np.mean(expected))


def iql(x, **kwargs):
    logits, one, two = x["scores"]
    critics = tuple(losses.take(q, x["actions"]) for q in (one, two))
    value, following = logits.mean(dim=1), two.mean(dim=1).detach()
    settings = {"expectile": 0.8, "beta": 2.0, "gamma": 0.9, **kwargs}
    target = torch.minimum(*critics).detach()
    return losses.iql_loss(logits, critics, target, value, following, x["mask"], *td_rows(x), **settings)


@given(st.integers(0, 10_000))
def test_iql_loss_equals_a_plain_loop(seed):
    x = draw(seed)
    logits, one, two = x["scores"].detach().numpy()
    value, critic, policy = [], [], []
    for row, action in enumerate(x["actions"].tolist()):
        u = min(one[row, action], two[row, action]) - logits[row].mean()
        value.append((0.2 if u < 0 else 0.8) * u**2)
        goal = float(x["rewards"][row]) + (0 if x["terminateds"][row] else 0.9 * two[row].mean())
        errors = [0.5 * (q[row, action] - goal) ** 2 for q in (one, two)]
        critic.append(0.0 if x["truncateds"][row] else sum(errors))
        legal = np.flatnonzero(x["mask"][row])
        log_pi = logits[row, action] - np.log(np.exp(logits[row, legal]).sum())
        policy.append(-min(np.exp(2.0 * u), 3.0) * log_pi)
    found = iql(x, max_weight=3.0)
    assert found.value.item() == pytest.approx(np.mean(value))
    assert found.critic.item() == pytest.approx(np.mean(critic))
    assert found.policy.item() == pytest.approx(np.mean(policy))
    assert found.total.item() == pytest.approx(np.mean(value) + np.mean(critic) + np.mean(policy))


@given(st.integers(0, 10_000))
def test_iql_without_temperature_clones(seed):
    x = draw(seed)
    clone = losses.bc_loss(x["scores"][0], x["mask"], x["actions"]).total
    assert iql(x, beta=0.0).policy.item() == pytest.approx(clone.item())


@given(st.integers(0, 10_000))
def test_masked_scores_change_nothing_and_get_no_gradient(seed):
    x = draw(seed)
    masks = torch.stack([x["mask"], x["next_mask"], x["next_mask"]])
    moved = torch.where(masks, x["scores"].detach(), torch.tensor(1e6, dtype=torch.float64)).requires_grad_()
    assert cql(x, moved).total.item() == cql(x).total.item()
    cql(x, moved).total.backward()
    assert torch.isfinite(moved.grad).all()
    assert not moved.grad[0][~x["mask"]].any()
    assert not moved.grad[1:].any(), "targets get no gradient"
    logits = x["scores"][0].detach().requires_grad_()
    losses.bc_loss(logits, x["mask"], x["actions"]).total.backward()
    assert not logits.grad[~x["mask"]].any()


@given(st.integers(0, 10_000))
def test_what_follows_an_end_or_a_cut_is_not_used(seed):
    x = draw(seed)
    stop = (x["terminateds"] | x["truncateds"])[None, :, None] & torch.tensor([False, True, True])[:, None, None]
    moved = torch.where(stop, x["scores"].detach() + 1e6, x["scores"].detach())
    assert cql(x, moved).total.item() == pytest.approx(cql(x).total.item())
    x["rewards"] = torch.where(x["truncateds"], 1e6, x["rewards"])
    assert cql(x, moved).total.item() == pytest.approx(cql(x).total.item()), "a cut row has no target at all"


@given(st.integers(0, 10_000))
def test_equal_shares_average_to_the_whole(seed):
    x = draw(seed, rows=8)
    halves = [
        {name: value[:, part] if name == "scores" else value[part] for name, value in x.items()}
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    for loss in (cql, iql):
        assert np.mean([loss(half).total.item() for half in halves]) == pytest.approx(loss(x).total.item())


# --- feeding ------------------------------------------------------------------------------------------------------


def number_rows(n: int) -> dict[str, np.ndarray]:
    """Return n legal transitions whose first feature is their number."""
    obs = np.zeros((n, 3 + N_ACTIONS), dtype=np.float32)
    obs[:, 0] = np.arange(n)
    obs[:, 3:] = 1
    zeros = np.zeros(n)
    return {
        "obs": obs,
        "new_obs": obs,
        "actions": np.arange(n) % N_ACTIONS,
        "rewards": zeros,
        "terminateds": zeros.astype(bool),
        "truncateds": zeros.astype(bool),
    }


def write_parquet(folder: Path, columns: dict[str, np.ndarray], row_group_size: int, n_files: int = 1) -> str:
    """Write transitions as the dataset stage lays them out."""
    target = folder / "transitions" / "train"
    target.mkdir(parents=True)
    arrays = {}
    for name, dtype in COLUMNS.items():
        values = np.asarray(columns[name], dtype=dtype)
        flat = pa.array(values.ravel())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    table = pa.table(arrays)
    size = -(-len(table) // n_files)
    for number in range(n_files):
        part = table.slice(number * size, size)
        pq.write_table(part, target / f"part-{number:05}.parquet", row_group_size=row_group_size)
    return str(folder)


def rows_of(batch) -> list[int]:
    return batch["obs"][:, 0].int().tolist()


@pytest.fixture(params=["memory", "parquet"])
def source(request, tmp_path):
    """100 numbered rows; the Parquet ones in windows of 40 rows at most, of row groups of 10."""
    columns = number_rows(100)
    if request.param == "memory":
        return MemorySource(columns)
    return ParquetSource(write_parquet(tmp_path, columns, 10, n_files=2), window_rows=40)


def test_each_row_comes_once_an_epoch_in_an_order_of_its_own(source):
    epochs = list(chunked_rows(source, Order(10), 30))
    assert all(sorted(rows) == list(range(100)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert next(chunked_rows(source, Order(10), 10)) == epochs[0], "the same seed gives the same order"
    assert next(chunked_rows(source, Order(10, seed=1), 10)) != epochs[0]


def chunked_rows(source, order, n):
    """Yield the rows of each ten minibatches."""
    batches = [rows_of(batch) for batch in islice(source.minibatches(order), n)]
    for start in range(0, n, 10):
        yield list(chain.from_iterable(batches[start : start + 10]))


@given(st.integers(0, 35), st.integers(1, 45))
def test_any_start_goes_on_with_the_same_minibatches(tmp_path_factory, start, batch_size):
    folder = tmp_path_factory.getbasetemp() / "resume"
    uri = str(folder) if folder.exists() else write_parquet(folder, number_rows(100), 10, n_files=2)
    for source in (MemorySource(number_rows(100)), ParquetSource(uri, window_rows=40)):
        whole = [rows_of(batch) for batch in islice(source.minibatches(Order(batch_size)), start + 5)]
        resumed = [rows_of(batch) for batch in islice(source.minibatches(Order(batch_size, start=start)), 5)]
        assert resumed == whole[start:]


def test_shares_of_learners_make_up_the_whole(source):
    whole = [rows_of(batch) for batch in islice(source.minibatches(Order(10)), 12)]
    shares = [
        [rows_of(batch) for batch in islice(source.minibatches(Order(10, shard=shard, n_shards=2)), 12)]
        for shard in range(2)
    ]
    for rows, one, two in zip(whole, *shares, strict=True):
        assert sorted(one + two) == sorted(rows)
        assert len(one) == len(two) == 5


def test_facts_are_those_of_numpy(source):
    facts = source.look()
    features = number_rows(100)["obs"][:, :3]
    assert (facts.n, facts.n_features, facts.n_actions) == (100, 3, 6)
    assert facts.mean == pytest.approx(features.mean(axis=0))
    assert facts.scale == pytest.approx([features[:, 0].std(), 1, 1]), "a constant feature is not divided by 0"
    assert facts.action_counts == tuple(np.bincount(np.arange(100) % 6))


def test_windows_too_small_for_all_learners_are_left_out(tmp_path):
    source = ParquetSource(write_parquet(tmp_path, number_rows(21), 10), window_rows=10)
    batches = islice(source.minibatches(Order(4, n_shards=2)), 8)
    assert all(len(rows_of(batch)) == 2 for batch in batches)
    with pytest.raises(PolicyError, match="too few for 16 Learners"):
        next(source.minibatches(Order(32, n_shards=16)))


def test_few_rows_make_smaller_minibatches():
    source = MemorySource(number_rows(10))
    assert len(rows_of(next(source.minibatches(Order(1024))))) == 10
    assert len(rows_of(next(source.minibatches(Order(1024, n_shards=4, shard=1))))) == 2
    with pytest.raises(PolicyError, match="too few for 11 Learners"):
        next(source.minibatches(Order(1024, n_shards=11)))


# --- bad input ----------------------------------------------------------------------------------------------------


def spoil(name, row, column, value):
    columns = number_rows(20)
    columns[name] = columns[name].copy()
    columns[name][(row, column) if column is not None else row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (spoil("obs", 7, 1, np.nan), r"1 transitions have obs that is not finite, first at row 7: column 1 of obs"),
        (spoil("new_obs", 3, 2, np.inf), r"new_obs that is not finite, first at row 3"),
        (spoil("rewards", 4, None, np.nan), r"a reward that is not finite, first at row 4: reward nan"),
        (spoil("actions", 5, None, 6), r"an action outside 0 to 5, first at row 5: action 6"),
        (spoil("actions", 5, None, -1), r"an action outside 0 to 5"),
        (spoil("obs", 2, 5, 0), r"an action that its own mask forbids, first at row 2: action 2"),
        (spoil("obs", 2, 5, 0.5), r"a mask with something else than 0 and 1"),
        (spoil("new_obs", 2, slice(3, None), 0), r"a mask that allows nothing"),
        ({k: v[:0] for k, v in number_rows(5).items()}, r"no transitions to train on"),
        ({**number_rows(5), "rewards": np.zeros(4)}, r"rewards has shape \(4,\)"),
        ({k: v for k, v in number_rows(5).items() if k != "truncateds"}, r"no column truncateds"),
        ({**number_rows(5), "new_obs": np.zeros((5, 4))}, r"they must be alike"),
    ],
)
def test_unusable_transitions_are_refused(columns, message):
    with pytest.raises(PolicyError, match=message):
        MaskedBCConfig().transitions(MemorySource(columns))


def test_the_row_in_the_message_counts_through_all_windows(tmp_path):
    uri = write_parquet(tmp_path, spoil("obs", 17, 0, np.nan), 5)
    with pytest.raises(PolicyError, match="first at row 17"):
        ParquetSource(uri, window_rows=5).look()


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no Parquet files of transitions"):
        ParquetSource(str(tmp_path / "none")).look()
    (tmp_path / "none" / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="is no Parquet file"):
        ParquetSource(str(tmp_path / "none")).look()
    table = pa.table({name: [[0.5, 1.0]] if name.endswith("obs") else [1] for name in COLUMNS})
    pq.write_table(table, tmp_path / "none" / "x.parquet")
    with pytest.raises(PolicyError, match="must be lists of one fixed length"):
        ParquetSource(str(tmp_path / "none")).look()
    table = pa.table({name: pa.array([None], pa.float32()) for name in COLUMNS})
    pq.write_table(table, tmp_path / "none" / "x.parquet")
    with pytest.raises(PolicyError, match="1 transitions have a null"):
        ParquetSource(str(tmp_path / "none")).look()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none" / "x.parquet")
    with pytest.raises(PolicyError, match="no column obs"):
        ParquetSource(str(tmp_path / "none")).look()
    empty = write_parquet(tmp_path / "empty", {k: v[:0] for k, v in number_rows(5).items()}, 5)
    with pytest.raises(PolicyError, match="has no transitions to train on"):
        ParquetSource(empty).look()


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


# --- odd data -----------------------------------------------------------------------------------------------------


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
