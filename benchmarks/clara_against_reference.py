"""CLaRa's compressor and query reasoner against an honest re-statement of the published code's algorithm.

    python benchmarks/clara_against_reference.py

The published code (CLaRa, arXiv 2511.18659) encodes through the whole causal language model: it pads every document to
`doc_max_length` tokens before the memory tokens and every training query to a fixed length, keeps the hidden states of
all layers, and computes the logits of every position, of which nothing is used. Ours runs the backbone without its head
over passages of like length, padded behind the memory tokens, where no mask is needed. Both have the same weights and
roles; that their latents agree is checked in the run, on a document of full length.

A Qwen3 of 8 layers, width 256, vocabulary 151,936, float32, one thread, process time, median of several, the ways by
turns: 20 documents of real text of different lengths at 8 latents each, 4 training queries. Then a question over 20 of
these documents, from latents that are at hand against compressing them again, and the bytes of a checkpoint.

The table goes to the screen and to `benchmarks/results/clara_against_reference.json`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import write_results

from qwen_grafts import ClaraQwen3ForCausalLM
from qwen_grafts.demo_clara import make_random
from qwen_grafts.recipes.topic_documents import topic_documents

RESULTS = Path(__file__).parent / "results" / "clara_against_reference.json"
LENGTH, RATE = 256, 32
VOCABULARY = 151_936
DOCUMENTS, QUERIES = 20, 4
# What the published code pads a training query to.
QUERY_LENGTH = 1035


def build() -> tuple[ClaraQwen3ForCausalLM, list[str], list[str]]:
    """The model, whose roles are of trained size, with documents and questions of real text."""
    texts = [document.text for document in topic_documents()]
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "max_position_embeddings": 2048,
    }
    model, _ = make_random(texts, 0, text=text, doc_max_length=LENGTH, compression_rates=[RATE])
    fill_roles(model.eval(), 0.02)
    documents = texts[:: len(texts) // DOCUMENTS][:DOCUMENTS]
    return model, documents, [f"Where is it said: {text[:60]}?" for text in documents[:QUERIES]]


@torch.no_grad()
def fill_roles(model: ClaraQwen3ForCausalLM, std: float) -> None:
    """Give all roles random terms; those of a new model are nothing."""
    for name, parameter in model.named_parameters():
        if "role_up" in name:
            parameter.normal_(std=std)


@torch.inference_mode()
def published_way(model: ClaraQwen3ForCausalLM, texts: list[list[int]], length: int, role: str) -> torch.Tensor:
    """Latents (N, M, D) by left padding to a fixed length, all hidden states, and the head over every position."""
    pad = model.processor.tokenizer.pad_token_id
    memory = list(model.config.memory_token_ids())
    rows = [[pad] * (length - len(ids)) + ids + memory for ids in texts]
    mask = [[0] * (length - len(ids)) + [1] * (len(ids) + len(memory)) for ids in texts]
    outputs = model(
        input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask), role=role, output_hidden_states=True
    )
    return outputs.hidden_states[-1][:, -len(memory) :]


def median_seconds(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Process seconds of each way, the ways by turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def checkpoint_ratio(model: ClaraQwen3ForCausalLM) -> dict[str, float]:
    """Bytes of the model's file in a checkpoint of stage 1 against those of what it trains."""
    config = model.config
    config.graft_only, config.stored_roles = True, ["compressor", "generator"]
    config.base_models = {"language": {"repo_id": "owner/base", "revision": "main"}}
    kept = {name: tensor for name, tensor in model.state_dict().items() if model.is_stored(name, config)}
    trained = sum(tensor.nbytes for tensor in kept.values())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=kept)
        written = (Path(folder) / "model.safetensors").stat().st_size
    return {"trained_bytes": trained, "checkpoint_bytes": written, "ratio": written / trained}


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    model, documents, questions = build()
    processor, backbone = model.processor, model.model
    passages = [processor.passages(document)[0] for document in documents]
    ids = [passage.token_ids for passage in passages]
    asked = [processor.tokenizer(question, add_special_tokens=False)["input_ids"] for question in questions]
    whole = [ids[0] * (LENGTH // len(ids[0]) + 1)]
    whole = [whole[0][:LENGTH]]
    ours_whole = backbone.compress_ids(torch.tensor([whole[0] + list(model.config.memory_token_ids())]))[0]
    torch.testing.assert_close(published_way(model, whole, LENGTH, "compressor"), ours_whole, atol=1e-4, rtol=1e-4)
    latents = model.compress(documents)
    found = {
        "compress 20 documents": median_seconds(
            {
                "published way": lambda: published_way(model, ids, LENGTH, "compressor"),
                "ours": lambda: backbone.compress_passages([passages]),
            },
            repeats,
        ),
        "encode 4 training queries": median_seconds(
            {
                "published way": lambda: published_way(model, asked, QUERY_LENGTH, "query_reasoner"),
                "ours": lambda: model.encode_query(questions),
            },
            repeats,
        ),
        "a question over 20 documents": median_seconds(
            {
                "compressed again": lambda: model.retrieve(questions[0], documents, top_k=5),
                "ours": lambda: model.retrieve(questions[0], latents, top_k=5),
            },
            repeats,
        ),
    }
    show(found, ids)
    results = {
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "setting": {"length": LENGTH, "rate": RATE, "vocabulary": VOCABULARY, "query_length": QUERY_LENGTH},
        "tokens": [len(text) for text in ids],
        "repeats": repeats,
        "seconds": found,
        "checkpoint": checkpoint_ratio(model),
    }
    write_results(RESULTS, results)


def show(found: dict[str, dict[str, float]], ids: list[list[int]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One thread; documents of {min(map(len, ids))} to {max(map(len, ids))} tokens")
    for column in ("what", "way", "seconds", "faster"):
        table.add_column(column, justify="left" if column in ("what", "way") else "right")
    for what, ways in found.items():
        slowest = max(ways.values())
        for way, seconds in ways.items():
            table.add_row(what, way, f"{seconds:.4f}", f"{slowest / seconds:.1f} x")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
