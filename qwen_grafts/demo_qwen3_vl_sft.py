"""The demo of SFT: a stock Qwen3-VL learns to answer with JSON, from a folder of PNG files and a file of rows.

0  pretrain a tiny Qwen3-VL on drawn shapes and printed letters     (where a real run downloads Qwen3-VL)
1  write rows as a user has them: `images/*.png`, `rows.jsonl`
2  train LoRA on its language model with TRL, everything else       `recipes/qwen3_vl_sft/demo.yaml`
   frozen, evaluated before and after and over blank images
3  merge the adapter, publish: card, clean-room check               `export_folder`, `finish_run`
4  load the merged copy in a clean process and ask it about held-out rows

The rows are real: scikit-learn's handwritten digits, and pieces of its two photographs. The model that learns from them
has seen none, neither digits nor photographs.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images

from .demo_results import json_results, results_table
from .demo_steps import SHOWN_IMAGES, ask_samples, publish, report, tiny_tokenizer, train_tiny
from .hub_cards import export_folder
from .recipes.qwen3_vl_pretraining import pretrain_qwen3_vl
from .recipes.run_metadata import read_metadata
from .recipes.visual_tasks import DIGITS, QUESTIONS, digit_scenes, visual_task

NAME = "qwen3-vl-tiny-sft"
PRETRAINING_TASK = "shapes+letters+captions"
PRETRAINING_SHAPES, PRETRAINING_LETTERS, PRETRAINING_STEPS = 1_200, 7_200, 300
ALL_DIGITS = 1_797
TILE = 32
PHOTO_QUESTION = "Which photograph is it from?"


def run(directory: Path, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run every step; returns the report's path.

    Args:
        directory: receives `base/`, `data/`, `adapter/`, `published/`, `samples/` and `report.html`.
        repo_id: also push the merged model to this repository of the Hub.
        seed: of data, weights and training.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)

    console.rule("0  Pretrain a tiny Qwen3-VL on drawn shapes and printed letters")
    rows = list(query_rows(seed))
    random.Random(seed).shuffle(rows)
    pretrain_base(directory / "base", rows, seed)

    console.rule("1  Write rows of image, question and JSON answer")
    data = write_rows(directory / "data", rows)
    console.print(f"Wrote {len(rows):,} rows to {data}")

    console.rule("2  Train LoRA on the language model with TRL, everything else frozen")
    adapter = directory / "adapter"
    trainer, _ = train_tiny(
        "qwen3_vl_sft",
        directory / "base",
        adapter,
        seed,
        recipe="demo.yaml",
        overrides=["--query_data", str(data), "--image_root", str(data.parent / "images")],
    )
    results = json_results(read_metadata(adapter))
    console.print(results_table(results))

    console.rule("3  Merge the adapter and publish: card and clean-room check")
    published = export_folder(adapter, directory / "published", overwrite=True)
    publish(published, repo_id, NAME, console)

    console.rule("4  Load the merged copy in a clean process and ask")
    samples = ask_samples(published, held_out_samples(directory / "samples", trainer.eval_dataset), console)
    return report(
        directory,
        headline="A Qwen3-VL that learned to answer with JSON",
        subject="Stock Qwen3-VL, tiny",
        trained_part="LoRA adapter of the language model",
        results=results,
        samples=samples,
        start=start,
        console=console,
    )


def pretrain_base(base: Path, rows: list[dict[str, Any]], seed: int) -> None:
    """Write the stand-in for a downloaded Qwen3-VL.

    Of the demo's rows its tokenizer knows the words, as Qwen's does; the model sees none of them.

    Args:
        base: folder of the checkpoint.
        rows: what `query_rows` yields.
    """
    scenes = visual_task(PRETRAINING_TASK, "train", shapes=PRETRAINING_SHAPES, letters=PRETRAINING_LETTERS, seed=seed)
    words = [f"user\n{row['query']}assistant\n{json.dumps(row['target_json'])}" for row in rows]
    pretrain_qwen3_vl(scenes, tiny_tokenizer(scenes, words), base, max_steps=PRETRAINING_STEPS, seed=seed)


def query_rows(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of open image, query and target: every handwritten digit once, tiles of photographs that share no pixel.

    So no split can put one image on both sides.

    Args:
        seed: of the digits' order.
    """
    for scene in digit_scenes("test", seed, held_out=ALL_DIGITS):
        digit = DIGITS.index(scene.answers["digit"])
        target = {"digit": str(digit), "parity": ("even", "odd")[digit % 2]}
        yield {"image": scene.image, "query": QUESTIONS["digit"], "target_json": target}
    photographs = load_sample_images()
    for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
        photograph = Image.fromarray(pixels)
        for top in range(0, photograph.height - TILE + 1, TILE):
            for left in range(0, photograph.width - TILE + 1, TILE):
                tile = photograph.crop((left, top, left + TILE, top + TILE))
                yield {"image": tile, "query": PHOTO_QUESTION, "target_json": {"photo": Path(name).stem}}


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `images/*.png` and `rows.jsonl`; returns the path of the rows."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        name = f"{number:04d}.png"
        row["image"].save(images / name)
        lines.append(json.dumps(row | {"image": name}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def held_out_samples(folder: Path, rows: Dataset, count: int = SHOWN_IMAGES) -> list[dict[str, Any]]:
    """The first held-out rows, their images written as files.

    Args:
        rows: with columns image, query and target_json, as the recipe holds them out.
    """
    folder.mkdir(exist_ok=True)
    samples = []
    for number, row in enumerate(rows.select(range(count))):
        path = folder / f"{number:02d}.png"
        row["image"].save(path)
        samples.append({"image": path, "question": row["query"], "expected": row["target_json"]})
    return samples
