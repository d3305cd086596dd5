"""Masked BC, CQL and IQL as RLlib algorithms.

    config = MaskedCQLConfig().transitions(ParquetSource("RUN")).training(alpha=0.5).debugging(seed=0)
    algorithm = config.build_algo()
    for _ in range(20):
        result = algorithm.train()
    weights = algorithm.export()

`train()` is one iteration: `updates_per_iteration` minibatches. With `num_learners=0` no Ray cluster is needed.
`save_to_path` and `from_checkpoint` work although there is no environment; RLlib's own versions reach for environment
runners that an offline algorithm does not have. RLlib writes checkpoints as pickles: restore only what you wrote
yourself. What is deployed is made by `export`.
"""

from __future__ import annotations

from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm

from celr_ray.cortex.algorithms.base import MaskedAlgorithm, MaskedConfig
from celr_ray.cortex.algorithms.export import Mlp, forward, load_mlp
from celr_ray.cortex.algorithms.feeding import Order
from celr_ray.cortex.algorithms.learner import BcLearner, CqlLearner, IqlLearner
from celr_ray.cortex.algorithms.module import IqlModule, PolicyModule, QModule

__all__ = ["MaskedBC", "MaskedBCConfig", "MaskedCQL", "MaskedCQLConfig", "MaskedIQL", "MaskedIQLConfig"]

_PROBE_ROWS = 4096


class MaskedBC(MaskedAlgorithm):
    """Behavior cloning."""

    @classmethod
    def get_default_config(cls) -> MaskedBCConfig:
        """Return the default config."""
        return MaskedBCConfig()


class MaskedBCConfig(MaskedConfig):
    """Config of behavior cloning."""

    module_class = PolicyModule

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        """Set the defaults."""
        super().__init__(algo_class or MaskedBC)

    def get_default_learner_class(self) -> type[BcLearner]:
        """Return the Learner."""
        return BcLearner


class MaskedCQL(MaskedAlgorithm):
    """Conservative Q-learning, CQL(H)."""

    decider = "q"

    @classmethod
    def get_default_config(cls) -> MaskedCQLConfig:
        """Return the default config."""
        return MaskedCQLConfig()

    def _initial_state(self, mlp: Mlp) -> dict[str, Any]:
        state = load_mlp("q", mlp, self._sizes(), self._q_per_logit(mlp))
        return {**state, **{f"target_{name}": value for name, value in state.items() if name.startswith("q.")}}

    def _q_per_logit(self, mlp: Mlp) -> float:
        """Return the factor that brings logits to the spread of the rewards."""
        rows = next(self.config.source.minibatches(Order(_PROBE_ROWS, self.config.seed or 0, columns=("obs",))))
        obs = rows["obs"].numpy()
        n_features = self.config.facts.n_features
        logits = forward(mlp, obs[:, :n_features])[obs[:, n_features:] > 0]
        spread = float(logits.std())
        return float(self.config.facts.reward_scale) / spread if spread > 0 else 1.0


class MaskedCQLConfig(MaskedConfig):
    """Config of CQL(H).

    Attributes:
        alpha: weight of the conservative term; 0 trusts Q everywhere, large values clone the behavior.
        tau: how far the target network moves in a step.
        double_q: the online network chooses the next action, the target network values it.
    """

    module_class = QModule

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        """Set the defaults."""
        super().__init__(algo_class or MaskedCQL)
        self.alpha = 0.1
        self.tau = 0.005
        self.double_q = True

    def training(
        self, *, alpha: float | None = None, tau: float | None = None, double_q: bool | None = None, **kwargs: Any
    ) -> Self:
        """Set what CQL has of its own, and what all have."""
        super().training(**kwargs)
        return self._set(alpha=alpha, tau=tau, double_q=double_q)

    def validate(self) -> None:
        """Check values."""
        self._check("alpha", self.alpha, 0)
        self._check("tau", self.tau, 0, 1)
        super().validate()

    def model_settings(self) -> dict[str, Any]:
        """Add what the Q module needs."""
        return {**super().model_settings(), "double_q": self.double_q}

    def get_default_learner_class(self) -> type[CqlLearner]:
        """Return the Learner."""
        return CqlLearner


class MaskedIQL(MaskedAlgorithm):
    """Implicit Q-learning."""

    @classmethod
    def get_default_config(cls) -> MaskedIQLConfig:
        """Return the default config."""
        return MaskedIQLConfig()


class MaskedIQLConfig(MaskedConfig):
    """Config of IQL.

    Attributes:
        expectile: τ; .5 values the behavior policy, towards 1 the best that the data support.
        beta: inverse temperature of the policy; 0 clones the behavior.
        max_weight: limit of an advantage's weight.
        tau: how far the target critics move in a step.
        n_critics: critics of which the least counts.
    """

    module_class = IqlModule

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        """Set the defaults."""
        super().__init__(algo_class or MaskedIQL)
        self.expectile = 0.8
        self.beta = 10.0
        self.max_weight = 100.0
        self.tau = 0.005
        self.n_critics = 2

    def training(
        self,
        *,
        expectile: float | None = None,
        beta: float | None = None,
        max_weight: float | None = None,
        tau: float | None = None,
        n_critics: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Set what IQL has of its own, and what all have."""
        super().training(**kwargs)
        return self._set(expectile=expectile, beta=beta, max_weight=max_weight, tau=tau, n_critics=n_critics)

    def validate(self) -> None:
        """Check values."""
        self._check("expectile", self.expectile, 0.5, 1 - 1e-6)
        self._check("beta", self.beta, 0)
        self._check("max_weight", self.max_weight, 1)
        self._check("tau", self.tau, 0, 1)
        self._check("n_critics", self.n_critics, 1)
        super().validate()

    def model_settings(self) -> dict[str, Any]:
        """Add what the IQL module needs."""
        return {**super().model_settings(), "n_critics": self.n_critics}

    def get_default_learner_class(self) -> type[IqlLearner]:
        """Return the Learner."""
        return IqlLearner
