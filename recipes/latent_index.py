"""The latent index: documents compressed once into memory vectors, kept for ever, searched, and answered from.

CLaRa (arXiv 2511.18659) compresses every candidate document again for every question. Here the latents of all passages
lie on disk, a question is compared with them in one search, and the latents that it finds go straight into the prompt.

    index = ClaraIndex.create("index", fingerprint=..., compression_rate=32, num_memory_tokens=8, hidden_size=2560)
    index.add(documents, latents)
    found = index.search(queries, top_k=5)
    memory, records = index.memory(found.rows[0]), index.passages(found.rows[0])

The score is the cosine of the flattened latents of query and passage. How the index lies on disk: `latent_shards.py`;
how it is searched: `latent_search.py`; how several processes build it, and go on after a kill: `latent_build.py`. One
process at a time may change an index; any number may read it meanwhile.

Shapes: B queries, K hits of each, P passages of a document, M memory tokens, D hidden size of the model.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from .latent_hub import fetch_rows, fetched_directory, push_rows
from .latent_rows import LatentSettings, check_unique, passage_batch, query_vectors, read_documents
from .latent_search import EXACT, LatentSearch
from .latent_shards import (
    SHARDS,
    Manifest,
    PassageRows,
    check_free,
    file_problem,
    new_directory,
    read_manifest,
    runs,
    set_aside,
    write_manifest,
    write_shard,
    write_shards,
)


@dataclass(frozen=True)
class SearchResult:
    """The passages nearest to each query, nearest first.

    Attributes:
        scores: cosines, (B, K) float32.
        rows: their numbers in the index, (B, K) int64; valid until `compact`.
    """

    scores: torch.Tensor
    rows: torch.Tensor


class ClaraIndex:
    """An index in a folder; made by `create`, `load`, `merge`, `from_hub` or `build_index`. Its length: passages.

    Every change is on the disk when the method returns, and nothing of it where it raises.

    Attributes:
        directory: where it lies.
        settings: what all its latents have in common.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.settings = directory, manifest.settings
        self._show(manifest)

    def _show(self, manifest: Manifest) -> None:
        """Take the rows from the shards of a manifest."""
        self._manifest = manifest
        self._rows = PassageRows(self.settings)
        for shard in manifest.shards:
            self._rows.append(self.directory / SHARDS / shard.name)
        self._live = manifest.live()
        self._search = LatentSearch(self.directory, self._rows, manifest.shards)

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike,
        *,
        fingerprint: str,
        compression_rate: int,
        num_memory_tokens: int,
        hidden_size: int,
        dtype: str = "float16",
    ) -> "ClaraIndex":
        """An empty index in a new folder.

        Args:
            directory: its parents are made.
            fingerprint, compression_rate, num_memory_tokens, hidden_size, dtype: see `LatentSettings`.

        Raises:
            ValueError: the folder is not empty, or a setting that cannot be.
        """
        directory = Path(directory).resolve()
        settings = LatentSettings(fingerprint, compression_rate, num_memory_tokens, hidden_size, dtype)
        check_free(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_manifest(directory, Manifest(settings))
        return cls(directory, Manifest(settings))

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "ClaraIndex":
        """An index that is there; reads every file once to see that it is whole, and keeps none in memory.

        Raises:
            ValueError: no index, or shards that are missing, cut short or changed, each with its name.
        """
        directory = Path(directory).resolve()
        while True:
            manifest = read_manifest(directory)
            problems = [problem for shard in manifest.shards if (problem := file_problem(directory / SHARDS, shard))]
            if not problems or read_manifest(directory).generation == manifest.generation:
                break  # otherwise it was compacted meanwhile, and other shards are looked at
        if problems:
            raise ValueError(
                f"{len(problems)} of {len(manifest.shards)} shards of {directory} are not as they were written: "
                f"{'; '.join(problems)}. Put them back from a copy of the index. If there is none, "
                "`ClaraIndex.repair` sets them aside and keeps the other passages; add the missing documents again."
            )
        return cls(directory, manifest)

    @classmethod
    def repair(cls, directory: str | os.PathLike) -> "ClaraIndex":
        """An index of the shards that are whole; the others stay in their folder, with `.broken` behind their name.

        Which documents are missing afterwards is what `ids` does not name.

        Raises:
            ValueError: no index, or a manifest that cannot be read.
        """
        directory = Path(directory).resolve()
        before = read_manifest(directory)
        manifest = set_aside(directory, before)
        if manifest is not before:
            write_manifest(directory, manifest)
        return cls(directory, manifest)

    @classmethod
    def merge(cls, directory: str | os.PathLike, indexes: Sequence["ClaraIndex"]) -> "ClaraIndex":
        """An index in a new folder with the passages of several, in their order.

        Raises:
            ValueError: no index is given, their settings differ, they share documents, or the folder is not empty.
        """
        if not indexes:
            raise ValueError("0 indexes were given to merge; give one or more.")
        settings = indexes[0].settings
        for index in indexes[1:]:
            settings.check_same(index.settings, str(index.directory))
        check_unique(name for index in indexes for name in index.ids())
        return cls._write(directory, settings, (batch for index in indexes for batch in index._batches()))

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        directory: str | os.PathLike | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> "ClaraIndex":
        """An index from a data set repository that `push_to_hub` made.

        Args:
            repo_id: "owner/name".
            directory: a new folder for it. Left out, it lies in the Hub's cache, a folder a commit, and is only made
                at the first call; give one to an index that will be changed.
            revision: branch, tag or commit.
            token: the one of `hf auth login` or `HF_TOKEN` when left out.

        Raises:
            ValueError: the repository holds no index, a file is not what was pushed, or the folder is not empty.
        """
        commit, settings, batches = fetch_rows(repo_id, revision, token)
        if directory is not None:
            return cls._write(directory, settings, batches)
        directory = fetched_directory(repo_id, commit)
        if not directory.exists():
            try:
                return cls._write(directory, settings, batches)
            except OSError:  # perhaps a process beside this one was faster, and the folder is no longer free
                if not directory.exists():
                    raise
        return cls.load(directory)

    @classmethod
    def _write(
        cls, directory: str | os.PathLike, settings: LatentSettings, batches: Iterable[pa.RecordBatch]
    ) -> "ClaraIndex":
        directory = Path(directory).resolve()
        with new_directory(directory) as staging:
            manifest = Manifest(settings, write_shards(staging, settings, batches))
            write_manifest(staging, manifest)
        return cls(directory, manifest)

    def __len__(self) -> int:
        return int(self._live.sum())

    @property
    def num_documents(self) -> int:
        """Documents that the passages belong to."""
        return len(self.ids())

    def ids(self) -> list[str]:
        """The documents, in the order of their passages."""
        return self._rows.ids(self._live)

    def check(self, fingerprint: str) -> None:
        """Refuse another compressor than the one that made the latents.

        Raises:
            ValueError: it is another one, with both fingerprints.
        """
        if fingerprint != self.settings.fingerprint:
            raise ValueError(
                f"The index was made by the compressor {self.settings.fingerprint!r}, and this one is {fingerprint!r}. "
                "Their latents cannot be compared: load the model that made the index, or build it again with this one."
            )

    def add(
        self,
        documents: Sequence[str | Mapping[str, Any]],
        latents: Sequence[torch.Tensor],
        passages: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Add documents, as one shard.

        Args:
            documents: texts, or mappings with "text" and perhaps "id"; without an id, one is made of the text.
            latents: (P, M, D) of each document.
            passages: texts of each document's passages; without them each document is one passage.

        Raises:
            ValueError: no documents, ids that come twice or are there already, latents that do not fit or are not
                finite, or another process changed the index meanwhile.
        """
        if not documents:
            raise ValueError("0 documents were given; an index grows by one or more.")
        read = read_documents(documents)
        check_unique(document.id for document in read)
        texts = [[document.text] for document in read] if passages is None else passages
        batch = passage_batch(self.settings, read, texts, latents)
        there = self._found({document.id for document in read})
        if there:
            raise ValueError(
                f"{len(there)} of {len(read)} documents are in the index already, {there[0]!r} the first of them. "
                "Leave them out, or `delete` the old ones before."
            )
        self._check_generation()
        shard = write_shard(self.directory, len(self._manifest.shards), self.settings, [batch])
        self._commit(shards=(*self._manifest.shards, shard))
        self._rows.append(self.directory / SHARDS / shard.name)
        self._live = self._manifest.live()

    def delete(self, ids: Collection[str]) -> int:
        """Take documents out: no search finds them from now on. Their rows leave the disk with `compact`.

        Returns:
            How many passages they had.

        Raises:
            ValueError: ids that are not in the index, counted; nothing is deleted then.
        """
        wanted = set(ids)
        unknown = sorted(wanted.difference(self._found(wanted)))
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(wanted)} documents are not in the index, {unknown[0]!r} the first of them. "
                "Nothing was deleted; leave them out."
            )
        gone = self._rows.belonging_to(wanted) & self._live
        self._check_generation()
        self._commit(deleted=runs(gone | ~self._live))
        self._live = self._manifest.live()
        return int(gone.sum())

    def compact(self) -> None:
        """Write the shards anew, without deleted rows and without many small ones. Rows get other numbers."""
        self._check_generation()
        shards = write_shards(self.directory, self.settings, self._batches())
        self._commit(shards=shards, deleted=())
        self._show(self._manifest)

    def save(self, directory: str | os.PathLike) -> None:
        """Write a copy to a new folder; in its own folder an index is always saved.

        Raises:
            ValueError: the folder is not empty.
        """
        directory = Path(directory).resolve()
        if directory == self.directory:
            return
        with new_directory(directory) as staging:
            (staging / SHARDS).mkdir()
            for shard in self._manifest.shards:
                shutil.copy(self.directory / SHARDS / shard.name, staging / SHARDS)
            for path in self.directory.glob("search*"):
                shutil.copy(path, staging)
            write_manifest(staging, self._manifest)

    def build_search(self, factory: str = EXACT, parameters: str = "") -> None:
        """Build and save the FAISS index that `search` uses from now on, also when it has to be made anew.

        Args:
            factory: as `faiss.index_factory` takes it: "SQfp16" compares with all passages, in float16, "Flat" does so
                in float32, and "IVF256,SQfp16" compares with those of the nearest clusters.
            parameters: as `faiss.ParameterSpace` takes them: "nprobe=16" are the clusters that are looked at.

        Raises:
            ValueError: the index is empty, or FAISS cannot build that from its passages.
        """
        self._check_passages()
        self._search.build(factory, parameters, self._live, self._manifest.shards)

    def search(self, queries: torch.Tensor, top_k: int) -> SearchResult:
        """The passages whose latents are nearest to those of each query.

        Above a few thousand passages the FAISS index is saved in the index's folder, by the first search where
        `build_search` has not done so.

        Args:
            queries: (B, M, D), of any floating dtype and on any device.
            top_k: K.

        Raises:
            ValueError: the index is empty or has fewer than K passages, or queries of another shape or with values
                that are not finite.
        """
        self._check_passages()
        if not 1 <= top_k <= len(self):
            raise ValueError(f"`top_k` is {top_k}, and the index has {len(self)} passages; ask for 1 to {len(self)}.")
        queries_BF = query_vectors(self.settings, queries)
        scores, rows = self._search.search(queries_BF, top_k, self._live, self._manifest.shards)
        return SearchResult(torch.from_numpy(scores), torch.from_numpy(rows))

    def memory(self, rows: torch.Tensor | Sequence[int]) -> list[torch.Tensor]:
        """The latents of some rows, (M, D) each, in the dtype of the index.

        Raises:
            ValueError: rows that the index does not have or that were deleted.
        """
        return list(torch.from_numpy(self._rows.latents(self._checked(rows))).unbind())

    def passages(self, rows: torch.Tensor | Sequence[int]) -> list[dict[str, Any]]:
        """What some rows are: `id` of the document, `passage` counted from 0 in it, `text`.

        Raises:
            ValueError: rows that the index does not have or that were deleted.
        """
        return self._rows.records(self._checked(rows))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publish the index as a data set, which `datasets.load_dataset` reads too: all of it in one commit.

        Args:
            repo_id: "owner/name"; made if it does not exist. What it holds is replaced.
            private: whether a repository that is made now is private.
            revision: branch to commit to, made if it does not exist.
            commit_message: first line of the commit.
            token: the one of `hf auth login` or `HF_TOKEN` when left out.

        Returns:
            The commit.

        Raises:
            ValueError: the index is empty.
        """
        self._check_passages()
        counts = {"documents": self.num_documents, "passages": len(self)}
        target = {"private": private, "revision": revision, "commit_message": commit_message, "token": token}
        return push_rows(self._batches(), self.settings, counts, self.directory, repo_id, **target)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        return self._rows.batches(self._live)

    def _found(self, ids: set[str]) -> list[str]:
        """Those of some ids that are in the index."""
        return self._rows.ids(self._rows.belonging_to(ids) & self._live)

    def _checked(self, rows: torch.Tensor | Sequence[int]) -> list[int]:
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if rows.ndim != 1:
            raise ValueError(
                f"The rows have the shape {tuple(rows.shape)}; give those of one query, as `found.rows[0]`."
            )
        numbers = rows.tolist()
        bad = [number for number in numbers if not (0 <= number < len(self._live) and self._live[number])]
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(numbers)} rows are not in the index or were deleted, {bad[0]} the first of them. "
                "Search again: rows are valid until the index is compacted."
            )
        return numbers

    def _check_passages(self) -> None:
        if not len(self):
            raise ValueError(f"The index in {self.directory} has 0 passages; add documents to it first.")

    def _check_generation(self) -> None:
        """Refuse to change an index that somebody else has changed since it was loaded."""
        generation = read_manifest(self.directory).generation
        if generation != self._manifest.generation:
            raise ValueError(
                f"Another process changed the index in {self.directory} (generation {generation} on the disk, "
                f"{self._manifest.generation} here). Load it again, then repeat the change."
            )

    def _commit(self, **changes: Any) -> None:
        manifest = replace(self._manifest, generation=self._manifest.generation + 1, **changes)
        write_manifest(self.directory, manifest)
        self._manifest = manifest


__all__ = ["ClaraIndex", "SearchResult"]
