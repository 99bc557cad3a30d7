"""How a latent index lies on disk: Arrow shards that are read by memory-mapping, and a manifest that names them.

    FOLDER/index.json                       settings, shards, deleted rows; written last, in one step
    FOLDER/shards/00003-0f1e2d3c4b5a.arrow  number and the beginning of its checksum

A file is written under a temporary name, flushed and renamed, and no shard that the manifest names is ever changed. So
whatever stops a process, the folder holds the index as it was before or as it is afterwards; what no manifest names is
an unfinished or outdated file.

Shapes: R rows (passages), M memory tokens, D hidden size of the model.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .latent_rows import LatentSettings

MANIFEST = "index.json"
SHARDS = "shards"
FORMAT = 1
# Rows that are read, copied and normalised at a time: tens of megabytes at the hidden size of Qwen3-4B.
BATCH_ROWS = 1024
# Of a shard that is written from others, as when an index is compacted.
SHARD_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Shard:
    """A file of rows: its name, what is in it, and by what one sees that it is whole."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an index consists of.

    Attributes:
        shards: their rows in this order are the rows of the index, counted from 0.
        deleted: runs of rows (start, stop) that are no longer part of it.
        generation: grows with every change; by it a process sees that another one was faster.
        built: of what documents `build_index` made it; None where it did not.
    """

    settings: LatentSettings
    shards: tuple[Shard, ...] = ()
    deleted: tuple[tuple[int, int], ...] = ()
    generation: int = 0
    built: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """R, deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    def live(self) -> np.ndarray:
        """Which rows are not deleted, (R,) bool."""
        live = np.ones(self.rows, dtype=bool)
        for start, stop in self.deleted:
            live[start:stop] = False
        return live


def runs(flags: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an index.

    Raises:
        ValueError: there is none, it cannot be read, or a newer version of this package wrote it.
    """
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, and this version of the package reads {FORMAT}")
        return Manifest(
            settings=LatentSettings(**values["settings"]),
            shards=tuple(Shard(**shard) for shard in values["shards"]),
            deleted=tuple((start, stop) for start, stop in values["deleted"]),
            generation=values["generation"],
            built=values["built"],
        )
    except FileNotFoundError:
        raise ValueError(
            f"{directory} holds no index ({MANIFEST} is missing). If a build into it was cut off, run the same build "
            "again; otherwise look for another folder."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read: {type(error).__name__}: {error}. Take it from a copy of the index, or build the "
            "index again."
        ) from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, and remove shards that it does not name."""
    values = {"format": FORMAT, **asdict(manifest)}
    write_json(directory / MANIFEST, values)
    named = {shard.name for shard in manifest.shards}
    for path in (directory / SHARDS).glob("*"):
        if path.name not in named and path.suffix in (".arrow", ".partial"):
            path.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    with temporary(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(partial, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what still has it at the end is removed."""
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` at the end, or disappears.

    Raises:
        ValueError: something is in `path` already.
    """
    check_free(path)
    staging = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free(path: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ValueError: it does.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another folder, or remove what is in it.")


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a file to its final name when its content has reached the disk."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_shard(directory: Path, number: int, settings: LatentSettings, batches: Iterable[pa.RecordBatch]) -> Shard:
    """Write rows as they come, and give the file its name at the end."""
    folder = directory / SHARDS
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    with temporary(folder / f"{number:05d}") as partial:
        with pa.ipc.new_stream(partial, settings.features.arrow_schema) as writer:
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    writer.write_batch(batch.slice(start, BATCH_ROWS))
                rows += batch.num_rows
        shard = describe_file(partial, rows)
        shard = replace(shard, name=f"{number:05d}-{shard.sha256[:12]}.arrow")
        put_in_place(partial, folder / shard.name)
    return shard


def write_shards(
    directory: Path, settings: LatentSettings, batches: Iterable[pa.RecordBatch], shard_bytes: int = SHARD_BYTES
) -> tuple[Shard, ...]:
    """Write rows as shards of about `shard_bytes`, numbered from 0; no shard where there are no rows."""
    groups = enumerate(in_groups(batches, shard_bytes))
    return tuple(write_shard(directory, number, settings, group) for number, group in groups)


def in_groups(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches for one file of about `size` bytes after the other; each group is read to its end before the next."""
    waiting = iter(batches)

    def group(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield first
        written = first.nbytes
        while written < size and (batch := next(waiting, None)) is not None:
            yield batch
            written += batch.nbytes

    for first in waiting:
        yield group(first)


def describe_file(path: Path, rows: int) -> Shard:
    """Size and checksum of a file with so many rows."""
    with path.open("rb") as file:
        return Shard(path.name, rows, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def file_problem(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a file, None if it is as it was written; reads all of it."""
    path = folder / shard.name
    if not path.is_file():
        return f"{shard.name} is missing ({shard.rows} passages)"
    found = describe_file(path, shard.rows)
    if found.bytes != shard.bytes:
        return f"{shard.name} has {found.bytes} of {shard.bytes} bytes ({shard.rows} passages)"
    return None if found == shard else f"{shard.name} has other content than was written ({shard.rows} passages)"


def set_aside(directory: Path, manifest: Manifest) -> Manifest:
    """Take shards that are not as they were written out of an index; their files get `.broken` behind their name.

    Returns:
        The manifest of what is left, not written yet; the same one where nothing is broken.
    """
    folder, live, first = directory / SHARDS, manifest.live(), 0
    whole, kept = [], [np.zeros(0, dtype=bool)]
    for shard in manifest.shards:
        if file_problem(folder, shard) is None:
            whole.append(shard)
            kept.append(live[first : first + shard.rows])
        elif (folder / shard.name).is_file():
            (folder / shard.name).replace(folder / f"{shard.name}.broken")
        first += shard.rows
    if len(whole) == len(manifest.shards):
        return manifest
    deleted = runs(~np.concatenate(kept))
    return replace(manifest, shards=tuple(whole), deleted=deleted, generation=manifest.generation + 1, built=None)


class PassageRows:
    """The rows of shards, memory-mapped: nothing is read before it is asked for.

    Args:
        settings: of the index.
    """

    def __init__(self, settings: LatentSettings) -> None:
        self.settings = settings
        self._size = (settings.num_memory_tokens, settings.hidden_size)
        self._tables: list[pa.Table] = []
        self._table_starts: list[int] = []
        self._blocks: list[np.ndarray] = []  # (rows, M, D) each, views of the files
        self._block_starts: list[int] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, path: Path) -> None:
        """Put the rows of a shard behind those that are there."""
        table = Dataset.from_file(str(path)).data.table
        self._tables.append(table)
        self._table_starts.append(self._rows)
        for chunk in table.column("latents").chunks:
            self._blocks.append(chunk.flatten().flatten().to_numpy(zero_copy_only=True).reshape(-1, *self._size))
            self._block_starts.append(self._rows)
            self._rows += len(chunk)

    def latents(self, rows: Sequence[int]) -> np.ndarray:
        """Copies of the latents of some rows, (len(rows), M, D)."""
        copies = np.empty((len(rows), *self._size), self.settings.dtype)
        for position, row in enumerate(rows):
            number = bisect_right(self._block_starts, row) - 1
            copies[position] = self._blocks[number][row - self._block_starts[number]]
        return copies

    def blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Of each block from the first row of a shard on, its first row and latents, (at most `BATCH_ROWS`, M, D)."""
        for first, block in zip(self._block_starts, self._blocks, strict=True):
            if first >= start:
                yield first, block

    def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """`id`, `passage` and `text` of some rows."""
        records = []
        for row in rows:
            number = bisect_right(self._table_starts, row) - 1
            table, place = self._tables[number], row - self._table_starts[number]
            records.append({name: table.column(name)[place].as_py() for name in ("id", "passage", "text")})
        return records

    def ids(self, live: np.ndarray) -> list[str]:
        """The documents that have rows in `live`, (R,) bool, in the order of the rows."""
        names: list[str] = []
        for start, table in zip(self._table_starts, self._tables, strict=True):
            first_passages = pc.equal(table.column("passage"), 0)
            kept = pc.and_(first_passages, pa.array(live[start : start + table.num_rows]))
            names += table.column("id").filter(kept).to_pylist()
        return names

    def belonging_to(self, ids: Collection[str]) -> np.ndarray:
        """Which rows are passages of these documents, (R,) bool."""
        wanted = pa.array(list(ids), pa.string())
        found = [pc.is_in(table.column("id"), value_set=wanted).to_numpy() for table in self._tables]
        return np.concatenate(found) if found else np.zeros(0, dtype=bool)

    def batches(self, live: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Copies of the rows in `live`, (R,) bool, at most `BATCH_ROWS` at a time."""
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        numbers = np.flatnonzero(live)
        for start in range(0, len(numbers), BATCH_ROWS):
            part = numbers[start : start + BATCH_ROWS]
            between = table.slice(part[0], part[-1] - part[0] + 1)
            kept = between.filter(pa.array(live[part[0] : part[-1] + 1])).combine_chunks()
            yield from kept.to_batches()


__all__ = [
    "BATCH_ROWS",
    "MANIFEST",
    "SHARDS",
    "SHARD_BYTES",
    "Manifest",
    "PassageRows",
    "Shard",
    "check_free",
    "describe_file",
    "file_problem",
    "in_groups",
    "new_directory",
    "put_in_place",
    "read_manifest",
    "runs",
    "set_aside",
    "temporary",
    "write_json",
    "write_manifest",
    "write_shard",
    "write_shards",
]
