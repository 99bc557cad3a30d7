"""Search over the rows of a latent index with FAISS: inner products of normalised vectors, which are cosines.

The saved search index lies beside the shards and is memory-mapped. It says by their checksums which shards it covers.
Rows that were added since are held in memory and searched exactly beside it, until there are so many that it is made
anew; when rows were renumbered it always is. It can be lost without loss: everything comes from the shards.

    FOLDER/search.json                   factory, parameters, covered shards
    FOLDER/search-0f1e2d3c4b5a.faiss     the beginning of its checksum

Shapes: R rows (passages), F values of a row's latents in one vector, B queries, K hits of each.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np

from .latent_shards import PassageRows, Shard, describe_file, put_in_place, temporary, write_json

EXACT = "SQfp16"
SAVED = "search.json"
# Rows beside the saved index up to which searching them costs less than building, whatever its size.
FEW_ROWS = 4096
TRAINING_BYTES = 1024**3
# Kinds of FAISS indexes seen to leave out single rows while they search; others are built again without them.
_SELECTING = (
    faiss.IndexFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexIVFFlat,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexHNSW,
)


@dataclass(frozen=True)
class SavedSearch:
    """What `search.json` holds.

    Attributes:
        file: the FAISS index.
        factory, parameters: see `LatentSearch.build`.
        covers: checksums of the shards whose rows are in it, from the first on.
    """

    file: Shard
    factory: str
    parameters: str
    covers: tuple[str, ...]


class LatentSearch:
    """The search of one index.

    Args:
        directory: of the index.
        rows: the index's; they may grow.
        shards: that hold these rows at first.
    """

    def __init__(self, directory: Path, rows: PassageRows, shards: Sequence[Shard]) -> None:
        self._directory, self._rows = directory, rows
        self._main: faiss.IndexIDMap | None = None
        self._tail: faiss.IndexIDMap | None = None
        self._covered = self._seen = 0  # rows before which all live ones are in the main index, and in either
        self.factory, self.parameters = EXACT, ""
        saved = _read_saved(directory)
        self._outdated = saved is not None
        if saved is not None:
            self.factory, self.parameters = saved.factory, saved.parameters
            covers = saved.covers
            if covers == tuple(shard.sha256 for shard in shards[: len(covers)]) and _is_whole(directory, saved):
                self._main, self._outdated = _map(directory / saved.file.name), False
                self._covered = self._seen = sum(shard.rows for shard in shards[: len(covers)])

    def build(self, factory: str, parameters: str, live: np.ndarray, shards: Sequence[Shard]) -> None:
        """Build the search index over all live rows, and save it in the place of the old one.

        Args:
            factory: as `faiss.index_factory` takes it; "SQfp16" is exact, in float16.
            parameters: as `faiss.ParameterSpace` takes them ("nprobe=16"); they are saved with it.
            live: (R,) bool, which rows can be found.
            shards: all, which hold the R rows.

        Raises:
            ValueError: FAISS does not know the factory or the parameters, or needs more rows to learn from.
        """
        settings = self._rows.settings
        try:
            index = _empty(factory, settings.num_memory_tokens * settings.hidden_size)
            if not index.is_trained:
                index.train(self._training_sample(live))
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise ValueError(
                f"FAISS cannot build {factory!r} with {parameters!r} from {int(live.sum())} passages: {error}. "
                f"{EXACT!r} works for any number."
            ) from error
        self._add(index, 0, live)
        with temporary(self._directory / "search.faiss") as partial:
            faiss.write_index(index, str(partial))
            del index  # it takes as much memory as the file, which is mapped below
            file = describe_file(partial, int(live.sum()))
            file = Shard(f"search-{file.sha256[:12]}.faiss", file.rows, file.bytes, file.sha256)
            put_in_place(partial, self._directory / file.name)
        saved = SavedSearch(file, factory, parameters, tuple(shard.sha256 for shard in shards))
        write_json(self._directory / SAVED, asdict(saved))
        for path in self._directory.glob("search-*.faiss"):
            if path.name != file.name:
                path.unlink(missing_ok=True)
        self._main, self._tail, self._outdated = _map(self._directory / file.name), None, False
        self._covered = self._seen = len(self._rows)
        self.factory, self.parameters = factory, parameters

    def search(
        self, queries_BF: np.ndarray, top_k: int, live: np.ndarray, shards: Sequence[Shard]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest live rows, nearest first; builds the search index where that is due.

        Args:
            queries_BF: float32.
            top_k: K, at most the number of live rows.
            live, shards: as for `build`.

        Returns:
            Cosines (B, K) float32 and rows (B, K) int64.

        Raises:
            ValueError: an approximate index found fewer than K rows.
        """
        if self._is_due(live):
            self.build(self.factory, self.parameters, live, shards)
        if self._seen < len(self._rows):
            if self._tail is None:
                self._tail = _empty(EXACT, queries_BF.shape[1])
            self._add(self._tail, self._seen, live)
            self._seen = len(self._rows)
        queries_BF = queries_BF.copy()
        faiss.normalize_L2(queries_BF)
        selector = faiss.IDSelectorBitmap(np.packbits(live, bitorder="little")) if not live.all() else None
        found = [
            index.search(queries_BF, min(top_k, index.ntotal), params=_parameters(index, selector))
            for index in (self._main, self._tail)
            if index is not None and index.ntotal
        ]
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores))[:, :top_k]
        scores, rows = (np.take_along_axis(values, order, axis=1) for values in (scores, rows))
        short = int((rows < 0).any(axis=1).sum())
        if short or rows.shape[1] < top_k:
            raise ValueError(
                f"{self.factory!r} found fewer than {top_k} passages for {short} of {len(rows)} queries. Have it look "
                f'at more (`build_search({self.factory!r}, "nprobe=…")`, of a graph "efSearch=…"), or use {EXACT!r}.'
            )
        return scores, rows

    def _is_due(self, live: np.ndarray) -> bool:
        """Whether rows were renumbered, many were added, or some were deleted that it cannot leave out."""
        if self._outdated or len(self._rows) - self._covered > max(FEW_ROWS, self._covered // 4):
            return True
        if self._main is None or live.all() or _selects(self._main):
            return False
        return not live[faiss.vector_to_array(self._main.id_map)].all()

    def _add(self, index: faiss.IndexIDMap, start: int, live: np.ndarray) -> None:
        """Add the live rows from one on, under their numbers."""
        for first, block in self._rows.blocks(start):
            kept = np.flatnonzero(live[first : first + len(block)])
            if len(kept):
                index.add_with_ids(_normalised(block[kept]), first + kept)

    def _training_sample(self, live: np.ndarray) -> np.ndarray:
        """Live rows to learn clusters from, the same ones every time."""
        numbers = np.flatnonzero(live)
        settings = self._rows.settings
        size = TRAINING_BYTES // (4 * settings.num_memory_tokens * settings.hidden_size)
        if size < len(numbers):
            numbers = np.sort(np.random.default_rng(0).choice(numbers, size, replace=False))
        return _normalised(self._rows.latents(numbers))


def _normalised(latents: np.ndarray) -> np.ndarray:
    """(rows, M, D) as float32 vectors (rows, F) of length one; zeros stay zeros."""
    vectors = np.ascontiguousarray(latents.reshape(len(latents), -1), dtype=np.float32)
    faiss.normalize_L2(vectors)
    return vectors


def _empty(factory: str, size: int) -> faiss.IndexIDMap:
    return faiss.index_factory(size, f"IDMap,{factory}", faiss.METRIC_INNER_PRODUCT)


def _map(path: Path) -> faiss.IndexIDMap:
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def _selects(index: faiss.IndexIDMap) -> bool:
    return isinstance(faiss.downcast_index(index.index), _SELECTING)


def _parameters(index: faiss.IndexIDMap, selector: faiss.IDSelector | None) -> faiss.SearchParameters | None:
    """Have an index look at the rows of `selector` only; its own settings stay."""
    if selector is None or not _selects(index):
        return None
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=inner.nprobe, max_codes=inner.max_codes)
    if isinstance(inner, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=inner.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def _read_saved(directory: Path) -> SavedSearch | None:
    """`search.json`; None where there is none or it cannot be read, since it can be made again."""
    try:
        values = json.loads((directory / SAVED).read_text(encoding="utf-8"))
        return SavedSearch(Shard(**values["file"]), values["factory"], values["parameters"], tuple(values["covers"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_whole(directory: Path, saved: SavedSearch) -> bool:
    path = directory / saved.file.name
    return path.is_file() and describe_file(path, saved.file.rows) == saved.file


__all__ = ["EXACT", "LatentSearch", "SavedSearch"]
