"""RLlib's own off-policy estimators, called on logs of ours. No figures by itself: `ope_table.py` uses it.

    new API stack   `OfflinePolicyEvaluationRunner`, types `is` and `pdis`, fed with the episodes that its
                    `OfflinePolicyPreEvaluator` makes
    old API stack   `ImportanceSampling`, `WeightedImportanceSampling`, `DirectMethod`, `DoublyRobust` with
                    `FQETorchModel`

The policy to evaluate is a fixed table of probabilities, indexed by the state (`obs @ table`), in both stacks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.models.torch.torch_action_dist import TorchCategorical as OldCategorical
from ray.rllib.offline.estimators import DirectMethod, DoublyRobust, ImportanceSampling, WeightedImportanceSampling
from ray.rllib.offline.offline_policy_evaluation_runner import OfflinePolicyEvaluationRunner
from ray.rllib.policy import Policy
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN

from celr_ray.cortex.evaluation.logged import LoggedEpisodes

Floats = NDArray[np.float64]
_FORBIDDEN = -1e9


def log_table(table: Floats) -> NDArray[np.float32]:
    """Return logits of a table of probabilities [states, A]; what has none gets a very low one."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(table), _FORBIDDEN).astype(np.float32)


class TableModule(TorchRLModule):
    """A policy that is a table."""

    action_dist_cls = TorchCategorical

    def setup(self) -> None:
        """Take the table from the model config."""
        self.logits = torch.nn.Parameter(torch.tensor(self.model_config["logits"]), requires_grad=False)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: batch[Columns.OBS] @ self.logits}


class _Episodes:
    """Stands where a `ray.data.DataIterator` over pre-evaluated episodes stands."""

    def __init__(self, log: LoggedEpisodes) -> None:
        bounds = np.flatnonzero(np.append(log.t, 0) == 0)
        logp = np.log(log.behavior[np.arange(len(log.t)), log.action])
        self._episodes = [
            {
                Columns.OBS: log.obs[a:b].astype(np.float32),
                Columns.ACTIONS: log.action[a:b],
                Columns.REWARDS: log.reward[a:b].astype(np.float32),
                Columns.ACTION_LOGP: logp[a:b].astype(np.float32),
            }
            for a, b in pairwise(bounds)
        ]

    def iter_batches(self, batch_size: int, **kwargs: Any) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self._episodes), batch_size):
            yield {"episodes": self._episodes[start : start + batch_size]}


def run_new_stack(log: LoggedEpisodes, table: Floats, kind: str, seed: int) -> float:
    """Return the estimate of RLlib's runner.

    Args:
        log: the episodes.
        table: [states, A] the policy to evaluate.
        kind: is or pdis.
        seed: of the actions that the runner samples.
    """
    torch.manual_seed(seed)
    config = (
        MARWILConfig()
        .environment(
            observation_space=gym.spaces.Box(0.0, 1.0, (log.obs.shape[1],), np.float32),
            action_space=gym.spaces.Discrete(log.mask.shape[1]),
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(module_class=TableModule, model_config={"logits": log_table(table).tolist()})
        )
        .evaluation(
            offline_evaluation_type=kind,
            offline_eval_batch_size_per_runner=log.n_episodes,
            dataset_num_iters_per_offline_eval_runner=1,
        )
        .reporting(metrics_num_episodes_for_smoothing=log.n_episodes)
    )
    spaces = {"__env__": (config.observation_space, config.action_space)}
    runner = OfflinePolicyEvaluationRunner(config=config, spaces=spaces)
    runner.set_dataset_iterator(_Episodes(log))
    value = runner.run()[EPISODE_RETURN_MEAN]
    return float(value.peek() if hasattr(value, "peek") else value)


class TablePolicy(Policy):
    """The same policy for the old stack; has what its estimators and `FQETorchModel` ask for."""

    def __init__(self, table: Floats) -> None:
        """Take a table [states, A]."""
        observations = gym.spaces.Box(0.0, 1.0, (len(table),), np.float32)
        super().__init__(observations, gym.spaces.Discrete(table.shape[1]), {})
        self.device, self.model = torch.device("cpu"), None
        self._logits = torch.tensor(log_table(table))

    def compute_actions(self, *args: Any, **kwargs: Any) -> Any:
        """Never asked for by the estimators."""
        raise NotImplementedError

    def compute_log_likelihoods(self, actions: Any, obs_batch: Any, **kwargs: Any) -> Any:
        """Return log π(a|s), [K]."""
        logits = torch.log_softmax(torch.as_tensor(np.asarray(obs_batch)) @ self._logits, dim=1)
        return logits[torch.arange(len(logits)), torch.as_tensor(np.asarray(actions))]

    def action_distribution_fn(self, model: Any, *, obs_batch: Any, **kwargs: Any) -> Any:
        """Return logits and their distribution."""
        return obs_batch[SampleBatch.OBS] @ self._logits, OldCategorical, []


def to_sample_batch(log: LoggedEpisodes) -> SampleBatch:
    """Return the log as the old stack has it."""
    after = np.roll(log.obs, -1, axis=0)
    after[log.terminated] = 0.0
    return SampleBatch(
        {
            SampleBatch.EPS_ID: log.episode,
            SampleBatch.T: log.t,
            SampleBatch.OBS: log.obs.astype(np.float32),
            SampleBatch.NEXT_OBS: after.astype(np.float32),
            SampleBatch.ACTIONS: log.action,
            SampleBatch.REWARDS: log.reward.astype(np.float32),
            SampleBatch.TERMINATEDS: log.terminated,
            SampleBatch.TRUNCATEDS: np.zeros(len(log.t), dtype=bool),
            "action_prob": log.behavior[np.arange(len(log.t)), log.action],
        }
    )


def run_old_stack(log: LoggedEpisodes, table: Floats, kind: str, seed: int, *, n_iters: int) -> float:
    """Return the estimate of one of the old stack's classes.

    Args:
        log: the episodes.
        table: [states, A] the policy to evaluate.
        kind: is, wis, dm or dr.
        seed: of the Q network's start and its minibatches.
        n_iters: passes over the data that train the Q network of dm and dr.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    policy, batch = TablePolicy(table), to_sample_batch(log)
    if kind in ("is", "wis"):
        estimator: Any = {"is": ImportanceSampling, "wis": WeightedImportanceSampling}[kind](policy, gamma=1.0)
    else:
        q = {"n_iters": n_iters, "lr": 1e-2, "minibatch_size": 128, "polyak_coef": 0.2, "min_loss_threshold": 0.0}
        estimator = {"dm": DirectMethod, "dr": DoublyRobust}[kind](policy, gamma=1.0, q_model_config=q)
        estimator.train(batch)
    return float(estimator.estimate(batch)["v_target"])


def be_quiet() -> None:
    """Silence RLlib's warnings about what is deprecated."""
    warnings.filterwarnings("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
