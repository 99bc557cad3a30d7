"""`qwen-grafts demo`: the whole promise once, offline, on two CPU cores, with nothing replaced by a stand-in.

0  pretrain a tiny Qwen3 on scenes described in words        (where a real run downloads Qwen3)
1  graft a vision tower onto it and export the repository    `graft_perceiver_vlm`
2  train only the connector with TRL from that repository,   `recipes/perceiver_vlm/tiny.yaml`
   evaluated before and after with blank and shuffled images
3  publish: card, clean-room check, folder or Hub            `finish_run`, `push_repository`
4  load the published copy in a clean process and ask it about images
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import SiglipImageProcessor, SiglipVisionModel, set_seed

from .configuration import preset_config
from .configuration.presets import NUM_SPECIAL_TOKENS, TINY_VOCAB_SIZE
from .hub_cards import finish_run, graft_perceiver_vlm, push_repository
from .processing import build_qwen_tokenizer
from .processing.guarded_images import open_image
from .recipes.graft_sft import main as train
from .recipes.graft_sft import parse
from .recipes.language_pretraining import described, pretrain_language_model
from .recipes.run_metadata import read_metadata
from .recipes.visual_tasks import CHANCE, QUESTIONS, digit_scenes, shape_scenes, visual_task
from .report import write_report

PRESET = "perceiver-vlm-tiny"
SHOWN_IMAGES = 12


def run(directory: Path, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run every step; returns the report's path.

    Args:
        directory: receives `language/`, `vision/`, `grafted/`, `published/` and `report.html`.
        repo_id: also push the result to this repository of the Hub.
        seed: of data, weights and training.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    config = preset_config(PRESET)

    console.rule("0  Pretrain a tiny Qwen3 on scenes described in words")
    rows = visual_task("shapes+digits", "train", seed=seed)
    words = [message[0]["content"] for column in described(rows).to_dict().values() for message in column]
    tokenizer = build_qwen_tokenizer(TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS, words)
    pretrain_language_model(rows, tokenizer, config.text_config, directory / "language", seed=seed)

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
    recipe = files("qwen_grafts.recipes.perceiver_vlm").joinpath("tiny.yaml")
    arguments = ["--config", str(recipe), "--model_name_or_path", str(grafted), "--output_dir", str(published)]
    sys.argv = ["qwen-grafts train", *arguments, "--seed", str(seed)]
    train(*parse(sys.argv[1:]))
    metadata = read_metadata(published)
    console.print(_results_table(metadata["metrics"]))

    console.rule("3  Publish: card and clean-room check")
    console.print(str(finish_run(published, repo_id=repo_id or f"your-name/{PRESET}")), soft_wrap=True)
    if repo_id is not None:
        console.print(f"Pushed to {push_repository(published, repo_id).commit_url}")

    console.rule("4  Load it in a clean process and ask")
    samples = _samples(directory / "samples", seed)
    answers = ask_clean(published, samples)
    for sample, answer in zip(samples, answers, strict=True):
        sample["answer"] = answer
        console.print(f"  {sample['image'].name}: {sample['question']} -> {answer}", highlight=False)
    report = write_report(
        directory / "report.html",
        metadata=metadata,
        samples=samples,
        card=(published / "README.md").read_text(encoding="utf-8"),
        seconds=time.perf_counter() - start,
    )
    console.print(f"\nReport: {report}\nAsk about an image of yours: qwen-grafts demo --image FILE --question TEXT")
    return report


def ask(directory: Path, image: Path, question: str) -> str:
    """The published demo model's answer about one image.

    Raises:
        ValueError: the demo has not run yet, or the file is no usable image.
    """
    published = directory / "published"
    if not (published / "model.safetensors").is_file():
        raise ValueError(f"There is no trained model in {published} yet; run `qwen-grafts demo` first.")
    open_image(image.name, image.parent)
    return ask_clean(published, [{"image": image, "question": question}])[0]


def ask_clean(published: Path, samples: list[dict[str, Any]]) -> list[str]:
    """Answers of a published repository, loaded in a new isolated process with empty caches.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    script = files(__package__).joinpath("clean_ask.py")
    with tempfile.TemporaryDirectory() as scratch:
        requests, answers = Path(scratch, "requests.json"), Path(scratch, "answers.json")
        requests.write_text(
            json.dumps([{"image": str(s["image"].resolve()), "question": s["question"]} for s in samples])
        )
        environment = os.environ | {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        child = subprocess.run(
            [sys.executable, "-I", str(script), str(published.resolve()), str(requests), str(answers)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            raise RuntimeError("Loading in a clean process failed:\n" + "\n".join(child.stderr.splitlines()[-15:]))
        return json.loads(answers.read_text(encoding="utf-8"))


def _samples(folder: Path, seed: int) -> list[dict[str, Any]]:
    """A few held-out images written as files, shapes and digits in turn, each with one question."""
    folder.mkdir(exist_ok=True)
    scenes = zip(shape_scenes(SHOWN_IMAGES // 2, "test", seed), digit_scenes("test", seed), strict=False)
    samples = []
    for index, scene in enumerate(scene for pair in scenes for scene in pair):
        kind = list(scene.answers)[index // 2 % len(scene.answers)]
        path = folder / f"{index:02d}.png"
        scene.image.save(path)
        samples.append({"image": path, "question": QUESTIONS[kind], "expected": scene.answers[kind]})
    return samples


def _results_table(metrics: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title="Exact match on held-out images", title_justify="left")
    for column in ("question", "before", "after", "blank image", "shuffled images", "chance"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for kind, after in metrics["after"].items():
        figures = (metrics["before"][kind]["exact_match"], after["exact_match"], after["blank_image"])
        figures += (after["shuffled_image"], CHANCE[kind])
        table.add_row(kind, *(f"{figure:.3f}" for figure in figures))
    return table
