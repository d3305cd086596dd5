"""Learners: one gradient step a minibatch, the target networks moved within it, minibatches pulled from a source.

RLlib's own loop logs a dozen metrics for each minibatch and moves target networks once per call; `update` here is its
documented place to do otherwise: it logs once per call, and remembers how many minibatches it has seen, so that a
restored training goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME
from torch import Tensor

from celr_ray.cortex.algorithms.feeding import Minibatch, Order, Source
from celr_ray.cortex.algorithms.losses import bc_loss, cql_loss, iql_loss
from celr_ray.errors import PolicyError

__all__ = ["BcLearner", "CqlLearner", "Feed", "IqlLearner", "MaskedLearner"]

MINIBATCHES = "minibatches_trained"
"""Key of the count of minibatches, in a Learner's state and in results."""


@dataclass(frozen=True)
class Feed:
    """What the Algorithm hands to a Learner in place of data: where to pull minibatches from.

    Attributes:
        source: the transitions.
        shard, n_shards: this Learner's share of each minibatch.
    """

    source: Source
    shard: int
    n_shards: int


class MaskedLearner(TorchLearner):
    """What all Learners share."""

    columns: tuple[str, ...] = ("obs", "new_obs", "actions", "rewards", "terminateds", "truncateds")
    """Columns that the loss needs."""

    def build(self) -> None:
        """Build module and optimiser; the target networks' parameters are paired once."""
        super().build()
        self._minibatches_done = 0
        self._minibatches: Iterator[Minibatch] | None = None
        self._parts: dict[str, Tensor] = {}
        pairs = self.module[DEFAULT_MODULE_ID].unwrapped().targets()
        self._targets, self._followed = [a for a, _ in pairs], [b.data for _, b in pairs]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Use Adam on all parameters that learn; target networks do not."""
        parameters = [p for p in self.module[module_id].parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def update(self, *, training_data: Any, num_iters: int, minibatch_size: int, **kwargs: Any) -> Any:
        """Train on `num_iters` minibatches.

        Args:
            training_data: RLlib's wrapper; its data iterator is this Learner's `Feed`.
            num_iters: minibatches.
            minibatch_size: rows of this Learner's share of one.
            kwargs: `timesteps`, for learning rate schedules.

        Raises:
            PolicyError: the loss is not finite any more.
        """
        timesteps = kwargs.get("timesteps") or {}
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        if self._minibatches is None:
            (feed,) = training_data.data_iterators
            self._minibatches = self._pull(feed, minibatch_size)
        sums: dict[str, Tensor] = {}
        n_rows = 0
        for _ in range(num_iters):
            minibatch = self._to_device(next(self._minibatches))
            self._update({DEFAULT_MODULE_ID: minibatch})
            sums = {name: value + sums.get(name, 0.0) for name, value in self._parts.items()}
            n_rows += len(minibatch[Columns.OBS])
        self._minibatches_done += num_iters
        self._log({name: float(value) / num_iters for name, value in sums.items()}, n_rows, num_iters)
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the total loss of the one module and keep the parts for the results."""
        loss = self.compute_parts(fwd_out[DEFAULT_MODULE_ID], batch[DEFAULT_MODULE_ID])
        self._parts = {name: value.detach() for name, value in loss._asdict().items()}
        return {DEFAULT_MODULE_ID: loss[0]}

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        """Do nothing: `compute_losses` does it all; RLlib declares this one abstract."""
        raise NotImplementedError

    def compute_parts(self, out: dict[str, Any], batch: Minibatch) -> NamedTuple:
        """Return the loss: the total first, then its parts."""
        raise NotImplementedError

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """Step the optimiser, then move the target networks by `tau` towards what they follow."""
        for key, gradient in gradients_dict.items():
            self._params[key].grad = gradient
        for optimizer in self._named_optimizers.values():
            optimizer.step()
        if self._targets:
            torch._foreach_lerp_(self._targets, self._followed, self.config.tau)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Add the count of minibatches to RLlib's state."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, MINIBATCHES: self._minibatches_done}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state; the next minibatch is the one after those that it has seen."""
        super().set_state(state)
        if MINIBATCHES in state:
            self._minibatches_done = int(state[MINIBATCHES])
            self._minibatches = None

    def _pull(self, feed: Feed, minibatch_size: int) -> Iterator[Minibatch]:
        order = Order(
            minibatch_size * feed.n_shards,
            self.config.seed or 0,
            self._minibatches_done,
            feed.shard,
            feed.n_shards,
            self.columns,
        )
        return feed.source.minibatches(order)

    def _to_device(self, minibatch: Minibatch) -> Minibatch:
        if self.device is None or self.device.type == "cpu":
            return minibatch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in minibatch.items()}

    def _log(self, means: dict[str, float], n_rows: int, n_minibatches: int) -> None:
        if bad := [name for name, value in means.items() if not value - value == 0]:
            raise PolicyError(
                f"training diverged: {', '.join(bad)} is not finite after {self._minibatches_done} minibatches. Lower "
                f"the learning rate ({self.config.lr}), or look for extreme features and rewards"
            )
        for name, value in means.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        for key in (DEFAULT_MODULE_ID, ALL_MODULES):
            self.metrics.log_value((key, NUM_MODULE_STEPS_TRAINED), n_rows, reduce="sum")
            self.metrics.log_value((key, NUM_MODULE_STEPS_TRAINED_LIFETIME), n_rows, reduce="lifetime_sum")
        self.metrics.log_value((DEFAULT_MODULE_ID, MINIBATCHES), n_minibatches, reduce="lifetime_sum")


class BcLearner(MaskedLearner):
    """Behavior cloning."""

    columns = ("obs", "actions")

    def compute_parts(self, out: dict[str, Any], batch: Minibatch) -> NamedTuple:
        """Return the loss of BC."""
        return bc_loss(out["logits"], out["mask"], batch["actions"])


class CqlLearner(MaskedLearner):
    """Conservative Q-learning."""

    def compute_parts(self, out: dict[str, Any], batch: Minibatch) -> NamedTuple:
        """Return the loss of CQL(H)."""
        rest = (batch["actions"], batch["rewards"], batch["terminateds"], batch["truncateds"])
        return cql_loss(
            out["q"],
            out["target_next_q"],
            out["mask"],
            out["next_mask"],
            *rest,
            alpha=self.config.alpha,
            gamma=self.config.gamma,
            online_next_q=out["online_next_q"],
        )


class IqlLearner(MaskedLearner):
    """Implicit Q-learning."""

    def compute_parts(self, out: dict[str, Any], batch: Minibatch) -> NamedTuple:
        """Return the loss of IQL."""
        rest = (batch["actions"], batch["rewards"], batch["terminateds"], batch["truncateds"])
        return iql_loss(
            out["logits"],
            out["critics"],
            out["target_q"],
            out["value"],
            out["next_value"],
            out["mask"],
            *rest,
            expectile=self.config.expectile,
            beta=self.config.beta,
            gamma=self.config.gamma,
            max_weight=self.config.max_weight,
        )
