"""Documents through a model into an index, and answers from it."""

import json
from pathlib import Path

import pytest
import torch
from clara_checkpoint import WORDS, clara_checkpoint, tiny_clara
from recursive_checkpoint import recursive_checkpoint
from rich.console import Console
from torch.nn import functional
from transformers import AutoModel

from qwen_grafts.document_commands import answer, index, read_documents
from qwen_grafts.recipes.document_index import add_documents, index_documents

DOCUMENTS = [
    {"id": word, "text": f"The {word} is {place} m away. " * (1 + place % 3)} for place, word in enumerate(WORDS)
]


@pytest.mark.parametrize("rate", [4, 3])
def test_answers_from_an_index_equal_those_from_the_documents(tmp_path: Path, rate: int) -> None:
    """Passages are what is found: the same scores, and the same answer as from their latents."""
    model = tiny_clara()
    made = index_documents(model, tmp_path / "index", DOCUMENTS, compression_rate=rate, dtype="float32")
    assert (made.num_documents, made.settings.compression_rate) == (12, rate)
    found = model.answer("How far is cedar?", index=made, top_k=3, max_new_tokens=6)
    query = model.encode_query("How far is cedar?", compression_rate=rate).flatten()
    scored = []
    for document in DOCUMENTS:
        for latents in model.compress([document["text"]], compression_rate=rate)[0]:
            score = functional.cosine_similarity(query, latents.flatten(), dim=0)
            scored.append((float(score), document["id"], latents))
    best = sorted(scored, key=lambda one: -one[0])[:3]
    assert [document.id for document in found.documents] == [one[1] for one in best]
    assert [document.score for document in found.documents] == pytest.approx([one[0] for one in best], abs=1e-4)
    assert all(document.text in DOCUMENTS[WORDS.index(document.id)]["text"] for document in found.documents)
    count = 12 // rate
    inputs = model.processor("How far is cedar?", placeholders=[[count] * 3])
    first = model.config.document_token_id
    never = list(range(first, first + model.config.num_new_embeddings + 1))
    written = model.generate(
        **inputs, memory=[one[2] for one in best], max_new_tokens=6, do_sample=False, suppress_tokens=never
    )
    text = model.processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found.text == text.strip()


def test_an_index_grows_and_knows_its_compressor(tmp_path: Path) -> None:
    model = tiny_clara()
    half = index_documents(model, tmp_path / "half", DOCUMENTS[:6])
    add_documents(model, half, DOCUMENTS[6:])
    whole = index_documents(model, tmp_path / "whole", DOCUMENTS)
    queries = model.encode_query(["How far is ember?", "larch?"])
    for one, other in zip(
        half.search(queries, 4).__dict__.values(), whole.search(queries, 4).__dict__.values(), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".compressor"):
                parameter.mul_(1.1)
    with pytest.raises(ValueError, match="Their latents cannot be compared"):
        model.answer("Where?", index=whole)
    with pytest.raises(ValueError, match="Their latents cannot be compared"):
        add_documents(model, whole, ["another one"])
    with pytest.raises(ValueError, match="not both"):
        model.answer("Where?", ["a document"], index=whole)


def test_the_backbone_alone_builds_the_same_index(tmp_path: Path) -> None:
    base = clara_checkpoint(tmp_path / "clara")
    backbone = AutoModel.from_pretrained(base)
    made = index_documents(backbone, tmp_path / "index", DOCUMENTS, dtype="float32")
    whole = index_documents(tiny_clara(), tmp_path / "whole", DOCUMENTS, dtype="float32")
    assert made.settings == whole.settings
    torch.testing.assert_close(torch.stack(made.memory(range(len(made)))), torch.stack(whole.memory(range(len(whole)))))


def test_commands(tmp_path: Path) -> None:
    """A file of documents to an index, more documents, an answer with what it was given from; errors in one line."""
    base = str(clara_checkpoint(tmp_path / "clara"))
    rows = tmp_path / "documents.jsonl"
    rows.write_text("".join(json.dumps(document) + "\n" for document in [*DOCUMENTS[:8], {"id": "none", "text": " "}]))
    console = Console(record=True, width=120)
    made = index(base, str(rows), tmp_path / "index", text_key="text", add=False, console=console, compression_rate=3)
    assert made.num_documents == 8
    more = tmp_path / "more.txt"
    more.write_text("Tides follow the moon.\n\nBread is baked.\n")
    grown = index(base, str(more), tmp_path / "index", text_key="text", add=True, console=console)
    assert grown.num_documents == 10
    settings = {"top_k": 2, "max_new_tokens": 4, "console": console}
    answer(base, "What do tides follow?", [], tmp_path / "index", **settings)
    answer(base, "What do tides follow?", [more, rows], None, **settings)
    shown = console.export_text()
    assert "8 documents" in shown and "cosine" in shown and "more.txt" in shown
    with pytest.raises(ValueError, match="no column 'body'; it has id, text"):
        read_documents(str(rows), "body")
    with pytest.raises(ValueError, match="in the index already"):
        index(base, str(more), tmp_path / "index", text_key="text", add=True, console=console)


def test_other_models_have_no_documents(tmp_path: Path) -> None:
    base = str(recursive_checkpoint(tmp_path / "recursive"))
    with pytest.raises(ValueError, match="holds a 'recursive_qwen'; documents are for CLaRa models"):
        answer(base, "What?", [], None, top_k=None, max_new_tokens=4, console=Console())
