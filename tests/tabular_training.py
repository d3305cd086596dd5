"""Trains the three algorithms on the tabular problem, and chooses among settings without looking at the truth.

Shared by tests/test_algorithms.py and benchmarks/cortex_tabular.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tabular_mdp as tabular

from celr_ray.cortex.algorithms.algorithm import MaskedBCConfig, MaskedCQLConfig, MaskedIQLConfig
from celr_ray.cortex.algorithms.export import Weights, forward
from celr_ray.cortex.algorithms.feeding import MemorySource
from celr_ray.cortex.evaluation.estimators import estimate_dr

CONFIGS = {"bc": MaskedBCConfig, "cql": MaskedCQLConfig, "iql": MaskedIQLConfig}
CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("cql", {"alpha": alpha}) for alpha in (0.03, 0.1, 0.3, 1.0)),
    *(("iql", {"expectile": 0.9, "beta": beta}) for beta in (3.0, 10.0, 30.0)),
)


def configure(name: str, source, seed: int = 0, updates: int = 800, **settings):
    config = CONFIGS[name]().transitions(source).debugging(seed=seed)
    settings = {"hidden": (64,), "updates_per_iteration": updates, "train_batch_size_per_learner": 256} | settings
    return config.training(**settings)


def choose_probabilities(algorithm, weights: Weights, features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the policy of exported weights in numpy: softmax of logits, or the best Q."""
    scores = np.where(mask, forward(weights, features), -np.inf)
    if algorithm.decider == "q":
        return np.eye(scores.shape[1])[scores.argmax(axis=1)]
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def true_value(mdp, algorithm) -> float:
    features, mask = tabular.all_states(mdp)
    table = choose_probabilities(algorithm, algorithm.export(), features, mask)
    return tabular.normalise(mdp, tabular.evaluate(mdp, table.reshape(tabular.HORIZON, tabular.N_STATES, -1)))


def select(
    seed: int, n_train: int, n_held_out: int, *, updates: int = 1000, candidates: Sequence[Any] = CANDIDATES
) -> dict[str, Any]:
    """Train all candidates, choose the one with the best doubly robust estimate on held-out episodes.

    Args:
        seed: of problem, logs and training.
        n_train, n_held_out: episodes.
        updates: minibatches of each training.
        candidates: (algorithm, settings).

    Returns:
        What was chosen, its estimate, and then, for the record, the exact values of it and of all others; normalised.
    """
    mdp = tabular.make_mdp(seed)
    source = MemorySource(tabular.make_logs(mdp, n_train, seed))
    held_out = tabular.to_logged(tabular.make_logs(mdp, n_held_out, seed + 1000))
    estimates, values = [], []
    for name, settings in candidates:
        algorithm = configure(name, source, seed, updates, **settings).build_algo()
        algorithm.train()
        evaluation = choose_probabilities(algorithm, algorithm.export(), held_out.obs, held_out.mask)
        estimates.append(estimate_dr(held_out, evaluation).value)
        values.append(true_value(mdp, algorithm))
        algorithm.stop()
    clone = configure("bc", source, seed, updates).build_algo()
    clone.train()
    best = int(np.argmax(estimates))
    return {
        "seed": seed,
        "n_train": n_train,
        "behavior": round(tabular.normalise(mdp, tabular.behavior_value(mdp, seed)), 4),
        "bc": round(true_value(mdp, clone), 4),
        "chosen": " ".join([candidates[best][0], *(f"{k}={v:g}" for k, v in candidates[best][1].items())]),
        "estimate": round(tabular.normalise(mdp, estimates[best]), 4),
        "value": round(values[best], 4),
        "best_candidate": round(max(values), 4),
        "worst_candidate": round(min(values), 4),
    }
