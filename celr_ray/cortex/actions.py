"""The six actions of the Cortex, and which of them a state allows.

The mask is made from the runtime's own facts, never from what a policy or a model says. It is never empty: ABORT
is always allowed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from celr_ray.errors import PolicyError

__all__ = ["ACTIONS", "ATTEMPTS", "MASK_VERSION", "N_ACTIONS", "Action", "check_allowed"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Action(IntEnum):
    """What can be done next in an episode; the numbers are the columns of masks and probabilities."""

    RECURSE = 0
    """Attempt the task on the current tier; if there is an answer, reflect on it and improve it."""
    ESCALATE = 1
    """Move to a stronger tier and attempt there."""
    VERIFY = 2
    """Run the verifier on the current answer."""
    RETRY_COMPRESSED = 3
    """Attempt again on the current tier with only the task and the last failure as context."""
    STOP = 4
    """Accept the current answer and end."""
    ABORT = 5
    """Give up and end."""


N_ACTIONS = len(Action)
ACTIONS = tuple(action.name for action in Action)
"""Names, in the order of the columns."""

MASK_VERSION = 1
"""Number of the rules by which masks are made (`core.episodes.Episodes.mask`). Raise it whenever they change: a policy
that was trained under other rules is refused."""

ATTEMPTS = (Action.RECURSE, Action.ESCALATE, Action.RETRY_COMPRESSED)
"""The actions that call a model for an answer."""


def check_allowed(actions: IntArray, mask: BoolArray, policy: str) -> None:
    """Check that every chosen action is one that its mask allows.

    Args:
        actions: [K] chosen columns.
        mask: [K, A] what is allowed.
        policy: who chose, for the message.

    Raises:
        PolicyError: an action is outside the six, or its mask forbids it.
    """
    known = (actions >= 0) & (actions < N_ACTIONS)
    wrong = ~known
    wrong[known] = ~mask[np.flatnonzero(known), actions[known]]
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        allowed = ", ".join(name for name, ok in zip(ACTIONS, mask[at], strict=True) if ok)
        chosen = ACTIONS[actions[at]] if known[at] else str(actions[at])
        raise PolicyError(f"the policy {policy} chose {chosen} where only {allowed} are allowed ({wrong.sum()} times)")
