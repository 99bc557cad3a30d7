"""CLaRa from texts: compress, encode a question, retrieve, answer.

The model's `forward` and `generate` know tensors only; these methods put the processor before them. It is the one saved
beside the weights, or whatever `model.processor` is set to. Everything here is inference: no graph, no dropout, and
nothing of a call is left behind for the next one.

Shapes: B questions, M latents of a passage, D width, K documents that are chosen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import AutoProcessor
from transformers.utils import logging

# Passage tokens that are compressed at a time, padding counted.
TOKENS_A_BATCH = 16_384
# Values of each tensor of the base that a compressor's fingerprint looks at.
_SAMPLED = 64
# Settings of the base that no tensor shows and that a latent depends on.
_SHAPING = ("num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters")


@dataclass(frozen=True)
class Retrieval:
    """The documents that fit each question best.

    Attributes:
        scores: (B, K) cosines, falling.
        indices: (B, K) places of the documents among those searched.
    """

    scores: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class UsedDocument:
    """A document that an answer was given from.

    Attributes:
        text: of the document; from an index, of the passage.
        score: cosine with the question; None where nothing was asked, and the documents are said in other words.
        id: its id in an index; its place among the documents given, as text, without one.
    """

    text: str
    score: float | None
    id: str


@dataclass(frozen=True)
class Answer:
    """An answer and what it was given from.

    Attributes:
        documents: best first where they were chosen.
        reasoning_content: what was thought before the answer; None without a thought.
    """

    text: str
    documents: tuple[UsedDocument, ...]
    reasoning_content: str | None = None


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a graph; the mode the model was in comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class CompressionMixin:
    """What the backbone does with texts; goes before `PreTrainedModel`.

    Attributes:
        loaded_from: arguments of `from_pretrained` that say where the model came from; None if from nowhere.
    """

    loaded_from: dict[str, Any] | None = None
    _processor: Any = None

    @property
    def processor(self) -> Any:
        """The processor that texts go through; loaded from where the model came from when it is first needed.

        Raises:
            ValueError: the model was not loaded from anywhere.
        """
        if self._processor is None:
            if self.loaded_from is None:
                raise ValueError("This model was not loaded from a repository; set `model.processor` first.")
            remote = type(self).__module__.startswith("transformers_modules.")
            self._processor = AutoProcessor.from_pretrained(**self.loaded_from, trust_remote_code=remote)
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self._processor = processor

    def compress(
        self,
        documents: Sequence[str],
        *,
        compression_rate: int | None = None,
        tokens_per_batch: int = TOKENS_A_BATCH,
        show_progress_bar: bool = False,
    ) -> list[torch.Tensor]:
        """Documents to latents, each document (passages, M, D).

        Passages of like length are compressed together, so little padding is computed; a document's latents do not
        depend on what it is compressed with.

        Args:
            compression_rate: tokens of a passage for one latent; default the checkpoint's first rate.
            tokens_per_batch: passage tokens at a time.

        Raises:
            ValueError: an empty document, a text in place of a list, or a rate that the checkpoint has not.
        """
        if isinstance(documents, str):
            raise ValueError("`documents` is one text; give a list of documents, or `[document]` for one.")
        return self.compress_passages(
            [self.processor.passages(document) for document in documents],
            compression_rate=compression_rate,
            tokens_per_batch=tokens_per_batch,
            show_progress_bar=show_progress_bar,
        )

    def compress_passages(
        self,
        documents: Sequence[Sequence[Any]],
        *,
        compression_rate: int | None = None,
        tokens_per_batch: int = TOKENS_A_BATCH,
        show_progress_bar: bool = False,
    ) -> list[torch.Tensor]:
        """`compress`, of documents that `processor.passages` has cut already."""
        passages = list(chain.from_iterable(documents))
        count = self.config.num_memory_tokens(compression_rate)
        width = self.config.text_config.hidden_size
        found = torch.empty(len(passages), count, width, dtype=self.dtype, device=self.device)
        order = sorted(range(len(passages)), key=lambda index: -len(passages[index].token_ids))
        with inference(self), logging.tqdm(total=len(order), desc="Compressing", disable=not show_progress_bar) as bar:
            while order:
                # The longest comes first, so all of the batch are padded to it.
                size = max(1, tokens_per_batch // (len(passages[order[0]].token_ids) + count))
                batch, order = order[:size], order[size:]
                ids = self.processor.compressor_inputs([passages[index] for index in batch], compression_rate)
                found[batch] = self.compress_ids(ids.to(self.device))[0].to(found.dtype)
                bar.update(len(batch))
        return list(found.split([len(pieces) for pieces in documents]))

    def encode_query(self, questions: str | Sequence[str], *, compression_rate: int | None = None) -> torch.Tensor:
        """Latents (B, M, D) of questions, to be searched with.

        Raises:
            ValueError: an empty question, one longer than the context, or a rate that the checkpoint has not.
        """
        with inference(self):
            ids = self.processor.query_inputs(questions, compression_rate)
            check_context(ids.shape[1], 0, self.config, "A question with its memory tokens")
            return self.encode_query_ids(ids.to(self.device))

    def retrieve(
        self,
        questions: str | Sequence[str],
        documents: Sequence[str] | Sequence[torch.Tensor],
        *,
        top_k: int | None = None,
        compression_rate: int | None = None,
    ) -> Retrieval:
        """The documents that fit each question best; a document is as good as its best passage.

        An index of latents (`ClaraIndex.search`) does the same for many documents.

        Args:
            documents: texts, or their latents from `compress`.
            top_k: how many a question; default `num_retrieved`, or all if there are fewer.

        Raises:
            ValueError: more documents asked for than there are, no documents, latents of another rate, or what
                `compress` and `encode_query` refuse.
        """
        count = min(self.config.num_retrieved, len(documents)) if top_k is None else top_k
        if not 1 <= count <= len(documents):
            raise ValueError(f"`top_k` is {count}, and there are {len(documents)} documents; choose 1 to that many.")
        if isinstance(documents[0], str):
            documents = self.compress(documents, compression_rate=compression_rate)
        scores = self.document_scores(self.encode_query(questions, compression_rate=compression_rate), documents)
        best = scores.topk(count, dim=1)
        return Retrieval(best.values, best.indices)

    def document_scores(self, queries: torch.Tensor, documents: Sequence[torch.Tensor]) -> torch.Tensor:
        """Cosines (B, documents) of questions (B, M, D) and documents, (passages, M, D) each: its best passage's."""
        memory = torch.cat(list(documents)).to(queries.device)
        scores = self.score(queries, memory).split([len(latents) for latents in documents], dim=1)
        return torch.stack([part.amax(dim=1) for part in scores], dim=1)

    def fingerprint(self, compression_rate: int | None = None) -> str:
        """What tells this compressor from others: latents of another one do not fit.

        A digest of the compressor's terms, the new embeddings, the settings that shape a latent, and samples of every
        tensor of the base; all of it rounded to bfloat16, so that a model has one fingerprint in float32 and in
        bfloat16. In float16, which holds other numbers, it has one of its own.
        """
        config, base = self.config, self.config.text_config
        digest = hashlib.sha256()
        settings = [config.doc_max_length, list(config.memory_token_ids(compression_rate)), float(config.lora_alpha)]
        settings += [getattr(base, name) for name in _SHAPING]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            role = name.rsplit(".", 1)[-1]
            if self.is_new(name) and role not in ("compressor", "memory"):
                continue
            values = tensor.detach().flatten()
            if not self.is_new(name):
                values = values[:: max(1, len(values) // _SAMPLED)]
            digest.update(name.encode())
            digest.update(values.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


class AnsweringMixin:
    """What the model with its head does with texts; the rest is the backbone's."""

    @property
    def processor(self) -> Any:
        """See `CompressionMixin.processor`."""
        return self.model.processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self.model.processor = processor

    def compress(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """See `CompressionMixin.compress`."""
        return self.model.compress(*args, **kwargs)

    def encode_query(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `CompressionMixin.encode_query`."""
        return self.model.encode_query(*args, **kwargs)

    def retrieve(self, *args: Any, **kwargs: Any) -> Retrieval:
        """See `CompressionMixin.retrieve`."""
        return self.model.retrieve(*args, **kwargs)

    def answer(
        self,
        questions: str | Sequence[str],
        documents: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        index: Any = None,
        top_k: int | None = None,
        compression_rate: int | None = None,
        batch_size: int = 8,
        enable_thinking: bool = False,
        **generation: Any,
    ) -> Answer | list[Answer]:
        """Answer questions from documents.

        Args:
            questions: one, or a list; "" asks for the documents in other words, all of them.
            documents: of each question, none to many; of a single question a flat list. Those of all questions are
                compressed once.
            index: a `ClaraIndex` in their place, made by this compressor.
            top_k: answer from that many, the best first; default all documents given, `num_retrieved` of an index.
            compression_rate: default the checkpoint's first rate, of an index the index's.
            batch_size: questions at a time.
            enable_thinking: let the language model think first, where its template knows thoughts. A thought that
                `max_new_tokens` cuts off leaves an empty answer.
            generation: as `generate` takes it; greedy and up to 64 new tokens, where it does not say.

        Returns:
            One answer for one question, else a list.

        Raises:
            ValueError: documents and an index together; `top_k` of more documents than there are; an index of another
                compressor; a prompt that does not fit into the context; what `compress` and `encode_query` refuse.
        """
        if documents is not None and index is not None:
            raise ValueError("Give `documents` or an `index`, and not both.")
        if single := isinstance(questions, str):
            questions, documents = [questions], None if documents is None else [documents]
        first, new = self.config.document_token_id, self.config.num_new_embeddings + 1
        defaults = {"do_sample": False, "max_new_tokens": 64, "suppress_tokens": list(range(first, first + new))}
        settings = defaults | generation
        with inference(self):
            if index is not None:
                chosen = self._from_index(questions, index, top_k, batch_size)
            else:
                documents = [()] * len(questions) if documents is None else documents
                self._check_choice(questions, documents, top_k)
                cut = {text: self.processor.passages(text) for text in dict.fromkeys(chain.from_iterable(documents))}
                self._check_prompts(questions, documents, cut, top_k, compression_rate, settings["max_new_tokens"])
                chosen = self._from_documents(questions, documents, cut, top_k, compression_rate, batch_size)
            answers = []
            for start in range(0, len(questions), batch_size):
                part = slice(start, start + batch_size)
                answers += self._write(questions[part], chosen[part], enable_thinking, settings)
        return answers[0] if single else answers

    def _encode(self, questions: Sequence[str], compression_rate: int | None, batch_size: int) -> torch.Tensor:
        """`encode_query`, so many questions at a time."""
        starts = range(0, len(questions), batch_size)
        parts = [questions[start : start + batch_size] for start in starts]
        return torch.cat([self.encode_query(part, compression_rate=compression_rate) for part in parts])

    def _from_index(
        self, questions: Sequence[str], index: Any, top_k: int | None, batch_size: int
    ) -> list[list[tuple[UsedDocument, torch.Tensor]]]:
        rate = index.settings.compression_rate
        index.check(self.model.fingerprint(rate))
        queries = self._encode(questions, rate, batch_size)
        found = index.search(queries, self.config.num_retrieved if top_k is None else top_k)
        chosen = []
        for scores, rows in zip(found.scores.tolist(), found.rows, strict=True):
            passages = zip(index.passages(rows), scores, index.memory(rows), strict=True)
            chosen.append([(UsedDocument(row["text"], score, row["id"]), latents) for row, score, latents in passages])
        return chosen

    def _check_choice(self, questions: Sequence[str], documents: Sequence[Sequence[str]], top_k: int | None) -> None:
        if strings := sum(isinstance(given, str) for given in documents):
            raise ValueError(f"{strings} of {len(questions)} questions have a text in place of a list of documents.")
        if len(documents) != len(questions):
            raise ValueError(
                f"There are {len(questions)} questions and {len(documents)} lists of documents: give a list a question."
            )
        if few := [len(given) for given in documents if top_k is not None and not 1 <= top_k <= len(given)]:
            raise ValueError(
                f"`top_k` is {top_k}, and {len(few)} of {len(questions)} questions have fewer documents, the fewest "
                f"{min(few)}; choose 1 to that many, or leave it out to use all."
            )

    def _check_prompts(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]],
        cut: Mapping[str, Sequence[Any]],
        top_k: int | None,
        compression_rate: int | None,
        new_tokens: int,
    ) -> None:
        """Refuse what cannot fit before it is compressed: the shortest prompt that a choice can lead to."""
        latents = self.config.num_memory_tokens(compression_rate)
        for question, given in zip(questions, documents, strict=True):
            counts = sorted(len(cut[text]) * latents for text in given)[:top_k]
            length = self.processor(question, placeholders=[counts])["input_ids"].shape[1]
            check_context(length, new_tokens, self.config, "A prompt with its documents")

    def _from_documents(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]],
        cut: Mapping[str, Sequence[Any]],
        top_k: int | None,
        compression_rate: int | None,
        batch_size: int,
    ) -> list[list[tuple[UsedDocument, torch.Tensor]]]:
        chosen: list[list[tuple[UsedDocument, torch.Tensor]]] = [[] for _ in questions]
        asked = [index for index, given in enumerate(documents) if given]
        if not asked:
            return chosen
        scored = [index for index in asked if questions[index].strip() or top_k is not None]
        encoded = self._encode([questions[index] for index in scored], compression_rate, batch_size) if scored else ()
        queries = dict(zip(scored, encoded, strict=True))
        found = self.model.compress_passages(list(cut.values()), compression_rate=compression_rate)
        latents = dict(zip(cut, found, strict=True))
        for index in asked:
            given, order, scores = documents[index], range(len(documents[index])), None
            if index in queries:
                scores = self.model.document_scores(queries[index][None], [latents[text] for text in given])[0]
                order = order if top_k is None else scores.topk(top_k).indices.tolist()
            chosen[index] = [
                (
                    UsedDocument(given[place], None if scores is None else float(scores[place]), str(place)),
                    latents[given[place]].flatten(0, 1),
                )
                for place in order
            ]
        return chosen

    def _write(
        self,
        questions: Sequence[str],
        chosen: Sequence[Sequence[tuple[UsedDocument, torch.Tensor]]],
        enable_thinking: bool,
        settings: Mapping[str, Any],
    ) -> list[Answer]:
        memory = [latents.to(self.device, self.dtype) for row in chosen for _, latents in row]
        placeholders = [[len(latents) for _, latents in row] for row in chosen]
        inputs = self.processor(questions, placeholders=placeholders, enable_thinking=enable_thinking).to(self.device)
        length = inputs["input_ids"].shape[1]
        check_context(length, settings["max_new_tokens"], self.config, "A prompt with its documents")
        written = self.generate(**inputs, memory=memory or None, **settings)[:, length:]
        tokenizer = self.processor.tokenizer
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        messages = [{"content": text} for text in texts]
        if enable_thinking:
            messages = self.processor.parse_response(texts, prefix=tokenizer.batch_decode(inputs["input_ids"]))
        return [
            Answer(message["content"].strip(), tuple(used for used, _ in row), message.get("reasoning_content"))
            for message, row in zip(messages, chosen, strict=True)
        ]


def check_context(length: int, new_tokens: int, config: Any, what: str) -> None:
    """Whether a text and what is written behind it fit into the context.

    Raises:
        ValueError: they do not.
    """
    longest = config.text_config.max_position_embeddings
    if length + new_tokens > longest:
        raise ValueError(
            f"{what} has {length} tokens and {new_tokens} are to be written, and the context holds {longest}. Use "
            "fewer documents, a higher compression rate or a shorter question."
        )


__all__ = ["Answer", "AnsweringMixin", "CompressionMixin", "Retrieval", "UsedDocument", "check_context", "inference"]
