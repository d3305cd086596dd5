"""The state vector that a policy sees: named features with unit and bounds, versioned by a hash.

Flags come from the runtime. No task id, no text and no outcome is in it: what is not known before the decision
cannot leak into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from celr_ray.cortex.actions import ACTIONS, FloatArray
from celr_ray.errors import PolicyError

__all__ = ["FEATURES", "FEATURE_INDEX", "N_FEATURES", "SCHEMA_HASH", "Feature", "StateExtractor", "encode_state"]


@dataclass(frozen=True)
class Feature:
    """One number of the state vector.

    Attributes:
        name: column name.
        unit: what the number counts.
        low: least value.
        high: greatest value.
        default: value where a caller of `StateExtractor` gives none; None = it must be given.
    """

    name: str
    unit: str
    low: float = 0.0
    high: float = 1.0
    default: float | None = 0.0


_BASE = (
    Feature("budget_left", "share of the task's budget", default=None),
    Feature("time_left", "share of the task's time limit", default=1.0),
    Feature("plan_progress", "0 no answer or a refuted one, .5 an answer, 1 a verified answer"),
    Feature("attempts", "attempts on the current tier over its cap"),
    Feature("retries", "attempts after the first on the current tier, over what its cap allows"),
    Feature("verification_failures", "verifications that failed over the cap of decisions"),
    Feature("verifications", "verifications over the cap of decisions"),
    Feature("decisions", "decisions over their cap"),
    Feature("difficulty", "probability that the cheapest tier fails, known before the first call", default=0.5),
    Feature("is_difficulty_known", "flag: estimated, not the neutral constant"),
    Feature("risk", "prior risk of an unsafe act, from the task's text"),
    Feature("tier", "position on the ladder, 0 cheapest to 1 strongest"),
    Feature("is_strongest", "flag: no stronger tier exists"),
    Feature("has_answer", "flag"),
    Feature("has_code", "flag: the answer holds code"),
    Feature("has_verifier", "flag: the task has a verifier"),
    Feature("is_unverified", "flag: there is an answer that was not verified"),
    Feature("is_verified_passed", "flag"),
    Feature("is_verified_failed", "flag"),
    Feature("context_used", "share of the tier's context window that the last prompt took"),
    Feature("confidence", "confidence of the last answer, exp of its mean token log-probability"),
    Feature("is_confidence_known", "flag"),
    Feature("is_coding", "flag: the task asks for code"),
    Feature("is_probed", "flag: the cheapest tier was sampled twice before the first decision"),
    Feature("probe_agreement", "flag: its two samples agree"),
    Feature("probe_confidence", "exp of their mean token log-probability"),
)
_PREVIOUS = ("NONE", *ACTIONS)
FEATURES = (*_BASE, *(Feature(f"previous_{name.lower()}", "flag: the previous action") for name in _PREVIOUS))
N_FEATURES = len(FEATURES)
_CONTEXT = {*(feature.name for feature in _BASE), "previous_action"}
FEATURE_INDEX = {feature.name: column for column, feature in enumerate(FEATURES)}


def _hash_schema() -> str:
    text = json.dumps([[f.name, f.unit, f.low, f.high] for f in FEATURES])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


SCHEMA_HASH = _hash_schema()
"""Identifies names, meaning and order of the features; artefacts of policies carry it."""


def encode_state(columns: Mapping[str, Any], previous_action: Any) -> FloatArray:
    """Stack named columns to state vectors.

    Args:
        columns: [K] values of every feature but the previous action.
        previous_action: [K] action before, −1 for none.

    Returns:
        [K, D], clipped to the features' bounds; NaN stays NaN, for the policy to fall back on.
    """
    previous = np.asarray(previous_action)
    state = np.zeros((len(previous), N_FEATURES))
    for feature in _BASE:
        column = np.asarray(columns[feature.name], dtype=float)
        state[:, FEATURE_INDEX[feature.name]] = np.clip(column, feature.low, feature.high)
    state[np.arange(len(previous)), len(_BASE) + 1 + previous] = 1.0
    return state


class StateExtractor:
    """Maps what is known of a task under way, by name, to a state vector.

    Example:
        >>> StateExtractor().extract({"budget_left": 0.4, "difficulty": 0.7, "has_answer": True}).shape
        (33,)
    """

    names = tuple(feature.name for feature in FEATURES)

    def extract(self, context: Mapping[str, Any]) -> FloatArray:
        """Return the state vector [D] of one context.

        Args:
            context: values by feature name; `previous_action` as a name of `Action`. What is absent takes the
                feature's default.

        Raises:
            PolicyError: a name is unknown, a needed one is absent, or a value is no number within its bounds.
        """
        if unknown := sorted(set(context) - _CONTEXT):
            raise PolicyError(f"no such state features: {', '.join(unknown)}; there are {', '.join(sorted(_CONTEXT))}")
        previous = context.get("previous_action")
        if previous is not None and previous not in ACTIONS:
            raise PolicyError(f"previous_action {previous!r} is none of {', '.join(ACTIONS)}")
        vector = np.zeros(N_FEATURES)
        vector[: len(_BASE)] = [_read(feature, context) for feature in _BASE]
        vector[len(_BASE) + (0 if previous is None else 1 + ACTIONS.index(previous))] = 1.0
        return vector


def _read(feature: Feature, context: Mapping[str, Any]) -> float:
    value = context.get(feature.name, feature.default)
    if value is None:
        raise PolicyError(f"the state needs {feature.name} ({feature.unit})")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise PolicyError(f"{feature.name} is {value!r}, not a number ({feature.unit})") from None
    if not feature.low <= number <= feature.high:
        raise PolicyError(f"{feature.name} is {number}, not within {feature.low} and {feature.high} ({feature.unit})")
    return number
