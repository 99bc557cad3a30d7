"""The chunks of a knowledge folder's documents, on the disk; in memory are numbers about them only.

    chunks.jsonl       {"text": …, "document": 3, "source_type": "text"} one a line, all of them
    comparable.txt     their words, as `compared_text` has them
    chunks.npz         where each begins, its document, and what it is: to use, held out, or dropped for a reason
    counts.json

Documents come one after the other and are in memory one at a time. Whole documents are held out: those whose id,
hashed with a seed, comes first, so that a document stays on its side whatever comes beside it.
"""

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..llava_data import CONTROL_TOKENS
from ..whole_files import write_json
from .chunking import chunk_text
from .compared_text import comparable, digest64
from .duplicate_chunks import Fingerprints
from .enrichment import DESCRIBED, EnrichedDocument, EnrichmentCounts

# More tokens than characters: the tokenizer knows hardly a word of it. English has 0.25 a character, Chinese 0.6.
DENSE_TOKENS = 1.5
# A part of a chunk's tokens; only tokenizers that are not made of bytes have tokens for what they do not know.
MOST_UNKNOWN = 0.1
CONTROL, NO_WORDS, UNKNOWN = "control token", "no words", "unknown to the tokenizer"
EXACT, NEARLY = "repeats another chunk", "nearly repeats another chunk"
_DROPPED = (CONTROL, NO_WORDS, UNKNOWN)


class ChunkStore:
    """Chunks that `write_chunks` left.

    Attributes:
        documents: number of each chunk's document, in their order.
        usable: whether it is a chunk to ask about and to show.
        held_out: whether its document is held out.
        counts: what became of documents and chunks.
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "chunks.npz") as arrays:
            self.documents, self.usable, self.held_out = (arrays[name] for name in ("documents", "usable", "held_out"))
            self._ends, self._comparable_ends = arrays["ends"], arrays["comparable_ends"]
        self.counts: dict[str, Any] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        self._chunks = (folder / "chunks.jsonl").open("rb")
        self._comparable = (folder / "comparable.txt").open("rb")

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, chunk: int) -> dict[str, Any]:
        return json.loads(_part(self._chunks.fileno(), self._ends, chunk))

    def text(self, chunk: int) -> str:
        """What is written about, and shown."""
        return self[chunk]["text"]

    def comparable(self, chunk: int) -> str:
        """Its words."""
        return _part(self._comparable.fileno(), self._comparable_ends, chunk).decode()

    def close(self) -> None:
        """Close the files."""
        self._chunks.close()
        self._comparable.close()


def write_chunks(
    folder: Path,
    documents: Iterable[EnrichedDocument],
    enrichment: EnrichmentCounts,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    eval_ratio: float,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Cut documents into chunks, tell which of these to use, and hold whole documents out.

    Args:
        enrichment: counted while `documents` is read.
        eval_ratio: part of the documents to hold out, at least one unless it is 0.
        progress: called after each document.

    Raises:
        ValueError: there is only one document with something to ask about, and some should be held out.
    """
    ends, comparable_ends, numbers, reasons, keys = array("q", [0]), array("q", [0]), array("i"), array("b"), array("Q")
    fingerprints = Fingerprints()
    counts: Counter[str] = Counter()
    # An id for words that no tokenizer of bytes has.
    unknown = tokenizer.unk_token_id
    with (folder / "chunks.jsonl").open("wb") as chunks, (folder / "comparable.txt").open("wb") as words:
        for number, document in enumerate(documents):
            keys.append(digest64(f"{seed} {document.id}"))
            tokens = 0
            for text in chunk_text(document.text, tokenizer, max_tokens):
                ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                tokens += len(ids)
                row = {"text": text, "document": number, "id": document.id, "source_type": document.source_type}
                chunks.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                words.write(comparable(text).encode())
                ends.append(chunks.tell())
                comparable_ends.append(words.tell())
                numbers.append(number)
                reasons.append(_why_not(text, ids.count(unknown) / max(1, len(ids))))
                if not reasons[-1]:
                    fingerprints.add(text)
            counts["tokens"] += tokens
            counts["characters"] += len(document.text)
            counts["documents hardly known to the tokenizer"] += tokens > DENSE_TOKENS * len(document.text)
            progress()
    named = {"ends": ends, "comparable_ends": comparable_ends, "documents": numbers}
    arrays = {name: np.array(values) for name, values in named.items()}
    reasons = np.array(reasons)
    candidates = np.flatnonzero(reasons == 0)
    with (folder / "chunks.jsonl").open("rb") as chunks:
        exact, near = fingerprints.duplicates(
            lambda place: json.loads(_part(chunks.fileno(), arrays["ends"], candidates[place]))["text"]
        )
    usable = np.zeros(len(reasons), bool)
    usable[candidates[~exact & ~near]] = True
    held_out = _held_out(arrays["documents"], usable, np.array(keys), eval_ratio)
    arrays |= {"usable": usable, "held_out": held_out}
    dropped = {reason: int((reasons == place).sum()) for place, reason in enumerate(_DROPPED, start=1)}
    dropped |= {EXACT: int(exact.sum()), NEARLY: int(near.sum())}
    documents_used = np.unique(arrays["documents"][usable])
    counts |= {"chunks": len(usable), "chunks to use": int(usable.sum()), "documents to use": len(documents_used)}
    counts["documents held out"] = len(np.unique(arrays["documents"][usable & held_out]))
    np.savez(folder / "chunks.npz", **arrays)
    write_json(folder / "counts.json", {"enrichment": asdict(enrichment), "chunks": counts, "dropped chunks": dropped})


def _why_not(text: str, unknown: float) -> int:
    """Place in `_DROPPED`, counted from 1; 0 for a chunk to use."""
    if CONTROL_TOKENS.search(text):
        return 1
    if not comparable(text.replace(DESCRIBED, "")):
        return 2
    return 3 if unknown > MOST_UNKNOWN else 0


def _held_out(documents: np.ndarray, usable: np.ndarray, keys: np.ndarray, eval_ratio: float) -> np.ndarray:
    candidates = np.unique(documents[usable])
    if not eval_ratio or not len(candidates):
        return np.zeros(len(documents), bool)
    if len(candidates) == 1:
        raise ValueError(
            f"There is 1 document to ask about, and a part of {eval_ratio} is to be held out. Give more documents, or "
            "hold none out (`--eval-ratio 0`)."
        )
    count = min(max(1, round(eval_ratio * len(candidates))), len(candidates) - 1)
    chosen = candidates[np.argsort(keys[candidates], kind="stable")[:count]]
    return np.isin(documents, chosen)


def _part(file: int, ends: np.ndarray, chunk: int) -> bytes:
    start, end = int(ends[chunk]), int(ends[chunk + 1])
    return os.pread(file, end - start, start)


def blocks(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """Lists of so many items, the last one of those that are left."""
    block: list[Any] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


__all__ = ["EXACT", "NEARLY", "ChunkStore", "blocks", "write_chunks"]
