"""What halting saves and what sharing keys and values costs, on a trained recursive model.

    qwen-grafts demo recursive
    python benchmarks/recursive_halting.py --model demo/recursive/published

Rows of running affine evaluation are read token by token with a cache, as generation reads them, each token with a
fixed number of cycles or until the halting head has been sure `halt_patience` cycles in a row. One thread, process time
the ways by turns. A batch runs until its last token has stopped, so larger ones save less: what they save is measured.

With `kv_sharing` the cache keeps one set of keys and values for all runs of the core instead of one a run; accuracy and
bytes a token stand beside the exact policy's.

The tables go to the screen, the figures to `benchmarks/results/recursive_halting.json` and `recursive_halting.png`.
"""

import argparse
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from timing import write_results

from qwen_grafts import RecursiveCache, RecursiveQwenForCausalLM
from qwen_grafts.configuration.configuration_recursive_qwen import KVSharing
from qwen_grafts.demo_recursive import TEST_SEED
from qwen_grafts.recipes.affine_task import affine_rows, operations_and_values

RESULTS = Path(__file__).parent / "results" / "recursive_halting.json"
LENGTH = 16
FIXED = (1, 2, 4, 6, 8, 10, 12, 16)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BATCHES = (1, 4, 16)


@torch.inference_mode()
def read(model: RecursiveQwenForCausalLM, ids_BS: torch.Tensor, **call: Any) -> dict[str, Any]:
    """Read rows token by token; process seconds, chosen ids, cycles each token took, cycles that were run."""
    cache, chosen, taken, run = RecursiveCache(), [], [], 0
    start = time.process_time()
    for position in range(ids_BS.shape[1]):
        output = model(ids_BS[:, position : position + 1], past_key_values=cache, use_cache=True, **call)
        chosen.append(output.logits[:, -1].argmax(-1))
        used = output.cycles_used
        taken.append(torch.full_like(chosen[-1], call["num_cycles"]) if used is None else used[:, -1])
        run += int(taken[-1].max())
    seconds = time.process_time() - start
    layers = [layer for layer in cache.layers if layer.get_seq_length()]
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / ids_BS.numel()
    cycles = torch.stack(taken, dim=1)
    return {"seconds": seconds, "chosen": torch.stack(chosen, dim=1), "cycles": cycles, "run": run, "bytes": size}


def measure(
    model: RecursiveQwenForCausalLM, calls: dict[str, dict[str, Any]], rows: int, batch: int, repeats: int
) -> Any:
    """Call -> accuracy, mean cycles of a token, cycles run a step of the batch, ms a step, bytes of cache a token."""
    ids, labels = operations_and_values(affine_rows([LENGTH] * rows, TEST_SEED))
    times: dict[str, list[float]] = {name: [] for name in calls}
    found = {}
    for _ in range(repeats):
        for name, call in calls.items():
            policy = {"kv_sharing": model.config.kv_sharing} | call
            model.config.kv_sharing, before = policy.pop("kv_sharing"), model.config.kv_sharing
            parts = [read(model, part, **policy) for part in ids.split(batch)]
            model.config.kv_sharing = before
            steps = len(parts) * ids.shape[1]
            times[name].append(1e3 * sum(part["seconds"] for part in parts) / steps)
            found[name] = {
                "accuracy": (torch.cat([part["chosen"] for part in parts])[:, 1:] == labels).float().mean().item(),
                "mean_cycles": torch.cat([part["cycles"] for part in parts]).float().mean().item(),
                "run_cycles": sum(part["run"] for part in parts) / steps,
                "cache_bytes_per_token": parts[0]["bytes"],
            }
    return {name: row | {"ms_per_step": statistics.median(times[name])} for name, row in found.items()}


def show(title: str, found: dict[str, dict[str, float]], against: str) -> None:
    """Print a table, time and cycles as ratios to one of its rows."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("way", "right", "mean cycles", "cycles run", "ratio", "ms a step", "ratio", "cache bytes a token"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base = found[against]
    for name, row in found.items():
        table.add_row(
            name,
            f"{100 * row['accuracy']:.1f} %",
            f"{row['mean_cycles']:.1f}",
            f"{row['run_cycles']:.1f}",
            f"{row['run_cycles'] / base['run_cycles']:.2f}",
            f"{row['ms_per_step']:.2f}",
            f"{row['ms_per_step'] / base['ms_per_step']:.2f}",
            f"{row['cache_bytes_per_token']:,.0f}",
        )
    Console(width=130).print(table)


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """Accuracy against measured time of a token at batch 1: fixed depths and halting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for kind, style in (("fixed", "o-"), ("halting", "s--")):
        points = sorted((row["ms_per_step"], 100 * row["accuracy"]) for name, row in found.items() if kind in name)
        axes.plot(*zip(*points, strict=True), style, label=kind)
    axes.set(xlabel="process time of a token, ms (batch 1, with cache)", ylabel="right values, %", ylim=(0, 102))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("demo/recursive/published"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.model / "model.safetensors").is_file():
        sys.exit(f"There is no trained model in {arguments.model}; run `qwen-grafts demo recursive` first.")
    torch.set_num_threads(1)
    model = RecursiveQwenForCausalLM.from_pretrained(arguments.model).eval()
    fixed = {f"fixed {depth}": {"num_cycles": depth} for depth in FIXED}
    halting = {f"halting above {level}": {"num_cycles": LENGTH, "halt_threshold": level} for level in THRESHOLDS}
    curve = measure(model, fixed | halting, arguments.rows, 1, arguments.repeats)
    show("Batch 1", curve, f"fixed {LENGTH}")
    draw(curve, RESULTS.with_suffix(".png"))
    full = f"fixed {LENGTH}"
    few = {full: fixed[full], "halting above 0.9": halting["halting above 0.9"]}
    batches = {str(batch): measure(model, few, arguments.rows, batch, arguments.repeats) for batch in BATCHES}
    for batch, found in batches.items():
        show(f"Batch {batch}", found, full)
    policies = {policy: {"num_cycles": LENGTH, "kv_sharing": policy} for policy in get_args(KVSharing)}
    sharing = measure(model, policies, arguments.rows, 16, 1)
    show("kv_sharing", sharing, "none")
    versions = {package: version(package) for package in ("torch", "transformers")}
    setting = {"length": LENGTH, "rows": arguments.rows, "repeats": arguments.repeats}
    results = {"versions": versions, "setting": setting, "batch_1": curve, "batches": batches, "kv_sharing": sharing}
    write_results(RESULTS, results)


if __name__ == "__main__":
    main()
