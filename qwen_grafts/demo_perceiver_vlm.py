"""The Perceiver VLM's demo.

0  pretrain a tiny Qwen3 on scenes described in words        (where a real run downloads Qwen3)
1  graft a vision tower onto it and export the repository    `graft_perceiver_vlm`
2  train only the connector with TRL from that repository,   `recipes/perceiver_vlm/tiny.yaml`
   evaluated before and after with blank and shuffled images
3  publish: card, clean-room check, folder or Hub            `finish_run`, `push_repository`
4  load the published copy in a clean process and ask it about images
"""

import json
import time
from pathlib import Path

from rich.console import Console
from transformers import SiglipImageProcessor, SiglipVisionModel, set_seed

from .configuration import preset_config
from .demo_results import image_results, results_table
from .demo_steps import ask_samples, held_out_samples, publish, report, tiny_tokenizer, train_tiny
from .hub_cards import graft_perceiver_vlm
from .recipes.language_pretraining import described, pretrain_language_model
from .recipes.run_metadata import read_metadata
from .recipes.visual_tasks import visual_task

PRESET = "perceiver-vlm-tiny"


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

    console.rule("0  Pretrain a tiny Qwen3 on scenes described in words")
    rows = described(visual_task("shapes+digits", "train", seed=seed))
    pretrain_language_model(rows, tiny_tokenizer(rows), config.text_config, directory / "language", seed=seed)

    console.rule("1  Graft a vision tower onto it")
    set_seed(seed)
    tower = SiglipVisionModel(config.vision_config)
    tower.save_pretrained(directory / "vision")
    size = config.vision_config.image_size
    SiglipImageProcessor(size={"height": size, "width": size}).save_pretrained(directory / "vision")
    grafted = graft_perceiver_vlm(
        str(directory / "vision"),
        str(directory / "language"),
        directory / "grafted",
        connector=json.dumps(config.connector_config.to_diff_dict()),
        overwrite=True,
    )
    console.print(f"Wrote {grafted}")

    console.rule("2  Train the connector with TRL, everything else frozen")
    published = directory / "published"
    train_tiny("perceiver_vlm", grafted, published, seed)
    results = image_results(read_metadata(published)["metrics"])
    console.print(results_table(results))

    console.rule("3  Publish: card and clean-room check")
    publish(published, repo_id, PRESET, console)

    console.rule("4  Load it in a clean process and ask")
    samples = ask_samples(published, held_out_samples(directory / "samples", seed), console)
    return report(
        directory,
        subject="Perceiver VLM, tiny preset",
        trained_part="connector",
        results=results,
        samples=samples,
        start=start,
        console=console,
    )
