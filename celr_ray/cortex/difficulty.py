"""Training of the difficulty estimator: P(the cheapest tier fails a task), from the text that stands before any call.

    TF-IDF of words and of characters, plain counts  →  logistic regression  →  calibration

Strength of the regression and calibration are found by cross-validation inside the training tasks, the figures of the
report on tasks that no step of the training has seen; the model that is returned is the one that was measured. Needs
scikit-learn (extra `cortex`); what predicts is `cortex/difficulty_model.py`.

Source: calibration by Platt (1999) with his smoothed targets, or isotonic regression (Zadrozny & Elkan 2002) where
there are enough rows for it, as scikit-learn's guide advises.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celr_ray.core.answers import AnswerKind, extract_answer, normalise_text, read_number
from celr_ray.cortex.difficulty_model import (
    Calibration,
    DifficultyModel,
    Embedder,
    TermBlock,
    dense_features,
    load_difficulty,
    standardise,
)
from celr_ray.cortex.difficulty_rows import DifficultyRows, difficulty_rows, rows_from_trajectories
from celr_ray.cortex.reliability import DifficultyReport, estimate_difficulty_error
from celr_ray.cortex.text_features import TERM_FAMILIES, Floats
from celr_ray.errors import InputError, ModelError

__all__ = [
    "MIN_TASKS",
    "MIN_TASKS_PER_OUTCOME",
    "DifficultyModel",
    "DifficultyReport",
    "DifficultyRows",
    "cheap_signals",
    "difficulty_rows",
    "fit_platt",
    "load_difficulty",
    "rows_from_trajectories",
    "train_difficulty",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MIN_TASKS = 50
"""Below it nothing is trained: `DifficultyModel.neutral()` is what there is."""

MIN_TASKS_PER_OUTCOME = 10
"""So many tasks with a failed run, and so many with a successful one: two for each fold."""

_N_FOLDS = 5
_STRENGTHS = (0.03, 0.1, 0.3, 1.0)
"""Candidates for C, the inverse of the penalty on the coefficients."""

_MAX_TERMS = 30_000
_LEAST_TEXTS = 2
"""A term must stand in so many of the training texts."""

_ISOTONIC_ROWS = 5_000
"""From here isotonic calibration, below Platt's two numbers: with fewer rows isotonic regression has but a few steps,
and half the tasks get equal estimates."""


@dataclass(frozen=True)
class _Data:
    texts: list[str]
    failed: Bools
    tasks: Ints
    embedder: Embedder | None

    def take(self, rows: Ints) -> _Data:
        return _Data([self.texts[row] for row in rows], self.failed[rows], self.tasks[rows], self.embedder)

    def folds(self, seed: int) -> Iterator[tuple[Ints, Ints]]:
        """Yield (training rows, other rows), no task on both sides, outcomes balanced."""
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=seed)
        yield from splitter.split(self.texts, self.failed, self.tasks)


def train_difficulty(
    texts: Sequence[str],
    failed: Sequence[bool] | Bools,
    groups: Sequence[str],
    *,
    seed: int,
    embedder: Embedder | None = None,
) -> tuple[DifficultyModel, DifficultyReport]:
    """Train on four fifths of the tasks and measure on the rest.

    Args:
        texts: [B] what was known of each task before its first call.
        failed: [B] true = the cheapest tier failed.
        groups: [B] task ids; rows of one task stay on one side of every split.
        seed: of the splits and the bootstrap.
        embedder: also use sentence embeddings (`cortex/embedding.py`); None = no.

    Returns:
        The model, and its figures on the held-out tasks.

    Raises:
        InputError: lengths differ, there are too few tasks, or too few of one outcome.
        ModelError: scikit-learn is not installed.
    """
    _check_sklearn()
    data = _check_data(texts, failed, groups, embedder)
    train_rows, test_rows = next(data.folds(seed))
    train, test = data.take(train_rows), data.take(test_rows)
    strength, calibration = _cross_validate(train, seed)
    n_tasks = len(np.unique(train.tasks))
    origin = {"n": len(train.texts), "n_tasks": n_tasks, "seed": seed, "share_failed": float(train.failed.mean())}
    model = _fit(train, strength, calibration, origin)
    predicted = model.predict(test.texts)
    error = estimate_difficulty_error(predicted, test.failed, test.tasks, seed)
    report = DifficultyReport(
        seed=seed,
        n_train=len(train.texts),
        n_train_tasks=n_tasks,
        n=len(test.texts),
        n_tasks=len(np.unique(test.tasks)),
        share_failed=float(test.failed.mean()),
        auc=error.auc,
        brier=error.brier,
        brier_constant=float(np.mean((train.failed.mean() - test.failed) ** 2)),
        ece=error.ece,
        reliability=error.reliability,
        calibration=calibration.method,
        strength=strength,
        model_hash=model.content_hash,
    )
    return model, report


def cheap_signals(
    answers: Sequence[str], mean_logprobs: Sequence[float | None], kind: AnswerKind = "text"
) -> tuple[float, float]:
    """Return what samples of the cheap model on one task say of it: agreement and confidence.

    Args:
        answers: two or more sampled answers.
        mean_logprobs: mean token log-probability of each answer, ≤ 0; None = not known.
        kind: what the task's answers are; numbers are compared as numbers, all else as normalised text.

    Returns:
        Agreement: share of the pairs of answers whose extracted answers are equal, an answer from which none can be
        extracted agreeing with no other; NaN for fewer than two. Confidence: exp of the mean of the known
        log-probabilities, 0 to 1; NaN if none is known.
    """
    found = [_read_answer(kind, answer) for answer in answers]
    pairs = [(first, second) for i, first in enumerate(found) for second in found[:i]]
    agreement = sum(a is not None and a == b for a, b in pairs) / len(pairs) if pairs else math.nan
    known = [value for value in mean_logprobs if value is not None and math.isfinite(value)]
    return agreement, math.exp(min(math.fsum(known) / len(known), 0.0)) if known else math.nan


def _read_answer(kind: AnswerKind, text: str) -> Hashable:
    """Return an answer in a form in which equal ones are equal; None if there is none."""
    found = extract_answer(kind, text)
    if found is None or kind in ("python_tests", "json_schema"):
        return found
    return read_number(found) if kind == "numeric" else normalise_text(found, ignore_case=True)


def _check_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ModelError("training a difficulty model needs scikit-learn: pip install 'celr-ray[cortex]'") from error


def _check_data(
    texts: Sequence[str], failed: Sequence[bool] | Bools, groups: Sequence[str], embedder: Embedder | None
) -> _Data:
    if not len(texts) == len(failed) == len(groups):
        raise InputError(f"{len(texts)} texts, {len(failed)} outcomes and {len(groups)} task ids: they must be as many")
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    tasks = np.array([codes[group] for group in groups], dtype=np.int64)
    outcomes = np.asarray(failed, dtype=bool)
    n_tasks, n_failed, n_good = (len(np.unique(tasks[rows])) for rows in (slice(None), outcomes, ~outcomes))
    if n_tasks < MIN_TASKS or min(n_failed, n_good) < MIN_TASKS_PER_OUTCOME:
        raise InputError(
            f"{n_tasks} tasks, {n_failed} with a failed and {n_good} with a successful run: a difficulty model needs "
            f"{MIN_TASKS}, and {MIN_TASKS_PER_OUTCOME} of each. Log more runs; until then there is the neutral estimate"
        )
    return _Data(list(texts), outcomes, tasks, embedder)


def _cross_validate(data: _Data, seed: int) -> tuple[float, Calibration]:
    """Choose the strength by the log loss of out-of-fold logits, and calibrate on these logits."""
    logits = np.zeros((len(_STRENGTHS), len(data.texts)))
    for train_rows, rest_rows in data.folds(seed):
        train, rest = data.take(train_rows), data.take(rest_rows)
        features = _Features(train.texts, data.embedder)
        inside, outside = features.vectors, features.transform(rest.texts)
        for row, strength in enumerate(_STRENGTHS):
            logits[row, rest_rows] = _fit_regression(inside, train.failed, strength).decision_function(outside)
    losses = np.logaddexp(0, np.where(data.failed, -logits, logits)).mean(axis=1)
    best = int(np.argmin(losses))
    return _STRENGTHS[best], _calibrate(logits[best], data.failed)


def _fit(data: _Data, strength: float, calibration: Calibration, origin: dict[str, Any]) -> DifficultyModel:
    """Fit terms and regression on all rows, and put them into a model that needs no scikit-learn."""
    features = _Features(data.texts, data.embedder)
    regression = _fit_regression(features.vectors, data.failed, strength)
    terms = {family: fitted.get_feature_names_out() for family, fitted in features.terms.items()}
    *parts, coef = np.split(regression.coef_[0], np.cumsum([len(found) for found in terms.values()]))
    blocks = tuple(
        TermBlock(family, tuple(map(str, terms[family])), fitted.idf_, part)
        for (family, fitted), part in zip(features.terms.items(), parts, strict=True)
    )
    return DifficultyModel(
        True, origin, blocks, features.mean, features.scale, coef, float(regression.intercept_[0]), calibration,
        data.embedder,
    )  # fmt: skip


def _fit_regression(vectors: Any, failed: Bools, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, solver="lbfgs", max_iter=2000).fit(vectors, failed)


class _Features:
    """Terms and plain features, fitted to some texts.

    Attributes:
        terms: fitted TfidfVectorizer of each family that has terms. A text that many runs share counts once in it.
        mean, scale: [P] of the dense features.
        vectors: [B, ΣV + P] sparse, of the texts themselves.
    """

    def __init__(self, texts: Sequence[str], embedder: Embedder | None) -> None:
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = [distinct[text] for text in texts]
        self._embedder = embedder
        self.terms, sparse_parts = {}, []
        for family in TERM_FAMILIES:
            vectoriser = _make_vectoriser(family)
            with suppress(ValueError):  # no two texts share a term: a text in a script without spaces is one word
                sparse_parts.append(vectoriser.fit_transform(distinct)[rows])
                self.terms[family] = vectoriser
        if not self.terms:
            raise InputError(f"the {len(distinct)} texts have nothing in common to learn from")
        dense = self._dense(list(distinct))[rows]
        spread = dense.std(axis=0)
        self.mean, self.scale = dense.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)
        self.vectors = self._stack(sparse_parts, dense)

    def transform(self, texts: Sequence[str]) -> Any:
        """Return the vectors of other texts."""
        return self._stack([fitted.transform(texts) for fitted in self.terms.values()], self._dense(texts))

    def _dense(self, texts: Sequence[str]) -> Floats:
        return np.array([dense_features(text, self._embedder) for text in texts])

    def _stack(self, sparse_parts: list[Any], dense: Floats) -> Any:
        from scipy import sparse

        return sparse.hstack([*sparse_parts, standardise(dense, self.mean, self.scale)]).tocsr()


def _make_vectoriser(family: str) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer=TERM_FAMILIES[family], sublinear_tf=True, min_df=_LEAST_TEXTS, max_features=_MAX_TERMS
    )


def _calibrate(logits: Floats, failed: Bools) -> Calibration:
    if len(logits) >= _ISOTONIC_ROWS:
        return _fit_isotonic(logits, failed)
    return fit_platt(logits, failed)


def _fit_isotonic(logits: Floats, failed: Bools) -> Calibration:
    """Fit isotonic regression; no probability is nearer to 0 or 1 than one row more of the other kind allows."""
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(logits) + 2)
    regression = IsotonicRegression(y_min=least, y_max=1 - least).fit(logits, failed.astype(float))
    return Calibration("isotonic", np.asarray(regression.X_thresholds_), np.asarray(regression.y_thresholds_))


def fit_platt(logits: Floats, failed: Bools) -> Calibration:
    """Fit slope (not below 0) and offset by maximum likelihood of Platt's targets (n₊ + 1)/(n₊ + 2), 1/(n₋ + 2).

    Args:
        logits: [B] scores of rows that the regression has not seen.
        failed: [B] the outcome whose probability is wanted.
    """
    from scipy.optimize import minimize

    n_failed = int(failed.sum())
    targets = np.where(failed, (n_failed + 1) / (n_failed + 2), 1 / (len(failed) - n_failed + 2))

    def loss(line: Floats) -> float:
        scores = line[0] * logits + line[1]
        return float(np.mean(np.logaddexp(0, scores) - targets * scores))

    start = np.array([1.0, 0.0])
    slope, offset = minimize(loss, start, method="L-BFGS-B", bounds=[(0, None), (None, None)]).x
    return Calibration("platt", np.array([slope]), np.array([offset]))
