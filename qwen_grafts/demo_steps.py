"""The steps that all demos share: words for a tokenizer, training by recipe, publishing, asking, the report."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import Qwen2Tokenizer

from .configuration.presets import NUM_SPECIAL_TOKENS, TINY_VOCAB_SIZE
from .demo_results import Result
from .hub_cards import finish_run, push_repository
from .processing import build_qwen_tokenizer
from .recipes.graft_sft import GraftArguments, parse
from .recipes.graft_sft import main as train
from .recipes.graft_trainer import GraftSFTTrainer
from .recipes.run_metadata import read_metadata
from .recipes.visual_tasks import ONE_SIZE, QUESTIONS, digit_scenes, shape_scenes
from .report import write_report

SHOWN_IMAGES = 12
UNSWITCHED = {"": None}


def tiny_tokenizer(rows: Dataset, others: Iterable[str] = ()) -> Qwen2Tokenizer:
    """A tokenizer that knows the words of described rows.

    Args:
        others: further texts to learn words from.
    """
    columns = (rows["prompt"], rows["completion"])
    words = [messages[0]["content"] for column in columns for messages in column]
    return build_qwen_tokenizer(TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS, [*words, *others])


def train_tiny(
    folder: str, model: Path, output_dir: Path, seed: int, recipe: str = "tiny.yaml", overrides: Sequence[str] = ()
) -> tuple[GraftSFTTrainer, GraftArguments]:
    """Run `recipes/<folder>/<recipe>` from a checkpoint in a folder.

    Args:
        overrides: further values of the recipe, as on the command line.
    """
    path = files(f"qwen_grafts.recipes.{folder}").joinpath(recipe)
    arguments = ["--config", str(path), "--model_name_or_path", str(model), "--output_dir", str(output_dir)]
    sys.argv = ["qwen-grafts train", *arguments, *overrides, "--seed", str(seed)]
    parsed = parse(sys.argv[1:])
    return train(*parsed), parsed[0]


def publish(published: Path, repo_id: str | None, preset: str, console: Console) -> None:
    """Card and clean-room check of a trained folder, and a push where it has somewhere to go."""
    console.print(str(finish_run(published, repo_id=repo_id or f"your-name/{preset}")), soft_wrap=True)
    if repo_id is not None:
        console.print(f"Pushed to {push_repository(published, repo_id).commit_url}")


def held_out_samples(
    folder: Path, seed: int, sizes: Sequence[tuple[int, int]] = ONE_SIZE, count: int = SHOWN_IMAGES
) -> list[dict[str, Any]]:
    """Held-out images written as files, shapes and digits in turn, each with one question."""
    folder.mkdir(exist_ok=True)
    scenes = zip(
        shape_scenes(count // 2, "test", seed, sizes), digit_scenes("test", seed, sizes=sizes[::-1]), strict=False
    )
    samples = []
    for index, scene in enumerate(scene for pair in scenes for scene in pair):
        kind = list(scene.answers)[index // 2 % len(scene.answers)]
        path = folder / f"{index:02d}.png"
        scene.image.save(path)
        samples.append({"image": path, "question": QUESTIONS[kind], "expected": scene.answers[kind]})
    return samples


def ask_samples(
    published: Path, samples: list[dict[str, Any]], console: Console, switches: Mapping[str, bool | None] = UNSWITCHED
) -> list[dict[str, Any]]:
    """Ask about every sample under every switch; returns the samples with their `replies`.

    Args:
        switches: what a reply is called -> the chat template's `enable_thinking`.
    """
    requests = [sample | {"enable_thinking": switch} for sample in samples for switch in switches.values()]
    replies = ask_clean(published, requests)
    answered = []
    for number, sample in enumerate(samples):
        own = replies[number * len(switches) : (number + 1) * len(switches)]
        named = [{"name": name} | reply for name, reply in zip(switches, own, strict=True)]
        answered.append(sample | {"replies": named})
        for reply in named:
            label = f" ({reply['name']})" if reply["name"] else ""
            console.print(f"  {sample['image'].name}: {sample['question']}{label}", highlight=False, markup=False)
            show_reply(reply, console, indent="    ")
    return answered


def show_reply(reply: Mapping[str, str], console: Console, indent: str = "") -> None:
    """Print a reply, its thought dimmed."""
    if reply["thought"]:
        console.print(f"{indent}{reply['thought']}", style="dim", highlight=False, markup=False)
    console.print(f"{indent}{reply['answer']}", highlight=False, markup=False)


def ask_clean(published: Path, requests: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Replies of a published repository, loaded in a new isolated process with empty caches.

    Args:
        requests: {"image": path, "question"} and, where a model has the switch, "enable_thinking".

    Returns:
        {"thought", "answer"} for every request; without thinking the thought is "".

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    asked = [request | {"image": str(request["image"].resolve())} for request in requests]
    return answer_clean("questions", published, asked)


def answer_clean(task: str, published: Path, requests: Any) -> Any:
    """What a published repository answers, loaded in a new isolated process with empty caches.

    Args:
        task, requests: see `clean_answers.py`.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answers = Path(scratch, "requests.json"), Path(scratch, "answers.json")
        asked.write_text(json.dumps(requests), encoding="utf-8")
        environment = os.environ | {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        script = str(files(__package__).joinpath("clean_answers.py"))
        child = subprocess.run(
            [sys.executable, "-I", script, task, str(published.resolve()), str(asked), str(answers)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            raise RuntimeError("Loading in a clean process failed:\n" + "\n".join(child.stderr.splitlines()[-15:]))
        return json.loads(answers.read_text(encoding="utf-8"))


def report(
    directory: Path,
    *,
    headline: str = "A Qwen3 that learned to see",
    subject: str,
    trained_part: str,
    results: Sequence[Result],
    samples: list[dict[str, Any]],
    start: float,
    console: Console,
) -> Path:
    """Write the report page of a demo's folder and say where it is.

    Args:
        headline, subject: what happened, and to what, in words.
        trained_part: what of the model was trained.
        results: what was measured.
        samples: what `ask_samples` returned.
        start: `time.perf_counter()` when the demo began.
    """
    published = directory / "published"
    path = write_report(
        directory / "report.html",
        headline=headline,
        subject=subject,
        trained_part=trained_part,
        results=results,
        metadata=read_metadata(published),
        samples=samples,
        card=(published / "README.md").read_text(encoding="utf-8"),
        seconds=time.perf_counter() - start,
    )
    console.print(f"\nReport: {path}", soft_wrap=True)
    return path
