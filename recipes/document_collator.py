"""Rows of a question, an answer and documents to batches for CLaRa's stages.

Nothing is cut: a long document is several passages. Each batch takes one compression rate, drawn by its first row, so
that a run that is resumed draws the same ones.

Shapes: B rows, N passages of the batch, L tokens of a passage or question, S tokens of a prompt.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..processing.processing_clara_qwen3 import ClaraQwen3Processor
from .clara_stages import CHOOSING


class DocumentCollator:
    """Data collator for rows as `document_data` gives them.

    Args:
        processor: of the model.
        stage: one of `clara_stages.TRAINED_PARTS`.
        rates: compression rates to draw from.
        num_retrieved: passages that a question chooses.
        max_length: refuse longer prompts.
    """

    def __init__(
        self,
        processor: ClaraQwen3Processor,
        stage: str,
        *,
        rates: Sequence[int],
        num_retrieved: int,
        max_length: int | None = None,
    ) -> None:
        self.processor = processor
        self.stage = stage
        self.rates = list(rates)
        self.num_retrieved = num_retrieved
        self.max_length = max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, S), padded on the right, and `document_input_ids` (N, L). Where
            questions choose their documents also `query_input_ids` (B, L), `candidates` and `positives` (B, N), and the
            prompts have room for as many passages as can be chosen; retrieval alone has no prompts.

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
        # Each text is compressed once, and is no wrong answer to a question that it answers.
        texts = list(dict.fromkeys(text for example in examples for text in example["documents"]))
        cut = {text: self.processor.passages(text) for text in texts}
        owner = [text for text in texts for _ in cut[text]]
        candidates = torch.tensor([[text in set(example["documents"]) for text in owner] for example in examples])
        right = [{example["documents"][place] for place in example["positives"]} for example in examples]
        batch = {
            "document_input_ids": self.processor.compressor_inputs([p for text in texts for p in cut[text]], rate),
            "query_input_ids": self.processor.query_inputs([example["question"] for example in examples], rate),
            "candidates": candidates,
            "positives": torch.tensor([[text in answers for text in owner] for answers in right]),
        }
        if self.stage == "retrieval":
            # The documents of the other questions are wrong answers too.
            return batch | {"candidates": torch.ones_like(candidates)}
        latents = self.processor.doc_max_length // rate
        places = candidates.sum(dim=1).clamp(max=self.num_retrieved).tolist()
        prompts = self.processor(
            [example["question"] for example in examples],
            placeholders=[[latents] * count for count in places],
            answers=[example["answer"] for example in examples],
            padding_side="right",
        )
        return batch | dict(prompts)


__all__ = ["DocumentCollator"]
