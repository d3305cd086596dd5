"""A trained difficulty model: predicts in numpy alone, and is saved as JSON with a content hash, never as a pickle.

Training (`cortex/difficulty.py`) needs scikit-learn, this module does not. The TF-IDF vectors are those of
scikit-learn's `TfidfVectorizer(sublinear_tf=True)` with the terms of `cortex/text_features.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from celr_ray import storage
from celr_ray.cortex.text_features import PLAIN_FEATURES, TERM_FAMILIES, Floats, plain_features
from celr_ray.errors import ModelError

__all__ = ["Calibration", "DifficultyModel", "Embedder", "TermBlock", "dense_features", "load_difficulty"]

Ints = NDArray[np.int64]

FORMAT = "celr-ray difficulty"
VERSION = 1
"""Of the file and of what its numbers mean: another set of features is another version."""

NEUTRAL = 0.5
_MAX_DEVIATIONS = 4.0


class Embedder(Protocol):
    """Turns texts into vectors: the hook for sentence embeddings (`cortex/embedding.py`)."""

    name: str
    """What `load_embedder` loads it by."""

    def embed(self, text: str) -> Floats:
        """Return the vector [E] of one text."""
        ...


@dataclass(frozen=True)
class TermBlock:
    """One family of terms: vocabulary, weights and coefficients.

    Attributes:
        family: a key of `TERM_FAMILIES`.
        terms: [V] the vocabulary.
        idf: [V] inverse document frequencies.
        coef: [V] coefficients of the logistic regression.
    """

    family: str
    terms: tuple[str, ...]
    idf: Floats
    coef: Floats

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {term: column for column, term in enumerate(self.terms)}

    def transform(self, text: str) -> tuple[Ints, Floats]:
        """Return the TF-IDF vector of a text as columns (ascending) and values, both [K].

        value = (1 + ln count)·idf, divided by the vector's length.
        """
        found = Counter(TERM_FAMILIES[self.family](text))
        counts = {self._columns[term]: n for term, n in found.items() if term in self._columns}
        columns = np.array(sorted(counts), dtype=np.int64)
        values = (np.log(np.array([counts[column] for column in columns], dtype=float)) + 1) * self.idf[columns]
        # Summed one by one, as scikit-learn does: numpy's own sum rounds otherwise.
        length = math.sqrt(np.add.accumulate(values**2)[-1]) if len(values) else 1.0
        return columns, values / length

    def score(self, text: str) -> float:
        """Return the block's share of the logit."""
        columns, values = self.transform(text)
        return math.fsum(values * self.coef[columns])


@dataclass(frozen=True)
class Calibration:
    """Maps logits to probabilities.

    Attributes:
        method: `platt`: 1 / (1 + exp(−(x·logit + y))); `isotonic`: linear between the knots (x, y), flat outside.
        x: slope [1], or the knots' logits [K], ascending.
        y: offset [1], or the knots' probabilities [K], ascending, within 0 and 1.
    """

    method: str
    x: Floats
    y: Floats

    def apply(self, logits: Floats) -> Floats:
        """Return probabilities [B]."""
        if self.method == "isotonic":
            return np.interp(logits, self.x, self.y)
        return np.asarray(1 / (1 + np.exp(-np.clip(self.x[0] * logits + self.y[0], -500, 500))))


@dataclass(frozen=True)
class DifficultyModel:
    """Estimates from a task's text the probability that the cheapest tier fails it.

    Attributes:
        is_trained: false for `neutral()`, which says .5 of everything and must be flagged as no estimate.
        trained_on: what it was made from (`n`, `n_tasks`, `seed`, …).
        blocks: the families of terms.
        mean, scale, coef: [P] of the plain features (and the embedding, where there is one).
        intercept: of the logistic regression.
        calibration: from logits to probabilities.
        embedder: None, or what makes the embedding.
    """

    is_trained: bool
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[TermBlock, ...] = ()
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    scale: Floats = field(default_factory=lambda: np.ones(0))
    coef: Floats = field(default_factory=lambda: np.zeros(0))
    intercept: float = 0.0
    calibration: Calibration = field(default_factory=lambda: Calibration("platt", np.ones(1), np.zeros(1)))
    embedder: Embedder | None = None

    @classmethod
    def neutral(cls) -> DifficultyModel:
        """Return the untrained model: the constant .5."""
        return cls(is_trained=False)

    def predict(self, texts: Sequence[str]) -> Floats:
        """Return the probability of failure of each text, float64 [B] in [0, 1]; never NaN.

        Each text is taken by itself: neither order nor batch changes a value.
        """
        if not self.is_trained:
            return np.full(len(texts), NEUTRAL)
        return self.calibration.apply(np.array([self.logit(text) for text in texts], dtype=float))

    def logit(self, text: str) -> float:
        """Return the uncalibrated score of one text; sums are exactly rounded, so their order is no matter."""
        dense = standardise(dense_features(text, self.embedder), self.mean, self.scale)
        return math.fsum([self.intercept, *(block.score(text) for block in self.blocks), *(dense * self.coef)])

    @cached_property
    def content_hash(self) -> str:
        """Hash of all that decides a prediction, 16 hex digits."""
        return _hash(_model_to_json(self))

    def save(self, uri: str) -> None:
        """Write the model as one JSON file; equal models give equal bytes.

        Raises:
            OutputError: it cannot be written.
        """
        model = _model_to_json(self)
        document = {"format": FORMAT, "version": VERSION, "content_hash": _hash(model), "model": model}
        storage.write_bytes(uri, (_dump(document) + "\n").encode())


def dense_features(text: str, embedder: Embedder | None) -> Floats:
    """Return the plain features of a text, [P], then its embedding, if any.

    Raises:
        ModelError: the embedder returned something that is not finite.
    """
    plain = plain_features(text)
    if embedder is None:
        return plain
    vector = np.asarray(embedder.embed(text), dtype=float)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ModelError(f"the embedder {embedder.name} returned no finite vector for a text of {len(text)} characters")
    return np.concatenate([plain, vector])


def standardise(dense: Floats, mean: Floats, scale: Floats) -> Floats:
    """Return (x − mean) / scale within ±4: no text is so long that one count decides alone."""
    return np.clip((dense - mean) / scale, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)


def load_difficulty(uri: str) -> DifficultyModel:
    """Read a saved model.

    The hash finds damage and edits; it is no signature, so load only from where only you write.

    Raises:
        InputError: there is no file, or it cannot be read.
        ModelError: it is no model, of another version, changed since it was saved, or its embedder is missing.
    """
    data = storage.read_bytes(uri)
    try:
        document = json.loads(data)
        version = document["version"] if document["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{uri} is no difficulty model: {error!r}. Train one, or give the path of one") from error
    if version != VERSION:
        raise ModelError(f"{uri} is a model of version {version!r}, this package reads {VERSION}: train it anew")
    try:
        model, stored = document["model"], document["content_hash"]
        if (found := _hash(model)) != stored:
            raise ModelError(f"{uri} was changed since it was saved: its content hash is {found}, not {stored!r}")
        return _model_from_json(model)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{uri} is a damaged difficulty model: {error!r}. Train it anew") from error


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _hash(model: Any) -> str:
    return hashlib.blake2b(_dump([FORMAT, VERSION, model]).encode(), digest_size=8).hexdigest()


def _model_to_json(model: DifficultyModel) -> dict[str, Any]:
    blocks = [
        {"family": b.family, "terms": list(b.terms), "idf": b.idf.tolist(), "coef": b.coef.tolist()}
        for b in model.blocks
    ]
    calibration = model.calibration
    return {
        "is_trained": model.is_trained,
        "trained_on": dict(model.trained_on),
        "blocks": blocks,
        "mean": model.mean.tolist(),
        "scale": model.scale.tolist(),
        "coef": model.coef.tolist(),
        "intercept": model.intercept,
        "calibration": {"method": calibration.method, "x": calibration.x.tolist(), "y": calibration.y.tolist()},
        "embedder": model.embedder.name if model.embedder else None,
    }


def _model_from_json(model: Mapping[str, Any]) -> DifficultyModel:
    """Build a model from its JSON.

    Raises:
        ValueError: parts do not fit together.
    """
    blocks = tuple(_block_from_json(block) for block in model["blocks"])
    mean, scale, coef = (_read_floats(model[name]) for name in ("mean", "scale", "coef"))
    x, y = (_read_floats(model["calibration"][name]) for name in ("x", "y"))
    method = model["calibration"]["method"]
    if method not in ("platt", "isotonic") or not 0 < len(x) == len(y) or np.any(np.diff(x) < 0):
        raise ValueError("its calibration is none")
    n_dense = len(PLAIN_FEATURES) if model["is_trained"] else 0
    if not n_dense <= len(mean) == len(scale) == len(coef) or np.any(scale <= 0):
        raise ValueError("its plain features do not fit")
    embedder = None
    if model["embedder"] is not None:
        from celr_ray.cortex.embedding import load_embedder

        embedder = load_embedder(model["embedder"])
    calibration = Calibration(method, x, y)
    intercept = float(_read_floats([model["intercept"]])[0])
    return DifficultyModel(
        bool(model["is_trained"]), model["trained_on"], blocks, mean, scale, coef, intercept, calibration, embedder
    )


def _block_from_json(block: Mapping[str, Any]) -> TermBlock:
    terms, idf, coef = tuple(block["terms"]), _read_floats(block["idf"]), _read_floats(block["coef"])
    if block["family"] not in TERM_FAMILIES or not len(terms) == len(idf) == len(coef):
        raise ValueError(f"its terms of the family {block['family']!r} do not fit")
    return TermBlock(block["family"], terms, idf, coef)


def _read_floats(values: Sequence[float]) -> Floats:
    array = np.array(values, dtype=float)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array
