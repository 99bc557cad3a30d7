"""`training_meta.json`: what a run was, so that a card can be written and the run repeated.

Holds no local path, user name or token: data sets and base models by repository id or file name.
"""

import json
import re
import shlex
import sys
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .weights_files import read_shard
from .whole_files import write_json

FILE_NAME = "training_meta.json"
PACKAGES = ("qwen-grafts", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
QUANTIZATION = "bitsandbytes"
# Settings that say who ran it, where and with which right, and nothing about the result.
_SECRET = re.compile(r"hub_token|secret|password")
_PRIVATE = re.compile(r"hub|secret|password|_dir$|run_name|project|trackio|report_to")
_LONGEST_NAME = 255


def training_metadata(
    *,
    trainer: Any,
    model_args: Any,
    recipe_args: Any,
    dataset: dict[str, Any],
    parameters: dict[str, dict[str, int]],
    metrics: dict[str, Any],
    confusion: dict[str, Any],
    command: str,
    duration_seconds: float,
) -> dict[str, Any]:
    """Collect a finished run.

    Args:
        trainer: the trainer after `train()`.
        model_args, recipe_args: what the run was asked for, with the trainer's own arguments.
        dataset: name, fingerprint, train_rows, eval_rows.
        parameters: part -> {"total", "trained"}.
        metrics: {"before": …, "after": …} of generative evaluation, either may be missing.
        confusion: field of JSON targets -> its confusion matrix after training.
        command: what repeats the run.
        duration_seconds: wall-clock time of training.
    """
    state, args, config = trainer.state, trainer.args, trainer.model.config
    packages = [*PACKAGES, *([QUANTIZATION] if model_args.load_in_4bit or model_args.load_in_8bit else [])]
    return {
        "command": command,
        "model_type": config.model_type,
        "settings": changed_settings(recipe_args) | changed_settings(model_args) | changed_settings(args),
        "seed": args.seed,
        "steps": state.global_step,
        "epochs": state.epoch,
        "duration_seconds": round(duration_seconds, 1),
        "effective_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "base_models": getattr(config, "base_models", None) or _stock_base(model_args),
        "license": trainer.starting_license,
        "dataset": dataset,
        "parameters": parameters,
        "metrics": metrics,
        "confusion": confusion,
        "loss_curve": [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry],
        "eval_loss_curve": [[entry["step"], entry["eval_loss"]] for entry in state.log_history if "eval_loss" in entry],
        "versions": {package: version(package) for package in packages} | {"python": sys.version.split()[0]},
    }


def changed_settings(arguments: Any) -> dict[str, Any]:
    """The values of a dataclass of arguments that differ from its defaults, without what is private.

    Of a path only the last part is kept.
    """
    changed = {}
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default and not _PRIVATE.search(field.name) and _is_plain(value):
            changed[field.name] = Path(value).name if isinstance(value, str) and is_local(value) else value
    return changed


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def is_local(name: str) -> bool:
    """Whether a value is a path of this machine; a system prompt is longer than any file name."""
    return len(name) <= _LONGEST_NAME and (Path(name).is_absolute() or Path(name).exists())


def _stock_base(model_args: Any) -> dict[str, dict[str, str | None]]:
    """A stock model is its own base; a local folder has no name that means anything elsewhere."""
    name = model_args.model_name_or_path
    return {} if is_local(name) else {"base": {"repo_id": name, "revision": model_args.model_revision}}


def check_saved(directory: Path, adapter: bool, images: bool = True) -> None:
    """Look whether what a run leaves is there and whole.

    Args:
        directory: the run's.
        adapter: it trained one.
        images: the model has a processor, and not a tokenizer alone.

    Raises:
        ValueError: a file is missing or cut short.
    """
    wanted = [*(["processor_config.json"] if images else []), "tokenizer.json", FILE_NAME]
    wanted += ["adapter_config.json", "adapter_model.safetensors"] if adapter else ["config.json"]
    problems = [f"{name} is missing" for name in wanted if not (directory / name).is_file()]
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        problems.append("there are no weights")
    problems += [problem for path in weights if (problem := read_shard(path)[0])]
    if problems:
        raise ValueError(
            f"{len(problems)} of the files that the run should leave are not right: {'; '.join(problems)}. Look for "
            "a full disk, then resume from the last checkpoint (`resume_from_checkpoint: true`)."
        )


def repeat_command(argv: list[str]) -> str:
    """The command that repeats a run: the recipe's name and the overrides, absolute paths cut to their last part.

    Tokens and passwords stay out, given as `--name value` or as `--name=value`.
    """
    words, secret = [], False
    for word in argv[1:]:
        names_secret = word.startswith("--") and _SECRET.search(word.partition("=")[0]) is not None
        if not secret and not names_secret:
            words.append(word)
        secret = names_secret and "=" not in word
    if "--config" in words:
        position = words.index("--config")
        recipe = Path(words[position + 1])
        words = ["/".join(recipe.parts[-3:]), *words[:position], *words[position + 2 :]]
    shown = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return shlex.join(["qwen-grafts", "train", *shown])


def write_metadata(metadata: dict[str, Any], directory: Path) -> Path:
    """Write the file in one step; returns its path."""
    path = directory / FILE_NAME
    write_json(path, metadata)
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
