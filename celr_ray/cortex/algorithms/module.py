"""The networks, as RLModules: one flat observation `[features | mask]`, any number of features and actions.

Features are standardised inside (mean and scale are buffers, so they travel with the weights); the mask is no input of
the networks, it only says which scores count. Target networks are copies that the Learner moves, never the optimiser.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from celr_ray.cortex.algorithms.losses import mask_scores, take

_Net = TypeVar("_Net", bound=nn.Module)

__all__ = ["IqlModule", "MaskedModule", "PolicyModule", "QModule", "make_mlp"]


def make_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers with a ReLU between each two."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _copy_frozen(network: _Net) -> _Net:
    return copy.deepcopy(network).requires_grad_(False)


class MaskedModule(TorchRLModule):
    """What all modules share.

    Its `model_config` holds `hidden` (sizes of the hidden layers), `mean` and `scale` (lists of D numbers).
    """

    decides_greedily = False
    """Whether the decision is the best score (Q values), or a draw from the softmax of the scores (logits)."""

    def setup(self) -> None:
        """Build the standardisation and, in the classes below, the networks."""
        self.n_actions = int(self.action_space.n)
        self.n_features = int(self.observation_space.shape[0]) - self.n_actions
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.tensor(self.model_config[name], dtype=torch.float32))
        self._build()

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter of a target network with the parameter that it follows."""
        return []

    def decider(self) -> nn.Sequential:
        """Return the network whose scores decide."""
        raise NotImplementedError

    def split(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the standardised features [B, D] and the mask [B, A] of observations [B, D + A]."""
        features = (obs[:, : self.n_features] - self.mean) / self.scale
        return features, obs[:, self.n_features :] > 0.5

    def _build(self) -> None:
        raise NotImplementedError

    def _mlp(self, n_out: int) -> nn.Sequential:
        return make_mlp([self.n_features, *self.model_config["hidden"], n_out])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features, mask = self.split(batch[Columns.OBS])
        scores = mask_scores(self.decider()(features), mask)
        decided = {Columns.ACTIONS: scores.argmax(dim=1)} if self.decides_greedily else {}
        return {Columns.ACTION_DIST_INPUTS: scores, **decided}


class PolicyModule(MaskedModule):
    """A policy network, for behavior cloning."""

    def _build(self) -> None:
        self.policy = self._mlp(self.n_actions)

    def decider(self) -> nn.Sequential:
        """Return the policy."""
        return self.policy

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features, mask = self.split(batch[Columns.OBS])
        return {"logits": self.policy(features), "mask": mask}


class QModule(MaskedModule):
    """A Q network and its target, for CQL. With `double_q` it also scores the next state with the online network."""

    decides_greedily = True

    def _build(self) -> None:
        self.q = self._mlp(self.n_actions)
        self.target_q = _copy_frozen(self.q)

    def decider(self) -> nn.Sequential:
        """Return the Q network."""
        return self.q

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Pair the target network with the Q network."""
        return list(zip(self.target_q.parameters(), self.q.parameters(), strict=True))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features, mask = self.split(batch[Columns.OBS])
        with torch.no_grad():
            next_features, next_mask = self.split(batch[Columns.NEXT_OBS])
            target_next_q = self.target_q(next_features)
            online_next_q = self.q(next_features) if self.model_config["double_q"] else None
        return {
            "q": self.q(features),
            "target_next_q": target_next_q,
            "online_next_q": online_next_q,
            "mask": mask,
            "next_mask": next_mask,
        }


class IqlModule(MaskedModule):
    """Policy, critics with their targets, and V, for IQL."""

    def _build(self) -> None:
        self.policy = self._mlp(self.n_actions)
        self.critics = nn.ModuleList(self._mlp(self.n_actions) for _ in range(self.model_config["n_critics"]))
        self.target_critics = _copy_frozen(self.critics)
        self.value = self._mlp(1)

    def decider(self) -> nn.Sequential:
        """Return the policy."""
        return self.policy

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Pair the target critics with the critics."""
        return list(zip(self.target_critics.parameters(), self.critics.parameters(), strict=True))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features, mask = self.split(batch[Columns.OBS])
        actions = batch[Columns.ACTIONS]
        with torch.no_grad():
            next_features, _ = self.split(batch[Columns.NEXT_OBS])
            targets = torch.stack([take(critic(features), actions) for critic in self.target_critics])
            next_value = self.value(next_features)[:, 0]
        return {
            "logits": self.policy(features),
            "critics": tuple(take(critic(features), actions) for critic in self.critics),
            "target_q": targets.min(dim=0).values,
            "value": self.value(features)[:, 0],
            "next_value": next_value,
            "mask": mask,
        }
