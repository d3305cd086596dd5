"""Reads transitions back: all of a split as arrays, or in batches, or as episodes for off-policy estimates.

Works for states of any D features and A actions: both are read from the files' own schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from celr_ray import storage
from celr_ray.core.episodes import hash_text
from celr_ray.cortex.actions import BoolArray, FloatArray, IntArray
from celr_ray.cortex.evaluation.logged import LoggedEpisodes
from celr_ray.cortex.reward import FAILURE_PENALTY
from celr_ray.errors import InputError, PolicyError

__all__ = [
    "Transitions",
    "dataset_record_uri",
    "find_failure_penalty",
    "iter_row_batches",
    "iter_transitions",
    "list_parts",
    "load_transitions",
    "read_dataset_record",
    "table_to_transitions",
    "to_logged_episodes",
]

Float32Array = NDArray[np.float32]
_DECIMALS = 6
"""Of features when a policy is asked about them again: in 32 bits .7 is below .7, and a threshold there would decide
otherwise than it did when the log was made."""


@dataclass(frozen=True)
class Transitions:
    """N decisions of B episodes, those of an episode adjacent and ordered by time.

    Attributes:
        episode: [N] number of the episode among these, from 0; a batch may begin or end within one.
        t: [N] number of the decision in its episode.
        obs: [N, D + A] state vectors, then masks as 0 and 1.
        new_obs: [N, D + A] the same one decision later; after an episode's last row, zeros with ABORT allowed.
        actions: [N].
        rewards: [N] scaled, for training.
        rewards_raw: [N] as in `cortex.reward`.
        terminateds: [N] last row of an episode that ended.
        truncateds: [N] last row of an episode whose log was cut; what came next is not known, `new_obs` is filled.
        action_prob: [N] probability with which the action was done, NaN = unknown.
        behavior: [N, A] the behavior policy's probabilities, rows of NaN = unknown.
        return_to_go: [N] sum of `rewards_raw` from here on; of a cut episode, up to the cut.
        eps_id, task_id, policy_hash, source: [B] of the episodes; a policy of None = unknown.
    """

    episode: IntArray
    t: IntArray
    obs: Float32Array
    new_obs: Float32Array
    actions: IntArray
    rewards: Float32Array
    rewards_raw: FloatArray
    terminateds: BoolArray
    truncateds: BoolArray
    action_prob: FloatArray
    behavior: FloatArray
    return_to_go: FloatArray
    eps_id: NDArray[np.object_]
    task_id: NDArray[np.object_]
    policy_hash: NDArray[np.object_]
    source: NDArray[np.object_]

    def __len__(self) -> int:
        """Return N."""
        return len(self.t)

    @property
    def n_episodes(self) -> int:
        """Return B."""
        return len(self.eps_id)

    @property
    def n_actions(self) -> int:
        """Return A."""
        return int(self.behavior.shape[1])

    @property
    def n_features(self) -> int:
        """Return D."""
        return int(self.obs.shape[1]) - self.n_actions

    @property
    def features(self) -> Float32Array:
        """Return the state vectors [N, D]."""
        return self.obs[:, : self.n_features]

    @property
    def mask(self) -> BoolArray:
        """Return what was allowed, [N, A]."""
        return np.asarray(self.obs[:, self.n_features :] > 0.5)


def dataset_record_uri(uri: str) -> str:
    """Return where the record of a dataset is kept."""
    return storage.join(uri, "transitions", "dataset.json")


def read_dataset_record(uri: str) -> dict[str, Any]:
    """Return dataset.json: `data_hash`, counts, features, actions, scale.

    Raises:
        InputError: there is none: the dataset was never finished; or it is damaged.
    """
    place = dataset_record_uri(uri)
    if storage.stat(place) is None:
        raise InputError(f"{uri} holds no finished dataset (no transitions/dataset.json)")
    record = storage.read_json(place)
    if not isinstance(record, dict):
        raise InputError(f"{place} is no record of a dataset: it holds no object. Make the dataset anew")
    return record


def find_failure_penalty(uri: str, record: Mapping[str, Any]) -> float:
    """Return what the rewards of a dataset charge for a failure; before that was a setting it was `FAILURE_PENALTY`.

    Args:
        uri: folder of the dataset, for the message.
        record: its dataset.json.

    Raises:
        InputError: the record holds something else than a number above 0.
    """
    stated = record.get("failure_penalty", FAILURE_PENALTY)
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated < np.inf:
        raise InputError(
            f"{dataset_record_uri(uri)}: failure_penalty is {stated!r}, not a number above 0. Make the dataset anew"
        )
    return float(stated)


def list_parts(uri: str, split: str = "train") -> list[str]:
    """Return the Parquet files of a split, in order.

    Args:
        uri: run folder of a dataset, or a folder of Parquet parts.
        split: `train` or `validation`; not looked at for a folder of parts.

    Raises:
        InputError: the split is unknown, or there are no rows in it.
    """
    if split not in ("train", "validation"):
        raise InputError(f"no split {split!r}: there are train and validation")
    inner = storage.join(uri, "transitions")
    place = storage.join(inner, split) if storage.is_directory(inner) else uri
    parts = [file.uri for file in storage.list_files(place) if file.uri.endswith(".parquet")]
    if not parts:
        raise InputError(f"the {split} split of {uri} has no transitions: no Parquet parts in {place}")
    return parts


def load_transitions(uri: str, split: str = "train") -> Transitions:
    """Read a whole split into memory; `iter_transitions` reads what does not fit.

    Raises:
        InputError: there are no transitions, or a file is damaged.
    """
    return table_to_transitions(pa.concat_tables([storage.read_parquet(part) for part in list_parts(uri, split)]))


def iter_transitions(uri: str, split: str = "train", batch_size: int = 4096) -> Iterator[Transitions]:
    """Read a split in batches, in the order of the files; memory holds a row group and a batch.

    Args:
        uri: run folder of a dataset, or a folder of Parquet parts.
        split: `train` or `validation`.
        batch_size: rows of each batch; the last one has what is left.

    Raises:
        InputError: there are no transitions, or a file is damaged.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    waiting: list[pa.Table] = []
    n_waiting = 0
    for part in list_parts(uri, split):
        for table in iter_row_batches(part, batch_size):
            waiting.append(table)
            n_waiting += table.num_rows
            while n_waiting >= batch_size:
                joined = pa.concat_tables(waiting)
                yield table_to_transitions(joined.slice(0, batch_size))
                waiting, n_waiting = [joined.slice(batch_size)], n_waiting - batch_size
    if n_waiting:
        yield table_to_transitions(pa.concat_tables(waiting))


def iter_row_batches(part: str, batch_size: int) -> Iterator[pa.Table]:
    """Read one Parquet part in batches of rows.

    Raises:
        InputError: it is damaged.
    """
    with storage.open_input(part) as source:
        try:
            for batch in pq.ParquetFile(source).iter_batches(batch_size, use_threads=False):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"cannot read {part}: not a whole Parquet file: {error}") from error


def table_to_transitions(table: pa.Table) -> Transitions:
    """Turn rows of `schema.transition_schema` into arrays.

    Raises:
        InputError: a column is missing.
    """
    names = ("eps_id", "task_id", "policy_hash", "source")
    needed = {*Transitions.__dataclass_fields__, *names} - {"episode"}
    if missing := sorted(needed - set(table.column_names)):
        raise InputError(f"these are no transitions: the columns {', '.join(missing)} are missing")
    table = table.combine_chunks()
    starts = _find_starts(table)
    episode = np.zeros(table.num_rows, dtype=np.int64)
    episode[starts[1:]] = 1
    heads = table.select(list(names)).take(pa.array(starts))
    vectors = {name: _to_matrix(table[name]) for name in ("obs", "new_obs", "behavior")}
    scalars = {
        name: table[name].to_numpy()
        for name in ("t", "actions", "rewards", "rewards_raw", "terminateds", "truncateds", "action_prob")
    }
    return Transitions(
        episode=np.cumsum(episode),
        **scalars,
        **vectors,
        return_to_go=table["return_to_go"].to_numpy(),
        **{name: np.array(heads[name].to_pylist(), dtype=object) for name in names},
    )


def _find_starts(table: pa.Table) -> IntArray:
    """Return the first row of each episode."""
    ids = table["eps_id"].combine_chunks()
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    is_new = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(is_new) + 1])


def _to_matrix(column: pa.ChunkedArray) -> Any:
    """Return a column of fixed-size lists as [N, size]; nulls become NaN."""
    array = column.combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def to_logged_episodes(transitions: Transitions, *, drop_unknown: bool = False) -> LoggedEpisodes:
    """Return the episodes as off-policy estimates need them, with raw rewards.

    Args:
        transitions: whole episodes.
        drop_unknown: leave out episodes whose behavior probabilities are not known, instead of refusing them.

    Raises:
        PolicyError: some, or after dropping them all, have unknown probabilities; or an episode lacks its beginning.
    """
    is_unknown = np.isnan(transitions.action_prob) | np.isnan(transitions.behavior).any(axis=1)
    has_unknown = np.zeros(transitions.n_episodes, dtype=bool)
    has_unknown[transitions.episode[is_unknown]] = True
    if has_unknown.all() or (has_unknown.any() and not drop_unknown):
        raise PolicyError(
            f"{has_unknown.sum():,} of {transitions.n_episodes:,} episodes do not say with which probabilities they "
            "were decided (logs of other agents never do): no off-policy estimate can use them. Log with "
            "`celr-ray execute --execute.epsilon 0.2`, or drop them (drop_unknown)."
        )
    rows = np.flatnonzero(~has_unknown[transitions.episode])
    number = np.cumsum(~has_unknown) - 1
    return LoggedEpisodes(
        episode=number[transitions.episode[rows]],
        t=transitions.t[rows],
        obs=transitions.features[rows].astype(float).round(_DECIMALS),
        mask=transitions.mask[rows],
        action=transitions.actions[rows],
        reward=transitions.rewards_raw[rows],
        terminated=transitions.terminateds[rows],
        behavior=transitions.behavior[rows],
        task=np.array([hash_text(task_id) for task_id in transitions.task_id[~has_unknown]], dtype=np.uint64).astype(
            np.int64
        ),
    )
