"""One training: from transitions to an artefact, its curve beside it. Trials are listed here, and run elsewhere.

A trial writes its artefact to `OUT/training/NAME`. Equal trials on equal data give equal policies: the seed fixes the
first weights and the order of the minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from celr_ray import storage
from celr_ray.config import TrainConfig
from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.artefact import Artefact, load_artefact, make_artefact, save_artefact
from celr_ray.cortex.manifest import Algorithm
from celr_ray.cortex.network import Network
from celr_ray.cortex.support import Support, fit_support
from celr_ray.cortex.transitions import iter_transitions, list_parts, load_transitions
from celr_ray.errors import ConfigError

__all__ = [
    "Report",
    "Trial",
    "TrialData",
    "describe_result",
    "is_streamed",
    "list_trials",
    "make_trial_artefact",
    "policy_uri",
    "run_trial",
    "train_weights",
    "trial_support",
]

_SUPPORT_STATES = 100_000
_POINTS = 20
"""Points of a curve."""
_FLAGS = {"cql": "alphas", "iql": "expectiles and --train.betas"}

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Trial:
    """One setting of one algorithm.

    Attributes:
        algorithm: bc, cql or iql.
        params: what it has of its own, by RLlib's names.
        seed: of weights and minibatches.
        warm_start: name of the BC trial to start from; None = random weights.
        of_heuristic: BC of the static heuristic instead of the logs: a cold start.
    """

    algorithm: Algorithm
    params: Mapping[str, float]
    seed: int
    warm_start: str | None = None
    of_heuristic: bool = False

    @property
    def setting(self) -> str:
        """What it shares with the trials of other seeds."""
        parts = [self.algorithm, *(["heuristic"] if self.of_heuristic else [])]
        return "-".join([*parts, *(f"{key}={value:g}" for key, value in self.params.items())])

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.setting}-seed={self.seed}"

    def count_steps(self, config: TrainConfig) -> int:
        """Return its gradient steps: those asked for, rounded up to whole points of the curve."""
        wanted = config.bc_updates if self.algorithm == "bc" else config.updates
        n_points = min(_POINTS, wanted)
        return -(-wanted // n_points) * n_points


@dataclass(frozen=True)
class TrialData:
    """What all trials of a training share.

    Attributes:
        transitions: folder of the dataset.
        out: folder of the training.
        name: of the policy.
        data_hash: of the dataset; None = the policy does not come from one.
        parent: content hash of the policy deployed now; None = unknown.
        reward_scale: training rewards over raw ones.
        config: sizes and steps.
        escalation: thresholds of the fallback.
    """

    transitions: str
    out: str
    name: str
    data_hash: str | None
    parent: str | None
    reward_scale: float
    config: TrainConfig
    escalation: EscalationConfig


def list_trials(algorithm: str, config: TrainConfig) -> list[Trial]:
    """List the trials: BC for each seed first, since the others start from it.

    Args:
        algorithm: auto, bc, cql or iql; BC is always among the trials.
        config: what to try.

    Raises:
        ConfigError: nothing to try for an algorithm that was asked for, or a value is listed twice.
    """
    for name, values in (("cql", (config.alphas,)), ("iql", (config.expectiles, config.betas))):
        if algorithm == name and not all(values):
            raise ConfigError(f"--algorithm {name} has no settings to try: give --train.{_FLAGS[name]}")
    trials = [Trial("bc", {}, seed) for seed in config.seeds]
    for start in list(trials):
        if algorithm in ("auto", "cql"):
            trials += [Trial("cql", {"alpha": alpha}, start.seed, start.name) for alpha in config.alphas]
        if algorithm in ("auto", "iql"):
            trials += [
                Trial("iql", {"expectile": tau, "beta": beta}, start.seed, start.name)
                for tau in config.expectiles
                for beta in config.betas
            ]
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"the trial {twice[0]} is listed twice: each of --train.seeds, alphas, … must differ")
    return trials


def policy_uri(out: str, trial: Trial) -> str:
    """Return the folder of a trial's artefact."""
    return storage.join(out, "training", trial.name)


def is_streamed(uri: str, limit_bytes: int) -> bool:
    """Tell whether the training transitions are too large to be held in memory."""
    stats = [storage.stat(part) for part in list_parts(uri)]
    return sum(stat.size_bytes for stat in stats if stat) > limit_bytes


def trial_support(uri: str) -> Support:
    """Learn what training states look like, from the first 100,000; the dataset has its episodes in random order."""
    states: list[Any] = []
    for batch in iter_transitions(uri, "train", 16_384):
        states.append(batch.features)
        if sum(map(len, states)) >= _SUPPORT_STATES:
            break
    return fit_support(np.concatenate(states))


def run_trial(trial: Trial, data: TrialData, report: Report | None = None) -> dict[str, Any]:
    """Train one policy and write its artefact.

    Args:
        trial: what to train.
        data: on what, and where to.
        report: is told the losses at each point of the curve.

    Returns:
        Trial, content hash and curve, as JSON values.

    Raises:
        PolicyError: the transitions cannot be trained on, or the training diverged.
    """
    source = _open_source(data)
    start = None if trial.warm_start is None else load_artefact(storage.join(data.out, "training", trial.warm_start))
    weights, curve = train_weights(trial, data, source, warm_start=start.network if start else None, report=report)
    artefact = make_trial_artefact(trial, data, weights, trial_support(data.transitions), curve)
    save_artefact(policy_uri(data.out, trial), artefact)
    return describe_result(trial, artefact, curve)


def describe_result(trial: Trial, artefact: Artefact, curve: list[dict[str, float]]) -> dict[str, Any]:
    """Return what is kept of a finished trial beside its artefact, as JSON values."""
    return {"trial": asdict(trial), "name": trial.name, "content_hash": artefact.content_hash, "curve": curve}


def train_weights(
    trial: Trial, data: TrialData, source: Any, *, warm_start: Network | None, report: Report | None = None
) -> tuple[Any, list[dict[str, float]]]:
    """Run the steps of one training.

    Args:
        trial: algorithm, settings and seed.
        data: sizes and number of steps.
        source: the transitions (`algorithms.feeding`).
        warm_start: what to start from.
        report: is told the losses at each point of the curve.

    Returns:
        The network as arrays (`algorithms.export.Weights`), and the curve.
    """
    import torch

    # Small matrices: threads cost more than they bring, and trials run side by side; and sums depend on their number in
    # the last digit. vLLM's CPU worker makes torch.set_num_threads do nothing in its process, hence the original.
    n_threads = torch.get_num_threads()
    torch._C.set_num_threads(1)
    algorithm = _build(trial, data.config, source, warm_start)
    curve: list[dict[str, float]] = []
    try:
        for number in range(trial.count_steps(data.config) // algorithm.config.updates_per_iteration):
            losses = _read_losses(algorithm.train())
            curve.append({"step": (number + 1) * algorithm.config.updates_per_iteration, **losses})
            if report is not None:
                report(curve[-1])
        return algorithm.export(), curve
    finally:
        algorithm.stop()
        torch._C.set_num_threads(n_threads)


def make_trial_artefact(
    trial: Trial, data: TrialData, weights: Any, support: Support, curve: list[dict[str, float]]
) -> Artefact:
    """Return a trained network as an artefact; it takes the best action, whatever trained it."""
    return make_artefact(
        Network.from_mlp(weights.mean, weights.scale, weights.layers),
        support,
        name=data.name,
        algorithm=trial.algorithm,
        decision="greedy",
        data_hash=data.data_hash,
        reward_scale=data.reward_scale,
        parent=data.parent,
        escalation=data.escalation,
        training={"trial": asdict(trial), "config": data.config.model_dump(mode="json"), "final": curve[-1]},
    )


def _open_source(data: TrialData) -> Any:
    from celr_ray.cortex.algorithms.feeding import MemorySource, ParquetSource

    if is_streamed(data.transitions, data.config.stream_bytes):
        return ParquetSource(data.transitions)
    return MemorySource(vars(load_transitions(data.transitions)))


def _build(trial: Trial, config: TrainConfig, source: Any, warm_start: Network | None) -> Any:
    """Build the RLlib algorithm of a trial."""
    from celr_ray.cortex.algorithms.algorithm import MaskedBCConfig, MaskedCQLConfig, MaskedIQLConfig

    classes = {"bc": MaskedBCConfig, "cql": MaskedCQLConfig, "iql": MaskedIQLConfig}
    made: Any = classes[trial.algorithm]().transitions(source)
    made.training(
        hidden=config.hidden,
        lr=config.lr,
        train_batch_size_per_learner=max(config.batch_size // max(config.num_learners, 1), 1),
        updates_per_iteration=max(trial.count_steps(config) // _POINTS, 1),
        **trial.params,
    )
    made.learners(num_learners=config.num_learners).debugging(seed=trial.seed)
    return (made if warm_start is None else made.warm_start(warm_start)).build_algo()


def _read_losses(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the losses of one iteration."""
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.utils.metrics import LEARNER_RESULTS

    from celr_ray.cortex.algorithms.losses import BcLoss, CqlLoss, IqlLoss

    names = {*BcLoss._fields, *CqlLoss._fields, *IqlLoss._fields}
    found = result[LEARNER_RESULTS][DEFAULT_MODULE_ID]
    return {name: float(value) for name, value in found.items() if name in names}
