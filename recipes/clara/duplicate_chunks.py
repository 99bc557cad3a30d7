"""Which chunks repeat an earlier one: word for word, or nearly so.

Two chunks are nearly the same if of their shingles (three words in a row) at least `NEAR` are in both (Jaccard). Nobody
can compare all pairs, so a chunk keeps a signature (MinHash: Broder, "On the resemblance and containment of documents",
1997), and only chunks that agree in a whole band of it are compared, by their shingles themselves. Pairs exactly at
the limit are found with a probability of 0.99, those above it almost surely; a pair below it is never taken for one.

In memory are, for each chunk, a hash and the signature: 0.5 KB in all.
"""

import zlib
from collections.abc import Callable, Iterable

import numpy as np

from .compared_text import digest64, words_of

NEAR = 0.8
_SHINGLE = 3
_BANDS, _ROWS = 16, 6
_HASHES = _BANDS * _ROWS
# An estimate from 96 hashes is hardly ever this far below what it estimates.
_DOUBT = 0.2
_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(1, 2**63, _HASHES, dtype=np.uint64) * 2 + 1
_SUMMANDS = _RANDOM.integers(0, 2**63, _HASHES, dtype=np.uint64)
_PLACES = _RANDOM.integers(1, 2**63, _SHINGLE, dtype=np.uint64) * 2 + 1


def shingles(text: str) -> np.ndarray:
    """Hashes of three words in a row, each once and sorted; a shorter text is one shingle."""
    words = np.fromiter((zlib.crc32(word.encode()) for word in words_of(text)), np.uint64)
    if len(words) < _SHINGLE:
        return np.array([zlib.crc32(words.tobytes())], np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(words, _SHINGLE)
    mixed = (windows * _PLACES).sum(axis=1, dtype=np.uint64)
    return np.unique(mixed ^ (mixed >> np.uint64(29)))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


class Fingerprints:
    """What is kept of chunks to find those that repeat others; `add` each one in its order, then `duplicates`."""

    def __init__(self) -> None:
        self._digests: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._count = 0

    def add(self, text: str) -> None:
        """The next chunk."""
        place = self._count % 4096
        if not place:
            self._digests.append(np.empty(4096, np.uint64))
            self._signatures.append(np.empty((4096, _HASHES), np.uint32))
        self._digests[-1][place] = digest64(" ".join(words_of(text)) or text)
        mixed = shingles(text)[:, None] * _FACTORS + _SUMMANDS
        self._signatures[-1][place] = (mixed >> np.uint64(32)).min(axis=0)
        self._count += 1

    def duplicates(self, text_of: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
        """Which chunks repeat an earlier one word for word, and which do so nearly: two masks.

        A chunk that repeats another is compared with no third one.

        Args:
            text_of: gives a chunk's text once more.
        """
        exact, near = np.zeros((2, self._count), bool)
        if not self._count:
            return exact, near
        digests = np.concatenate(self._digests)[: self._count]
        first = np.unique(digests, return_index=True)[1]
        exact[:] = True
        exact[first] = False
        signatures = np.concatenate(self._signatures)[: self._count]
        self._digests, self._signatures = [], []
        bands = [_Band(signatures[:, start : start + _ROWS], ~exact) for start in range(0, _HASHES, _ROWS)]
        left = ~exact
        for chunk in np.flatnonzero(left):
            earlier = _union(band.earlier(chunk) for band in bands)
            earlier = earlier[left[earlier]]
            agreeing = (signatures[earlier] == signatures[chunk]).mean(axis=1)
            earlier = earlier[agreeing >= NEAR - _DOUBT]
            if len(earlier):
                own = shingles(text_of(int(chunk)))
                near[chunk] = any(overlap(own, shingles(text_of(int(other)))) >= NEAR for other in earlier)
                left[chunk] = not near[chunk]
        return exact, near


class _Band:
    """Chunks by one band of their signatures, those that agree in it side by side and in their order."""

    def __init__(self, rows: np.ndarray, taken: np.ndarray) -> None:
        members = np.flatnonzero(taken).astype(np.int32)
        keys = (rows[members].astype(np.uint64) * _FACTORS[:_ROWS]).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        self._members, keys = members[order], keys[order]
        begins = np.r_[True, keys[1:] != keys[:-1]]
        starts = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        self._start, self._end = np.zeros((2, len(taken)), np.int32)
        self._start[self._members], self._end[self._members] = starts, np.arange(len(members))

    def earlier(self, chunk: int) -> np.ndarray:
        return self._members[self._start[chunk] : self._end[chunk]]


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([*parts]))


__all__ = ["NEAR", "Fingerprints", "overlap", "shingles"]
