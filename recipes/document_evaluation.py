"""Held-out questions about documents, answered by a CLaRa model beside their controls.

A model that reads its documents answers better from its own than from none and than from another question's. Where
questions choose their documents, what they chose is measured too.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from .answer_metrics import recall_at_k, score_answers
from .clara_stages import CHOOSING

# The measure that controls are given in: whether a gold answer stands in what was written.
MEASURE = "cover_exact_match"


def evaluate_documents(
    model: PreTrainedModel, rows: Dataset, stage: str, *, max_new_tokens: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """Answer rows of `document_data`, greedily.

    Args:
        model: a CLaRa model with its processor set.
        stage: the run's; in stages that choose, answers are given from the `num_retrieved` best documents of each row,
            and of retrieval alone only the choice is measured.
        batch_size: questions at a time.

    Returns:
        "qa" and "paraphrase", as far as there are rows of them -> the measures of `answer_metrics`, with `no_documents`
        and `shuffled_documents` for the controls, and `rows`.
    """
    found = {}
    for kind in sorted(set(rows["data_type"])):
        of_kind = rows.filter(lambda row, kind=kind: row["data_type"] == kind)
        found[kind] = _retrieval(model, of_kind) if stage in CHOOSING else {}
        if stage != "retrieval":
            settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
            found[kind] |= _answers(model, of_kind, stage in CHOOSING, settings)
        found[kind]["rows"] = len(of_kind)
    return found


@torch.inference_mode()
def answer_loss(
    model: PreTrainedModel,
    questions: Sequence[str],
    documents: Sequence[Sequence[str]],
    answers: Sequence[str],
    *,
    compression_rate: int | None = None,
    batch_size: int = 25,
) -> float:
    """Cross-entropy of a token of given answers, in nats.

    Args:
        model: a CLaRa model with its processor set, in evaluation mode.
        questions: "" for documents that are said again.
        documents: of each question; none to many.
        batch_size: questions at a time.
    """
    total, tokens = 0.0, 0
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        batch = model.processor(
            questions[part],
            documents[part],
            answers=answers[part],
            compression_rate=compression_rate,
            padding_side="right",
        ).to(model.device)
        count = int((batch["labels"] != -100).sum())
        total, tokens = total + count * model(**batch).loss.item(), tokens + count
    return total / tokens


def _retrieval(model: PreTrainedModel, rows: Dataset) -> dict[str, float]:
    """How often a right document is the first, and among those that would be answered from."""
    texts = list(dict.fromkeys(text for documents in rows["documents"] for text in documents))
    latents = dict(zip(texts, model.compress(texts), strict=True))
    retrieved = []
    for row in rows:
        documents = [latents[text] for text in row["documents"]]
        retrieved.append(model.retrieve(row["question"], documents, top_k=len(documents)).indices[0].tolist())
    scores: dict[str, float] = {}
    for k in (1, model.config.num_retrieved):
        scores |= recall_at_k(retrieved, rows["positives"], k)
    return {name: value for name, value in scores.items() if name != "queries"}


def _answers(model: PreTrainedModel, rows: Dataset, choosing: bool, settings: dict[str, Any]) -> dict[str, float]:
    questions, documents, golds = rows["question"][:], rows["documents"][:], rows["gold_answers"][:]
    written = _written(model, questions, documents, choosing, settings)
    used = [[document.text for document in answer.documents] for answer in written]
    scores = score_answers([answer.text for answer in written], golds, used)
    others = [_other(documents, index) for index in range(len(documents))]
    answerable = [index for index, question in enumerate(questions) if question]  # a paraphrase of nothing is none
    controls = {"shuffled_documents": (range(len(questions)), others), "no_documents": (answerable, None)}
    for name, (kept, given) in controls.items():
        if kept:
            asked = [questions[index] for index in kept]
            control = _written(model, asked, given and [given[index] for index in kept], choosing, settings)
            scores[name] = score_answers([a.text for a in control], [golds[index] for index in kept])[MEASURE]
    return scores


def _written(
    model: PreTrainedModel,
    questions: Sequence[str],
    documents: Sequence[Sequence[str]] | None,
    choosing: bool,
    settings: dict[str, Any],
) -> list[Any]:
    if not choosing or documents is None:
        return model.answer(questions, documents, **settings)
    written: dict[int, Any] = {}
    by_choice: defaultdict[int, list[int]] = defaultdict(list)
    for row, given in enumerate(documents):
        by_choice[min(model.config.num_retrieved, len(given))].append(row)
    for top_k, kept in by_choice.items():
        asked, read = [questions[row] for row in kept], [documents[row] for row in kept]
        written |= zip(kept, model.answer(asked, read, top_k=top_k, **settings), strict=True)
    return [written[row] for row in range(len(questions))]


def _other(documents: Sequence[Sequence[str]], index: int) -> Sequence[str]:
    """The next row's documents that share none with this one's; its own where there is no such row."""
    own = set(documents[index])
    turned = [*documents[index + 1 :], *documents[:index]]
    return next((given for given in turned if own.isdisjoint(given)), documents[index])


__all__ = ["answer_loss", "evaluate_documents"]
