"""The demo of CLaRa: documents become latents, are found by them, and questions are answered from them.

0  a tiny CLaRa with random weights, and rows of questions about real text     (where a real run grafts a Qwen3)
1  learn which passage a question is about, everything training                 `recipes/clara/demo_retrieval.yaml`
2  learn to answer from latents, the generator training                         `recipes/clara/demo_answers.yaml`
   learn to say passages again from the same latents, another generator         `recipes/clara/demo_reconstruction.yaml`
3  publish: export, card, clean-room check
4  compress all documents into an index, and measure by rate, beside controls: retrieval, answers, reconstruction
5  load the published copy in a clean process and ask held-out questions

The text is Python's own reference, as `help()` prints it. Nothing that is asked in step 4 was trained on.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import set_seed

from .clara_report import WAYS, write_clara_report
from .configuration import ClaraQwen3Config
from .configuration.presets import NUM_SPECIAL_TOKENS, tiny_qwen3_text_config
from .demo_steps import answer_clean, publish, train_tiny
from .hub_cards import export_folder, export_repository
from .hub_cards.graft_parts import generation_config
from .modeling import ClaraQwen3ForCausalLM
from .processing import ClaraQwen3Processor, build_qwen_tokenizer, load_chat_template
from .processing.memory_tokens import new_token_names
from .recipes.answer_metrics import exact_match
from .recipes.document_evaluation import answer_loss
from .recipes.document_index import index_documents
from .recipes.run_metadata import read_metadata, write_metadata
from .recipes.topic_documents import TopicDocument, bare_words, topic_documents
from .recipes.topic_practice import NEW_WORDING, TOPIC_WORDINGS, name_questions, practice_batches
from .recipes.topic_task import TopicQuestion, TopicSplit, split_topic_questions, topic_questions

NAME = "clara-tiny-topics"
DOCUMENTS = 220
VOCABULARY, WIDTH, LAYERS = 1536, 128, 1
DOC_MAX_LENGTH, RATES, RANK = 192, (16, 8, 48), 32
TEMPERATURE = 0.05
KINDS = ("missing", "next")
FINDING_BATCHES = 1300  # as many as steps: no question is seen twice
RECIPES = {
    "finding": "demo_retrieval.yaml",
    "answering": "demo_answers.yaml",
    "reconstruction": "demo_reconstruction.yaml",
}
SHOWN, CANDIDATES = 8, 20
MEASURED = 200


def run(directory: Path, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run every step; returns the report's path.

    Args:
        directory: receives `grafted/`, `data/`, `finding/`, `answering/`, `reconstruction/`, `published/`, `index/` and
            `report.html`.
        repo_id: also push the trained model to this repository of the Hub.
        seed: of data, weights and training.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    documents = topic_documents()[:DOCUMENTS]
    questions = topic_questions(documents, seed=seed, kinds=KINDS)
    split = split_topic_questions(documents, questions, seed=seed)

    console.rule("0  A tiny CLaRa with random weights, and questions about Python's reference")
    grafted = make_tiny(directory / "grafted", documents, seed)
    data = write_rows(directory / "data", split, seed)
    for name, path in data.items():
        console.print(f"{sum(1 for _ in path.open(encoding='utf-8')):,} rows to learn {name} from: {path}")
    untrained = ClaraQwen3ForCausalLM.from_pretrained(grafted)
    measured = {
        "words in common": {"none": measure_word_search(documents, split)},
        "untrained": measure_retrieval(untrained, documents, split),
    }

    console.rule("1  Learn which passage a question is about")
    finding = learn("finding", grafted, directory, seed)
    console.rule("2  Learn to answer from latents")
    answering = learn("answering", finding, directory, seed)
    console.rule("   Learn to say passages again from the same latents")
    reconstructing = learn("reconstruction", finding, directory, seed)

    console.rule("3  Publish: export, card and clean-room check")
    model = ClaraQwen3ForCausalLM.from_pretrained(answering)
    measured["trained"] = measure_retrieval(model, documents, split)
    answers = measure_answers(model, split)
    reconstruction = measure_reconstruction(ClaraQwen3ForCausalLM.from_pretrained(reconstructing), split)
    write_metadata(
        read_metadata(answering) | {"metrics": {"after": card_metrics(measured["trained"], answers)}}, answering
    )
    published = export_folder(answering, directory / "published", overwrite=True)
    publish(published, repo_id, NAME, console)

    console.rule("4  All documents in an index, held-out questions answered from it")
    shutil.rmtree(directory / "index", ignore_errors=True)
    rows = [{"id": str(document.id), "text": document.text} for document in documents]
    index = index_documents(model, directory / "index", rows)
    console.print(f"{index.num_documents} documents, {len(index)} passages in {index.directory}", soft_wrap=True)
    console.print(retrieval_table(measured))
    console.print(answer_table(answers))
    console.print(reconstruction_table(reconstruction))

    console.rule("5  Load the published copy in a clean process and ask")
    samples = ask_clean(published, documents, split)
    for sample in samples:
        mark = "right" if exact_match(sample["answer"], [sample["expected"]]) else f"wrong, it is {sample['expected']}"
        place = "the right document" if sample["right"] else "another document"
        console.print(
            f"  {sample['asked']}\n    {place}, cosine {sample['score']:.2f}; it is about {sample['answer']} ({mark})",
            highlight=False,
            markup=False,
        )
    report = write_clara_report(
        directory / "report.html",
        retrieval=measured,
        answers=answers,
        reconstruction=reconstruction,
        rates=RATES,
        documents=len(documents),
        metadata=read_metadata(published),
        finding=read_metadata(finding),
        samples=samples,
        card=(published / "README.md").read_text(encoding="utf-8"),
        seconds=time.perf_counter() - start,
    )
    console.print(f"\nReport: {report}", soft_wrap=True)
    console.print(
        f"Ask it: qwen-grafts answer {published} '{samples[0]['asked']}' --index {index.directory} --top-k 1",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return report


def make_tiny(out: Path, documents: Sequence[TopicDocument], seed: int) -> Path:
    """Export a CLaRa of one layer with random weights, whose tokenizer knows the documents' words."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "initializer_range": 0.05,
    }
    return export_random(
        out,
        [document.text for document in documents],
        seed,
        text=text,
        doc_max_length=DOC_MAX_LENGTH,
        compression_rates=RATES,
        lora_rank=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        retrieval_temperature=TEMPERATURE,
    )


def export_random(out: Path, corpus: Sequence[str], seed: int, **settings: Any) -> Path:
    """Export a CLaRa with random weights and a tokenizer of its own, see `make_random`; returns `out`."""
    return export_repository(*make_random(corpus, seed, **settings), out, overwrite=True)


def make_random(
    corpus: Sequence[str],
    seed: int,
    *,
    text: Mapping[str, Any],
    doc_max_length: int,
    compression_rates: Sequence[int],
    **settings: Any,
) -> tuple[ClaraQwen3ForCausalLM, ClaraQwen3Processor]:
    """A CLaRa with random weights and a tokenizer of its own.

    Args:
        corpus: what the tokenizer learns words from.
        text: what differs from the tiny Qwen3, `vocab_size` included.
        settings: further ones of `ClaraQwen3Config`.
    """
    set_seed(seed)
    names = new_token_names(doc_max_length, compression_rates)
    tokenizer = build_qwen_tokenizer(text["vocab_size"] - NUM_SPECIAL_TOKENS - len(names), corpus, names)
    tokenizer.chat_template = load_chat_template()
    config = ClaraQwen3Config(
        text_config=tiny_qwen3_text_config(
            **text, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
        ),
        doc_max_length=doc_max_length,
        compression_rates=compression_rates,
        document_token_id=tokenizer.convert_tokens_to_ids(names[0]),
        **settings,
    )
    model = ClaraQwen3ForCausalLM(config)
    model.generation_config = generation_config(tokenizer)
    model.processor = ClaraQwen3Processor(tokenizer, doc_max_length, compression_rates)
    return model, model.processor


def write_rows(folder: Path, split: TopicSplit, seed: int) -> dict[str, Path]:
    """Rows of all steps as JSON lines, in the published form.

    "finding": a question and the passage it is about; the other passages of its batch are the wrong ones. "answering":
    passages, and the questions what they are about. "reconstruction": passages to be said again, word for word.
    """
    text = {document.id: document.text for document in split.train_documents}
    practice = practice_batches(split.train_documents, split.new_questions, seed=seed, batches=FINDING_BATCHES)
    finding = [
        {"question": asked.question, "docs": [text[asked.document]], "gold_answer": asked.answer, "pos_index": [0]}
        for asked in practice
    ]
    answering = [
        {"data_type": "qa", "question": [asked.question], "answers": [asked.answer], "docs": [text[asked.document]]}
        for asked in name_questions(split.train_documents)
    ]
    again = [
        {"data_type": "paraphrase", "question": [], "answers": [document.text], "docs": [document.text]}
        for document in split.train_documents
    ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in (("finding", finding), ("answering", answering), ("reconstruction", again)):
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return paths


def learn(step: str, model: Path, directory: Path, seed: int) -> Path:
    """Train by the recipe of a step on its rows; returns the trained model's folder.

    Args:
        step: one of `RECIPES`.
        model: folder to start from.
        directory: holds the rows in `data/`.
    """
    data = ["--document_data", str(directory / "data" / f"{step}.jsonl")]
    train_tiny("clara", model, directory / step, seed, RECIPES[step], data)
    return directory / step


def measure_retrieval(
    model: ClaraQwen3ForCausalLM, documents: Sequence[TopicDocument], split: TopicSplit
) -> dict[str, dict[str, float]]:
    """Rate -> recall@1 and @5 among all documents, of held-out questions about known and about new documents."""
    texts = [document.text for document in documents]

    def at(rate: int) -> dict[str, float]:
        latents = model.compress(texts, compression_rate=rate)
        return _recall(
            documents, split, lambda asked: model.retrieve(asked, latents, top_k=5, compression_rate=rate).indices
        )

    return {str(rate): at(rate) for rate in RATES}


def measure_word_search(documents: Sequence[TopicDocument], split: TopicSplit) -> dict[str, float]:
    """The same measures of a search by words in common (TF-IDF), as questions quote documents."""
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    weights = vectorizer.fit_transform(" ".join(bare_words(document.text)) for document in documents)

    def search(asked: Sequence[str]) -> torch.Tensor:
        words = vectorizer.transform(" ".join(bare_words(question)) for question in asked)
        return torch.from_numpy((words @ weights.T).toarray()).topk(5).indices

    return _recall(documents, split, search)


def _recall(
    documents: Sequence[TopicDocument], split: TopicSplit, search: Callable[[Sequence[str]], torch.Tensor]
) -> dict[str, float]:
    """recall@1 and @5 of a search, which gives the places (questions, 5) of the best documents."""
    place = {document.id: i for i, document in enumerate(documents)}
    found = {}
    for name, questions in (("known", split.new_questions[:MEASURED]), ("new", split.new_documents[:MEASURED])):
        right = search([question.question for question in questions]) == torch.tensor(
            [[place[question.document]] for question in questions]
        )
        found[f"recall@1, {name} documents"] = right[:, 0].float().mean().item()
        found[f"recall@5, {name} documents"] = right.any(dim=1).float().mean().item()
    return found


def measure_answers(model: ClaraQwen3ForCausalLM, split: TopicSplit) -> dict[str, dict[str, float]]:
    """Documents and rate -> exact match of their topics from the own document, from another one, from none."""
    asked = {
        "known documents": name_questions(split.train_documents, [NEW_WORDING]),
        "new documents": name_questions(split.held_out_documents, [*TOPIC_WORDINGS, NEW_WORDING]),
    }
    text = {document.id: document.text for document in [*split.train_documents, *split.held_out_documents]}
    found = {}
    for name, questions in asked.items():
        own = [[text[question.document]] for question in questions]
        # A document of another topic, as far as there is one.
        others = [next((q for q in questions if q.answer != question.answer), question) for question in questions]
        given = {
            "own document": own,
            "another document": [[text[other.document]] for other in others],
            "no document": [[] for _ in own],
        }
        for rate in RATES:
            found[f"{name}, rate {rate}"] = {
                way: _right(model, questions, texts, rate) for way, texts in given.items()
            } | {"most frequent": _most_frequent(questions), "rows": len(questions)}
    return found


def measure_reconstruction(model: ClaraQwen3ForCausalLM, split: TopicSplit) -> dict[str, dict[str, float]]:
    """Documents and rate -> loss of a passage's token, in nats, from its own latents and from another passage's."""
    found = {}
    for name, documents in (("known documents", split.train_documents), ("new documents", split.held_out_documents)):
        texts = [document.text for document in documents]
        given = {
            "own document": [[text] for text in texts],
            "another document": [[text] for text in [*texts[1:], texts[0]]],
        }
        for rate in RATES:
            found[f"{name}, rate {rate}"] = {
                way: answer_loss(model, [""] * len(texts), passages, texts, compression_rate=rate)
                for way, passages in given.items()
            }
    return found


def _most_frequent(questions: Sequence[TopicQuestion]) -> float:
    """Share that one answer to all questions would get right."""
    return max(Counter(question.answer for question in questions).values()) / len(questions)


def _right(
    model: ClaraQwen3ForCausalLM, questions: Sequence[TopicQuestion], texts: Sequence[Sequence[str]], rate: int
) -> float:
    asked = [question.question for question in questions]
    written = model.answer(asked, texts, compression_rate=rate, max_new_tokens=8, batch_size=50)
    hits = [exact_match(answer.text, [q.answer]) for answer, q in zip(written, questions, strict=True)]
    return sum(hits) / len(hits)


def card_metrics(
    retrieval: Mapping[str, Mapping[str, float]], answers: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """What was measured, in the rows of a model card."""
    rows = {f"retrieval among {DOCUMENTS} documents, rate {rate}": dict(row) for rate, row in retrieval.items()}
    for name, row in answers.items():
        rows[f"topics of {name}"] = {
            "exact_match": row["own document"],
            "no_documents": row["no document"],
            "shuffled_documents": row["another document"],
            "rows": row["rows"],
        }
    return rows


def retrieval_table(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Recall by rate, of the trained and of the untrained model."""
    table = Table(title=f"Held-out questions: the right one of {DOCUMENTS} documents", title_justify="left")
    names = list(next(iter(next(iter(measured.values())).values())))
    for column in ("model", "rate", *names):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, by_rate in measured.items():
        for rate, row in by_rate.items():
            table.add_row(model, rate, *(f"{row[name]:.3f}" for name in names))
    table.add_row("chance", "", *(f"{int(name[7]) / DOCUMENTS:.3f}" for name in names))
    return table


def answer_table(answers: Mapping[str, Mapping[str, float]]) -> Table:
    """Answers beside their controls."""
    table = Table(title="What is the text about? Exact match of the topic's name", title_justify="left")
    for column in ("asked about", *WAYS):
        table.add_column(column, justify="left" if column == "asked about" else "right")
    for name, row in answers.items():
        table.add_row(name, *(f"{row[way]:.3f}" for way in WAYS))
    return table


def reconstruction_table(reconstruction: Mapping[str, Mapping[str, float]]) -> Table:
    """How well a passage comes back out of its latents, beside the control."""
    table = Table(title="A passage said again from its latents: loss of a token, nats", title_justify="left")
    for column in ("passages", *next(iter(reconstruction.values()))):
        table.add_column(column, justify="left" if column == "passages" else "right")
    for name, row in reconstruction.items():
        table.add_row(name, *(f"{loss:.3f}" for loss in row.values()))
    return table


def ask_clean(published: Path, documents: Sequence[TopicDocument], split: TopicSplit) -> list[dict[str, Any]]:
    """Held-out questions answered in a clean process: what a passage is about, and which passage a question is about.

    Returns:
        {"question", "expected", "answer", "asked", "found", "score", "right"}.
    """
    text = {document.id: document.text for document in documents}
    topic = {document.id: document.topic for document in documents}
    shown = list({question.document: question for question in split.new_questions}.values())[:SHOWN]
    requests = []
    for question in shown:
        others = [document.text for document in documents if document.id != question.document][: CANDIDATES - 1]
        requests.append({"question": NEW_WORDING, "documents": [text[question.document]]})
        requests.append({"find": question.question, "documents": [text[question.document], *others]})
    replies = answer_clean("documents", published, requests)
    return [
        {"question": NEW_WORDING, "expected": topic[question.document], "answer": answered["answer"]}
        | {"asked": question.question, "found": found["text"], "score": found["score"], "right": found["index"] == 0}
        for question, answered, found in zip(shown, replies[::2], replies[1::2], strict=True)
    ]
