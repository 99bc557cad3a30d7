"""`training_meta.json`: what a run was, so that a card can be written and the run repeated.

Holds no local path, user name or token: data sets and base models by repository id or file name.
"""

import json
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE_NAME = "training_meta.json"
PACKAGES = ("qwen-grafts", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def training_metadata(
    *,
    trainer: Any,
    dataset: dict[str, Any],
    parameters: dict[str, dict[str, int]],
    metrics: dict[str, Any],
    command: str,
    duration_seconds: float,
) -> dict[str, Any]:
    """Collect a finished run.

    Args:
        trainer: the trainer after `train()`.
        dataset: name, fingerprint, train_rows, eval_rows.
        parameters: part -> {"total", "trained"}.
        metrics: {"before": …, "after": …} of generative evaluation, either may be missing.
        command: what repeats the run.
        duration_seconds: wall-clock time of training.
    """
    state, args = trainer.state, trainer.args
    return {
        "command": command,
        "seed": args.seed,
        "steps": state.global_step,
        "epochs": state.epoch,
        "duration_seconds": round(duration_seconds, 1),
        "effective_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "base_models": getattr(trainer.model.config, "base_models", None) or {},
        "dataset": dataset,
        "parameters": parameters,
        "metrics": metrics,
        "loss_curve": [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry],
        "eval_loss_curve": [[entry["step"], entry["eval_loss"]] for entry in state.log_history if "eval_loss" in entry],
        "versions": {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]},
    }


def repeat_command(argv: list[str]) -> str:
    """The command that repeats a run: the recipe's name and the overrides, absolute paths cut to their last part."""
    words = argv[1:]
    if "--config" in words:
        position = words.index("--config")
        recipe = Path(words[position + 1])
        words = ["/".join(recipe.parts[-3:]), *words[:position], *words[position + 2 :]]
    shown = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return shlex.join(["qwen-grafts", "train", *shown])


def write_metadata(metadata: dict[str, Any], directory: Path) -> Path:
    """Write the file in one step; returns its path."""
    path = directory / FILE_NAME
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def write_refused(refused: list[Any], directory: Path) -> Path:
    """Write `refused_rows.jsonl`: index in the data file, reason and detail of every row left out."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "refused_rows.jsonl"
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in refused]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_metadata(directory: Path) -> dict[str, Any] | None:
    """The metadata of a run's folder, None where there is none."""
    path = directory / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
