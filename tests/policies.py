"""Learned policies for tests: small random networks with the support of states that the real loop passed through."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from banks import random_bank

from celr_ray.core.escalation import HeuristicPolicy
from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.artefact import Artefact, make_artefact
from celr_ray.cortex.evaluation.replay_run import run_replay
from celr_ray.cortex.network import Network
from celr_ray.cortex.policy import EpsilonSoft
from celr_ray.cortex.state import N_FEATURES
from celr_ray.cortex.support import Support, fit_support


@cache
def play(seed: int, n_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return states [N, D] and masks [N, A] of an ε-soft heuristic on a random bank."""
    policy = EpsilonSoft(HeuristicPolicy(), 0.2)
    decisions = run_replay(random_bank(seed, n_tasks), policy, keep_decisions=True).decisions
    assert decisions is not None
    return decisions.obs, decisions.mask


@cache
def sample_support() -> Support:
    return fit_support(play(1, 1000)[0])


def random_network(seed: int, hidden: tuple[int, ...] = (32, 16)) -> Network:
    random = np.random.default_rng(seed)
    sizes = (N_FEATURES, *hidden, N_ACTIONS)
    layers = [
        (random.normal(size=(n_out, n_in)) / np.sqrt(n_in), random.normal(size=n_out))
        for n_in, n_out in pairwise(sizes)
    ]
    return Network.from_mlp(np.full(N_FEATURES, 0.4), np.full(N_FEATURES, 0.5), layers)


def sample_artefact(seed: int = 0, **settings: Any) -> Artefact:
    options = {"name": "sample", "algorithm": "iql", "decision": "softmax", "data_hash": "d" * 32, **settings}
    return make_artefact(random_network(seed), sample_support(), **options)
