"""What the three algorithms share: config, data for Learners, checkpoints without an environment, export.

RLlib's own versions of `get_module`, `set_state` and `restore_from_path` reach for environment runners, and an offline
algorithm has none; those here do not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS

from celr_ray.cortex.algorithms.columns import Facts
from celr_ray.cortex.algorithms.export import Mlp, Weights, export_weights, load_mlp
from celr_ray.cortex.algorithms.feeding import MemorySource, Minibatch, Order, Source
from celr_ray.cortex.algorithms.learner import Feed
from celr_ray.cortex.algorithms.module import MaskedModule
from celr_ray.errors import PolicyError

__all__ = ["MaskedAlgorithm", "MaskedConfig", "SharedSource"]


class _NoOfflineData(OfflineData):
    """Stands where RLlib would read a data set through Ray Data and build episode objects from it."""

    def __init__(self, config: Any) -> None:
        self.config = config


class SharedSource:
    """A `MemorySource` put into Ray's object store once, for Learners in other processes."""

    def __init__(self, source: MemorySource) -> None:
        """Share the source's columns."""
        import ray

        self.n_actions = source.n_actions
        self._columns = ray.put(source.columns)

    def look(self) -> Facts:
        """Check and measure all rows."""
        return self._open().look()

    def minibatches(self, order: Order) -> Iterator[Minibatch]:
        """Yield minibatches without end; the columns are not copied."""
        yield from self._open().minibatches(order)

    def _open(self) -> MemorySource:
        import ray

        return MemorySource(ray.get(self._columns), self.n_actions)


class MaskedConfig(AlgorithmConfig):
    """What the three configs share; the defaults suit some thousands to millions of short episodes.

    Attributes:
        hidden: sizes of the hidden layers.
        updates_per_iteration: minibatches of one `train()`.
        gamma: discount; 1, because episodes end.
        lr: learning rate of Adam.
        train_batch_size_per_learner: rows of a minibatch.
    """

    module_class: type[MaskedModule]

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        """Set the defaults."""
        super().__init__(algo_class=algo_class)
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.framework("torch")
        self.log_level = "ERROR"
        self.input_ = "transitions"
        self.offline_data_class = _NoOfflineData
        self._is_online = False
        self.hidden: Sequence[int] = (128, 128)
        self.updates_per_iteration = 200
        self.source: Source | None = None
        self.facts: Facts | None = None
        self.initial: Mlp | None = None
        self.gamma = 1.0
        self.lr = 1e-3
        self.train_batch_size_per_learner = 1024

    def transitions(self, source: Source, facts: Facts | None = None) -> Self:
        """Take the training data, and look through them once.

        Args:
            source: where they come from.
            facts: what an earlier look at the same source gave, to be spared another.

        Raises:
            PolicyError: there are none, or they cannot be trained on.
        """
        self.source = source
        self.facts = facts or source.look()
        width = self.facts.n_features + self.facts.n_actions
        self.environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (width,), np.float32),
            action_space=gym.spaces.Discrete(self.facts.n_actions),
        )
        return self

    def training(
        self, *, hidden: Sequence[int] | None = None, updates_per_iteration: int | None = None, **kwargs: Any
    ) -> Self:
        """Set what the three have in common, and RLlib's own `lr`, `gamma`, `train_batch_size_per_learner`, …"""
        super().training(**kwargs)
        return self._set(hidden=hidden, updates_per_iteration=updates_per_iteration)

    def warm_start(self, mlp: Mlp) -> Self:
        """Start from a trained policy network, with its standardisation; its sizes become `hidden`.

        BC and IQL start with its logits. CQL starts with them scaled to the spread of the rewards, so its first greedy
        decisions are those of the policy, and its first values have the right size.
        """
        self.initial = mlp
        self.hidden = tuple(len(bias) for _, bias in mlp.layers[:-1])
        return self

    def validate(self) -> None:
        """Check values.

        Raises:
            PolicyError: there are no transitions, or a value is out of range.
        """
        if self.facts is None:
            raise PolicyError("the algorithm has no transitions: call config.transitions(source) first")
        for name in ("ray.rllib", "ray.tune", "ray._common.deprecation"):  # RLlib warns of what it does itself
            logging.getLogger(name).setLevel(logging.ERROR)
        self._check("gamma", self.gamma, 0, 1)
        self._check("lr", self.lr, 0, 1)
        self._check("updates_per_iteration", self.updates_per_iteration, 1)
        self._check("train_batch_size_per_learner", self.train_batch_size_per_learner, 1)
        super().validate()

    def build_algo(self, env: Any = None, use_copy: bool = True) -> Algorithm:
        """Check this config and build its algorithm; RLlib checks a copy only, in which any value of −1 is lost.

        Raises:
            PolicyError: see `validate`.
        """
        self.validate()
        return super().build_algo(env, use_copy)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return what builds the networks."""
        return RLModuleSpec(module_class=self.module_class, model_config=self.model_settings())

    def model_settings(self) -> dict[str, Any]:
        """Return the settings of the networks."""
        if self.facts is None:
            return {}
        standard = self.initial if self.initial is not None else self.facts
        return {"hidden": list(self.hidden), "mean": standard.mean.tolist(), "scale": standard.scale.tolist()}

    def _set(self, **values: Any) -> Self:
        for name, value in values.items():
            if value is not None:
                setattr(self, name, value)
        return self

    def _check(self, name: str, value: float, low: float, high: float = np.inf) -> None:
        if not low <= value <= high:
            raise PolicyError(f"{name} is {value}, not within {low} and {high}")


def _check_room(config: Any) -> None:
    """Refuse Learners that no cluster of this size can hold; RLlib would wait for ever and say nothing.

    Raises:
        PolicyError: it is so.
    """
    if not config.num_learners:
        return
    import ray

    cpus = ray.cluster_resources().get("CPU", 0) if ray.is_initialized() else 0
    if cpus < config.num_learners:
        raise PolicyError(
            f"{config.num_learners} Learners need as many CPUs, the Ray cluster has {cpus:g}. Use fewer Learners, or "
            "connect to a larger cluster before (celr_ray.runtime.connect)"
        )


class MaskedAlgorithm(Algorithm):
    """What the three algorithms share."""

    decider = "policy"
    """Name of the network that decides."""

    def setup(self, config: Any) -> None:
        """Build Learners and networks, and load the weights of a warm start.

        Raises:
            PolicyError: the cluster has too few CPUs for the Learners.
        """
        _check_room(self.config)
        super().setup(config)
        self._feeds: list[Feed] | None = None
        if self.config.initial is not None:
            self._set_module_state(self._initial_state(self.config.initial))

    def training_step(self) -> None:
        """Train on `updates_per_iteration` minibatches."""
        if self._feeds is None:
            self._feeds = self._make_feeds()
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                training_data=TrainingData(data_iterators=self._feeds),
                num_iters=self.config.updates_per_iteration,
                minibatch_size=self.config.train_batch_size_per_learner,
                timesteps={},
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def export(self) -> Weights:
        """Return the network that decides, as numpy arrays.

        Raises:
            PolicyError: it has weights that are not finite.
        """
        return export_weights(self._get_module_state(), self.decider)

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> MaskedModule:
        """Return a copy of the module as it is now; RLlib's version asks an environment runner for it."""
        module: MaskedModule = self.config.get_rl_module_spec().build()
        module.set_state(self._get_module_state())
        return module

    @classmethod
    def from_checkpoint(
        cls, path: str, filesystem: Any = None, *, transitions: Source | None = None, **kwargs: Any
    ) -> MaskedAlgorithm:
        """Return a saved algorithm.

        Args:
            path: what `save_to_path` returned.
            filesystem: of pyarrow, if it cannot be told from `path`.
            transitions: the same data as before, where they were in memory.
            kwargs: RLlib's.
        """
        algorithm: MaskedAlgorithm = super().from_checkpoint(path, filesystem, **kwargs)
        if transitions is not None:
            algorithm._feeds = algorithm._make_feeds(transitions)
        return algorithm

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Take over a checkpoint; RLlib's version then reaches for environment runners, and there are none."""
        Checkpointable.restore_from_path(self, path, *args, **kwargs)

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state; here too RLlib's version needs environment runners."""
        if COMPONENT_LEARNER_GROUP in state:
            self.learner_group.set_state(state[COMPONENT_LEARNER_GROUP])
        super().set_state({name: value for name, value in state.items() if name != COMPONENT_LEARNER_GROUP})

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what a checkpoint builds the algorithm from: without the warm start, its own weights follow."""
        return ({**self.config.get_state(), "initial": None},), {}

    def _make_feeds(self, source: Source | None = None) -> list[Feed]:
        source = source or self.config.source
        n_learners = max(1, self.config.num_learners)
        if self.config.num_learners and isinstance(source, MemorySource):
            source = SharedSource(source)
        return [Feed(source, shard, n_learners) for shard in range(n_learners)]

    def _initial_state(self, mlp: Mlp) -> dict[str, Any]:
        return load_mlp(self.decider, mlp, self._sizes())

    def _sizes(self) -> list[int]:
        facts = self.config.facts
        return [facts.n_features, *self.config.hidden, facts.n_actions]

    def _get_module_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.learner_group.get_weights([DEFAULT_MODULE_ID])[DEFAULT_MODULE_ID]
        return state

    def _set_module_state(self, changed: dict[str, Any]) -> None:
        state = {**self._get_module_state(), **changed}
        self.learner_group.set_state({COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: state}}})
