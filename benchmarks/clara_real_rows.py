"""CLaRa's first stage on real rows: does it answer from the documents that it compresses?

    python benchmarks/clara_real_rows.py rows.jsonl          (rows of apple/CLaRa_multi_stage, `pretraining`)

A small CLaRa with random weights, of which everything trains since there is no Qwen3 to start from, learns from all
rows but the last hundred, and is then held against these: the loss of an answer's token given the row's own document,
no document, and the document of another held-out row. Its tokenizer knows the words of the training rows only. The
rows' documents are all different; that is checked.

Runs on a GPU if there is one. The table goes to the screen, the figures to `benchmarks/results/clara_real_rows.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from timing import write_results

from qwen_grafts import ClaraQwen3ForCausalLM, ClaraQwen3Processor
from qwen_grafts.demo_clara import export_random
from qwen_grafts.recipes.document_data import load_document_rows
from qwen_grafts.recipes.document_evaluation import answer_loss
from qwen_grafts.recipes.graft_sft import main as train
from qwen_grafts.recipes.graft_sft import parse

RESULTS = Path(__file__).parent / "results" / "clara_real_rows.json"
HELD_OUT = 100
VOCABULARY, WIDTH, LAYERS = 8192, 256, 4
DOC_MAX_LENGTH, RATES = 256, (4, 16)
BATCH_SIZE, LEARNING_RATE = 64, 2e-3


def make_model(folder: Path, texts: Sequence[str], seed: int) -> Path:
    """Export the model with random weights."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    }
    return export_random(folder, texts, seed, text=text, doc_max_length=DOC_MAX_LENGTH, compression_rates=RATES)


def measure(model: Any, rows: Dataset) -> dict[str, dict[str, float]]:
    """Rate -> the loss with the own document, with none, with another row's."""
    rows = rows.sort("source_row")
    own = list(rows["documents"])
    by_row = dict(zip(rows["source_row"], own, strict=True))
    following = dict(zip(by_row, [*list(by_row)[1:], next(iter(by_row))], strict=True))
    ways = {
        "own document": own,
        "no document": [[] for _ in own],
        "another document": [by_row[following[row]] for row in rows["source_row"]],
    }
    questions, answers = rows["question"][:], rows["answer"][:]
    return {
        str(rate): {
            way: answer_loss(model, questions, given, answers, compression_rate=rate, batch_size=BATCH_SIZE)
            for way, given in ways.items()
        }
        for rate in RATES
    }


def main() -> None:
    """Train, measure, print the table, write the results."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    lines = parsed.rows.read_text(encoding="utf-8").splitlines()
    documents = [document for line in lines for document in json.loads(line)["docs"]]
    if len(set(documents)) < len(documents) or len(lines) <= HELD_OUT:
        sys.exit(f"{parsed.rows.name}: more than {HELD_OUT} rows are needed, of which no two share a document.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"train": lines[:-HELD_OUT], "test": lines[-HELD_OUT:]}
        for split, part in parts.items():
            (folder / f"{split}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
        rows = {
            split: load_document_rows(str(folder / f"{split}.jsonl"), "compression", eval_ratio=0.0).train
            for split in parts
        }
        known = rows["train"].select(range(len(rows["test"])))
        texts = [text for given in rows["train"]["documents"] for text in given]
        repository = make_model(folder / "model", [*texts, *rows["train"]["question"]], parsed.seed)
        untrained = measure(load(repository), rows["test"])
        recipe = str(files("qwen_grafts.recipes.clara").joinpath("tiny.yaml"))
        overrides = {
            "model_name_or_path": repository,
            "document_data": folder / "train.jsonl",
            "output_dir": folder / "trained",
            "trainable": ".",
            "eval_ratio": 0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "generative_eval_rows": 0,
            "max_steps": parsed.steps,
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": min(100, parsed.steps // 10),
            "dataloader_num_workers": 2,
            "seed": parsed.seed,
        }
        words = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
        sys.argv = ["qwen-grafts train", "--config", recipe, *words]
        trainer = train(*parse(sys.argv[1:]))
        model = load(folder / "trained")
        found = {
            "untrained, held-out rows": untrained,
            "trained, held-out rows": measure(model, rows["test"]),
            "trained, rows of training": measure(model, known),
        }
    table = Table(title="Loss of an answer's token, nats", title_justify="left")
    for column in ("model and rows", "rate", *found["trained, held-out rows"]["4"]):
        table.add_column(column, justify="left" if column == "model and rows" else "right")
    for title, by_rate in found.items():
        for rate, row in by_rate.items():
            table.add_row(title, rate, *(f"{loss:.3f}" for loss in row.values()))
    Console(width=110).print(table)
    setting = {"steps": parsed.steps, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "seed": parsed.seed}
    setting |= {"width": WIDTH, "layers": LAYERS, "doc_max_length": DOC_MAX_LENGTH}
    setting |= {"training_rows": len(lines) - HELD_OUT, "held_out_rows": HELD_OUT, "questions": len(rows["test"])}
    setting |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}
    write_results(
        RESULTS, {"setting": setting, "training_loss": trainer.state.log_history[-1]["train_loss"], "loss": found}
    )


def load(repository: Path) -> Any:
    """The model with its processor, for measuring."""
    model = ClaraQwen3ForCausalLM.from_pretrained(repository).eval()
    model.processor = ClaraQwen3Processor.from_pretrained(repository)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
