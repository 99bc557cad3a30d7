"""Does thinking longer help? The recursive demo with several seeds, beside three controls.

    python benchmarks/recursive_depth.py --seeds 0 1 2

All learn the same rows of running affine evaluation in the same order, by `recipes/affine_training.py`:

- recursive: one layer, up to 16 cycles of two runs;
- recursive, one cycle: the same model, trained with one cycle;
- dense, same parameters: a stock Qwen3 of one layer;
- dense, same depth: a stock Qwen3 of 32 layers, as many as the recursive model evaluates.

Every training runs in a process of its own, on one thread. Results of each are added to
`benchmarks/results/recursive_depth.json` when it ends; what is there already, of the same settings, stays. Recursive
runs take about eight minutes of process time each, the deep dense ones as long.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import measure_apart, write_results

RESULTS = Path(__file__).parent / "results" / "recursive_depth.json"
RECURSIVE, SHALLOW, SMALL, DEEP = "recursive", "recursive, one cycle", "dense, same parameters", "dense, same depth"
WAYS = (RECURSIVE, SHALLOW, SMALL, DEEP)


def train(way: str, seed: int, folder: str) -> Any:
    """The trained model of one way."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    from qwen_grafts.recipes.affine_task import SIZES, affine_model
    from qwen_grafts.recipes.affine_training import CYCLES, affine_trainer

    model = affine_model(seed)
    if way in (SMALL, DEEP):
        set_seed(seed)
        layers = model.config.layer_evaluations() if way == DEEP else 1
        model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=layers, **SIZES))
    trainer = affine_trainer(model, Path(folder), seed=seed, cycles=1 if way == SHALLOW else CYCLES)
    trainer.train()
    return trainer.model


def measure(way: str, seed: int) -> dict[str, Any]:
    """Parameters, process seconds of training, accuracy by depth; a dense model has one depth."""
    import torch

    from qwen_grafts.demo_recursive import DEPTHS, LENGTHS, MEASURED_ROWS, TEST_SEED, THRESHOLDS
    from qwen_grafts.recipes.affine_task import affine_accuracy, affine_rows, measure_depth

    torch.set_num_threads(1)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train(way, seed, folder)
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": time.process_time() - start,
    }
    held_out = TEST_SEED + seed
    if way in (SMALL, DEEP):
        rows = {length: affine_rows([length] * MEASURED_ROWS, held_out) for length in LENGTHS}
        accuracy = {str(length): affine_accuracy(model, rows[length])["accuracy"] for length in LENGTHS}
        return found | {"depth": {length: {"all": share} for length, share in accuracy.items()}, "halting": {}}
    thresholds = THRESHOLDS if way == RECURSIVE else ()
    return found | measure_depth(
        model, held_out, lengths=LENGTHS, depths=DEPTHS, thresholds=thresholds, rows=MEASURED_ROWS
    )


def show(runs: dict[str, dict[str, Any]]) -> None:
    """Print the table: mean over the seeds, and the lowest and highest."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Right values; mean over the seeds (lowest to highest)")
    for column in ("model", "parameters", "seeds", "training", "length", "cycles", "right"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for way, by_seed in runs.items():
        seeds = list(by_seed.values())
        for length, row in seeds[0]["depth"].items():
            for depth in row:
                shares = [run["depth"][length][depth] for run in seeds]
                table.add_row(
                    way,
                    f"{seeds[0]['parameters']:,}",
                    str(len(seeds)),
                    f"{statistics.mean(run['training_seconds'] for run in seeds) / 60:.1f} min",
                    length,
                    depth,
                    f"{100 * statistics.mean(shares):.1f} % ({100 * min(shares):.1f} to {100 * max(shares):.1f})",
                )
    Console(width=150).print(table)


def main() -> None:
    """Train what is missing, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child[0], int(arguments.child[1]))))
        return
    from qwen_grafts.demo_recursive import LENGTHS, MEASURED_ROWS
    from qwen_grafts.recipes import affine_training as recipe

    names = ("CYCLES", "LONGEST", "STEPS", "TOKENS_A_STEP", "WARMUP", "EMA_DECAY")
    setting = {name.lower(): getattr(recipe, name) for name in names}
    setting |= {"lengths": list(LENGTHS), "measured_rows": MEASURED_ROWS}
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    runs: dict[str, dict[str, Any]] = known["runs"] if known.get("setting") == setting else {}
    for seed in arguments.seeds:
        for way in arguments.ways:
            if str(seed) in runs.get(way, {}):
                continue
            print(f"{way}, seed {seed}", file=sys.stderr)
            runs.setdefault(way, {})[str(seed)] = measure_apart(__file__, way, str(seed))
            versions = {package: version(package) for package in ("torch", "transformers", "trl")}
            write_results(RESULTS, {"versions": versions, "setting": setting, "runs": runs})
    show(runs)


if __name__ == "__main__":
    main()
