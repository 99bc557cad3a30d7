"""Processor of CLaRa: documents and questions to tensors.

    document    passage tokens, memory tokens                       read by the compressor
    question    question tokens, memory tokens                      read by the query reasoner
    prompt      turn begins … [placeholders, separator] a document … question … answer begins      by the generator

What a token is is decided by where it stands, never by what a text says: documents, questions and answers are tokenised
apart from the prompt around them, with special tokens taken as plain text, so no document can open a turn or pass for
another document's memory.

Letters: B prompts, N passages of all of them, L tokens of a passage, S tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ..configuration.configuration_clara_qwen3 import chosen_rate
from .memory_tokens import DOCUMENT_TOKEN, SEPARATOR_TOKEN, first_new_id, memory_token_names
from .thinking import ThinkingMixin

# What stands before the documents, behind them where there is a question, and where there is none.
BEFORE_DOCUMENTS = "Background:\n"
BEFORE_QUESTION = "\n\nQuestion: "
REPHRASE = "\n\nSay in other words what the background says."
IGNORED = -100

_GAP = "\ue000"  # a private character that marks where a user's turn goes in the template


@dataclass(frozen=True)
class Passage:
    """A piece of a document that is compressed as one.

    Attributes:
        text: as it stands in the document; those of all its passages, one after the other, are the document.
        token_ids: at most `doc_max_length` of them.
    """

    text: str
    token_ids: list[int]


class ClaraQwen3Processor(ThinkingMixin, ProcessorMixin):
    """Documents, questions and answers to what `ClaraQwen3ForCausalLM` takes.

    Args:
        tokenizer: Qwen3's, with the memory tokens (`add_memory_tokens`).
        doc_max_length: tokens of a passage at most, `ClaraQwen3Config.doc_max_length`.
        compression_rates: `ClaraQwen3Config.compression_rates`; the first one is the default.
        chat_template: of the prompt; default the tokenizer's.

    Raises:
        ValueError: the tokenizer lacks memory tokens, or its template does not leave a user's text as it is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        doc_max_length: int = 256,
        compression_rates: Sequence[int] = (32,),
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.doc_max_length = doc_max_length
        self.compression_rates = list(compression_rates)
        self.document_token_id = first_new_id(tokenizer, doc_max_length, self.compression_rates)
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template, **kwargs)
        self.document_token, self.separator_token = DOCUMENT_TOKEN, SEPARATOR_TOKEN

    def __call__(
        self,
        questions: str | Sequence[str],
        documents: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        answers: str | Sequence[str] | None = None,
        placeholders: Sequence[Sequence[int]] | None = None,
        compression_rate: int | None = None,
        padding_side: str = "left",
        enable_thinking: bool = False,
    ) -> BatchFeature:
        """Prompts, and the passages they speak of.

        Args:
            questions: one a prompt; "" asks for the background in other words.
            documents: of each prompt, none to many; of a single question a flat list.
            answers: what is to be learned, one a question: they are joined to the prompts, and `labels` are given.
            placeholders: in place of `documents`, the number of latents of each document, for latents at hand.
            compression_rate: tokens of a passage for one latent.
            padding_side: of the prompts; "left" to generate, "right" to train.
            enable_thinking: False opens the answer behind an empty thought, where the template knows thoughts.

        Returns:
            `input_ids`, `attention_mask` (B, S), with answers `labels`, and with documents `document_input_ids` (N, L).

        Raises:
            ValueError: numbers of questions, documents and answers that differ, an empty document, a prompt with
                neither question nor document, or a rate that is not known.
        """
        if isinstance(questions, str):
            questions, documents = [questions], None if documents is None else [documents]
            answers = [answers] if isinstance(answers, str) else answers
        if documents is not None and placeholders is not None:
            raise ValueError("Give `documents`, or `placeholders` for latents at hand, and not both.")
        for name, given in (("documents", documents), ("answers", answers), ("placeholders", placeholders)):
            if isinstance(given, str):
                raise ValueError(f"`{name}` is one text, and there are {len(questions)} questions: give a list.")
            if given is not None and len(given) != len(questions):
                raise ValueError(
                    f"There are {len(questions)} questions and {len(given)} items of `{name}`: one a question."
                )
        if strings := sum(isinstance(given, str) for given in documents or ()):
            raise ValueError(f"{strings} of {len(questions)} questions have a text in place of a list of documents.")
        passages: list[list[int]] = []
        if documents is not None:
            latents, placeholders = len(self._memory_ids(compression_rate)), []
            for given in documents:
                cut = [self.passages(document) for document in given]
                placeholders.append([len(pieces) * latents for pieces in cut])
                passages += [piece.token_ids for pieces in cut for piece in pieces]
        frame = self._frame(enable_thinking)
        ids = [
            self._prompt(question, counts, frame)
            for question, counts in zip(questions, placeholders or [()] * len(questions), strict=True)
        ]
        batch = self._joined(ids, answers, padding_side)
        if passages:
            batch["document_input_ids"] = self._with_memory_tokens(passages, compression_rate)
        return BatchFeature(batch)

    def passages(self, document: str) -> list[Passage]:
        """Cut a document into passages of equal length, as few as `doc_max_length` allows.

        Raises:
            ValueError: an empty document.
        """
        encoded = self.tokenizer(
            document, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if not document.strip() or not ids:
            raise ValueError("A document is empty (0 tokens). Leave it out: a question may have no documents.")
        count = -(-len(ids) // self.doc_max_length)
        bounds = [len(ids) * index // count for index in range(count + 1)]
        # A character of several tokens may lie on a border: its text belongs to the passage behind it, and to no other.
        places = [0, *(offsets[bound][0] for bound in bounds[1:-1]), len(document)]
        return [
            Passage(document[first:last], ids[start:end])
            for (first, last), (start, end) in zip(pairwise(places), pairwise(bounds), strict=True)
        ]

    def compressor_inputs(self, passages: Sequence[Passage], compression_rate: int | None = None) -> torch.Tensor:
        """(N, L) ids of passages with their memory tokens, padded on the right.

        Raises:
            ValueError: a rate that is not known.
        """
        return self._with_memory_tokens([passage.token_ids for passage in passages], compression_rate)

    def query_inputs(self, questions: str | Sequence[str], compression_rate: int | None = None) -> torch.Tensor:
        """(B, L) ids of questions with their memory tokens, padded on the right.

        Raises:
            ValueError: an empty question, or a rate that is not known.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        if empty := sum(not question.strip() for question in questions):
            raise ValueError(f"{empty} of {len(questions)} questions are empty; nothing can be retrieved for them.")
        return self._with_memory_tokens([self._plain(question) for question in questions], compression_rate)

    def _memory_ids(self, compression_rate: int | None) -> list[int]:
        rate = chosen_rate(compression_rate, self.compression_rates)
        return self.tokenizer.convert_tokens_to_ids(memory_token_names(self.doc_max_length, rate))

    def _with_memory_tokens(self, texts: Sequence[list[int]], compression_rate: int | None) -> torch.Tensor:
        memory = self._memory_ids(compression_rate)
        return self._padded([[*ids, *memory] for ids in texts], self.tokenizer.pad_token_id, "right")

    def _plain(self, text: str) -> list[int]:
        """A text's ids; what looks like a special token is text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def _prompt(self, question: str, counts: Sequence[int], frame: tuple[list[int], list[int]]) -> list[int]:
        if not question.strip() and not counts:
            raise ValueError("A prompt has neither a question nor a document; nothing can be answered.")
        begin, end = frame
        ids = [*begin]
        if counts:
            ids += self._plain(BEFORE_DOCUMENTS)
        for count in counts:
            ids += [self.document_token_id] * count + [self.document_token_id + 1]
        asked = BEFORE_QUESTION + question if question.strip() else REPHRASE
        return [*ids, *self._plain(asked if counts else question), *end]

    def _frame(self, enable_thinking: bool) -> tuple[list[int], list[int]]:
        """What the chat template writes before and behind a user's text, up to where the answer begins."""
        turn = [{"role": "user", "content": _GAP}]
        rendered = self.tokenizer.apply_chat_template(
            turn,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=enable_thinking,
        )
        if rendered.count(_GAP) != 1:
            raise ValueError("The chat template does not leave a user's text as it is. Use the language model's own.")
        begin, end = rendered.split(_GAP)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (begin, end))

    def _joined(
        self, prompts: list[list[int]], answers: Sequence[str] | None, padding_side: str
    ) -> dict[str, torch.Tensor]:
        """Prompts, with answers and their end of turn behind them; nothing but those is supervised."""
        endings: list[list[int]] = [[] for _ in prompts]
        if answers is not None:
            if empty := sum(not answer.strip() for answer in answers):
                raise ValueError(f"{empty} of {len(answers)} answers are empty; nothing can be learned from them.")
            endings = [[*self._plain(answer), self.tokenizer.eos_token_id] for answer in answers]
        rows = [[*prompt, *ending] for prompt, ending in zip(prompts, endings, strict=True)]
        batch = {
            "input_ids": self._padded(rows, self.tokenizer.pad_token_id, padding_side),
            "attention_mask": self._padded([[1] * len(row) for row in rows], 0, padding_side),
        }
        if answers is not None:
            labels = [[IGNORED] * len(prompt) + ending for prompt, ending in zip(prompts, endings, strict=True)]
            batch["labels"] = self._padded(labels, IGNORED, padding_side)
        return batch

    def _padded(self, rows: list[list[int]], fill: int, side: str) -> torch.Tensor:
        return pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=fill, padding_side=side)


__all__ = ["ClaraQwen3Processor", "Passage"]
