"""Where a run's rows come from: one of three sources, always in TRL's conversational vision format."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .llava_data import RefusedRow, load_llava
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


@dataclass
class TrainingData:
    """Rows to learn from and rows held out.

    Attributes:
        summary: what goes into the metadata: name, fingerprint, train_rows, eval_rows, refused rows by reason.
        refused: the rows left out, each with its index in the file and the reason.
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
    if args.task:
        train = visual_task(args.task, "train", shapes=args.task_shapes, seed=seed)
        held_out = visual_task(args.task, "test", shapes=args.task_test_shapes, seed=seed)
        name = args.task
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
            num_proc=num_proc,
        )
        train, held_out, refused, name = data.train, data.eval, data.refused, Path(args.data_file).name
    else:
        train, held_out = _from_hub_or_disk(args, seed)
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
    return TrainingData(train, held_out, summary, refused)


def _from_hub_or_disk(args: DataArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    loaded = load_from_disk(args.dataset_name) if Path(args.dataset_name).is_dir() else load_dataset(args.dataset_name)
    if isinstance(loaded, DatasetDict) and "test" in loaded:
        train, held_out = loaded["train"], loaded["test"]
    else:
        train, held_out = loaded["train"] if isinstance(loaded, DatasetDict) else loaded, None
    if args.max_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(args.max_samples, len(train))))
    if held_out is None and args.eval_ratio > 0:
        split = train.train_test_split(test_size=args.eval_ratio, seed=seed)
        train, held_out = split["train"], split["test"]
    return train, held_out
