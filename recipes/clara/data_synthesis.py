"""Enriched documents into the rows of CLaRa's three stages: chunks, questions about each, hard negatives, files.

    chunks      documents cut, what repeats left out, whole documents held out                       (`chunk_store`)
    written     questions, answers and paraphrases of each chunk, verified                           (`row_writing`)
    vectors     of each chunk, for its neighbours                                                    (`chunk_vectors`)
    finished    the rows, their card and their counts                                                (`stage_rows`)

Each is a phase (`rows_folder`) whose result lies on the disk; of documents, chunks and questions only numbers stay in
memory, of chunks the vectors too while negatives are looked for. Chunks are worked on side by side and written down in
their order, so the same documents and answers give the same files.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from ..whole_files import write_json
from .asked_counts import AskedCounts
from .chat_endpoint import ChatEndpoint
from .chunk_store import ChunkStore, blocks, write_chunks
from .chunk_vectors import HashedVectors, rarity_of, whole_numbers
from .compared_text import comparable, digest64
from .data_card import write_card
from .enrichment import EnrichmentCounts, enrich
from .hard_negatives import ChunkCollection
from .raw_knowledge import DESCRIPTIONS, RAW_KNOWLEDGE, read_descriptions, read_raw_knowledge
from .request_cost import price
from .row_writing import RowWriter, WrittenChunk
from .rows_folder import META, RowsFolder
from .stage_rows import StageRows
from .synthesis_settings import SynthesisSettings, named_settings

# Texts to embed in one request, and chunks and questions to have in memory at a time.
_EMBEDDED, _BLOCK = 32, 512
IN_DOCUMENT = "asked twice of a document"


@dataclass(frozen=True)
class Synthesis:
    """What is to be done: from which documents, into which folder, with whom.

    Attributes:
        knowledge: folder with `raw_knowledge.jsonl`.
    """

    knowledge: Path
    tokenizer: PreTrainedTokenizerBase
    settings: SynthesisSettings

    def write_chunks(self, folder: Path, show_progress: bool = True) -> None:
        """The first phase, which asks nothing.

        Raises:
            ValueError: a file cannot be read, there is nothing to ask about, or too little to hold some out.
        """
        descriptions = self.knowledge / DESCRIPTIONS
        counts, settings = EnrichmentCounts(), self.settings
        documents = enrich(
            read_raw_knowledge(self.knowledge / RAW_KNOWLEDGE),
            read_descriptions(descriptions) if descriptions.is_file() else {},
            counts,
        )
        with Progress(transient=True, disable=not show_progress) as progress:
            task = progress.add_task("Cutting documents", total=_count_lines(self.knowledge / RAW_KNOWLEDGE))
            write_chunks(
                folder,
                documents,
                counts,
                self.tokenizer,
                settings.doc_max_length,
                eval_ratio=settings.eval_ratio,
                seed=settings.seed,
                progress=lambda: progress.advance(task),
            )


class Vectors(Protocol):
    """Texts to vectors of whole numbers."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width)."""


def write_rows(
    synthesis: Synthesis,
    endpoint: ChatEndpoint,
    rows: Path,
    *,
    before_asking: Callable[[ChunkStore], None] = lambda store: None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Write the rows of all three stages, or go on with it; returns what `data_meta.json` says.

    Args:
        rows: their folder.
        before_asking: is shown the chunks.

    Raises:
        ValueError: the folder holds something else or rows of other settings, what `Synthesis.write_chunks` refuses, or
            nothing survived.
        EndpointError: the endpoint gave up.
    """
    run = _Run(synthesis, endpoint, rows, show_progress)
    if run.folder.is_finished:
        run.folder.clean()
        return run.folder.meta()
    with run.folder.claimed():
        chunks = run.folder.phase("chunks", lambda folder: synthesis.write_chunks(folder, show_progress))
        with closing(ChunkStore(chunks)) as store:
            before_asking(store)
            written = run.folder.phase("written", lambda folder: run.write_questions(folder, store))
            vectors = run.folder.phase("vectors", lambda folder: run.write_vectors(folder, store))
            finished = run.folder.phase("finished", lambda folder: run.write_stages(folder, store, written, vectors))
        run.folder.publish(finished)
    return run.folder.meta()


class _Run:
    def __init__(self, synthesis: Synthesis, endpoint: ChatEndpoint, rows: Path, show_progress: bool) -> None:
        self.synthesis, self.endpoint, self.settings = synthesis, endpoint, synthesis.settings
        self.show_progress = show_progress
        named = named_settings(synthesis.knowledge, synthesis.tokenizer, endpoint.settings.model, synthesis.settings)
        self.folder = RowsFolder(rows, named)

    def write_questions(self, folder: Path, store: ChunkStore) -> None:
        """Questions, answers and paraphrases of every usable chunk, with those left out that a document has twice."""
        asked = AskedCounts(self.endpoint.ask)
        writer = RowWriter(asked.ask, self.settings.writing)
        usable = np.flatnonzero(store.usable)
        counts: Counter[str] = Counter(questions=0, paraphrases=0)
        dropped: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        digests, documents = array("Q"), array("i")
        document, questions_there = -1, set()

        def write(chunk: int) -> WrittenChunk:
            return writer.write(store.text(chunk))

        with (folder / "written.jsonl").open("w", encoding="utf-8") as lines, self._progress() as progress:
            task = progress.add_task("Writing questions", total=len(usable))
            for chunk, found in zip(usable, self.endpoint.in_order(write, map(int, usable)), strict=True):
                if store.documents[chunk] != document:
                    document, questions_there = int(store.documents[chunk]), set()
                pairs = []
                for pair in found.pairs:
                    digest = digest64(comparable(pair.question) or pair.question)
                    if digest in questions_there:
                        dropped[IN_DOCUMENT] += 1
                        continue
                    questions_there.add(digest)
                    digests.append(digest)
                    documents.append(document)
                    pairs.append([pair.question, pair.answer, pair.quote, pair.stands_alone])
                dropped.update(found.dropped)
                refused.update(found.refused)
                counts["questions"] += len(pairs)
                counts["paraphrases"] += len(found.paraphrases)
                if pairs or found.paraphrases:
                    row = {"chunk": int(chunk), "pairs": pairs, "paraphrases": found.paraphrases}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress.advance(task)
        np.savez(folder / "questions.npz", digests=np.array(digests), documents=np.array(documents))
        if not counts.total():
            raise ValueError(_nothing_survived(store, dropped))
        told = {"written": counts, "dropped": dropped, "refused": dict(sorted(refused.items()))}
        write_json(folder / "counts.json", told | {"asked": asked.as_dict()})

    def write_vectors(self, folder: Path, store: ChunkStore) -> None:
        """Vectors of the usable chunks, in their order."""
        usable = np.flatnonzero(store.usable)
        if self.settings.embedding_model is None:
            texts = ([store.text(chunk) for chunk in block] for block in blocks(usable, _BLOCK))
            np.save(folder / "rarity.npy", rarity_of(texts))
        vectors_of = self.vectors_of(folder)
        with (folder / "vectors.i16").open("wb") as file, self._progress() as progress:
            task = progress.add_task("Comparing chunks", total=len(usable))
            for block in blocks(usable, _BLOCK):
                vectors = vectors_of([store.text(chunk) for chunk in block])
                file.write(vectors.tobytes())
                progress.advance(task, len(block))
        write_json(folder / "width.json", vectors.shape[1])

    def vectors_of(self, folder: Path) -> Vectors:
        """What makes vectors of texts, with what that phase has left."""
        if self.settings.embedding_model is None:
            return HashedVectors(np.load(folder / "rarity.npy"))

        def embed(texts: Sequence[str]) -> np.ndarray:
            return self.endpoint.embed(list(texts), model=self.settings.embedding_model)

        return lambda texts: whole_numbers(np.concatenate([*self.endpoint.in_order(embed, blocks(texts, _EMBEDDED))]))

    def write_stages(self, folder: Path, store: ChunkStore, written: Path, vectors: Path) -> None:
        """The rows, their counts and their card."""
        usable = np.flatnonzero(store.usable)
        with np.load(written / "questions.npz") as arrays:
            repeated, shared = _repeated(arrays["digests"], arrays["documents"])
        held_out = store.held_out[usable]
        collections = [ChunkCollection(usable[mask], _vectors(vectors, mask)) for mask in (~held_out, held_out)]
        counts = json.loads((written / "counts.json").read_text(encoding="utf-8"))
        stages = StageRows(folder, store, self.settings, collections, self.vectors_of(vectors))
        with stages, (written / "written.jsonl").open(encoding="utf-8") as lines, self._progress() as progress:
            task = progress.add_task("Writing rows", total=counts["written"]["questions"])
            first = 0
            for block in blocks(map(json.loads, lines), _BLOCK // 4):
                number = sum(len(row["pairs"]) for row in block)
                stages.add(block, repeated[first : first + number], shared[first : first + number])
                first += number
                progress.advance(task, number)
        if not stages.rows.total():
            raise ValueError(_nothing_survived(store, Counter(counts["dropped"]) + stages.dropped))
        meta = {"finished": True, "settings": self.folder.settings} | store.counts | counts
        meta["dropped"] = dict(sorted((Counter(counts["dropped"]) + stages.dropped).items()))
        meta |= stages.summary()
        asked, endpoint = counts["asked"], self.endpoint.settings
        tokens = asked["prompt tokens"], asked["answer tokens"]
        meta["cost"] = price(*tokens, endpoint.input_price, endpoint.output_price)
        write_json(folder / META, meta)
        write_card(folder, meta, stages.samples)

    def _progress(self) -> Progress:
        return Progress(transient=True, disable=not self.show_progress)


def _vectors(folder: Path, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of the vectors of some of the usable chunks."""
    width = json.loads((folder / "width.json").read_text())
    vectors = np.memmap(folder / "vectors.i16", np.int16, "r").reshape(-1, width)
    for start in range(0, len(mask), _BLOCK):
        yield vectors[start : start + _BLOCK][mask[start : start + _BLOCK]]


def _repeated(digests: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every question, whether an earlier one is the same, and whether several documents have it."""
    _, first, inverse, counts = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.ones(len(digests), bool)
    repeated[first] = False
    return repeated, counts[inverse] > 1  # within a document no question comes twice


def _nothing_survived(store: ChunkStore, dropped: Counter[str]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
    chunks = store.counts["chunks"]
    return (
        f"Nothing survived of {chunks['chunks to use']:,} chunks of {chunks['documents to use']:,} documents "
        f"({reasons or 'the endpoint wrote nothing'}). Ask a model that follows instructions better; what this one "
        "answered stays in the cache."
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


__all__ = ["IN_DOCUMENT", "Synthesis", "write_rows"]
