"""Transitions of a replay, in the columns that the trainers read: a policy can learn from a bank alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from celr_ray.cortex.actions import Action, BoolArray, FloatArray
from celr_ray.cortex.evaluation.replay_run import ReplayResults
from celr_ray.cortex.reward import REWARD_SCALE
from celr_ray.cortex.state import N_FEATURES
from celr_ray.errors import InputError
from celr_ray.schema import TRANSITION_SCHEMA

__all__ = ["replay_to_transitions"]


def replay_to_transitions(results: ReplayResults) -> pa.Table:
    """Return the decisions of a replay as transitions; censored episodes are left out (`results.censored` counts them).

    The whole probability vectors are kept, so that the rows serve off-policy evaluation too. Train on replays of the
    bank's train and validation tasks only: the gate's must be unseen.

    Args:
        results: a replay with `keep_decisions`.

    Returns:
        Rows of `TRANSITION_SCHEMA`; those of an episode are adjacent and ordered by time.

    Raises:
        InputError: the decisions were not kept, or every episode is censored.
    """
    if results.decisions is None:
        raise InputError("the replay kept no decisions: run it with keep_decisions=True")
    decisions = results.decisions
    keep = ~results.censored.ravel()[decisions.episode]
    if not keep.any():
        raise InputError("every episode of the replay is censored: nothing to learn from")
    rows = np.flatnonzero(keep)
    episode = decisions.episode[rows]
    is_last = np.append(episode[1:] != episode[:-1], True)
    obs = np.concatenate([decisions.obs[rows], decisions.mask[rows]], axis=1).astype(np.float32)
    probabilities, action = decisions.probabilities[rows], decisions.action[rows]
    raw = decisions.reward[rows]
    n, replays = len(rows), results.success.shape[1]
    names = _episode_names(results)
    columns = {
        "eps_id": names[episode],
        "task_id": np.array(results.task_ids, dtype=object)[episode // replays],
        "t": decisions.t[rows],
        "obs": _fixed(obs, pa.float32()),
        "new_obs": _fixed(_following(obs, is_last), pa.float32()),
        "actions": action,
        "rewards": (raw * REWARD_SCALE).astype(np.float32),
        "rewards_raw": raw,
        "terminateds": is_last,
        "truncateds": np.zeros(n, dtype=bool),
        "action_prob": probabilities[np.arange(n), action],
        "behavior": _fixed(probabilities, pa.float64()),
        "return_to_go": _returns(raw, is_last),
        "policy_hash": [results.policy_hash] * n,
        "source": [f"bank {results.bank_hash}"] * n,
    }
    arrays = {
        name: pa.array(value) if isinstance(value, (np.ndarray, list)) else value for name, value in columns.items()
    }
    return pa.table({name: arrays[name] for name in TRANSITION_SCHEMA.names}).cast(TRANSITION_SCHEMA)


def _episode_names(results: ReplayResults) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """Return what identifies each episode: bank, rules, policy, task and replay."""
    made_by = f"{results.bank_hash} {results.config.model_dump_json()} {results.policy_hash}"
    names = [
        hashlib.blake2b(f"{made_by} {task_id} {replay}".encode(), digest_size=16).hexdigest()
        for task_id in results.task_ids
        for replay in range(results.success.shape[1])
    ]
    return np.array(names, dtype=object)


def _following(obs: FloatArray, is_last: BoolArray) -> FloatArray:
    """Return the next state of each row; after the end, no features and ABORT as the only action."""
    following = np.roll(obs, -1, axis=0)
    following[is_last] = 0.0
    following[is_last, N_FEATURES + Action.ABORT] = 1.0
    return following


def _returns(raw: FloatArray, is_last: BoolArray) -> FloatArray:
    """Return the sum of rewards from each row to the end of its episode, [N]."""
    ends = np.flatnonzero(is_last)
    steps_left = ends[np.searchsorted(ends, np.arange(len(raw)))] - np.arange(len(raw))
    returns = raw.copy()
    for steps in range(1, int(steps_left.max()) + 1):
        rows = np.flatnonzero(steps_left == steps)
        returns[rows] += returns[rows + 1]
    return returns


def _fixed(matrix: FloatArray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix).ravel(), kind)
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
