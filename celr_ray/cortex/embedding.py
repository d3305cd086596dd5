"""Sentence embeddings for the difficulty estimator: an option behind a package that is not among the dependencies."""

from __future__ import annotations

import numpy as np

from celr_ray.cortex.difficulty_model import Embedder
from celr_ray.cortex.text_features import Floats
from celr_ray.errors import ModelError

__all__ = ["load_embedder"]


class _SentenceEmbedder:
    """A model of the package sentence-transformers; texts one by one, so that no batch changes a vector."""

    def __init__(self, name: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = name
        self._model = SentenceTransformer(name)

    def embed(self, text: str) -> Floats:
        """Return the vector [E] of one text."""
        return np.asarray(self._model.encode([text], show_progress_bar=False)[0], dtype=float)


def load_embedder(name: str) -> Embedder:
    """Load a sentence-transformers model.

    Args:
        name: a folder, or a name on the user's model hub.

    Raises:
        ModelError: the package is not installed, or the model cannot be loaded.
    """
    try:
        return _SentenceEmbedder(name)
    except ImportError as error:
        raise ModelError(
            f"the embedding model {name!r} needs the package sentence-transformers: pip install sentence-transformers, "
            "or train the difficulty model without an embedder"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the embedding model {name!r}: {error}") from error
