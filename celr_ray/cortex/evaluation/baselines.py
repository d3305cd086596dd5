"""The policies that a learned one must beat, and the threshold cascade tuned on training tasks.

All of them read the state vector and the mask alone, so they run in replays and live. Together with always-cheap,
always-strong and the static heuristic (`core.escalation`) they are the baselines of every gate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, HeuristicPolicy, apply_rules
from celr_ray.cortex.actions import Action, BoolArray, FloatArray
from celr_ray.cortex.evaluation.bank import Bank, Split
from celr_ray.cortex.evaluation.replay import ReplayConfig
from celr_ray.cortex.evaluation.replay_run import ReplaySuite, prepare_replay, run_replay
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.state import FEATURE_INDEX, SCHEMA_HASH
from celr_ray.errors import PolicyError

__all__ = [
    "CascadePoint",
    "RandomMix",
    "RetryThenEscalate",
    "Signal",
    "ThresholdCascade",
    "TunedCascade",
    "make_baselines",
    "tune_cascade",
]

Signal = Literal["difficulty", "confidence", "probe"]
_MAX_THRESHOLDS = 41


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps([*parts, SCHEMA_HASH]).encode(), digest_size=8).hexdigest()


def _flag(obs: FloatArray, name: str) -> BoolArray:
    return np.asarray(obs[:, FEATURE_INDEX[name]] > 0.5)


class RandomMix:
    """Asks the tier above with a fixed chance, else the cheapest, and takes the first answer.

    On a ladder of two tiers: the straight line between always-cheap and always-strong, which many learned routers do
    not beat. On longer ladders the strong part asks the tier that a first ESCALATE leads to.
    """

    start_tier = 0

    def __init__(self, share_strong: float) -> None:
        """Mix.

        Args:
            share_strong: chance of the stronger tier, 0 to 1.

        Raises:
            PolicyError: it is no probability.
        """
        if not 0 <= share_strong <= 1:
            raise PolicyError(f"share_strong is {share_strong}, not within 0 and 1")
        self.share_strong = share_strong
        self.name = f"random-mix ({share_strong:.3g} strong)"
        self.content_hash = _hash("random-mix", share_strong)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the mixture as probabilities [K, A] for states [K, D] and masks [K, A]."""
        answered = _flag(obs, "has_answer")
        cheap = apply_rules([(answered, Action.STOP), (~answered, Action.RECURSE), (~answered, Action.ESCALATE)], mask)
        strong = apply_rules([(answered, Action.STOP), (~answered, Action.ESCALATE), (~answered, Action.RECURSE)], mask)
        return np.asarray((1 - self.share_strong) * cheap + self.share_strong * strong)


class RetryThenEscalate:
    """Attempts, verifies, retries a refuted answer once (or not at all), then escalates.

    What stays refuted on the strongest tier is accepted: it may be right, and giving up never is. Without a verifier
    the first answer is taken.
    """

    start_tier = 0

    def __init__(self, *, retries: Literal[0, 1] = 1) -> None:
        """Allow so many retries on each tier; 0 = a cascade on the verifier's verdict."""
        if retries not in (0, 1):
            raise PolicyError(f"retries is {retries}, not 0 or 1")
        self._retries = retries
        self.name = "retry-then-escalate" if retries else "verify-then-escalate"
        self.content_hash = _hash(self.name)

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        answered, unverified = _flag(obs, "has_answer"), _flag(obs, "is_unverified")
        failed = _flag(obs, "is_verified_failed")
        may_retry = failed & (obs[:, FEATURE_INDEX["retries"]] == 0) & (self._retries > 0)
        rules = [
            (~answered, Action.RECURSE),
            (~answered, Action.ESCALATE),
            (unverified & _flag(obs, "has_verifier"), Action.VERIFY),
            (~failed, Action.STOP),
            (may_retry, Action.RECURSE),
            (may_retry, Action.RETRY_COMPRESSED),
            (failed, Action.ESCALATE),
            (failed, Action.STOP),
        ]
        return apply_rules(rules, mask)


class ThresholdCascade:
    """Goes to a stronger tier where one number speaks against the current one; else takes the first answer.

    difficulty   before the first call: the estimate is at or above the threshold
    probe        before the first call: 1 − agreement · confidence of the two samples is at or above it; a task that
                 was not probed starts cheap
    confidence   after each answer: 1 − its confidence is at or above it; an unknown confidence counts as 0
    """

    start_tier = 0

    def __init__(self, signal: Signal, threshold: float) -> None:
        """Use a signal and a threshold.

        Raises:
            PolicyError: there is no such signal, or the threshold is NaN.
        """
        if signal not in get_args(Signal):
            raise PolicyError(f"no signal {signal!r}; there are {', '.join(get_args(Signal))}")
        if np.isnan(threshold):
            raise PolicyError("the threshold of a cascade is NaN")
        self.signal: Signal = signal
        self.threshold = float(threshold)
        sign = "1 − confidence" if signal == "confidence" else signal
        self.name = f"cascade ({sign} ≥ {threshold:.3g})"
        self.content_hash = _hash("cascade", signal, repr(self.threshold))

    def probabilities(self, obs: FloatArray, mask: BoolArray) -> FloatArray:
        """Return the choice as probabilities [K, A] for states [K, D] and masks [K, A]."""
        answered = _flag(obs, "has_answer")
        is_up = read_signal(obs, self.signal) >= self.threshold
        may_climb = answered if self.signal == "confidence" else ~answered
        rules = [
            (may_climb & is_up, Action.ESCALATE),
            (answered, Action.STOP),
            (~answered, Action.RECURSE),
            (~answered, Action.ESCALATE),
        ]
        return apply_rules(rules, mask)


def read_signal(obs: FloatArray, signal: Signal) -> FloatArray:
    """Return the number that speaks for a stronger tier, [K], 0 to 1."""
    if signal == "difficulty":
        return np.asarray(obs[:, FEATURE_INDEX["difficulty"]])
    if signal == "confidence":
        return np.where(_flag(obs, "is_confidence_known"), 1 - obs[:, FEATURE_INDEX["confidence"]], 1.0)
    agreed = obs[:, FEATURE_INDEX["probe_agreement"]] * obs[:, FEATURE_INDEX["probe_confidence"]]
    return np.where(_flag(obs, "is_probed"), 1 - agreed, 0.0)


@dataclass(frozen=True)
class CascadePoint:
    """What one cascade did on the training tasks.

    Attributes:
        signal, threshold: the cascade.
        success: mean over tasks; the censored count as failures.
        cost_usd: mean over tasks; the censored at their whole budgets.
    """

    signal: Signal
    threshold: float
    success: float
    cost_usd: float


@dataclass(frozen=True)
class TunedCascade:
    """The cascade to compare with, and all that were tried.

    Attributes:
        policy: the best that costs no more than allowed, or the cheapest of all where none does.
        chosen: its figures on the training tasks.
        is_within_cost: it costs no more than allowed there.
        points: every cascade that was tried.
    """

    policy: ThresholdCascade
    chosen: CascadePoint
    is_within_cost: bool
    points: tuple[CascadePoint, ...]


def tune_cascade(
    bank: Bank | ReplaySuite,
    *,
    max_cost_usd: float,
    signals: Sequence[Signal] = get_args(Signal),
    split: Split | None = "train",
    config: ReplayConfig | None = None,
) -> TunedCascade:
    """Find signal and threshold with the most success at a mean cost, on training tasks only.

    Args:
        bank: a bank, or a suite made of its training tasks.
        max_cost_usd: most mean cost of an episode, US$: what the compared policy costs on these tasks.
        signals: which to try; one that is the same for all states has a single threshold to try.
        split: tasks to tune on.
        config: rules of the replay.

    Raises:
        InputError: no task can be replayed.
        PolicyError: no signal is given.
    """
    if not signals:
        raise PolicyError("no signal to tune a cascade on")
    suite = bank if isinstance(bank, ReplaySuite) else prepare_replay(bank, split, config)
    points = [
        _measure(suite, ThresholdCascade(signal, threshold))
        for signal in signals
        for threshold in _candidates(suite, signal)
    ]
    affordable = [point for point in points if point.cost_usd <= max_cost_usd * (1 + 1e-12)]
    if affordable:
        chosen = max(affordable, key=lambda point: (point.success, -point.cost_usd))
    else:
        chosen = min(points, key=lambda point: (point.cost_usd, -point.success))
    return TunedCascade(ThresholdCascade(chosen.signal, chosen.threshold), chosen, bool(affordable), tuple(points))


def _candidates(suite: ReplaySuite, signal: Signal) -> list[float]:
    """Return thresholds to try: quantiles of the signal where it decides, and one that is never reached."""
    start = run_replay(suite, AlwaysCheap(), keep_decisions=True).decisions
    if start is None:
        return []
    decides = start.t == (1 if signal == "confidence" else 0)
    values = np.unique(read_signal(start.obs[decides], signal))
    if len(values) > _MAX_THRESHOLDS:
        values = np.unique(np.quantile(values, np.linspace(0, 1, _MAX_THRESHOLDS), method="nearest"))
    return [*values.tolist(), float("inf")]


def _measure(suite: ReplaySuite, policy: ThresholdCascade) -> CascadePoint:
    results = run_replay(suite, policy)
    success, cost = results.success_bounds()[0].mean(), results.cost_bounds()[1].mean()
    return CascadePoint(policy.signal, policy.threshold, float(success), float(cost))


def make_baselines(suite: ReplaySuite, *, max_cost_usd: float) -> list[Policy]:
    """Return the baselines of a gate, tuned on training tasks where they have anything to tune.

    Args:
        suite: training tasks.
        max_cost_usd: mean cost that the random mix and the cascade may have there, US$: the candidate's.
    """
    cheap, strong = (run_replay(suite, policy).cost_bounds()[1].mean() for policy in (AlwaysCheap(), AlwaysStrong()))
    share = (max_cost_usd - cheap) / (strong - cheap) if strong > cheap else 0.0
    return [
        AlwaysCheap(),
        AlwaysStrong(),
        RandomMix(float(np.clip(share, 0.0, 1.0))),
        HeuristicPolicy(suite.config.escalation),
        RetryThenEscalate(),
        tune_cascade(suite, max_cost_usd=max_cost_usd).policy,
    ]
