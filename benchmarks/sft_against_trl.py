"""SFT of a stock Qwen3-VL by this package's recipe against plain TRL: the same model, rows and batches, one thread.

    python benchmarks/sft_against_trl.py

Both train the same LoRA on the language model, from the same Parquet rows of image, question and JSON answer, with
TRL's defaults. The peer is `SFTTrainer` with its own collator, as `trl sft` builds it. Ours is what
`recipes/graft_sft.py` builds: `load_query_rows`, `Qwen3VisionSFTCollator`, `GraftSFTTrainer`, with and without
`pack_rows`. Every measurement runs in a process of its own, the ways by turns; process time of a training step, median
over steps and repeats; that all have the same losses is checked. The table goes to the screen and to
`benchmarks/results/sft_against_trl.json`.

Model and rows are the ragged ones of `packed_against_padded.py`. The vocabulary has Qwen3-VL's size, and a small one as
well: on a CPU plain TRL scores every position and ours the supervised ones, and with a small vocabulary that hardly
counts.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packed_against_padded import (
    FIRST_SPECIAL_ID,
    IMAGE_SIDES,
    MEDIAN_ANSWER,
    SIGMA,
    TEXT,
    VOCABULARY,
    build,
    make_rows,
)
from timing import Clock, measure_apart, medians, write_results

RESULTS = Path(__file__).parent / "results" / "sft_against_trl.json"
VOCABULARIES = {"151,936": (151_936, 151_643), f"{VOCABULARY:,}": (VOCABULARY, FIRST_SPECIAL_ID)}
WAYS = ("trl", "ours", "ours, packed")
PEER = "trl"
BATCH_SIZE, STEPS, WARM_UP = 2, 6, 1


def conversations() -> Any:
    """Images, prompts and completions, as TRL reads them; the completions are JSON."""

    def as_json(row: dict[str, Any]) -> dict[str, Any]:
        answer = json.dumps({"caption": row["completion"][0]["content"]})
        return {"completion": [{"role": "assistant", "content": answer}]}

    return make_rows("ragged").map(as_json)


def queries(rows: Any) -> Any:
    """The same rows as image, query and target_json."""
    from datasets import Dataset, Features, Image, Value

    return Dataset.from_dict(
        {
            "image": [images[0] for images in rows["images"]],
            "query": [prompt[0]["content"] for prompt in rows["prompt"]],
            "target_json": [completion[0]["content"] for completion in rows["completion"]],
        },
        Features({"image": Image(), "query": Value("string"), "target_json": Value("string")}),
    )


def trainer(way: str, vocabulary: str, folder: Path, clock: Clock) -> Any:
    """A trainer ready to start, its rows read from a Parquet file."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
    from qwen_grafts.recipes.query_data import load_query_rows
    from qwen_grafts.recipes.trained_parts import LANGUAGE_MODEL_LINEAR
    from qwen_grafts.recipes.vision_sft_collator import Qwen3VisionSFTCollator

    model, processor = build("Qwen3VLForConditionalGeneration", *VOCABULARIES[vocabulary])
    path = folder / "rows.parquet"
    shared = {
        "model": model,
        "args": SFTConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=STEPS + WARM_UP,
            max_length=None,
            remove_unused_columns=False,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        "processing_class": processor,
        "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_MODEL_LINEAR, task_type="CAUSAL_LM"),
        "callbacks": [clock],
    }
    rows = conversations()
    if way == PEER:
        rows.to_parquet(path)
        train = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder))
        return SFTTrainer(train_dataset=train, **shared)
    queries(rows).to_parquet(path)
    collator = Qwen3VisionSFTCollator(processor)
    data = load_query_rows(str(path), eval_ratio=0, collator=collator)
    packed = way == "ours, packed"
    return GraftSFTTrainer(train_dataset=data.train, data_collator=collator, pack_rows=packed, **shared)


def measure(way: str, vocabulary: str) -> dict[str, float]:
    """One run: process seconds of a step, peak resident memory, the mean loss."""
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(way, vocabulary, Path(folder), clock)
        loss = run.train().training_loss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_seconds": clock.median(), "peak_mib": peak, "loss": loss}


def compare(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """vocabulary -> way -> medians over the repeats, the ways by turns."""
    found = {}
    for vocabulary in VOCABULARIES:
        collected: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for repeat in range(repeats):
            for way in WAYS:
                print(f"vocabulary {vocabulary}, {way}, repeat {repeat + 1} of {repeats}", file=sys.stderr)
                collected[way].append(measure_apart(__file__, way, vocabulary))
        found[vocabulary] = {way: medians(values) for way, values in collected.items()}
        losses = {way: values["loss"] for way, values in found[vocabulary].items()}
        if max(losses.values()) - min(losses.values()) > 1e-3:
            sys.exit(f"vocabulary {vocabulary}: the ways did not learn the same, their losses are {losses}.")
    return found


def show(found: dict[str, dict[str, dict[str, float]]], repeats: int) -> None:
    """Print the table: every figure with its ratio to plain TRL."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One thread, {platform.machine()}, median of {repeats} runs; ratio to plain TRL")
    for column in ("vocabulary", "way", "training step", "steps a second", "peak memory", "memory"):
        table.add_column(column, justify="left" if column in ("vocabulary", "way") else "right")
    for vocabulary, ways in found.items():
        peer = ways[PEER]
        for way, values in ways.items():
            table.add_row(
                vocabulary,
                way,
                f"{values['step_seconds']:.2f} s",
                f"{peer['step_seconds'] / values['step_seconds']:.2f} x",
                f"{values['peak_mib']:.0f} MiB",
                f"{values['peak_mib'] / peer['peak_mib']:.2f} x",
            )
    Console(width=120).print(table)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "VOCABULARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    found = compare(arguments.repeats)
    show(found, arguments.repeats)
    setting = {"batch": BATCH_SIZE, "median_answer": MEDIAN_ANSWER, "sigma": SIGMA, "image_sides": IMAGE_SIDES} | TEXT
    versions = {package: version(package) for package in ("torch", "transformers", "trl", "peft")}
    write_results(RESULTS, {"versions": versions, "setting": setting, "repeats": arguments.repeats, "medians": found})


if __name__ == "__main__":
    main()
