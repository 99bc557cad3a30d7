"""Hard negatives: the chunks that are most like a question and its right chunk, and do not hold the answer.

Candidates are looked at from the nearest on. One is left out if it is the right chunk, or if the words of the answer,
or of the passage that it was taken from, stand in it: it would be called wrong and is right. Chunks that repeat others
are not in the collection at all. What cannot be told this way, the same answer in other words, may remain.

The search is exact, by inner products of whole numbers (see `chunk_vectors`), and chunks that are equally near come in
their own order. Collections are searched side by side: rows to train on take training chunks alone, rows held out take
chunks of both, as a reader of a whole collection would.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from .compared_text import comparable

# Beyond that many of the nearest, candidates are hardly hard ones, and an answer like "2" stands everywhere.
DEEPEST = 1000


@dataclass(frozen=True)
class NegativesWanted:
    """What to find negatives for.

    Attributes:
        chunk: the right one.
        telling: texts that no negative may hold: the answer, and the passage it was taken from.
    """

    chunk: int
    telling: tuple[str, ...]


class ChunkCollection:
    """Some chunks to search among.

    Args:
        chunks: their numbers, ascending.
        vectors: blocks of their vectors, in that order.
    """

    def __init__(self, chunks: np.ndarray, vectors: Iterable[np.ndarray]) -> None:
        self.chunks = np.asarray(chunks, np.int64)
        self._index: faiss.IndexFlatIP | None = None
        for block in vectors:
            if self._index is None:
                self._index = faiss.IndexFlatIP(block.shape[1])
            self._index.add(block.astype(np.float32))
        assert len(self.chunks) == (self._index.ntotal if self._index else 0)

    def __len__(self) -> int:
        return len(self.chunks)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and numbers of the nearest chunks, (queries, at most count)."""
        scores, places = self._index.search(queries.astype(np.float32), min(count, len(self)))
        return scores, self.chunks[places]


def hard_negatives(
    queries: np.ndarray,
    wanted: Sequence[NegativesWanted],
    collections: Sequence[ChunkCollection],
    comparable_of: Callable[[int], str],
    count: int,
) -> list[list[int]]:
    """For each query so many chunks, the nearest first; fewer where there are no more.

    Args:
        queries: (queries, width), whole numbers.
        comparable_of: gives the words of a chunk, as `comparable` does.
    """
    collections = [collection for collection in collections if len(collection)]
    available = sum(map(len, collections))
    found: list[list[int]] = [[] for _ in wanted]
    tried, depth = 0, min(2 * count + 8, available)
    open_ones = np.arange(len(wanted))
    while len(open_ones) and tried < depth:
        ranked = _ranked(queries[open_ones], collections, depth)
        for query, row in zip(open_ones, ranked, strict=True):
            found[query] = _without_the_answer(row, wanted[query], comparable_of, count)
        open_ones = np.array([query for query in open_ones if len(found[query]) < count], np.int64)
        tried, depth = depth, min(4 * depth, available, DEEPEST)
    return found


def _ranked(queries: np.ndarray, collections: Sequence[ChunkCollection], depth: int) -> np.ndarray:
    """Numbers of the nearest chunks of all collections, (queries, depth)."""
    parts = [collection.nearest(queries, depth) for collection in collections]
    scores, chunks = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    order = np.lexsort((chunks, -scores))[:, :depth]
    return np.take_along_axis(chunks, order, axis=1)


def _without_the_answer(
    ranked: np.ndarray, wanted: NegativesWanted, comparable_of: Callable[[int], str], count: int
) -> list[int]:
    telling = [text for text in map(comparable, wanted.telling) if text]
    found: list[int] = []
    for chunk in map(int, ranked):
        if chunk == wanted.chunk:
            continue
        words = comparable_of(chunk)
        if not any(text in words for text in telling):
            found.append(chunk)
            if len(found) == count:
                break
    return found


__all__ = ["DEEPEST", "ChunkCollection", "NegativesWanted", "hard_negatives"]
