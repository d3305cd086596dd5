"""P(an answer is right), learned from questions, answers and outcomes; where log-probabilities are not known.

    features of question and answer (`answer_features`)  →  logistic regression  →  Platt's calibration

One model for each tier: answers of different models look different. The estimate stands in a bank's `confidence`, so a
policy sees it only after it has paid for the answer. Training needs scikit-learn (extra `cortex`), the rest numpy.

Terms of the texts, boosted trees and plain counts were tried on GSM8K and did not help (docs/gsm8k_replay.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celr_ray import storage
from celr_ray.cortex.answer_features import ANSWER_FEATURES, answer_features
from celr_ray.cortex.difficulty_model import Calibration, standardise
from celr_ray.cortex.reliability import ReliabilityBin, estimate_difficulty_error
from celr_ray.cortex.text_features import Floats
from celr_ray.errors import InputError, ModelError
from celr_ray.report.statistics import Estimate

__all__ = [
    "MIN_ANSWERS",
    "MIN_ANSWERS_PER_OUTCOME",
    "ConfidenceModel",
    "ConfidenceReport",
    "estimate_out_of_fold",
    "load_confidence",
    "train_confidence",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

FORMAT, VERSION = "celr-ray answer confidence", 1
MIN_ANSWERS = 50
"""Below it nothing is trained: better no confidence than one that nobody can check."""
MIN_ANSWERS_PER_OUTCOME = 10

_STRENGTHS = (0.01, 0.03, 0.1, 0.3)
"""Candidates for C, the inverse of the penalty on the coefficients."""
_N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class ConfidenceModel:
    """Estimates from question and answer the probability that the answer is right.

    Attributes:
        mean, scale, coef: [F] of the features.
        intercept: of the regression.
        calibration: from logits to probabilities.
        trained_on: what it was made from.
    """

    mean: Floats
    scale: Floats
    coef: Floats
    intercept: float
    calibration: Calibration
    trained_on: dict[str, Any]

    def predict(self, questions: Sequence[str], answers: Sequence[str]) -> Floats:
        """Return the probability that each answer is right, [B] in [0, 1], never NaN; each taken by itself.

        Raises:
            InputError: there are not as many answers as questions.
        """
        return self.calibration.apply(self.logits(make_features(questions, answers)))

    def logits(self, features: Floats) -> Floats:
        """Return the uncalibrated scores [B] of features [B, F]."""
        return np.asarray(standardise(features, self.mean, self.scale) @ self.coef + self.intercept)

    @property
    def content_hash(self) -> str:
        """Hash of all that decides an estimate, 16 hex digits."""
        return _hash(self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {
            "features": list(ANSWER_FEATURES),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "coef": self.coef.tolist(),
            "intercept": self.intercept,
            "slope": float(self.calibration.x[0]),
            "offset": float(self.calibration.y[0]),
            "trained_on": self.trained_on,
        }

    def save(self, uri: str) -> None:
        """Write the model as one JSON file; equal models give equal bytes.

        Raises:
            OutputError: it cannot be written.
        """
        model = self._to_json()
        document = {"format": FORMAT, "version": VERSION, "content_hash": _hash(model), "model": model}
        storage.write_bytes(uri, (json.dumps(document, sort_keys=True, allow_nan=False) + "\n").encode())


@dataclass(frozen=True)
class ConfidenceReport:
    """How good the estimates are, each made by a model that has not seen the task; 95 % intervals over tasks.

    Strength and calibration are chosen on the same out-of-fold scores: six numbers in all, so the figures flatter
    little.

    Attributes:
        n, n_tasks: answers and their tasks.
        share_right: of the answers.
        auc: P(a right answer's estimate > a wrong one's).
        brier: mean squared error.
        brier_constant: that of always saying the share of right answers.
        ece: expected calibration error; it has a floor above 0.
        reliability: the table behind `ece`; its `share_failed` is the share of right answers.
        strength: C of the regression.
    """

    n: int
    n_tasks: int
    share_right: float
    auc: Estimate | None
    brier: Estimate
    brier_constant: float
    ece: Estimate
    reliability: tuple[ReliabilityBin, ...]
    strength: float

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return asdict(self)


def make_features(questions: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return the features [B, F] of answers.

    Raises:
        InputError: there are not as many answers as questions.
    """
    if len(questions) != len(answers):
        raise InputError(f"{len(questions)} questions and {len(answers)} answers: they must be as many")
    rows = [answer_features(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return np.array(rows).reshape(len(rows), len(ANSWER_FEATURES))


def train_confidence(
    questions: Sequence[str], answers: Sequence[str], right: Sequence[bool] | Bools, *, seed: int
) -> tuple[ConfidenceModel, ConfidenceReport]:
    """Train on all answers, and measure out of fold.

    Args:
        questions: [B]; answers to one question stay on one side of every split.
        answers: [B] of one tier.
        right: [B] outcomes.
        seed: of the folds and the bootstrap.

    Returns:
        The model, and its figures.

    Raises:
        InputError: lengths differ, or there are too few answers, or of one outcome.
        ModelError: scikit-learn is not installed.
    """
    features, outcomes = make_features(questions, answers), np.asarray(right, dtype=bool)
    tasks = _number_tasks(questions)
    _check(features, outcomes, tasks)
    strength, logits = _choose_strength(features, outcomes, tasks, seed)
    calibration = _fit_calibration(logits, outcomes)
    estimates = calibration.apply(logits)
    error = estimate_difficulty_error(estimates, outcomes, tasks, seed)
    n_tasks = len(np.unique(tasks))
    report = ConfidenceReport(
        n=len(outcomes),
        n_tasks=n_tasks,
        share_right=float(outcomes.mean()),
        auc=error.auc,
        brier=error.brier,
        brier_constant=float(np.mean((outcomes.mean() - outcomes) ** 2)),
        ece=error.ece,
        reliability=error.reliability,
        strength=strength,
    )
    trained_on = {"n": len(outcomes), "n_tasks": n_tasks, "seed": seed, "share_right": float(outcomes.mean())}
    return _fit(features, outcomes, strength, calibration, trained_on), report


def estimate_out_of_fold(
    questions: Sequence[str], answers: Sequence[str], right: Sequence[bool] | Bools, folds: Ints, *, seed: int
) -> Floats:
    """Return the estimate of each answer, [B], by a model trained on the other folds only, calibration and all.

    Args:
        questions, answers, right: [B] as of `train_confidence`.
        folds: [B] fold of each; answers to one question must share one.
        seed: of the folds inside.

    Raises:
        InputError: too few answers remain to train on.
        ModelError: scikit-learn is not installed.
    """
    features, outcomes = make_features(questions, answers), np.asarray(right, dtype=bool)
    tasks, estimates = _number_tasks(questions), np.full(len(outcomes), np.nan)
    for fold in np.unique(folds):
        own, rest = folds == fold, folds != fold
        model = _train_model(features[rest], outcomes[rest], tasks[rest], seed)
        estimates[own] = model.calibration.apply(model.logits(features[own]))
    return estimates


def _train_model(features: Floats, right: Bools, tasks: Ints, seed: int) -> ConfidenceModel:
    _check(features, right, tasks)
    strength, logits = _choose_strength(features, right, tasks, seed)
    return _fit(features, right, strength, _fit_calibration(logits, right), {"n": len(right), "seed": seed})


def _number_tasks(questions: Sequence[str]) -> Ints:
    codes = {question: code for code, question in enumerate(dict.fromkeys(questions))}
    return np.array([codes[question] for question in questions], dtype=np.int64)


def _check(features: Floats, right: Bools, tasks: Ints) -> None:
    if len(features) != len(right):
        raise InputError(f"{len(features)} answers and {len(right)} outcomes: they must be as many")
    n_tasks, n_right, n_wrong = (len(np.unique(tasks[rows])) for rows in (slice(None), right, ~right))
    if n_tasks < MIN_ANSWERS or min(n_right, n_wrong) < MIN_ANSWERS_PER_OUTCOME:
        raise InputError(
            f"answers to {n_tasks} questions, {n_right} with a right and {n_wrong} with a wrong one: an estimate of "
            f"confidence needs {MIN_ANSWERS}, and {MIN_ANSWERS_PER_OUTCOME} of each. Record more answers, or leave "
            "confidence as it was recorded"
        )


def _fit(
    features: Floats, right: Bools, strength: float, calibration: Calibration, trained_on: dict[str, Any]
) -> ConfidenceModel:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    regression = _fit_regression(standardise(features, mean, scale), right, strength)
    return ConfidenceModel(mean, scale, regression.coef_[0], float(regression.intercept_[0]), calibration, trained_on)


def _fit_regression(vectors: Floats, right: Bools, strength: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ModelError("an estimate of confidence needs scikit-learn: pip install 'celr-ray[cortex]'") from error
    return LogisticRegression(C=strength, solver="lbfgs", max_iter=2000).fit(vectors, right)


def _choose_strength(features: Floats, right: Bools, tasks: Ints, seed: int) -> tuple[float, Floats]:
    """Return the strength with the least log loss out of fold, and these logits [B]."""
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise ModelError("an estimate of confidence needs scikit-learn: pip install 'celr-ray[cortex]'") from error
    splitter = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=seed)
    logits, as_they_are = np.zeros((len(_STRENGTHS), len(right))), Calibration("platt", np.ones(1), np.zeros(1))
    for inside, outside in splitter.split(features, right, tasks):
        for row, strength in enumerate(_STRENGTHS):
            model = _fit(features[inside], right[inside], strength, as_they_are, {})
            logits[row, outside] = model.logits(features[outside])
    losses = np.logaddexp(0, np.where(right, -logits, logits)).mean(axis=1)
    best = int(np.argmin(losses))
    return _STRENGTHS[best], logits[best]


def _fit_calibration(logits: Floats, right: Bools) -> Calibration:
    from celr_ray.cortex.difficulty import fit_platt

    return fit_platt(logits, right)


def _hash(model: Any) -> str:
    text = json.dumps([FORMAT, VERSION, model], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def load_confidence(uri: str) -> ConfidenceModel:
    """Read a saved model.

    The hash finds damage and edits; it is no signature, so load only from where only you write.

    Raises:
        InputError: there is no file, or it cannot be read.
        ModelError: it is no model, was changed since it was saved, or has other features than this package.
    """
    try:
        document = json.loads(storage.read_bytes(uri))
        model, stored = document["model"], document["content_hash"]
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise ModelError(f"{uri} is no {FORMAT} of version {VERSION}: train it anew")
        if (found := _hash(model)) != stored:
            raise ModelError(f"{uri} was changed since it was saved: its content hash is {found}, not {stored!r}")
        if model["features"] != list(ANSWER_FEATURES):
            raise ModelError(f"{uri} was trained on other features than this package reads: train it anew")
        mean, scale, coef = (np.array(model[name], dtype=float) for name in ("mean", "scale", "coef"))
        calibration = Calibration("platt", np.array([model["slope"]]), np.array([model["offset"]]))
        return ConfidenceModel(mean, scale, coef, float(model["intercept"]), calibration, model["trained_on"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{uri} is no {FORMAT}: {error!r}. Train one, or give the path of one") from error
