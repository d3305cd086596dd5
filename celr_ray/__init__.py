"""celr-ray: turns the execution logs of cheap-model-first LLM agents into better agents, as Ray batch jobs.

The specification's classes and the readers of a run's tables are importable from here; each is loaded
when it is first used, so that `import celr_ray` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celr_ray.cortex.policy import MetaPolicy
    from celr_ray.cortex.state import StateExtractor
    from celr_ray.tables import read_judgments, read_pairs, read_trajectories, read_transitions
    from celr_ray.training.data_generator import PreferencePairGenerator
    from celr_ray.training.pipeline import TrainingPipeline, TrainingReport
    from celr_ray.training.scorer import TrajectoryScorer
    from celr_ray.training.self_reward import SelfRewardScorer

__all__ = [
    "MetaPolicy",
    "PreferencePairGenerator",
    "SelfRewardScorer",
    "StateExtractor",
    "TrainingPipeline",
    "TrainingReport",
    "TrajectoryScorer",
    "read_judgments",
    "read_pairs",
    "read_trajectories",
    "read_transitions",
]

_HOMES = {
    "MetaPolicy": "celr_ray.cortex.policy",
    "StateExtractor": "celr_ray.cortex.state",
    "PreferencePairGenerator": "celr_ray.training.data_generator",
    "SelfRewardScorer": "celr_ray.training.self_reward",
    "TrainingPipeline": "celr_ray.training.pipeline",
    "TrainingReport": "celr_ray.training.pipeline",
    "TrajectoryScorer": "celr_ray.training.scorer",
    "read_judgments": "celr_ray.tables",
    "read_pairs": "celr_ray.tables",
    "read_trajectories": "celr_ray.tables",
    "read_transitions": "celr_ray.tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'celr_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
