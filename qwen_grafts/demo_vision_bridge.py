"""The vision bridge's demo.

0  pretrain a tiny Qwen3 that thinks, on scenes described in words    (where a real run downloads Qwen3)
   and a tiny Qwen2.5-VL on images, of which only the tower goes on   (where a real run downloads Qwen2.5-VL)
1  surgery: the tower out of the one, an adapter, the other           `graft_vision_bridge`
2  phase 1: train only the adapter with TRL, thoughts taken out       `recipes/vision_bridge/tiny.yaml`
3  phase 2: no training; the same held-out rows with thinking on      `enable_thinking=True`
4  publish: card, clean-room check, folder or Hub                     `finish_run`, `push_repository`
5  load the published copy in a clean process and ask it about images, with thinking on and off
"""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from .configuration import preset_config
from .demo_results import image_results, results_table
from .demo_steps import ask_samples, held_out_samples, publish, report, tiny_tokenizer, train_tiny
from .hub_cards import graft_vision_bridge
from .recipes.generative_evaluation import evaluate
from .recipes.graft_sft import GraftArguments
from .recipes.graft_trainer import GraftSFTTrainer
from .recipes.language_pretraining import described_for_thinking, pretrain_language_model
from .recipes.run_metadata import read_metadata, write_metadata
from .recipes.vision_language_pretraining import captioned, pretrain_vision_language_model
from .recipes.visual_tasks import MANY_SIZES, visual_task

PRESET = "vision-bridge-tiny"
TASK = "shapes+digits+captions+sizes+thoughts"
SHAPES = 6_000
SWITCHES = {"thinking off": False, "thinking on": True}
LANGUAGE_ROWS = 12_800
THINKING_TOKENS = 64


def run(directory: Path, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run every step; returns the report's path.

    Args:
        directory: receives `language/`, `vision/`, `grafted/`, `published/`, `samples/` and `report.html`.
        repo_id: also push the result to this repository of the Hub.
        seed: of data, weights and training.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    config = preset_config(PRESET)
    rows = visual_task(TASK, "train", shapes=SHAPES, seed=seed)

    console.rule("0  Pretrain a tiny Qwen3 that thinks, on scenes described in words")
    text_config = config.text_config
    text_config.initializer_range = text_config.hidden_size**-0.5  # 0.02 is for wide models
    words = described_for_thinking(rows.shuffle(seed).select(range(LANGUAGE_ROWS)), seed)
    tokenizer = tiny_tokenizer(words, ["user\nassistant\n"] * len(words))  # the roles are in every row
    pretrain_language_model(words, tokenizer, text_config, directory / "language", seed=seed)
    console.rule("0  Pretrain a tiny Qwen2.5-VL on images")
    pretrain_vision_language_model(captioned(rows), tokenizer, config.vision_config, directory / "vision", seed=seed)

    console.rule("1  Surgery: its vision tower onto that Qwen3")
    grafted = graft_vision_bridge(
        str(directory / "vision"), str(directory / "language"), directory / "grafted", overwrite=True
    )
    console.print(f"Wrote {grafted}")

    console.rule("2  Phase 1: train the adapter with TRL, everything else frozen, without thinking")
    published = directory / "published"
    trainer, arguments = train_tiny("vision_bridge", grafted, published, seed)

    console.rule("3  Phase 2: no training; the same questions with thinking switched on")
    results = image_results(_evaluate_thinking(trainer, arguments, published))
    console.print(results_table(results))

    console.rule("4  Publish: card and clean-room check")
    publish(published, repo_id, PRESET, console)

    console.rule("5  Load it in a clean process and ask")
    samples = ask_samples(published, held_out_samples(directory / "samples", seed, MANY_SIZES), console, SWITCHES)
    return report(
        directory,
        subject="Vision bridge, tiny preset",
        trained_part="adapter",
        results=results,
        samples=samples,
        start=start,
        console=console,
    )


def _evaluate_thinking(trainer: GraftSFTTrainer, arguments: GraftArguments, published: Path) -> dict[str, Any]:
    """The run's metrics with those of thinking added, in the run's metadata too."""
    rows = visual_task(arguments.task, "test", shapes=arguments.task_test_shapes, seed=trainer.args.seed)
    thinking = evaluate(
        trainer.model,
        trainer.processing_class,
        rows.select(range(min(arguments.generative_eval_rows, len(rows)))),
        max_new_tokens=THINKING_TOKENS,
        enable_thinking=True,
    )
    metadata = read_metadata(published)
    for kind, result in thinking.items():
        metadata["metrics"]["after"][f"{kind}, thinking"] = result | {"command": "qwen-grafts demo vision-bridge"}
    write_metadata(metadata, published)
    return metadata["metrics"]
