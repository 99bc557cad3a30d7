"""Rows of a question, an answer and documents to batches for CLaRa's stages.

Nothing is cut: a long document is several passages. Each batch takes one compression rate, drawn by its first row, so
that a run that is resumed draws the same ones.

While the compressor does not train, every document is compressed once before the first step, and batches carry latents
in place of documents. Then a question can be held against all documents there are, at the price of a matrix product.

Shapes: B rows, N passages of the batch, L tokens of a passage or question, M latents of width D of a passage, S of
a prompt.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..processing.processing_clara_qwen3 import ClaraQwen3Processor
from .clara_stages import CHOOSING, ClaraArguments

# Passages that a question of retrieval is held against at most, where their latents are at hand.
MOST_CANDIDATES = 4096


class DocumentLatents:
    """Documents of a data set, compressed once.

    Args:
        model: a CLaRa model with its processor; its compressor stays as it is from here on.
        documents: texts, repeats allowed.
        rates: to compress at.
    """

    def __init__(self, model: PreTrainedModel, documents: Sequence[str], rates: Sequence[int]) -> None:
        self.texts = list(dict.fromkeys(documents))
        self.by_rate = {
            rate: dict(
                zip(
                    self.texts,
                    (part.cpu() for part in model.compress(self.texts, compression_rate=rate, show_progress_bar=True)),
                    strict=True,
                )
            )
            for rate in rates
        }

    def passages(self, rate: int, text: str) -> torch.Tensor:
        """(passages, M, D) of a document."""
        return self.by_rate[rate][text]


class DocumentCollator:
    """Data collator for rows as `document_data` gives them.

    Args:
        processor: of the model.
        stage: one of `clara_stages.TRAINED_PARTS`.
        rates: compression rates to draw from.
        num_retrieved: passages that a question chooses.
        max_length: refuse longer prompts.
        latents: of all documents that the rows have, where the compressor does not train.
    """

    def __init__(
        self,
        processor: ClaraQwen3Processor,
        stage: str,
        *,
        rates: Sequence[int],
        num_retrieved: int,
        max_length: int | None = None,
        latents: DocumentLatents | None = None,
    ) -> None:
        self.processor = processor
        self.stage = stage
        self.rates = list(rates)
        self.num_retrieved = num_retrieved
        self.max_length = max_length
        self.latents = latents

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, S), padded on the right, and `document_input_ids` (N, L), or
            where latents are at hand `memory` (N, M, D). Where questions choose their documents also `query_input_ids`
            (B, L), `candidates` and `positives` (B, N), and the prompts have room for as many passages as can be
            chosen; retrieval alone has no prompts.

        Raises:
            ValueError: a row that the processor refuses, or a prompt longer than `max_length`.
        """
        rate = self.rates[zlib.crc32(examples[0]["documents"][0].encode()) % len(self.rates)]
        if self.stage in CHOOSING:
            batch = self._choosing(examples, rate)
        else:
            batch = dict(
                self.processor(
                    [example["question"] for example in examples],
                    [example["documents"] for example in examples],
                    answers=[example["answer"] for example in examples],
                    compression_rate=rate,
                    padding_side="right",
                )
            )
        longest = int(batch["attention_mask"].sum(dim=1).max()) if "attention_mask" in batch else 0
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"A row has {longest} tokens with its documents' latents, and `max_length` is {self.max_length}. Raise "
                "it, take a higher compression rate, or leave such rows out."
            )
        return batch

    def _choosing(self, examples: Sequence[Mapping[str, Any]], rate: int) -> dict[str, torch.Tensor]:
        # Each text is there once, and is no wrong answer to a question that it answers.
        texts = list(dict.fromkeys(text for example in examples for text in example["documents"]))
        own = [set(example["documents"]) for example in examples]
        right = [{example["documents"][place] for place in example["positives"]} for example in examples]
        if self.stage == "retrieval" and self.latents is not None:
            texts = self._with_others(texts)
        batch, owner = self._documents(texts, rate)
        batch |= {
            "query_input_ids": self.processor.query_inputs([example["question"] for example in examples], rate),
            "candidates": torch.tensor([[text in documents for text in owner] for documents in own]),
            "positives": torch.tensor([[text in answers for text in owner] for answers in right]),
        }
        if self.stage == "retrieval":
            # The documents of the other questions are wrong answers too.
            return batch | {"candidates": torch.ones_like(batch["candidates"])}
        latents = self.processor.doc_max_length // rate
        places = batch["candidates"].sum(dim=1).clamp(max=self.num_retrieved).tolist()
        prompts = self.processor(
            [example["question"] for example in examples],
            placeholders=[[latents] * count for count in places],
            answers=[example["answer"] for example in examples],
            padding_side="right",
        )
        return batch | dict(prompts)

    def _documents(self, texts: Sequence[str], rate: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The passages of texts, as ids or latents, and the text that each is of."""
        if self.latents is not None:
            parts = [self.latents.passages(rate, text) for text in texts]
            owner = [text for text, part in zip(texts, parts, strict=True) for _ in part]
            return {"memory": torch.cat(parts)}, owner
        cut = [self.processor.passages(text) for text in texts]
        owner = [text for text, passages in zip(texts, cut, strict=True) for _ in passages]
        passages = [passage for pieces in cut for passage in pieces]
        return {"document_input_ids": self.processor.compressor_inputs(passages, rate)}, owner

    def _with_others(self, texts: list[str]) -> list[str]:
        """A batch's texts, and others of the data set up to `MOST_CANDIDATES`; the same ones whenever it is built."""
        own = set(texts)
        others = [text for text in self.latents.texts if text not in own]
        count = min(len(others), max(0, MOST_CANDIDATES - len(texts)))
        return texts + random.Random(zlib.crc32(texts[0].encode())).sample(others, count)


def document_collator(
    model: PreTrainedModel,
    processor: ClaraQwen3Processor,
    stage: str,
    clara: ClaraArguments,
    splits: Sequence[Dataset | None],
    max_length: int | None = None,
) -> DocumentCollator:
    """The collator of a run; documents are compressed for it where the compressor does not train.

    Args:
        model: in which the stage's parts train, and no others.
        splits: all rows that it will see.
    """
    rates = clara.compression_rates or model.config.compression_rates
    trained = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    latents = None
    if stage in CHOOSING and trained <= {"query_reasoner", "generator"}:
        documents = [text for rows in splits if rows is not None for given in rows["documents"] for text in given]
        latents = DocumentLatents(model, documents, rates)
    return DocumentCollator(
        processor,
        stage,
        rates=rates,
        num_retrieved=clara.num_retrieved or model.config.num_retrieved,
        max_length=max_length,
        latents=latents,
    )


__all__ = ["MOST_CANDIDATES", "DocumentCollator", "DocumentLatents", "document_collator"]
