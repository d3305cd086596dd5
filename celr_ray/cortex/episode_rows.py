"""Episodes on their way to transitions: columns of decisions, and the Arrow table that is made of them.

Every value of an episode is computed from its own rows alone, so that it does not depend on which other episodes are
in the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from celr_ray.cortex.actions import Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.reward import FAILURE_PENALTY, find_reward_scale, reprice
from celr_ray.schema import transition_schema

__all__ = ["EpisodeRows", "make_transition_table", "sum_to_go", "take_episodes"]


@dataclass(frozen=True)
class EpisodeRows:
    """N decisions of B episodes, ordered by episode and time.

    Attributes:
        eps_id: [B] identifies the content of the log record.
        run_id: [B] identifies the run; records of one run that was logged several times over share it.
        rank: [B] of the records of a run, that with the highest is the whole of it.
        task_id: [B].
        policy_hash: [B] who decided; None = unknown.
        source: [B] format of the log.
        is_cut: [B] the log ends before the episode does.
        length: [B] decisions of each.
        obs: [N, D] state vectors.
        mask: [N, A] what was allowed.
        action: [N] what was done.
        reward: [N] as in `cortex.reward`, unscaled.
        behavior: [N, A] the behavior policy's probabilities; rows of NaN = unknown.
    """

    eps_id: list[str]
    run_id: list[str]
    rank: list[int]
    task_id: list[str]
    policy_hash: list[str | None]
    source: list[str]
    is_cut: BoolArray
    length: IntArray
    obs: FloatArray
    mask: BoolArray
    action: IntArray
    reward: FloatArray
    behavior: FloatArray


def sum_to_go(reward: FloatArray, length: IntArray) -> FloatArray:
    """Return the sum of each episode's rewards from each row on, [N].

    Args:
        reward: [N].
        length: [B] rows of each episode.
    """
    if not len(length):
        return np.zeros(0)
    column = _count_up(length)
    row = np.repeat(np.arange(len(length)), length)
    padded = np.zeros((len(length), int(length.max())))
    padded[row, column] = reward
    return np.asarray(np.cumsum(padded[:, ::-1], axis=1)[:, ::-1][row, column])


def _count_up(length: IntArray) -> IntArray:
    """Return 0, 1, … within each episode, [N]."""
    return np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)


def make_transition_table(rows: EpisodeRows, *, failure_penalty: float = FAILURE_PENALTY) -> pa.Table:
    """Return the transitions of some episodes, as `schema.transition_schema` has them.

    Args:
        rows: their decisions.
        failure_penalty: of the rewards in the table.
    """
    reward = reprice(rows.reward, failure_penalty)
    n, n_features, n_actions = len(rows.action), rows.obs.shape[1], rows.mask.shape[1]
    is_last = np.zeros(n, dtype=bool)
    is_last[np.cumsum(rows.length) - 1] = True
    is_cut = np.repeat(rows.is_cut, rows.length)
    obs = np.concatenate([rows.obs, rows.mask], axis=1, dtype=np.float32)
    next_obs = np.zeros_like(obs)
    next_obs[:-1] = obs[1:]
    next_obs[is_last] = 0.0
    next_obs[is_last, n_features + min(int(Action.ABORT), n_actions - 1)] = 1.0
    is_known = ~np.isnan(rows.behavior[:, 0])
    done = rows.behavior[np.arange(n), rows.action]
    episode = pa.array(np.repeat(np.arange(len(rows.length)), rows.length))
    schema = transition_schema(n_features, n_actions)

    def per_episode(values: Sequence[str | None]) -> pa.Array:
        return pa.array(values, type=pa.string()).take(episode)

    columns = {
        "eps_id": per_episode(rows.eps_id),
        "task_id": per_episode(rows.task_id),
        "t": _count_up(rows.length),
        "obs": _vectors(obs, schema.field("obs").type),
        "new_obs": _vectors(next_obs, schema.field("new_obs").type),
        "actions": rows.action,
        "rewards": (reward * find_reward_scale(failure_penalty)).astype(np.float32),
        "rewards_raw": reward,
        "terminateds": is_last & ~is_cut,
        "truncateds": is_last & is_cut,
        "action_prob": pa.array(done, mask=~is_known),
        "behavior": _vectors(rows.behavior, schema.field("behavior").type),
        "return_to_go": sum_to_go(reward, rows.length),
        "policy_hash": per_episode(rows.policy_hash),
        "source": per_episode(rows.source),
    }
    return pa.table(columns, schema=schema)


def _vectors(values: NDArray[np.floating[Any]], kind: pa.DataType) -> pa.Array:
    """Return vectors [N, …] as an Arrow column; NaN is null where the column may hold nulls."""
    flat = np.ascontiguousarray(values).reshape(-1)
    is_unknown = np.isnan(flat) if kind.value_field.nullable else None
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type, mask=is_unknown), type=kind)


def take_episodes(rows: EpisodeRows, chosen: IntArray) -> EpisodeRows:
    """Return some episodes [K], in ascending order of their numbers."""
    is_chosen = np.zeros(len(rows.length), dtype=bool)
    is_chosen[chosen] = True
    if is_chosen.all():
        return rows
    per_row = np.repeat(is_chosen, rows.length)
    taken: dict[str, Any] = {}
    for field in fields(EpisodeRows):
        value = getattr(rows, field.name)
        if isinstance(value, list):
            taken[field.name] = [item for item, ok in zip(value, is_chosen, strict=True) if ok]
        else:
            taken[field.name] = value[is_chosen if field.name in ("is_cut", "length") else per_row]
    return EpisodeRows(**taken)
