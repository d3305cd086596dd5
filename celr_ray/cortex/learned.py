"""A learned policy: a network decides the states it knows, the static heuristic all others.

A state with a number that is not finite, or one unlike those of the training, is left to the heuristic, and counted: a
gate asks how often that happens. Nothing here reads files or knows where a policy came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celr_ray.core.escalation import HeuristicPolicy, one_hot
from celr_ray.cortex.actions import BoolArray, FloatArray
from celr_ray.cortex.artefact import Artefact, load_artefact
from celr_ray.cortex.network import Float32Array
from celr_ray.cortex.policy import Policy
from celr_ray.errors import PolicyError

__all__ = ["Fallbacks", "LearnedPolicy", "load_artefact_policy", "make_policy"]

_BLOCK = 1024
"""States scored together: their activations stay in the processor's cache."""


@dataclass
class Fallbacks:
    """How many decisions of this object were left to the heuristic, and why.

    Attributes:
        n_decisions: all decisions so far.
        nan: the state held a number that is not finite.
        out_of_distribution: it was unlike the states of the training.
    """

    n_decisions: int = 0
    nan: int = 0
    out_of_distribution: int = 0

    @property
    def rate(self) -> float:
        """Share of decisions left to the heuristic, 0 to 1; NaN before the first one."""
        return (self.nan + self.out_of_distribution) / self.n_decisions if self.n_decisions else float("nan")


class LearnedPolicy:
    """Decides by the scores of a network, masked: draws from their softmax, or takes the best.

    Attributes:
        name, content_hash, start_tier: as of every policy.
        artefact: what it is made of.
        fallbacks: counts since it was made.
    """

    def __init__(self, artefact: Artefact) -> None:
        """Decide by an artefact.

        Raises:
            PolicyError: it holds no network.
        """
        if artefact.network is None or artefact.support is None:
            raise PolicyError(f"{artefact.manifest.name} holds no network: it is the {artefact.manifest.kind}")
        self.artefact = artefact
        self.name = artefact.manifest.name
        self.content_hash = artefact.content_hash
        self.start_tier = artefact.manifest.start_tier
        self.fallbacks = Fallbacks()
        self._network = artefact.network
        self._support = artefact.support
        self._decide = _softmax if artefact.manifest.decision == "softmax" else _take_best
        self._heuristic = HeuristicPolicy(artefact.manifest.escalation)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the probabilities [K, A] for states [K, D] and masks [K, A]; the heuristic's where it decides."""
        if len(obs) <= _BLOCK:
            return self._probabilities(obs, mask)
        blocks = (slice(start, start + _BLOCK) for start in range(0, len(obs), _BLOCK))
        return np.concatenate([self._probabilities(obs[block], mask[block]) for block in blocks])

    def _probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        finite, known = self._look(obs)
        self._count(finite, known)
        if known.all():
            return self._decide(self._network.scores(obs), mask)
        decided = self._decide(self._network.scores(np.where(known[:, None], obs, 0.0)), mask)
        rows = np.flatnonzero(~known)
        decided[rows] = self._heuristic.probabilities(obs[rows], mask[rows])
        return decided

    def is_fallback(self, obs: FloatArray) -> BoolArray:
        """Tell for states [K, D] whether the heuristic decides them; counts nothing."""
        return ~self._look(obs)[1]

    def _look(self, obs: FloatArray) -> tuple[BoolArray, BoolArray]:
        """Return which states are finite, and which of them are known."""
        finite = np.asarray(np.isfinite(obs).all(axis=1))
        if finite.all():
            return finite, self._support.contains(obs)
        known = finite.copy()
        known[finite] = self._support.contains(obs[finite])
        return finite, known

    def _count(self, finite: BoolArray, known: BoolArray) -> None:
        n, n_finite = len(finite), int(np.count_nonzero(finite))
        self.fallbacks.n_decisions += n
        self.fallbacks.nan += n - n_finite
        self.fallbacks.out_of_distribution += n_finite - int(np.count_nonzero(known))


def _softmax(scores: Float32Array, mask: BoolArray) -> FloatArray:
    """Return exp(score) / Σ exp over the allowed actions, 0 elsewhere."""
    logits = np.where(mask, scores.astype(np.float64), -np.inf)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _take_best(scores: Float32Array, mask: BoolArray) -> FloatArray:
    """Return 1 for the allowed action of the highest score, the first of equals."""
    return one_hot(np.argmax(np.where(mask, scores, -np.inf), axis=1))


def make_policy(artefact: Artefact) -> Policy:
    """Return what an artefact decides as: a learned policy, or the heuristic with its thresholds."""
    return HeuristicPolicy(artefact.manifest.escalation) if artefact.network is None else LearnedPolicy(artefact)


def load_artefact_policy(uri: str) -> Policy:
    """Return the policy in a folder.

    Raises:
        PolicyError: there is none, it was changed or damaged, or it does not fit this package.
    """
    return make_policy(load_artefact(uri))
