"""Transitions of a replay: what the trainers read, so that a policy can learn from a bank alone.

    DIR/transitions/train/part-00000.parquet        replay of the bank's training tasks, episodes in random order
    DIR/transitions/validation/part-00000.parquet   of its validation tasks
    DIR/transitions/dataset.json                    counts and data hash, as of a dataset made from logs

The gate's tasks are refused: a policy must not have seen them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.core.episodes import hash_text
from celr_ray.core.executor import draw_uniform
from celr_ray.cortex.actions import ACTIONS
from celr_ray.cortex.episode_rows import EpisodeRows, make_transition_table
from celr_ray.cortex.evaluation.replay_run import ReplayResults
from celr_ray.cortex.reward import FAILURE_PENALTY, find_reward_scale
from celr_ray.cortex.state import FEATURES, SCHEMA_HASH
from celr_ray.cortex.transitions import dataset_record_uri
from celr_ray.errors import InputError, PolicyError
from celr_ray.run_folder import part_name
from celr_ray.stage import hash_json

__all__ = ["replay_to_transitions", "write_replay_dataset"]


def replay_to_transitions(
    results: ReplayResults, *, shuffle_seed: int | None = None, failure_penalty: float = FAILURE_PENALTY
) -> pa.Table:
    """Return the decisions of a replay as transitions; censored episodes are left out (`results.censored` counts them).

    The whole probability vectors are kept, so that the rows serve off-policy evaluation too.

    Args:
        results: a replay with `keep_decisions`.
        shuffle_seed: puts the episodes into a random order; None = by task and replay.
        failure_penalty: of the rewards; see `cortex.reward`.

    Returns:
        Rows of `TRANSITION_SCHEMA`; those of an episode are adjacent and ordered by time.

    Raises:
        InputError: the decisions were not kept, or every episode is censored.
    """
    decisions = results.decisions
    if decisions is None:
        raise InputError("the replay kept no decisions: run it with keep_decisions=True")
    usable = np.flatnonzero(~results.censored.ravel())
    if not len(usable):
        raise InputError("every episode of the replay is censored: nothing to learn from")
    eps_id = _name_episodes(results)
    if shuffle_seed is not None:
        keys = np.array([hash_text(eps_id[row]) for row in usable], dtype=np.uint64)
        usable = usable[np.argsort(draw_uniform(shuffle_seed, keys), kind="stable")]
    starts = np.searchsorted(decisions.episode, usable)
    length = results.n_decisions.ravel()[usable]
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    rows = np.repeat(starts, length) + within
    n, replays = len(usable), results.success.shape[1]
    return make_transition_table(
        EpisodeRows(
            eps_id=[eps_id[row] for row in usable],
            run_id=[eps_id[row] for row in usable],
            rank=[0] * n,
            task_id=[results.task_ids[row // replays] for row in usable],
            policy_hash=[results.policy_hash] * n,
            source=[f"bank {results.bank_hash}"] * n,
            is_cut=np.zeros(n, dtype=bool),
            length=length,
            obs=decisions.obs[rows],
            mask=decisions.mask[rows],
            action=decisions.action[rows],
            reward=decisions.reward[rows],
            behavior=decisions.probabilities[rows],
        ),
        failure_penalty=failure_penalty,
    )


def _name_episodes(results: ReplayResults) -> list[str]:
    """Return what identifies each episode: bank, rules, policy, task and replay."""
    made_by = f"{results.bank_hash} {results.config.model_dump_json()} {results.policy_hash}"
    return [
        hashlib.blake2b(f"{made_by} {task_id} {replay}".encode(), digest_size=16).hexdigest()
        for task_id in results.task_ids
        for replay in range(results.success.shape[1])
    ]


def write_replay_dataset(
    uri: str,
    train: ReplayResults,
    validation: ReplayResults,
    *,
    seed: int = 0,
    failure_penalty: float = FAILURE_PENALTY,
) -> dict[str, Any]:
    """Write replays as a dataset that the trainers read; `dataset.json` comes last.

    Args:
        uri: folder.
        train: replay of the bank's split `train`, with its decisions.
        validation: of its split `validation`.
        seed: of the order of the training episodes.
        failure_penalty: of the rewards; see `cortex.reward`.

    Returns:
        The record that was written.

    Raises:
        PolicyError: a replay is of other tasks than that, or they are of different banks.
        InputError: a replay has no decisions or only censored episodes.
    """
    for name, results in (("train", train), ("validation", validation)):
        if results.split != name:
            raise PolicyError(f"the {name} part of a dataset needs a replay of the split {name}, not {results.split}")
    if train.bank_hash != validation.bank_hash:
        raise PolicyError(f"the replays are of different banks: {train.bank_hash} and {validation.bank_hash}")
    tables = {
        "train": replay_to_transitions(train, shuffle_seed=seed, failure_penalty=failure_penalty),
        "validation": replay_to_transitions(validation, failure_penalty=failure_penalty),
    }
    for name, table in tables.items():
        storage.write_parquet(storage.join(uri, "transitions", name, part_name(0)), table)
    record = _make_record(train, validation, tables, seed, failure_penalty)
    storage.write_json(dataset_record_uri(uri), record)
    return record


def _make_record(
    train: ReplayResults, validation: ReplayResults, tables: dict[str, pa.Table], seed: int, failure_penalty: float
) -> dict[str, Any]:
    splits = {"train": train, "validation": validation}
    made_by = {
        name: [r.bank_hash, r.policy_hash, r.config.model_dump(mode="json"), r.split] for name, r in splits.items()
    }
    episodes = {name: int((~results.censored).sum()) for name, results in splits.items()}
    policies: Counter[str] = Counter()
    for name, results in splits.items():
        policies[results.policy_hash] += episodes[name]
    return {
        "format": "celr-ray transitions",
        "version": 1,
        "data_hash": hash_json([made_by, SCHEMA_HASH, list(ACTIONS), failure_penalty, seed]),
        "episodes": episodes,
        "transitions": {name: table.num_rows for name, table in tables.items()},
        "sources": {f"bank {train.bank_hash}": sum(episodes.values())},
        "policies": dict(sorted(policies.items())),
        "behavior": {"known": sum(episodes.values()), "unknown": 0},
        "truncated": 0,
        "censored": {name: int(results.censored.sum()) for name, results in splits.items()},
        "schema_hash": SCHEMA_HASH,
        "features": [feature.name for feature in FEATURES],
        "actions": list(ACTIONS),
        "reward_scale": find_reward_scale(failure_penalty),
        "failure_penalty": failure_penalty,
        "seed": seed,
    }
