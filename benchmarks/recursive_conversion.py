"""What a converted model loses before it is trained: loss of the source against conversions and naive loops.

    python benchmarks/recursive_conversion.py

The source is a Qwen3 of 8 layers, trained here for a few minutes on real English, Python's language reference. It is
converted by `from_qwen_pretrained` with each way of choosing layers, gates closed as a new model has them, and once
more with open gates, which makes the loops other conversions start from: z <- core(z), z <- core(z + e) as TRM, and
both states in full. Loss is in nats a token, which is a byte here, of held-out text, at step 0.

The table goes to the screen and to `benchmarks/results/recursive_conversion.json`.
"""

import argparse
import platform
import tempfile
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from timing import write_results
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed

from qwen_grafts import RecursiveQwenForCausalLM
from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.language_pretraining import pretraining_config
from qwen_grafts.recipes.text_data import BUILT_IN, load_text

RESULTS = Path(__file__).parent / "results" / "recursive_conversion.json"
FIRST_SPECIAL, VOCABULARY, LENGTH, HELD_OUT = 256, 282, 128, 32  # a token is a byte
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
# Gates of the formula in modeling_recursive_qwen.py; None leaves them closed.
CORE_OF_Z = {"input_gate_H": 1.0, "input_gate_L": 0.0, "update_gate_H": 1.0, "update_gate_L": 1.0}
CORE_OF_Z_AND_E = CORE_OF_Z | {"input_gate_H": 0.0, "input_gate_L": 1.0}
BOTH_STATES = CORE_OF_Z | {"input_gate_L": 1.0}


def pretrain(folder: Path, steps: int) -> tuple[Qwen3ForCausalLM, torch.Tensor, int]:
    """A small Qwen3 that has read the text, saved to a folder; held-out rows (N, S); rows trained on."""
    texts = load_text(BUILT_IN, eval_ratio=0).train["text"]
    tokenizer = build_qwen_tokenizer(FIRST_SPECIAL)
    ids = list(chain.from_iterable([*tokenizer(text)["input_ids"], tokenizer.pad_token_id] for text in texts))
    rows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH, LENGTH)]
    train = rows[:-HELD_OUT]
    set_seed(0)
    trainer = GraftSFTTrainer(
        model=Qwen3ForCausalLM(Qwen3Config(**SIZES)),
        args=pretraining_config(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            warmup_steps=20,
            max_length=None,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": train, "labels": train}),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return trainer.model.eval(), torch.tensor(rows[-HELD_OUT:]), len(train)


@torch.inference_mode()
def loss_of(model: PreTrainedModel, rows_NS: torch.Tensor, **call: Any) -> float:
    """Nats a token."""
    return model(rows_NS, labels=rows_NS, use_cache=False, **call).loss.item()


def convert(source: Path, gates: dict[str, float] | None, **settings: Any) -> RecursiveQwenForCausalLM:
    """A converted model, with other gates where some are given."""
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(source), **settings)
    for name, value in (gates or {}).items():
        torch.nn.init.constant_(getattr(model.model.recurrence, name), value)
    return model


def measure(source: Path, rows_NS: torch.Tensor) -> dict[str, dict[str, float]]:
    """Conversion -> layers kept, layer evaluations of a token, loss."""
    sandwich = {"layer_selection": "sandwich", "L_layers": 2}
    even = {"layer_selection": "even", "L_layers": 4}
    ways: dict[str, tuple[dict[str, Any], dict[str, float] | None, dict[str, int]]] = {
        "all layers, H 1 L 1": ({}, None, {"num_cycles": 1, "L_cycles": 1}),
        "all layers, H 3 L 3": ({}, None, {"num_cycles": 3, "L_cycles": 3}),
        "all layers, H 8 L 3": ({}, None, {"num_cycles": 8, "L_cycles": 3}),
        "sandwich, 2 of the core's 4, H 3 L 3": (sandwich, None, {"num_cycles": 3, "L_cycles": 3}),
        "even, 4 of 8, H 3 L 3": (even, None, {"num_cycles": 3, "L_cycles": 3}),
    }
    # With these gates the two runs of a cycle do the same, and a low step goes on from the one before it.
    for loops in (2, 4, 8):
        ways[f"all layers, core(z) {loops} times"] = ({}, CORE_OF_Z, {"num_cycles": loops, "L_cycles": 1})
    for loops in (4, 8):
        low = {"num_cycles": 1, "L_cycles": loops - 1}
        ways[f"all layers, core(z + e) {loops} times"] = ({}, CORE_OF_Z_AND_E, low)
    ways["all layers, both states, H 3 L 3"] = ({}, BOTH_STATES, {"num_cycles": 3, "L_cycles": 3})
    ways["even, 4 of 8, both states, H 3 L 3"] = (even, BOTH_STATES, {"num_cycles": 3, "L_cycles": 3})
    found = {}
    for name, (settings, gates, depth) in ways.items():
        model = convert(source, gates, **settings)
        found[name] = {
            "layers": model.config.num_hidden_layers,
            "layer_evaluations": model.config.layer_evaluations(**depth),
            "loss": loss_of(model, rows_NS, **depth),
        }
    return found


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out loss at step 0, {platform.machine()}")
    for column in ("model", "layers", "layer evaluations", "loss", "against the source"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in found.items():
        difference = row["loss"] - found["source"]["loss"]
        figures = (str(row["layers"]), str(row["layer_evaluations"]), f"{row['loss']:.4f}", f"{difference:+.4f}")
        table.add_row(name, *figures)
    Console(width=120).print(table)


def main() -> None:
    """Train, convert, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, rows_NS, count = pretrain(Path(folder), steps)
        layers = source.config.num_hidden_layers
        found = {"source": {"layers": layers, "layer_evaluations": layers, "loss": loss_of(source, rows_NS)}}
        found |= measure(Path(folder), rows_NS)
    show(found)
    versions = {package: version(package) for package in ("torch", "transformers", "trl")}
    setting = SIZES | {"text": BUILT_IN, "rows": count, "held_out_rows": HELD_OUT, "length": LENGTH, "steps": steps}
    write_results(RESULTS, {"versions": versions, "setting": setting, "losses": found})


if __name__ == "__main__":
    main()
