"""From transitions to minibatches: each row once, the same order again, equal shares; unusable data are refused."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transition_rows import number_rows, write_parquet

from celr_ray.cortex.algorithms.columns import COLUMNS
from celr_ray.cortex.algorithms.feeding import MemorySource, Order, ParquetSource
from celr_ray.errors import InputError, PolicyError


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
        MemorySource(columns).look()


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
