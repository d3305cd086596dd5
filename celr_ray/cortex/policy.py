"""Policies: what they are to the executor, how one explores, and the front door `MetaPolicy`.

A policy maps states and masks to probabilities, for a whole wave of episodes in one call. It never enforces
caps or budgets: the masks that it is given already do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from celr_ray import storage
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, Action, BoolArray, FloatArray, IntArray
from celr_ray.cortex.state import N_FEATURES, SCHEMA_HASH, StateExtractor
from celr_ray.errors import PolicyError

__all__ = [
    "EpsilonSoft",
    "MetaPolicy",
    "Policy",
    "RandomPolicy",
    "check_probabilities",
    "find_fallbacks",
    "load_policy",
    "sample_actions",
]


class Policy(Protocol):
    """Decides for many episodes at once."""

    name: str
    """What people call it."""
    content_hash: str
    """Identifies its behavior: equal hashes decide alike."""
    start_tier: int
    """Tier of a first RECURSE: 0 = cheapest, −1 = strongest."""

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the probability of each action, [K, A], zero where masked; rows sum to 1.

        Args:
            obs: [K, D] state vectors.
            mask: [K, A] allowed actions.
        """
        ...


SafeActions = Callable[[FloatArray, BoolArray], BoolArray]
"""Which of the allowed actions exploration may take: (obs [K, D], mask [K, A]) → [K, A]."""


class RandomPolicy:
    """Takes any allowed action with equal probability."""

    name = "random"
    start_tier = 0

    def __init__(self) -> None:
        self.content_hash = hashlib.blake2b(f"random {SCHEMA_HASH}".encode(), digest_size=8).hexdigest()

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return 1 / (number of allowed actions) for each."""
        return np.asarray(mask / mask.sum(axis=1, keepdims=True))


class EpsilonSoft:
    """Follows a policy, but with probability ε takes any allowed and safe action.

    Without it a deterministic policy leaves logs from which nothing else can be evaluated.
    """

    def __init__(
        self, policy: Policy, epsilon: float, safe_actions: SafeActions | None = None, safety: str = ""
    ) -> None:
        """Soften `policy`.

        Args:
            policy: what to follow.
            epsilon: share of exploration, 0 to 1.
            safe_actions: what exploration may take; None = all that is allowed.
            safety: identifies `safe_actions` in the content hash.
        """
        if not 0 <= epsilon <= 1:
            raise PolicyError(f"epsilon is {epsilon}, not within 0 and 1")
        self._policy = policy
        self._epsilon = epsilon
        self._safe_actions = safe_actions
        self.name = f"{policy.name} (ε {epsilon:g})" if epsilon else policy.name
        text = f"{policy.content_hash} {epsilon!r} {safety}"
        self.content_hash = (
            hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if epsilon else policy.content_hash
        )
        self.start_tier = policy.start_tier

    def is_fallback(self, obs: FloatArray) -> BoolArray:
        """Tell for states [K, D] whether the policy that is followed leaves them to a simpler one."""
        return find_fallbacks(self._policy, obs)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return (1 − ε)·π + ε·(uniform over allowed and safe actions); where none is safe, π alone."""
        own = self._policy.probabilities(obs, mask)
        safe = mask if self._safe_actions is None else mask & self._safe_actions(obs, mask)
        n_safe = safe.sum(axis=1, keepdims=True)
        uniform = np.where(n_safe > 0, safe / np.maximum(n_safe, 1), own)
        return np.asarray((1 - self._epsilon) * own + self._epsilon * uniform)


def find_fallbacks(policy: Policy, obs: FloatArray) -> BoolArray:
    """Tell for states [K, D] whether a policy leaves them to a simpler one; most policies have none."""
    is_fallback = getattr(policy, "is_fallback", None)
    return np.zeros(len(obs), dtype=bool) if is_fallback is None else np.asarray(is_fallback(obs))


def check_probabilities(probabilities: FloatArray, mask: BoolArray, policy: str) -> None:
    """Check what a policy returned: finite, [K, A], not negative, each row summing to 1, nothing masked.

    Raises:
        PolicyError: it is not so.
    """
    if probabilities.shape != mask.shape:
        raise PolicyError(f"the policy {policy} returned shape {probabilities.shape} for masks of shape {mask.shape}")
    rows = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    rows &= np.abs(probabilities.sum(axis=1) - 1) < 1e-6
    if not rows.all():
        at = int(np.flatnonzero(~rows)[0])
        raise PolicyError(f"the policy {policy} returned no probabilities: {probabilities[at].tolist()}")
    if (masked := (probabilities > 0) & ~mask).any():
        action = int(np.argwhere(masked)[0][1])
        raise PolicyError(f"the policy {policy} gives {ACTIONS[action]} a chance where it is not allowed")


def sample_actions(probabilities: FloatArray, uniform: FloatArray) -> IntArray:
    """Draw one action for each row.

    Args:
        probabilities: [K, A], rows sum to 1.
        uniform: [K] numbers in [0, 1).

    Returns:
        [K] actions; never one of probability 0.
    """
    by_action = np.ascontiguousarray(probabilities.T)  # rows of length K add up many times faster than K rows
    cumulative = np.cumsum(by_action, axis=0)
    drawn = (uniform * cumulative[-1] >= cumulative).sum(axis=0)
    last = N_ACTIONS - 1 - np.argmax(by_action[::-1] > 0, axis=0)
    return np.asarray(np.minimum(drawn, last), dtype=np.int64)


_BUILT_IN: dict[str, Callable[[EscalationConfig], Policy]] = {
    "heuristic": HeuristicPolicy,
    "always-cheap": lambda config: AlwaysCheap(),
    "always-strong": lambda config: AlwaysStrong(),
    "random": lambda config: RandomPolicy(),
}


def load_policy(name: str, escalation: EscalationConfig | None = None, *, registry: str | None = None) -> Policy:
    """Return a policy by name.

    Args:
        name: heuristic, always-cheap, always-strong or random; or NAME@ALIAS or NAME@VERSION of the registry; or the
            folder of a stored policy (a path with a slash, or a URI).
        escalation: thresholds of the built-in heuristic; a stored policy brings its own.
        registry: tracking URI, file or folder of the registry; None = MLFLOW_TRACKING_URI, else ./mlflow.db.

    Raises:
        PolicyError: there is none of that name, or it cannot be used.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name](escalation or EscalationConfig())
    if "/" in name or ("@" not in name and storage.is_directory(name)):
        from celr_ray.cortex.learned import load_artefact_policy

        return load_artefact_policy(name)
    if "@" in name:
        from celr_ray.cortex.registry import PolicyRegistry

        return PolicyRegistry(registry).load(name)
    raise PolicyError(
        f"no policy {name!r}; there are {', '.join(_BUILT_IN)}, NAME@ALIAS of the registry (celr-ray policy list), and "
        "folders of stored policies"
    )


class MetaPolicy:
    """Front door to a policy: state in, action out; a masked action is never returned.

    Example:
        >>> MetaPolicy("heuristic").decide({"budget_left": 0.9, "difficulty": 0.2}, ["RECURSE", "ABORT"]).name
        'RECURSE'
    """

    def __init__(self, policy: str | Policy = "heuristic", *, registry: str | None = None) -> None:
        """Use a policy by name (see `load_policy`), or one that was made before.

        Raises:
            PolicyError: no policy of that name, or it cannot be used.
        """
        self.policy = load_policy(policy, registry=registry) if isinstance(policy, str) else policy
        self._extractor = StateExtractor()

    def decide(self, state: Mapping[str, Any] | ArrayLike, allowed: Any) -> Action:
        """Return the most probable allowed action for one state.

        Args:
            state: features by name (see `StateExtractor`), or a state vector [D].
            allowed: names of the allowed actions, or a mask [A].

        Raises:
            PolicyError: the state or the mask is none, or nothing is allowed.
        """
        vector = self._extractor.extract(state) if isinstance(state, Mapping) else np.asarray(state, dtype=float)
        if vector.shape != (N_FEATURES,):
            raise PolicyError(f"a state has {N_FEATURES} features, this one has shape {vector.shape}")
        return Action(int(self.decide_batch(vector[None], _read_mask(allowed)[None])[0]))

    def decide_batch(self, obs: FloatArray, mask: BoolArray) -> IntArray:
        """Return the most probable allowed actions [K] for states [K, D] and masks [K, A]; of equals the first.

        Raises:
            PolicyError: the shapes do not fit, or a mask allows nothing.
        """
        if obs.ndim != 2 or obs.shape[1] != N_FEATURES or mask.shape != (len(obs), N_ACTIONS):
            raise PolicyError(
                f"states are [K, {N_FEATURES}] and masks [K, {N_ACTIONS}]; got {obs.shape} and {mask.shape}"
            )
        if not mask.any(axis=1).all():
            raise PolicyError("a mask allows nothing; ABORT is always allowed")
        probabilities = self.policy.probabilities(obs, mask)
        check_probabilities(probabilities, mask, self.policy.name)
        actions: IntArray = np.argmax(probabilities, axis=1)
        return actions


def _read_mask(allowed: Any) -> BoolArray:
    """Turn names or flags into a mask [A].

    Raises:
        PolicyError: a name is unknown, the length is wrong, or nothing is allowed.
    """
    values = list(allowed)
    if all(isinstance(value, str) for value in values):
        if unknown := set(values) - set(ACTIONS):
            raise PolicyError(f"no such actions: {', '.join(sorted(unknown))}; there are {', '.join(ACTIONS)}")
        mask = np.array([name in values for name in ACTIONS])
    else:
        mask = np.asarray(values, dtype=bool)
    if mask.shape != (N_ACTIONS,) or not mask.any():
        raise PolicyError(f"a mask has {N_ACTIONS} flags, at least one of them true; got {values}")
    return mask
