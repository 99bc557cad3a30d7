"""What a converted model loses before it is trained, and what shared keys and values cost once it is.

    python benchmarks/recursive_conversion.py

The source is a Qwen3 of 8 layers, trained here for a few minutes on real English, Python's language reference. It is
converted by `from_qwen_pretrained` with each way of choosing layers, gates closed as a new model has them, and once
more with open gates, which makes the loops other conversions start from: z <- core(z), z <- core(z + e) as TRM, and
both states in full. Loss is in nats a token, which is a byte here, of held-out text, at step 0.

Then one conversion, its gates half open, is healed on the same text with `kv_sharing="none"`, and reads the held-out
text token by token with a cache, as generation does, under each policy of `kv_sharing`. What it loses with fewer cycles
says how much the later ones do.

The tables go to the screen and to `benchmarks/results/recursive_conversion.json`.
"""

import argparse
import platform
import tempfile
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from timing import write_results
from torch.nn import functional
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed

from qwen_grafts import RecursiveCache, RecursiveQwenForCausalLM
from qwen_grafts.configuration.configuration_recursive_qwen import KVSharing
from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.language_pretraining import pretraining_config
from qwen_grafts.recipes.recursive_trainer import RecursionArguments, RecursiveSFTTrainer
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
# Of the healed model: as many runs of the core as leave the training at a few minutes.
HEALED = {"H_cycles": 3, "L_cycles": 1, "update_gate_init": 0.5}
TRAINING = {"per_device_train_batch_size": 16, "warmup_steps": 20, "max_length": None, "disable_tqdm": True}


def pretrain(folder: Path, steps: int) -> tuple[Qwen3ForCausalLM, Dataset, torch.Tensor]:
    """A small Qwen3 that has read the text, saved to a folder; the rows it was trained on; held-out rows (N, S)."""
    texts = load_text(BUILT_IN, eval_ratio=0).train["text"]
    tokenizer = build_qwen_tokenizer(FIRST_SPECIAL)
    ids = list(chain.from_iterable([*tokenizer(text)["input_ids"], tokenizer.pad_token_id] for text in texts))
    rows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH, LENGTH)]
    train = Dataset.from_dict({"input_ids": rows[:-HELD_OUT], "labels": rows[:-HELD_OUT]})
    set_seed(0)
    trainer = GraftSFTTrainer(
        model=Qwen3ForCausalLM(Qwen3Config(**SIZES)),
        args=pretraining_config(folder, max_steps=steps, learning_rate=3e-3, **TRAINING),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return trainer.model.eval(), train, torch.tensor(rows[-HELD_OUT:])


def heal(source: Path, train: Dataset, steps: int) -> RecursiveQwenForCausalLM:
    """A conversion whose loops were opened at once, trained until it is used to them."""
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RecursiveSFTTrainer(
            RecursiveQwenForCausalLM.from_qwen_pretrained(str(source), **HEALED),
            pretraining_config(Path(folder), max_steps=steps, learning_rate=1e-3, **TRAINING),
            recursion=RecursionArguments(halt_loss_weight=0.0),
            train_dataset=train,
            processing_class=build_qwen_tokenizer(FIRST_SPECIAL),
        )
        trainer.train()
    return trainer.model.eval()


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


@torch.inference_mode()
def read(model: RecursiveQwenForCausalLM, rows_NS: torch.Tensor, sharing: str, num_cycles: int) -> dict[str, float]:
    """Nats a token of rows read token by token with a cache, and bytes of the cache a token."""
    cache, losses = RecursiveCache(), []
    model.config.kv_sharing = sharing
    for place in range(rows_NS.shape[1] - 1):
        ids, following = rows_NS[:, place : place + 1], rows_NS[:, place + 1]
        logits = model(ids, past_key_values=cache, use_cache=True, num_cycles=num_cycles).logits
        losses.append(functional.cross_entropy(logits[:, 0], following))
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {"loss": torch.stack(losses).mean().item(), "cache_bytes_per_token": size / rows_NS[:, :-1].numel()}


def measure_sharing(model: RecursiveQwenForCausalLM, rows_NS: torch.Tensor) -> dict[str, dict[str, float]]:
    """Policy, and the exact one at fewer cycles -> loss, bytes of cache a token."""
    most = HEALED["H_cycles"]
    found = {policy: read(model, rows_NS, policy, most) for policy in get_args(KVSharing)}
    return found | {f"none, cycles: {cycles}": read(model, rows_NS, "none", cycles) for cycles in range(1, most)}


def show_sharing(found: dict[str, dict[str, float]]) -> None:
    """Print the table of the healed model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out loss of the healed model, {platform.machine()}")
    for column in ("kv_sharing", "loss", "against none", "cache bytes a token"):
        table.add_column(column, justify="left" if column == "kv_sharing" else "right")
    for name, row in found.items():
        difference = row["loss"] - found["none"]["loss"]
        table.add_row(name, f"{row['loss']:.4f}", f"{difference:+.4f}", f"{row['cache_bytes_per_token']:,.0f}")
    Console(width=120).print(table)


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table of step 0."""
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
    """Train, convert, measure, heal, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--healing-steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, train, rows_NS = pretrain(Path(folder), arguments.steps)
        layers = source.config.num_hidden_layers
        found = {"source": {"layers": layers, "layer_evaluations": layers, "loss": loss_of(source, rows_NS)}}
        found |= measure(Path(folder), rows_NS)
        show(found)
        sharing = measure_sharing(heal(Path(folder), train, arguments.healing_steps), rows_NS)
    show_sharing(sharing)
    versions = {package: version(package) for package in ("torch", "transformers", "trl")}
    setting = SIZES | {"text": BUILT_IN, "rows": len(train), "held_out_rows": HELD_OUT, "length": LENGTH}
    setting |= vars(arguments) | {"healed": HEALED}
    write_results(RESULTS, {"versions": versions, "setting": setting, "losses": found, "kv_sharing": sharing})


if __name__ == "__main__":
    main()
