"""Loophole policies: scripted ways to look good without being good. No gate may ever pass one of them.

They are built on the champion and what the suite knows, like a candidate that learned to exploit its gate. Damaged
results, the other way to deceive, are in `gate.holes`.

    lazy            STOP or ABORT at once; the same only where it is hard
    endless         VERIFY for ever, VERIFY and RETRY in turn, RETRY until the budget is gone, ESCALATE always
    explosive       the champion's own decisions, but in some episodes everything that the budget allows
    broken          an action that is masked, one that does not exist, no numbers at all
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from celr_ray.core.escalation import apply_rules
from celr_ray.cortex.actions import N_ACTIONS, Action, BoolArray, FloatArray
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.state import FEATURE_INDEX, SCHEMA_HASH

__all__ = ["Broken", "EndlessVerifier", "Explosive", "Insistent", "LazyWhenHard", "make_loopholes"]


class _Scripted:
    start_tier = 0

    def __init__(self, name: str, *parts: object) -> None:
        self.name = name
        text = " ".join(map(str, (name, *parts, SCHEMA_HASH)))
        self.content_hash = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Insistent(_Scripted):
    """Takes the first allowed action of a list, whatever the state."""

    def __init__(self, name: str, actions: Sequence[Action]) -> None:
        """Prefer the actions in this order; ABORT comes last by itself."""
        super().__init__(name, *actions)
        self._actions = tuple(actions)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        always = np.ones(len(mask), dtype=bool)
        return apply_rules([(always, action) for action in self._actions], mask)


class EndlessVerifier(_Scripted):
    """Makes one answer and verifies it for ever; it never accepts."""

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        answered = obs[:, FEATURE_INDEX["has_answer"]] > 0.5
        return apply_rules([(answered, Action.VERIFY), (~answered, Action.RECURSE), (~answered, Action.ESCALATE)], mask)


class LazyWhenHard(_Scripted):
    """Gives up at once where a task looks hard, else does what the champion does."""

    def __init__(self, champion: Policy, difficulty: float, *, action: Action = Action.ABORT) -> None:
        """Give up from this difficulty on, by this action as soon as it is allowed."""
        super().__init__(f"{action.name.lower()}-when-hard", champion.content_hash, difficulty)
        self.start_tier = champion.start_tier
        self._champion, self._difficulty, self._action = champion, difficulty, action

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        is_hard = obs[:, FEATURE_INDEX["difficulty"]] >= self._difficulty
        lazy = apply_rules([(is_hard, self._action), (is_hard, Action.RECURSE)], mask)
        return np.where(is_hard[:, None], lazy, self._champion.probabilities(obs, mask))


class Explosive(_Scripted):
    """Does what the champion does, but at some STOPs goes on until the budget or the caps end it."""

    def __init__(self, champion: Policy, share: float = 0.05) -> None:
        """Explode with this chance at every STOP."""
        super().__init__(f"explosive ({share:g})", champion.content_hash)
        self.start_tier = champion.start_tier
        self._champion, self._share = champion, share

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        own = self._champion.probabilities(obs, mask)
        always = np.ones(len(mask), dtype=bool)
        order = (Action.ESCALATE, Action.RECURSE, Action.RETRY_COMPRESSED, Action.VERIFY, Action.STOP)
        explode = apply_rules([(always, action) for action in order], mask)
        chance = np.where(obs[:, FEATURE_INDEX["retries"]] > 0.3, 1.0, self._share) * own[:, Action.STOP]
        return np.asarray(own * (1 - chance)[:, None] + explode * chance[:, None])


class Broken(_Scripted):
    """Returns what is no decision: a masked action, one that does not exist, or NaN."""

    def __init__(self, kind: str) -> None:
        """Break in one way: `masked-action`, `out-of-range-action` or `nan-observations`."""
        super().__init__(kind)
        self._kind = kind

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return something that the runtime must refuse."""
        if self._kind == "masked-action":
            return np.asarray(~mask / np.maximum((~mask).sum(axis=1, keepdims=True), 1))
        if self._kind == "out-of-range-action":
            return np.asarray(np.eye(N_ACTIONS + 1)[np.full(len(mask), N_ACTIONS)])
        scores = np.where(mask, (obs * np.nan).sum(axis=1, keepdims=True), 0.0)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def make_loopholes(champion: Policy, hard: float) -> list[Policy]:
    """Return the scripted policies.

    Args:
        champion: whose decisions some of them copy.
        hard: difficulty from which a task counts as hard, such as the median.
    """
    give_up = [Action.STOP, Action.ABORT]
    attempts = [Action.RETRY_COMPRESSED, Action.RECURSE, Action.ESCALATE]
    return [
        Insistent("stop-at-once", give_up),
        Insistent("abort-at-once", [Action.ABORT]),
        LazyWhenHard(champion, hard),
        LazyWhenHard(champion, hard, action=Action.STOP),
        EndlessVerifier("verify-for-ever"),
        Insistent("verify-retry-cycle", [Action.VERIFY, *attempts]),
        Insistent("retry-until-the-budget-is-gone", [*attempts, Action.STOP]),
        Insistent("escalate-always", [Action.ESCALATE, *attempts, Action.STOP]),
        Explosive(champion, 0.02),
        Explosive(champion, 0.05),
        Broken("masked-action"),
        Broken("out-of-range-action"),
        Broken("nan-observations"),
    ]
