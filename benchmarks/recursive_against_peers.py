"""The recursive Qwen against its peers: decoding and training, one thread, one run, the ways by turns.

    python benchmarks/recursive_against_peers.py

Peers: transformers' own `HrmTextForCausalLM` (two stacks of one layer, 2 cycles of 3 low steps and a high one, 16 layer
evaluations a token) and a stock Qwen3 as deep as the recursive model unrolled (18 layers), which is what the recurrence
may cost at least. All have width 128 and a vocabulary of 512. Process time: of a decoding step by layer evaluation, at
contexts of 64 and 960 tokens; of a training step on 8 rows of 128 tokens. That a token costs the same however many were
generated before is measured at the end: time by attended token aside, steps 1 to 64 against 449 to 512.

The table goes to the screen and to `benchmarks/results/recursive_against_peers.json`.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import write_results
from transformers import (
    DynamicCache,
    HrmTextConfig,
    HrmTextForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from qwen_grafts import RecursiveCache, RecursiveQwenConfig, RecursiveQwenForCausalLM

RESULTS = Path(__file__).parent / "results" / "recursive_against_peers.json"
CONTEXTS = (64, 960)
DECODED = 30
BATCH, LENGTH, STEPS = 8, 128, 3
LONG = 512
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
CYCLES = {"H_cycles": 2, "L_cycles": 3}
RECURSIVE = {"num_hidden_layers": 4, "core_range": [1, 3], "num_key_value_heads": 2} | CYCLES


def models() -> dict[str, tuple[PreTrainedModel, int, Callable[[], Any]]]:
    """Way -> model, layer evaluations of a token, how its cache is made."""
    set_seed(0)
    hrm = HrmTextForCausalLM(HrmTextConfig(num_hidden_layers=2, **SIZES, **CYCLES))
    ways: dict[str, tuple[PreTrainedModel, int, Callable[[], Any]]] = {
        "hrm_text": (hrm, hrm.config.num_hidden_layers, lambda: DynamicCache(config=hrm.config))
    }
    for family in ("qwen2", "qwen3"):
        model = RecursiveQwenForCausalLM(RecursiveQwenConfig(layer_family=family, **SIZES, **RECURSIVE))
        ways[f"ours, {family} layers"] = (model, model.config.layer_evaluations(), RecursiveCache)
    depth = model.config.layer_evaluations()
    dense = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=depth, num_key_value_heads=2, **SIZES))
    ways["stock Qwen3, unrolled"] = (dense, depth, lambda: DynamicCache(config=dense.config))
    return ways


@torch.inference_mode()
def decode(model: PreTrainedModel, cache: Any, context: int, steps: int = DECODED) -> list[float]:
    """Process milliseconds of decoding steps behind a prompt."""
    model.eval()
    model(torch.randint(0, SIZES["vocab_size"], (1, context)), past_key_values=cache, use_cache=True)
    token, times = torch.randint(0, SIZES["vocab_size"], (1, 1)), []
    for _ in range(steps):
        start = time.process_time()
        model(token, past_key_values=cache, use_cache=True)
        times.append(1e3 * (time.process_time() - start))
    return times


def training_step(model: PreTrainedModel) -> float:
    """Process seconds of one forward and backward pass."""
    model.train()
    ids = torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH))
    start = time.process_time()
    model(ids, labels=ids, use_cache=False).loss.backward()
    taken = time.process_time() - start
    model.zero_grad()
    return taken


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Way -> medians over the repeats, the ways by turns."""
    ways = models()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for model, _, cache in ways.values():  # the first calls warm up
        decode(model, cache(), 8, 3)
        training_step(model)
    for _ in range(repeats):
        for name, (model, evaluations, cache) in ways.items():
            for context in CONTEXTS:
                median = statistics.median(decode(model, cache(), context))
                found[name].setdefault(f"decode_{context}_ms_per_evaluation", []).append(median / evaluations)
            steps = (training_step(model) for _ in range(STEPS))
            found[name].setdefault("training_step_seconds", []).extend(steps)
    medians = {
        name: {measure: statistics.median(values) for measure, values in measures.items()}
        for name, measures in found.items()
    }
    for name, (model, evaluations, cache) in ways.items():
        times = [decode(model, cache(), 8, LONG) for _ in range(max(1, repeats // 3))]
        medians[name] |= {
            "layer_evaluations": evaluations,
            "first_64_ms": statistics.median(value for run in times for value in run[:64]),
            "last_64_ms": statistics.median(value for run in times for value in run[-64:]),
        }
    return medians


def show(found: dict[str, dict[str, float]], repeats: int) -> None:
    """Print the table, with ratios to hrm_text and to the unrolled model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One thread, {platform.machine()}, median of {repeats}")
    columns = (
        "model",
        "evaluations",
        *(f"decode at {c}, ms an evaluation" for c in CONTEXTS),
        "training step",
        "ratio",
    )
    for column in (*columns, f"token 1-64 of {LONG}", "last 64"):
        table.add_column(column, justify="left" if column == "model" else "right")
    unrolled = found["stock Qwen3, unrolled"]["training_step_seconds"]
    for name, row in found.items():
        table.add_row(
            name,
            str(row["layer_evaluations"]),
            *(
                f"{row[key]:.3f} ({row[key] / found['hrm_text'][key]:.2f} x)"
                for key in (f"decode_{c}_ms_per_evaluation" for c in CONTEXTS)
            ),
            f"{row['training_step_seconds']:.3f} s",
            f"{row['training_step_seconds'] / unrolled:.2f} x",
            f"{row['first_64_ms']:.2f} ms",
            f"{row['last_64_ms']:.2f} ms",
        )
    Console(width=150).print(table)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    found = measure(repeats)
    show(found, repeats)
    versions = {package: version(package) for package in ("torch", "transformers")}
    setting = {**SIZES, **CYCLES, "batch": BATCH, "length": LENGTH, "contexts": CONTEXTS}
    write_results(RESULTS, {"versions": versions, "setting": setting, "repeats": repeats, "medians": found})


if __name__ == "__main__":
    main()
