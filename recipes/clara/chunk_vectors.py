"""Texts as vectors whose inner products are exact: by an embedding model of the endpoint, or by their words.

Without a model, words are hashed into features (in scripts without blanks characters and pairs of them), weighted by
how rare they are, and brought to few dimensions by fixed random signs, which keeps angles (Achlioptas,
"Database-friendly random projections", 2003). Nothing is learned but how rare words are.

A vector is scaled to length `LENGTH` and rounded to whole numbers. Then inner products of them are whole numbers below
2**24, which float32 adds without rounding: the same neighbours come out on every machine, in every order of summation.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from .compared_text import WITHOUT_BLANKS, words_of

LENGTH = 2000
_FEATURES, _DIMENSIONS = 2**16, 512


def features_of(text: str) -> list[str]:
    """Words; in scripts without blanks characters and pairs of them."""
    words = words_of(text)
    apart = [WITHOUT_BLANKS.match(word) is not None for word in words]
    pairs = zip(words, words[1:], apart, apart[1:], strict=False)
    return words + [first + second for first, second, one, two in pairs if one and two]


_HASHING = HashingVectorizer(
    analyzer=features_of, n_features=_FEATURES, norm=None, alternate_sign=False, dtype=np.float32
)


class HashedVectors:
    """Vectors of texts by their words.

    Args:
        rarity: of each feature, as `rarity_of` finds it.
    """

    def __init__(self, rarity: np.ndarray) -> None:
        self._rarity = rarity
        signs = np.random.default_rng(0).integers(0, 2, (_FEATURES, _DIMENSIONS), dtype=np.int8)
        self._signs = 2 * signs.astype(np.float32) - 1

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width), whole numbers."""
        counts = _HASHING.transform(texts)
        counts.data = (1 + np.log(counts.data)) * self._rarity[counts.indices]
        return whole_numbers(counts @ self._signs)


def rarity_of(collection: Iterable[Sequence[str]]) -> np.ndarray:
    """How rare each feature is among texts that come in blocks: 1 if all have it, more if fewer do."""
    found, texts = np.zeros(_FEATURES, np.int64), 0
    for block in collection:
        found += np.bincount(_HASHING.transform(block).indices, minlength=_FEATURES)
        texts += len(block)
    return (np.log((1 + texts) / (1 + found)) + 1).astype(np.float32)


def whole_numbers(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length `LENGTH`, rounded; what has no direction becomes zeros."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.rint(LENGTH * vectors / np.where(lengths > 0, lengths, 1)).astype(np.int16)


__all__ = ["LENGTH", "HashedVectors", "features_of", "rarity_of", "whole_numbers"]
