"""Where a run's rows come from: one of three sources, always in TRL's conversational vision format."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .llava_data import RefusedRow, load_llava
from .thinking_data import strip_thoughts
from .visual_tasks import visual_task


@dataclass
class DataArguments:
    """The data of a run; exactly one of `task`, `data_file` and `dataset_name`."""

    task: str | None = field(default=None, metadata={"help": "built-in task: shapes, digits or shapes+digits"})
    task_shapes: int = field(default=4_000, metadata={"help": "shape scenes drawn for training, 3 questions each"})
    task_test_shapes: int = field(default=240, metadata={"help": "shape scenes drawn for evaluation"})
    data_file: str | None = field(default=None, metadata={"help": "LLaVA-style JSON or JSON lines file"})
    image_root: str | None = field(default=None, metadata={"help": "folder below which the file's images lie"})
    turns: str = field(default="first", metadata={"help": "first: one question and answer; all: every turn"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub data set or saved folder with images and prompt+completion or messages"}
    )
    max_samples: int | None = field(default=None, metadata={"help": "seeded random subset of this many rows"})
    eval_ratio: float = field(default=0.02, metadata={"help": "share of the rows held out by a seeded split"})
    on_bad_row: str = field(default="stop", metadata={"help": "stop before the first step, or skip and report"})
    strip_thinking: bool = field(
        default=False,
        metadata={"help": "take <think>…</think> out of answers; rows where that fails are left out and reported"},
    )


@dataclass
class TrainingData:
    """Rows to learn from and rows held out.

    Attributes:
        summary: what goes into the metadata: name, fingerprint, train_rows, eval_rows, refused rows by reason, with
            `strip_thinking` also the number of answers that had a thought.
        refused: the rows left out, each with its index in the file or split and the reason.
    """

    train: Dataset
    eval: Dataset | None
    summary: dict[str, Any]
    refused: list[RefusedRow]


def load_training_data(args: DataArguments, seed: int, num_proc: int | None = None) -> TrainingData:
    """Read, check and split.

    Raises:
        ValueError: not exactly one source, rows refused under `on_bad_row="stop"`, or nothing left to train on.
    """
    sources = {name: getattr(args, name) for name in ("task", "data_file", "dataset_name") if getattr(args, name)}
    if len(sources) != 1:
        raise ValueError(
            f"Give exactly one of `task`, `data_file` and `dataset_name`, got {len(sources)}"
            f"{': ' + ', '.join(sources) if sources else ''}."
        )
    refused: list[RefusedRow] = []
    stripped_thoughts = 0
    if args.task:
        splits = {
            "train": visual_task(args.task, "train", shapes=args.task_shapes, seed=seed),
            "test": visual_task(args.task, "test", shapes=args.task_test_shapes, seed=seed),
        }
        if args.strip_thinking:
            splits, refused, stripped_thoughts = _strip_splits(splits, num_proc)
        train, held_out, name = splits["train"], splits["test"], args.task
    elif args.data_file:
        if args.image_root is None:
            raise ValueError("`data_file` needs `image_root`, the folder below which its images lie.")
        data = load_llava(
            Path(args.data_file),
            Path(args.image_root),
            max_samples=args.max_samples,
            eval_ratio=args.eval_ratio,
            seed=seed,
            turns=args.turns,
            on_bad_row=args.on_bad_row,
            strip_thinking=args.strip_thinking,
            num_proc=num_proc,
        )
        train, held_out, refused, name = data.train, data.eval, data.refused, Path(args.data_file).name
        stripped_thoughts = data.stripped_thoughts
    else:
        train, held_out, refused, stripped_thoughts = _from_hub_or_disk(args, seed, num_proc)
        name = args.dataset_name if not Path(args.dataset_name).exists() else Path(args.dataset_name).name
    if len(train) == 0:
        raise ValueError(f"No rows to train on in {name}; {len(refused)} were refused.")
    summary = {
        "name": name,
        "fingerprint": train._fingerprint,
        "train_rows": len(train),
        "eval_rows": len(held_out) if held_out is not None else 0,
        "refused_rows": dict(Counter(row.reason for row in refused)),
    }
    if args.strip_thinking:
        summary["stripped_thoughts"] = stripped_thoughts
    return TrainingData(train, held_out, summary, refused)


def _from_hub_or_disk(
    args: DataArguments, seed: int, num_proc: int | None
) -> tuple[Dataset, Dataset | None, list[RefusedRow], int]:
    loaded = load_from_disk(args.dataset_name) if Path(args.dataset_name).is_dir() else load_dataset(args.dataset_name)
    splits = {"train": loaded["train"] if isinstance(loaded, DatasetDict) else loaded}
    if isinstance(loaded, DatasetDict) and "test" in loaded:
        splits["test"] = loaded["test"]
    rows = range(len(splits["train"]))
    if args.max_samples is not None:
        rows = Dataset.from_dict({"row": rows}).shuffle(seed=seed)["row"][: args.max_samples]
        splits["train"] = splits["train"].select(rows)
    refused, stripped_thoughts = [], 0
    if args.strip_thinking:
        splits, refused, stripped_thoughts = _strip_splits(splits, num_proc, rows)
    if "test" not in splits and args.eval_ratio > 0 and len(splits["train"]):
        splits = splits["train"].train_test_split(test_size=args.eval_ratio, seed=seed)
    return splits["train"], splits.get("test"), refused, stripped_thoughts


def _strip_splits(
    splits: dict[str, Dataset], num_proc: int | None, train_rows: Sequence[int] | None = None
) -> tuple[dict[str, Dataset], list[RefusedRow], int]:
    """Every split without thoughts, the rows left out, and the number of answers that had a thought.

    Args:
        train_rows: index in its source of each row of the train split, where that is a subset.
    """
    stripped, refused, total = {}, [], 0
    for name, dataset in splits.items():
        stripped[name], problems, count = strip_thoughts(dataset, num_proc)
        total += count
        for row, problem in problems:
            index = train_rows[row] if train_rows is not None and name == "train" else row
            refused.append(RefusedRow(index, problem.reason, f"Row {index} of {name}: {problem.detail}."))
    return stripped, refused, total
