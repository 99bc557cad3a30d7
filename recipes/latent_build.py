"""Building a latent index: shard by shard, by one process or several, and on from where it was cut off.

Document number d belongs to shard d // shard_size, and shard s to process s % num_processes. Each process reads all
documents, which costs little, and compresses those of its own shards. A shard is finished when its note is written; the
process that sees all notes writes the manifest, and with it the folder is an index.

    FOLDER/build/settings.json   what all processes have to agree on
    FOLDER/build/00003.json      note of a finished shard: its file, and a checksum of its documents
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.progress import Progress, TaskID

from .latent_index import ClaraIndex
from .latent_rows import Document, LatentSettings, check_documents, check_unique, passage_batch, read_documents
from .latent_shards import (
    MANIFEST,
    SHARDS,
    Manifest,
    Shard,
    file_problem,
    read_manifest,
    write_json,
    write_manifest,
    write_shard,
)

NOTES = "build"
_NOTHING = "0 documents were given; an index is built from one or more."
Compress = Callable[[list[str]], Iterable[tuple[Sequence[str], torch.Tensor]]]


def build_index(
    directory: str | os.PathLike,
    documents: Iterable[str | Mapping[str, Any]],
    compress: Compress,
    *,
    fingerprint: str,
    compression_rate: int,
    num_memory_tokens: int,
    hidden_size: int,
    dtype: str = "float16",
    batch_size: int = 64,
    shard_size: int = 4096,
    num_processes: int = 1,
    process_index: int = 0,
) -> ClaraIndex | None:
    """Compress documents into an index.

    Called again after it was stopped, however that came about, it goes on with the first shard that is missing, and
    ends with the same files, as long as `compress` gives the same latents for the same batch. Called again when all is
    done, it gives back what is there.

    Args:
        directory: a new folder, or that of a build that was stopped.
        documents: texts, or mappings with "text" and perhaps "id" (a `datasets.Dataset`, for one); the same ones in the
            same order in every process and every run. Without an id, one is made of the text.
        compress: texts of documents -> for each, the texts of its passages and their latents (P, M, D).
        fingerprint, compression_rate, num_memory_tokens, hidden_size, dtype: see `LatentSettings`.
        batch_size: documents that are given to `compress` at a time.
        shard_size: documents of a shard, which is what a stopped run loses at most.
        num_processes: how many processes build this index, each with the same arguments but
        process_index: its number, from 0.

    Returns:
        The index; None as long as other processes have shards to build.

    Raises:
        ValueError: no documents, documents that cannot be taken or have an id twice (before anything is compressed
            where `documents` has a length), latents that do not fit or are not finite, or a folder that holds something
            else: other files, or shards of other settings or other documents. Finished shards stay.
    """
    if not 0 <= process_index < num_processes:
        raise ValueError(f"`process_index` is {process_index} of {num_processes} processes; they count from 0.")
    if min(batch_size, shard_size) < 1:
        raise ValueError(f"`batch_size` is {batch_size} and `shard_size` {shard_size}; both have to be 1 or more.")
    settings = LatentSettings(fingerprint, compression_rate, num_memory_tokens, hidden_size, dtype)
    build = _Build(Path(directory).resolve(), settings, shard_size)
    total = len(documents) if isinstance(documents, Sized) else None
    if total == 0:
        raise ValueError(_NOTHING)
    if total is not None:  # what can be read twice is checked as a whole before hours are spent on it
        check_documents(documents)
    build.start()
    seen: set[str] = set()
    with Progress(transient=True) as progress:
        task = progress.add_task("Compressing", total=total)
        for number, shard in enumerate(_shards(documents, shard_size)):
            repeated = {document.id for document in shard} & seen
            check_unique([*(document.id for document in shard), *repeated])
            seen.update(document.id for document in shard)
            build.digests.append(_digest(shard))
            if number % num_processes == process_index and build.is_due(number):
                build.write(number, _compressed(settings, shard, compress, batch_size, progress, task))
            progress.update(task, completed=len(seen))
    if not seen:
        raise ValueError(_NOTHING)
    return build.finish(len(seen))


class _Build:
    """The folder of a build, and what is finished in it."""

    def __init__(self, directory: Path, settings: LatentSettings, shard_size: int) -> None:
        self.directory, self.settings, self.shard_size = directory, settings, shard_size
        self.notes = directory / NOTES
        self.digests: list[str] = []  # of the documents of each shard

    @property
    def is_finished(self) -> bool:
        return (self.directory / MANIFEST).is_file()

    def start(self) -> None:
        """Look whether the folder is free, or of a build with the same settings.

        Raises:
            ValueError: it is neither.
        """
        path = self.notes / "settings.json"
        wanted = asdict(self.settings) | {"shard_size": self.shard_size}
        # Looked at first: a process beside this one writes its settings before anything else.
        others = [name for name in self.directory.glob("*") if name.name != NOTES]
        if self.is_finished:
            manifest = read_manifest(self.directory)
            there = asdict(manifest.settings) | {"shard_size": (manifest.built or {}).get("shard_size")}
        elif path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
        else:
            if others:
                raise ValueError(
                    f"{self.directory} holds {len(others)} files that are no index ({others[0].name} is one). Choose "
                    "another folder."
                )
            self.notes.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)
            return
        differing = [
            f"{key} was {there.get(key)!r} and is {value!r}" for key, value in wanted.items() if there.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{self.directory} holds shards of another run: {'; '.join(differing)}. Give that run's settings to go "
                "on with it, or choose another folder."
            )

    def is_due(self, number: int) -> bool:
        """Whether a shard has to be made.

        Raises:
            ValueError: it is there, but of other documents.
        """
        if self.is_finished:
            return False
        shard = self._finished(number)
        return shard is None or file_problem(self.directory / SHARDS, shard) is not None

    def write(self, number: int, batches: Iterable[pa.RecordBatch]) -> None:
        """Make a shard, and its note when it is whole."""
        shard = write_shard(self.directory, number, self.settings, batches)
        write_json(self._note_path(number), {"documents": self.digests[number], "shard": asdict(shard)})

    def finish(self, documents: int) -> ClaraIndex | None:
        """Write the manifest if all shards are there.

        Raises:
            ValueError: the folder holds shards or a finished index of other documents.
        """
        digest = hashlib.sha256("".join(self.digests).encode()).hexdigest()
        built = {"shard_size": self.shard_size, "documents": documents, "digest": digest}
        shards = [self._finished(number) for number in range(len(self.digests))]
        if not self.is_finished:  # asked after the notes were read: who finishes removes them behind the manifest
            if None in shards:
                return None
            write_manifest(self.directory, Manifest(self.settings, tuple(shards), built=built))
            shutil.rmtree(self.notes, ignore_errors=True)
        elif read_manifest(self.directory).built != built:
            raise ValueError(
                f"{self.directory} holds a finished index of other documents. Load it (`ClaraIndex.load`) and `add` to "
                "it, or choose another folder."
            )
        return ClaraIndex.load(self.directory)

    def _note_path(self, number: int) -> Path:
        return self.notes / f"{number:05d}.json"

    def _finished(self, number: int) -> Shard | None:
        """A shard that has its note, None if it has none.

        Raises:
            ValueError: it is of other documents.
        """
        try:
            note = json.loads(self._note_path(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if note["documents"] != self.digests[number]:
            raise ValueError(
                f"Shard {number} in {self.directory} was built from other documents than those given now. Give the "
                "same ones in the same order to go on with it, or choose another folder."
            )
        return Shard(**note["shard"])


def _shards(documents: Iterable[str | Mapping[str, Any]], size: int) -> Iterator[list[Document]]:
    """Documents of one shard after the other."""
    waiting, first = iter(documents), 0
    while part := read_documents(islice(waiting, size), first):
        yield part
        first += len(part)


def _compressed(
    settings: LatentSettings,
    documents: Sequence[Document],
    compress: Compress,
    batch_size: int,
    progress: Progress,
    task: TaskID,
) -> Iterator[pa.RecordBatch]:
    """Rows of a shard, batch by batch."""
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        compressed = list(compress([document.text for document in batch]))
        yield passage_batch(settings, batch, [texts for texts, _ in compressed], [latents for _, latents in compressed])
        progress.advance(task, len(batch))


def _digest(documents: Iterable[Document]) -> str:
    """Checksum of ids and texts."""
    digest = hashlib.sha256()
    for part in (part for document in documents for part in document):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


__all__ = ["Compress", "build_index"]
