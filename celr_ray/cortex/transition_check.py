"""Looks through transitions before anything is trained on them: what a log cannot hold is an error that says where.

Transitions made by this package passed these checks when they were made. A folder given with `--transitions` may have
been changed since, or be from elsewhere, and a NaN or a wrong reward would spoil a policy in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, BoolArray, FloatArray
from celr_ray.cortex.algorithms.columns import COLUMNS, look_through
from celr_ray.cortex.reward import UNSAFE_PENALTY, find_return_range, find_reward_scale
from celr_ray.cortex.state import FEATURES, N_FEATURES, SCHEMA_HASH
from celr_ray.cortex.transitions import Transitions, find_failure_penalty, iter_transitions
from celr_ray.errors import InputError, PolicyError

__all__ = ["SplitFacts", "check_transitions"]

_BATCH_ROWS = 65_536
_ROUNDING = 1e-5
_LOW = np.array([feature.low for feature in FEATURES], dtype=np.float32)
_HIGH = np.array([feature.high for feature in FEATURES], dtype=np.float32)


@dataclass
class SplitFacts:
    """What a split holds.

    Attributes:
        n_rows, n_episodes: how many.
        n_known: episodes whose every decision says with which probabilities it was made.
    """

    n_rows: int = 0
    n_episodes: int = 0
    n_known: int = 0


def check_transitions(uri: str, record: Mapping[str, Any]) -> dict[str, SplitFacts]:
    """Check all rows of a dataset.

    Args:
        uri: folder of the dataset.
        record: its dataset.json.

    Returns:
        What `train` and `validation` hold; a split without rows is empty, which is no error here.

    Raises:
        InputError: a file or the record is damaged, or no table of transitions.
        PolicyError: the states are of another version of this package, or a row cannot be trained on.
    """
    failure_penalty = find_failure_penalty(uri, record)
    _check_record(uri, record, find_reward_scale(failure_penalty))
    found = {}
    for split in ("train", "validation"):
        facts = found[split] = SplitFacts()
        if not record["transitions"].get(split):
            continue
        try:
            look_through(_iter_columns(uri, split, facts, failure_penalty), N_ACTIONS)
        except PolicyError as error:
            raise PolicyError(f"{uri}, split {split}: {error}") from None
    return found


def _check_record(uri: str, record: Mapping[str, Any], scale: float) -> None:
    found = (record.get("schema_hash"), record.get("actions"), record.get("reward_scale"))
    wanted = (SCHEMA_HASH, list(ACTIONS), scale)
    for name, stated, ours in zip(("schema_hash", "actions", "reward_scale"), found, wanted, strict=True):
        if stated != ours:
            raise PolicyError(
                f"{uri} was made by another version of this package: its {name} is {stated}, here it is {ours}. Make "
                "the dataset anew from the logs (--logs) or the bank (celr-ray bank replay)"
            )


def _iter_columns(uri: str, split: str, facts: SplitFacts, failure_penalty: float) -> Iterator[dict[str, Any]]:
    """Yield the training columns in batches, each checked for what is special to the Cortex."""
    last_id, last_known = None, True
    for batch in _read(uri, split):
        _check_widths(batch)
        is_known = np.isfinite(batch.action_prob) & np.isfinite(batch.behavior).all(axis=1)
        _check_rows(batch, is_known, facts.n_rows, failure_penalty)
        known = np.ones(batch.n_episodes, dtype=bool)
        np.logical_and.at(known, batch.episode, is_known)
        if batch.eps_id[0] == last_id:  # it began in the batch before, where it was counted
            facts.n_episodes, facts.n_known = facts.n_episodes - 1, facts.n_known - last_known
            known[0] &= last_known
        facts.n_rows += len(batch)
        facts.n_episodes += batch.n_episodes
        facts.n_known += int(known.sum())
        last_id, last_known = batch.eps_id[-1], bool(known[-1])
        yield {name: getattr(batch, name) for name in COLUMNS}


def _read(uri: str, split: str) -> Iterator[Transitions]:
    try:
        yield from iter_transitions(uri, split, _BATCH_ROWS)
    except (ValueError, AttributeError) as error:  # a null or a list where a number should be
        raise InputError(f"the {split} split of {uri} is no table of transitions: {error}") from error


def _check_widths(batch: Transitions) -> None:
    found = (batch.n_features, batch.n_actions)
    if found != (N_FEATURES, N_ACTIONS):
        raise PolicyError(
            f"its states have {found[0]} features and {found[1]} actions, this package has {N_FEATURES} and "
            f"{N_ACTIONS}: make the dataset anew"
        )


def _check_rows(batch: Transitions, is_known: BoolArray, offset: int, failure_penalty: float) -> None:
    """Raise at the first kind of defect that `look_through` does not know, with the first row that has it."""
    rows = np.arange(len(batch))
    low, high = find_return_range(failure_penalty)
    scale = find_reward_scale(failure_penalty)
    actions = np.clip(batch.actions, 0, N_ACTIONS - 1)
    with np.errstate(invalid="ignore"):
        wrong_scale = np.abs(batch.rewards - batch.rewards_raw * scale) > _ROUNDING * (1 + np.abs(batch.rewards_raw))
        outside = (batch.features < _LOW - _ROUNDING) | (batch.features > _HIGH + _ROUNDING)
        found: dict[str, tuple[Any, Any]] = {
            f"a reward outside {low:g} to {high:g}, which no episode can earn": (
                ~((batch.rewards_raw >= low - _ROUNDING) & (batch.rewards_raw <= high + _ROUNDING)),
                batch.rewards_raw,
            ),
            "a reward that neither a step nor an end can have": (
                ~_is_reward(batch.rewards_raw, batch.terminateds, failure_penalty),
                batch.rewards_raw,
            ),
            f"rewards that are not {scale:g} of rewards_raw": (wrong_scale, batch.rewards),
            "a feature outside its bounds": (outside.any(axis=1), outside.argmax(axis=1)),
            "an action_prob that is not the behavior probability of the action, or 0": (
                is_known
                & ((batch.action_prob <= 0) | (np.abs(batch.action_prob - batch.behavior[rows, actions]) > _ROUNDING)),
                batch.action_prob,
            ),
        }
    for what, (bad, values) in found.items():
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            shown = values[at]
            if values.dtype.kind == "i":
                shown = f"{FEATURES[int(shown)].name} is {batch.features[at, int(shown)]:g}"
            raise PolicyError(
                f"{int(bad.sum())} transitions have {what}, first at row {offset + at}: {shown}. Nothing was trained; "
                "mend the data set or build it anew"
            )


def _is_reward(rewards: FloatArray, ends: BoolArray, failure_penalty: float) -> BoolArray:
    """Tell which rewards [N] there can be: −2 to 0 of a step, and at an end [N] that and what the outcome is worth.

    A success adds 1 to 2, a safe failure 0 to 1 less the penalty, an unsafe run `UNSAFE_PENALTY` less than that.
    """
    found = (rewards >= -2 - _ROUNDING) & (rewards <= np.where(ends, 2.0, 0.0) + _ROUNDING)
    for penalty in (failure_penalty, failure_penalty + UNSAFE_PENALTY):
        found |= ends & (rewards >= -2 - penalty - _ROUNDING) & (rewards <= 1 - penalty + _ROUNDING)
    return np.asarray(found)
