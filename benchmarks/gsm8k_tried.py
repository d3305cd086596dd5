"""Other estimates of what escalating is worth on GSM8K, beside the one that a bank holds; all from training questions.

features      of `cortex.answer_features`: form, recomputed arithmetic, use of the question's numbers
terms         words and pairs of words of question and answer, TF-IDF
plain counts  of `cortex.text_features`: lengths, digits, operators, …
gain          P(strong right) − P(cheap right) instead of P(cheap wrong), one regression for each
what the policy sees   the same gain from confidence, difficulty and budget left: the learned policy's own inputs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gsm8k_curves import rank
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from celr_ray.cortex.actions import BoolArray, FloatArray
from celr_ray.cortex.answer_confidence import make_features
from celr_ray.cortex.evaluation.bank_rows import BankParts
from celr_ray.cortex.text_features import plain_features


def try_others(parts: BankParts, splits: Mapping[str, str], seen: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Return ranks of a fold's `gate` questions among its validation ones, by each estimate.

    Args:
        parts: questions, answers, outcomes.
        splits: of each question.
        seen: confidence, difficulty and budget left after the cheap answer, of each question.
    """
    ids = sorted(splits)
    rows = {name: np.flatnonzero([splits[i] == name for i in ids]) for name in ("train", "validation", "gate")}
    questions, answers = [parts.tasks[i].text or "" for i in ids], find_answers(parts, ids)
    both = [f"{q}\n{a}" for q, a in zip(questions, answers, strict=True)]
    wrong, strong = ~find_outcomes(parts, ids, 0), find_outcomes(parts, ids, -1)
    features = make_features(questions, answers)
    counts = np.array([[*plain_features(q), *plain_features(a)] for q, a in zip(questions, answers, strict=True)])
    state = np.array([seen[i] for i in ids])
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True).fit([both[n] for n in rows["train"]])
    scaled = StandardScaler().fit(features[rows["train"]]).transform(features)
    terms = hstack([csr_matrix(scaled), words.transform(both)]).tocsr()

    def predict(model: Any, x: Any, y: BoolArray) -> FloatArray:
        return np.asarray(model.fit(x[rows["train"]], y[rows["train"]]).predict_proba(x)[:, 1])

    def regress(x: FloatArray, y: BoolArray) -> FloatArray:
        return predict(make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)), x, y)

    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, max_leaf_nodes=8, random_state=0)
    on_terms = make_pipeline(MaxAbsScaler(), LogisticRegression(C=1.0, max_iter=2000))
    scores = {
        "features and terms, logistic": predict(on_terms, terms, wrong),
        "features, boosted trees": predict(trees, features, wrong),
        "plain counts, logistic": regress(counts, wrong),
        "features, gain": regress(features, wrong) + regress(features, strong),
        "what the policy sees, gain": regress(state, wrong) + regress(state, strong),
    }
    return {name: rank(score[rows["gate"]], score[rows["validation"]]) for name, score in scores.items()}


def find_answers(parts: BankParts, ids: list[str]) -> list[str]:
    """Return the cheapest tier's answers."""
    cheap = parts.tiers[0].name
    found = {row["task_id"]: parts.answers[n] for n, row in enumerate(parts.attempts) if row["tier"] == cheap}
    return [found[i] for i in ids]


def find_outcomes(parts: BankParts, ids: list[str], tier: int) -> BoolArray:
    """Return whether a tier's answers are right."""
    name = parts.tiers[tier].name
    found = {row["task_id"]: row["success"] for row in parts.attempts if row["tier"] == name}
    return np.array([found[i] for i in ids], dtype=bool)
