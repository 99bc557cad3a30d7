"""What was written about chunks, as rows of the three stages: each in its own file, by the side its document is on.

    compression     one row a chunk with all its questions, and one with its paraphrases; the chunk is its only document
    instruction     one row a question: the right chunk among a few that are most like it
    end_to_end      the same among many, from which the model has to choose

A question that needs its text beside it ("What does it return?") is for the first stage alone, and so is one that
several documents brought forth: neither says which document is meant. Of the latter the first stage has the first one
only, if it stands alone. Documents of a row are shuffled by a seed, the
question and its chunk, and `pos_index` says where the right one went.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from ..document_row_checks import STAGES, DocumentRowCheck
from .chunk_store import ChunkStore
from .enrichment import DESCRIBED
from .hard_negatives import ChunkCollection, NegativesWanted, hard_negatives
from .picture_context import language_of
from .synthesis_settings import SynthesisSettings

COMPRESSION, INSTRUCTION, END_TO_END = STAGES[:3]
SETS = (COMPRESSION, INSTRUCTION, END_TO_END)
TRAIN, TEST = "train", "test"
REPEATED = "asked of another document before"
NEEDS_ITS_TEXT = "does not stand alone"
SHARED = "asked of several documents"


class StageRows:
    """Writes the rows; a context manager, which opens the files.

    Args:
        collections: chunks of documents to train on, and of those held out.
        vectors_of: vectors of texts.

    Attributes:
        rows: how many, by set, split and kind.
        dropped: questions and paraphrases that no set has, by reason.
        samples: the first row of each kind.
        left_out: questions that the later stages do not have, by reason.
    """

    def __init__(
        self,
        folder: Path,
        store: ChunkStore,
        settings: SynthesisSettings,
        collections: Sequence[ChunkCollection],
        vectors_of: Callable[[Sequence[str]], np.ndarray],
    ) -> None:
        self._folder, self._store, self._settings = folder, store, settings
        self._collections, self._vectors_of = collections, vectors_of
        self._checks = {name: DocumentRowCheck(name) for name in SETS}
        self._files: dict[tuple[str, str], TextIO] = {}
        self._stack = ExitStack()
        self.samples: dict[str, dict[str, Any]] = {}
        self.rows: Counter[tuple[str, str]] = Counter()
        self.questions: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._short: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._pictures: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def add(self, block: Sequence[dict[str, Any]], repeated: np.ndarray, shared: np.ndarray) -> None:
        """Write the rows of some chunks.

        Args:
            block: as `written.jsonl` has them.
            repeated: of each of their questions, whether an earlier document has it.
            shared: whether several documents have it.
        """
        asked: list[tuple[int, int, str, str, str]] = []
        place = 0
        for row in block:
            chunk, text = row["chunk"], self._store.text(row["chunk"])
            pairs = []
            for number, (question, answer, quote, stands_alone) in enumerate(row["pairs"]):
                is_repeated, is_shared = repeated[place], shared[place]
                place += 1
                reason = self._checks[INSTRUCTION]({"question": question, "answer": answer, "docs": [text]})["reason"]
                if reason := reason or (REPEATED if is_repeated and stands_alone else None):
                    self.dropped[reason] += 1
                    continue
                pairs.append((question, answer))
                if stands_alone and not is_shared:
                    asked.append((chunk, number, question, answer, quote))
                else:
                    self.left_out[SHARED if stands_alone else NEEDS_ITS_TEXT] += 1
            self._write_compression(chunk, text, pairs, row["paraphrases"])
        for held_out in (False, True):
            self._write_later([one for one in asked if self._store.held_out[one[0]] == held_out], held_out)

    def summary(self) -> dict[str, Any]:
        """Counts, as JSON has them."""
        return {
            "rows": {
                name: {
                    split: {"rows": self.rows[name, split], "questions": self.questions[name, split]}
                    for split in (TRAIN, TEST)
                    if self.rows[name, split]
                }
                for name in SETS
            },
            "left out of instruction and end_to_end": dict(sorted(self.left_out.items())),
            "rows with fewer documents than asked for": dict(self._short),
            "languages": dict(sorted(self._languages.items())),
            "chunks with pictures": dict(self._pictures),
        }

    def _write_compression(
        self, chunk: int, text: str, pairs: Sequence[tuple[str, str]], paraphrases: Sequence[str]
    ) -> None:
        good = []
        for said in paraphrases:
            row = {"data_type": "paraphrase", "answers": [said], "docs": [text]}
            if reason := self._checks[COMPRESSION](row)["reason"]:
                self.dropped[reason] += 1
            else:
                good.append(said)
        if pairs:
            questions, answers = map(list, zip(*pairs, strict=True))
            row = {"data_type": "qa", "question": questions, "answers": answers, "docs": [text]}
            self._write(COMPRESSION, chunk, row)
            self._languages.update(language_of(question) or "other" for question in questions)
        if good:
            row = {"data_type": "paraphrase", "question": [""] * len(good), "answers": good, "docs": [text]}
            self._write(COMPRESSION, chunk, row)
        if pairs or good:
            standalone = self._store[chunk]["source_type"] == "image"
            self._pictures["standalone"] += standalone
            self._pictures["embedded"] += not standalone and DESCRIBED in text

    def _write_later(self, asked: Sequence[tuple[int, int, str, str, str]], held_out: bool) -> None:
        if not asked:
            return
        texts = [text for chunk, _, question, _, _ in asked for text in (question, self._store.text(chunk))]
        vectors = self._vectors_of(texts)
        wanted = [NegativesWanted(chunk, (answer, quote)) for chunk, _, _, answer, quote in asked]
        negatives = hard_negatives(
            vectors[::2] + vectors[1::2],
            wanted,
            self._collections if held_out else self._collections[:1],
            self._store.comparable,
            self._settings.target_top_k - 1,
        )
        sizes = {INSTRUCTION: self._settings.instruction_docs, END_TO_END: self._settings.target_top_k}
        for (chunk, number, question, answer, _), others in zip(asked, negatives, strict=True):
            for stage, size in sizes.items():
                shown = np.array([chunk, *others[: size - 1]])
                rng = np.random.default_rng([self._settings.seed, SETS.index(stage), chunk, number])
                order = rng.permutation(len(shown))
                self._short[stage] += len(shown) < size
                row = {"question": question, "docs": [self._store.text(other) for other in shown[order]]}
                row |= {"gold_answer": answer, "answer": answer, "pos_index": [int(np.flatnonzero(order == 0)[0])]}
                self._write(stage, chunk, row)

    def _write(self, name: str, chunk: int, row: dict[str, Any]) -> None:
        split = TEST if self._store.held_out[chunk] else TRAIN
        if (name, split) not in self._files:
            path = self._folder / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            self._files[name, split] = self._stack.enter_context(path.open("w", encoding="utf-8"))
        self._files[name, split].write(json.dumps(row, ensure_ascii=False) + "\n")
        kind = f"{name} {row['data_type']}" if name == COMPRESSION else name
        self.samples.setdefault(kind, row)
        self.rows[name, split] += 1
        self.questions[name, split] += len(row["answers"]) if name == COMPRESSION else 1


__all__ = ["SETS", "TEST", "TRAIN", "StageRows"]
