"""The demo of the recursive Qwen: the same weights, asked to think longer, are right more often.

1  train a recursive Qwen3 of one layer with up to 16 cycles      `recipes/affine_task.py`, `affine_training.py`
2  train the same model with one cycle, as a control
   measure both against depth, at the trained length and beyond it
3  publish: export, card, clean-room check
4  load the published copy in a clean process: how long does each token think?
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .demo_steps import answer_clean, publish
from .depth_report import write_depth_report
from .hub_cards import export_folder
from .recipes.affine_task import affine_model, affine_rows, affine_tokenizer, measure_depth
from .recipes.affine_training import CYCLES, LONGEST, train_affine
from .recipes.run_metadata import read_metadata, write_metadata

NAME = "recursive-affine"
COMMAND = "qwen-grafts demo recursive"
LENGTHS = (LONGEST, 24)  # as long as the longest in training, and longer than any
DEPTHS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99)
MEASURED_ROWS, TEST_SEED = 512, 1_000
SHOWN_LENGTHS, SHOWN_THRESHOLD = (8, 16, 24), 0.9
SHOWN_IN_A_LINE = 16  # as many as fit a terminal


def run(directory: Path, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run every step; returns the report's path.

    Args:
        directory: receives `trained/`, `control/`, `published/` and `report.html`.
        repo_id: also push the trained model to this repository of the Hub.
        seed: of data, weights and training.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    trained, published, curves = directory / "trained", directory / "published", {}
    for number, (cycles, out) in enumerate(((CYCLES, trained), (1, directory / "control")), start=1):
        name = f"trained with {cycles} {'cycle' if cycles == 1 else 'cycles'}"
        console.rule(f"{number}  Running affine evaluation modulo 7: one layer, {name}")
        model = affine_model(seed)
        train_affine(model, out, seed=seed, cycles=cycles, command=f"{COMMAND} --seed {seed}")
        thresholds = THRESHOLDS if out == trained else ()
        curves[name] = measured = measure_depth(
            model, TEST_SEED + seed, lengths=LENGTHS, depths=DEPTHS, thresholds=thresholds, rows=MEASURED_ROWS
        )
        write_metadata(read_metadata(out) | {"metrics": {"after": card_metrics(measured)}}, out)
    console.print(depth_table(curves))

    console.rule("3  Publish: export, card and clean-room check")
    export_folder(trained, published, overwrite=True)
    publish(published, repo_id, NAME, console)

    console.rule("4  Load the published copy in a clean process: how long does each token think?")
    samples = think_clean(published, TEST_SEED + seed)
    for sample in samples:
        for start in range(0, len(sample["tokens"]), SHOWN_IN_A_LINE):
            line = slice(start, start + SHOWN_IN_A_LINE)
            console.print(cycles_table({name: row[line] for name, row in sample.items()}))
    report = write_depth_report(
        directory / "report.html",
        curves=curves,
        trained_length=LONGEST,
        metadata=read_metadata(published),
        samples=samples,
        card=(published / "README.md").read_text(encoding="utf-8"),
        seconds=time.perf_counter() - start,
    )
    console.print(f"\nReport: {report}", soft_wrap=True)
    console.print(
        f"Ask it: qwen-grafts inference {published} '0 +3 *2 +6' --num-cycles {DEPTHS[-1]} "
        f"--halt-threshold {SHOWN_THRESHOLD}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return report


def card_metrics(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """What `measure_depth` gives, in the rows of a model card."""
    rows = {}
    for length, by_depth in measured["depth"].items():
        for depth, accuracy in by_depth.items():
            unit = "cycle" if depth == "1" else "cycles"
            rows[f"length {length}, {depth} {unit}"] = {"accuracy": accuracy, "rows": MEASURED_ROWS}
        for threshold, found in measured["halting"].get(length, {}).items():
            rows[f"length {length}, halting above {threshold}"] = {
                "accuracy": found["accuracy"],
                "mean_cycles": found["cycles"],
                "rows": MEASURED_ROWS,
            }
    return rows


def depth_table(curves: Mapping[str, Mapping[str, Any]]) -> Table:
    """Share of right values by depth."""
    table = Table(title="Right values on rows never seen, by cycles at test time", title_justify="left")
    for column in ("model", "length", *map(str, DEPTHS)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, curve in curves.items():
        for length, row in curve["depth"].items():
            table.add_row(name, length, *(f"{share:.3f}" for share in row.values()))
    return table


def cycles_table(sample: Mapping[str, list[Any]]) -> Table:
    """One row token by token: what was read, what was answered, how many cycles it took."""
    table = Table(show_header=False, padding=(0, 0, 0, 1))
    right = [
        "" if value == expected else "!" for value, expected in zip(sample["values"], sample["expected"], strict=True)
    ]
    table.add_row("token", *sample["tokens"])
    table.add_row("value", *(f"{value}{mark}" for value, mark in zip(sample["values"], right, strict=True)))
    table.add_row("cycles", *map(str, sample["cycles"]))
    return table


def think_clean(published: Path, seed: int) -> list[dict[str, list[Any]]]:
    """Rows answered by the published copy in a clean process, with halting: operations, values, cycles."""
    rows, tokenizer = affine_rows(SHOWN_LENGTHS, seed), affine_tokenizer()
    tokens = [tokenizer.convert_ids_to_tokens(ids[:-1]) for ids in rows["input_ids"]]
    expected = [tokenizer.convert_ids_to_tokens(labels[2:]) for labels in rows["labels"]]
    asked = {"rows": tokens, "num_cycles": DEPTHS[-1], "halt_threshold": SHOWN_THRESHOLD}
    answers = answer_clean("values", published, asked)
    return [
        {"tokens": row[1:], "expected": values} | {name: answer[name][1:] for name in ("values", "cycles")}
        for row, values, answer in zip(tokens, expected, answers, strict=True)
    ]
