"""Chooses among trained policies by what held-out logs say of them; never by the gate's tasks.

What counts is the lower end of the 95 % interval of the doubly robust (DR) value on the validation tasks, episodes of a
task being one unit. A policy that the logs say much of is preferred to one that looks better by chance.

1. A trial counts if the logs support it: it does nothing that the behavior policy never does, its effective sample size
   is at least `min_ess`, no episode has more than 20 % of all weight, the mean weight is within 3 standard errors of 1,
   and at most 5 % of the episodes are cut.
2. The setting is chosen first (algorithm and parameters), by the mean over its seeds, which is less a matter of luck
   than the best of all trials. A seed that does not count is taken as the worst trial that does.
3. Of its seeds that count the best is taken. Equal to six decimals: the first listed, BC before CQL before IQL.
4. If no trial counts, BC is taken, because it stays nearest to what was tried.

The best of many estimates is too high by chance: the value of the policy that was taken is optimistic, the more so the
more settings were tried. It decides nothing but this choice; the gate judges on other tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.core.escalation import HeuristicPolicy
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions
from celr_ray.cortex.evaluation.screening import MAX_CUT_SHARE, MAX_MEAN_WEIGHT_Z, MAX_WEIGHT_SHARE, Diagnostics
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.transitions import iter_transitions, list_parts
from celr_ray.cortex.trials import Trial

__all__ = ["Choice", "Score", "choose", "describe_states", "score_policies", "unevaluable"]

_LARGE_BYTES = 256 * 2**20
_STATES = 100_000
_DECIMALS = 6


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
        """Return it as JSON values; what is not finite as null."""
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in vars(self).items()}


@dataclass(frozen=True)
class Choice:
    """Which trial was taken, and why.

    Attributes:
        number: its place among the trials.
        reason: one sentence.
    """

    number: int
    reason: str


def unevaluable(problem: str) -> Score:
    """Return the score of a policy of which the logs can tell nothing."""
    return Score(math.nan, math.nan, math.nan, math.nan, 0, 0.0, problem)


def score_policies(
    uri: str, policies: Sequence[Policy], runtime: RuntimeConfig, *, min_ess: float, seed: int = 0
) -> list[Score]:
    """Evaluate policies on the validation split of a dataset.

    Args:
        uri: the dataset; some of its validation episodes have known probabilities.
        policies: whom.
        runtime: where to run.
        min_ess: least effective sample size that counts.
        seed: of the folds.

    Raises:
        PolicyError: no episode has known probabilities.
    """
    stats = [storage.stat(part) for part in list_parts(uri, "validation")]
    on_ray = sum(stat.size_bytes for stat in stats if stat) > _LARGE_BYTES  # a Ray job for a small file costs seconds
    return [_score(uri, policy, runtime, min_ess, seed, on_ray=on_ray) for policy in policies]


def _score(uri: str, policy: Policy, runtime: RuntimeConfig, min_ess: float, seed: int, *, on_ray: bool) -> Score:
    report = evaluate_transitions(uri, policy, runtime, split="validation", seed=seed, on_ray=on_ray).report
    found, diagnostics = report.estimates["dr"], report.screen.diagnostics
    problem = _find_problem(diagnostics, min_ess)
    if not problem and not math.isfinite(found.ci_low):
        problem = "its value has no interval: all validation episodes are of one task"
    return Score(
        found.value, found.ci_low, found.ci_high, report.behavior.value, diagnostics.n, diagnostics.ess, problem
    )


def _find_problem(found: Diagnostics, min_ess: float) -> str:
    """Return the first reason why the logs cannot tell enough of a policy; empty = there is none."""
    if found.n_unsupported:
        return f"{found.n_unsupported:,} decisions might take what the logs never did"
    if found.n_cut > MAX_CUT_SHARE * found.n:
        return f"{found.n_cut:,} of {found.n:,} episodes stop before their end"
    if found.ess < min_ess:
        return f"effective sample size {found.ess:.1f} is below {min_ess:g}"
    if found.max_weight_share > MAX_WEIGHT_SHARE:
        return f"one episode has {found.max_weight_share:.0%} of all weight"
    if abs(found.mean_weight_z) > MAX_MEAN_WEIGHT_Z:
        return f"the mean weight {found.mean_weight:.2f} is {abs(found.mean_weight_z):.1f} standard errors from 1"
    return ""


def choose(trials: Sequence[Trial], scores: Sequence[Score], wanted: str = "auto") -> Choice:
    """Choose a trial; see the rules above.

    Args:
        trials: [n] of them, BC among them.
        scores: [n] of theirs.
        wanted: auto, bc, cql or iql: only these count.
    """
    candidates = [n for n, trial in enumerate(trials) if wanted in ("auto", trial.algorithm)]
    usable = [n for n in candidates if not scores[n].problem]
    if not usable:
        fallback = next(n for n, trial in enumerate(trials) if trial.algorithm == "bc")
        why = "; ".join(dict.fromkeys(scores[n].problem for n in candidates[:3]))
        return Choice(fallback, f"behavior cloning, because no trial can be evaluated on held-out tasks: {why}")
    lows = [_round(scores[n].ci_low if n in usable else min(scores[m].ci_low for m in usable)) for n in candidates]
    settings: dict[str, list[int]] = {}
    for place, n in enumerate(candidates):
        settings.setdefault(trials[n].setting, []).append(place)
    known = [places for places in settings.values() if any(candidates[place] in usable for place in places)]
    best = max(known, key=lambda places: (_round(fmean(lows[place] for place in places)), -places[0]))
    taken = max((p for p in best if candidates[p] in usable), key=lambda place: (lows[place], -place))
    return Choice(candidates[taken], _explain(scores[candidates[taken]], len(settings), len(best)))


def _round(value: float) -> float:
    """Drop what is rounding only: it must not choose between policies that decide alike."""
    return round(value, _DECIMALS)


def _explain(score: Score, n_settings: int, n_seeds: int) -> str:
    seeds = f", mean of {n_seeds} seeds" if n_seeds > 1 else ""
    return (
        f"highest lower end of the doubly robust value of {n_settings} settings{seeds}; on {score.n:,} validation "
        f"episodes {score.value:.4g} [{score.ci_low:.4g}, {score.ci_high:.4g}], the logged policy {score.behavior:.4g}"
    )


def describe_states(uri: str, policy: LearnedPolicy, heuristic: HeuristicPolicy) -> dict[str, float]:
    """Return how often a policy decides as the heuristic in validation states, and how often it leaves them to it.

    Args:
        uri: the dataset; its validation split has rows. The first 100,000 are looked at.
        policy: whom.
        heuristic: with whom to compare.
    """
    n = n_equal = n_left = 0
    for batch in iter_transitions(uri, "validation", 16_384):
        obs = batch.features.astype(float)
        chosen, wanted = (p.probabilities(obs, batch.mask).argmax(axis=1) for p in (policy, heuristic))
        n, n_equal = n + len(batch), n_equal + int((chosen == wanted).sum())
        n_left += int(policy.is_fallback(obs).sum())
        if n >= _STATES:
            break
    return {"agreement_with_heuristic": n_equal / n, "fallback_rate": n_left / n}
