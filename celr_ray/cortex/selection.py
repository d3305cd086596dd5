"""Chooses among trained policies by what held-out logs say of them; never by the gate's tasks.

The criterion is the lower end of the 95 % interval of the doubly robust value on the validation tasks. A trial counts
only if the logs support it: nothing it might do is without probability in the logs, and its effective sample size is
large enough. If none counts, BC is taken, because it stays nearest to what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celr_ray.config import RuntimeConfig
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions
from celr_ray.cortex.policy import Policy
from celr_ray.errors import InputError, PolicyError

__all__ = ["Choice", "Score", "choose", "score_policies"]


@dataclass(frozen=True)
class Score:
    """What the validation episodes say of one policy; raw rewards.

    Attributes:
        value, ci_low, ci_high: doubly robust value with its 95 % interval; NaN = not evaluable.
        behavior: what the logged episodes earned.
        n: episodes.
        ess: effective sample size.
        problem: why it does not count; empty = it does.
    """

    value: float
    ci_low: float
    ci_high: float
    behavior: float
    n: int
    ess: float
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, NaN as null."""
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in vars(self).items()}


@dataclass(frozen=True)
class Choice:
    """Which trial was taken, and why.

    Attributes:
        number: its place among the trials.
        reason: one sentence.
    """

    number: int
    reason: str


def score_policies(
    uri: str, policies: Sequence[Policy], runtime: RuntimeConfig, *, min_ess: float, seed: int = 0
) -> list[Score]:
    """Evaluate policies on the validation split of a dataset; what cannot be evaluated says why.

    Args:
        uri: the dataset.
        policies: whom.
        runtime: where to run.
        min_ess: least effective sample size that counts.
        seed: of the folds.
    """
    return [_score(uri, policy, runtime, min_ess, seed) for policy in policies]


def _score(uri: str, policy: Policy, runtime: RuntimeConfig, min_ess: float, seed: int) -> Score:
    try:
        report = evaluate_transitions(uri, policy, runtime, split="validation", seed=seed).report
    except (InputError, PolicyError) as error:
        return Score(math.nan, math.nan, math.nan, math.nan, 0, 0.0, str(error))
    found, diagnostics = report.estimates["dr"], report.screen.diagnostics
    problem = ""
    if diagnostics.n_unsupported:
        problem = f"{diagnostics.n_unsupported} decisions might take what the logs never did"
    elif diagnostics.ess < min_ess:
        problem = f"effective sample size {diagnostics.ess:.1f} is below {min_ess:g}"
    elif not math.isfinite(found.ci_low):
        problem = "its value cannot be estimated"
    return Score(
        found.value, found.ci_low, found.ci_high, report.behavior.value, diagnostics.n, diagnostics.ess, problem
    )


def choose(algorithms: Sequence[str], scores: Sequence[Score], wanted: str) -> Choice:
    """Choose a trial.

    Args:
        algorithms: [n] of the trials.
        scores: [n] of the trials.
        wanted: auto, bc, cql or iql.
    """
    candidates = [n for n, algorithm in enumerate(algorithms) if wanted in ("auto", algorithm)]
    usable = [n for n in candidates if not scores[n].problem]
    if usable:
        best = max(usable, key=lambda n: (scores[n].ci_low, -n))
        score = scores[best]
        return Choice(
            best,
            f"the highest lower end of the doubly robust value on {score.n:,} validation episodes: {score.value:.4g} "
            f"[{score.ci_low:.4g}, {score.ci_high:.4g}]; the logged episodes earned {score.behavior:.4g}",
        )
    fallback = next(n for n, algorithm in enumerate(algorithms) if algorithm == "bc")
    why = scores[candidates[0]].problem
    return Choice(fallback, f"behavior cloning, because no trial can be evaluated on held-out tasks: {why}")
