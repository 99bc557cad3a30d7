"""`qwen-grafts index` and `qwen-grafts answer`: documents into latents once, and answers from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel

from . import modeling, processing  # noqa: F401  registers the grafts with the Auto classes
from .recipes.clara_stages import is_clara
from .recipes.document_index import add_documents, index_documents
from .recipes.latent_index import ClaraIndex
from .recipes.text_data import read_texts

_SHOWN_CHARACTERS = 240


def load(repository: str) -> PreTrainedModel:
    """A CLaRa model with its processor, on a GPU if there is one.

    Raises:
        ValueError: another kind of model.
    """
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True, dtype="auto").eval()
    if not is_clara(model.config):
        raise ValueError(f"{repository!r} holds a {model.config.model_type!r}; documents are for CLaRa models.")
    model.processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def read_documents(source: str, text_key: str) -> Dataset:
    """Columns `text` and, where the source has it, `id`; texts in which nothing is are left out.

    Raises:
        ValueError: no such column, or nothing that is read here.
    """
    rows = read_texts(source, None)["train"]
    if text_key not in rows.column_names:
        raise ValueError(f"{Path(source).name} has no column {text_key!r}; it has {', '.join(rows.column_names)}.")
    rows = rows.select_columns([name for name in rows.column_names if name in (text_key, "id")])
    rows = rows if text_key == "text" else rows.rename_column(text_key, "text")
    return rows.select([row for row, text in enumerate(rows["text"]) if text and text.strip()])


def index(
    repository: str, source: str, directory: Path, *, text_key: str, add: bool, console: Console, **build: Any
) -> ClaraIndex | None:
    """Build an index of a source's documents, or add them to one.

    Args:
        build: `compression_rate`, `num_processes`, `process_index`, as `index_documents` takes them.

    Raises:
        ValueError: what reading, building or adding refuses.
    """
    documents = read_documents(source, text_key)
    model = load(repository)
    if add:
        there = ClaraIndex.load(directory)
        add_documents(model, there, list(documents))
    else:
        there = index_documents(model, directory, documents, **build)
    if there is None:
        console.print("The shards of this process are there; the others' are not yet.")
    else:
        console.print(f"{directory}: {there.num_documents} documents, {len(there)} passages.", highlight=False)
    return there


def answer(
    repository: str,
    question: str,
    documents: Sequence[Path],
    index_directory: Path | None,
    *,
    top_k: int | None,
    max_new_tokens: int,
    console: Console,
) -> str:
    """Answer from files or an index, and show what the answer was given from; returns the answer.

    Raises:
        ValueError: files and an index together, or what `answer` of the model refuses.
    """
    texts = [path.read_text(encoding="utf-8") for path in documents]
    there = ClaraIndex.load(index_directory) if index_directory is not None else None
    model = load(repository)
    found = model.answer(question, texts or None, index=there, top_k=top_k, max_new_tokens=max_new_tokens)
    console.print(found.text, markup=False, highlight=False, soft_wrap=True)
    if found.documents:
        table = Table("document", "cosine", "text")
        for document in found.documents:
            text = " ".join(document.text.split())
            name = documents[int(document.id)].name if texts else document.id
            shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
            table.add_row(name, "" if document.score is None else f"{document.score:.3f}", shown)
        console.print(table, markup=False)
    return found.text
