"""Where a run's rows come from: one of seven sources.

Three give TRL's conversational vision format, which TRL's collator reads; query rows come with a collator of their own.
Two are for models of text alone: texts, which TRL tokenizes and packs, and rows of token ids. One is for models that
read documents.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from .document_collator import DocumentCollator
from .document_data import load_document_rows
from .document_row_checks import STAGES
from .llava_data import RefusedRow, load_llava, summarize_refused
from .query_data import QueryColumns, load_query_rows, stream_query_rows
from .text_data import load_text, load_token_rows
from .thinking_data import strip_thoughts
from .vision_sft_collator import Qwen3VisionSFTCollator
from .visual_tasks import visual_task

IMAGE_SOURCES = ("task", "data_file", "dataset_name", "query_data")
TEXT_SOURCES = ("text_data", "token_data")
DOCUMENT_SOURCES = ("document_data",)
SOURCES = (*IMAGE_SOURCES, *TEXT_SOURCES, *DOCUMENT_SOURCES)


@dataclass
class DataArguments:
    """The data of a run; exactly one of `SOURCES`."""

    task: str | None = field(default=None, metadata={"help": "built-in task: shapes, digits, letters, joined by +"})
    task_shapes: int = field(default=4_000, metadata={"help": "shape scenes drawn for training, 3 questions each"})
    task_test_shapes: int = field(default=240, metadata={"help": "shape scenes drawn for evaluation"})
    data_file: str | None = field(default=None, metadata={"help": "LLaVA-style JSON or JSON lines file"})
    image_root: str | None = field(default=None, metadata={"help": "folder below which the file's images lie"})
    turns: str = field(default="first", metadata={"help": "first: one question and answer; all: every turn"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub data set or saved folder with images and prompt+completion or messages"}
    )
    query_data: str | None = field(
        default=None,
        metadata={"help": "rows of image, query and JSON target: JSON, JSON lines, CSV, Parquet, a folder, a Hub id"},
    )
    query_data_config: str | None = field(default=None, metadata={"help": "configuration of that Hub data set"})
    image_key: str = field(default="image", metadata={"help": "column of the image or its file name"})
    query_key: str = field(default="query", metadata={"help": "column of the question"})
    caption_key: str = field(default="caption", metadata={"help": "column of the caption; it may be missing"})
    target_key: str = field(default="target_json", metadata={"help": "column of the JSON to answer with"})
    query_text: str | None = field(default=None, metadata={"help": "question for all rows, where no column has one"})
    system_prompt: str | None = field(default=None, metadata={"help": "system message of every query row"})
    streaming: bool = field(default=False, metadata={"help": "read query rows while training; needs `max_steps`"})
    streaming_eval_rows: int = field(default=0, metadata={"help": "rows held out from the start of the stream"})
    text_data: str | None = field(
        default=None,
        metadata={"help": "text, of a .txt, JSON, CSV or Parquet file, a folder, a Hub id, or pydoc_topics"},
    )
    text_data_config: str | None = field(default=None, metadata={"help": "configuration of that Hub data set"})
    text_key: str = field(default="text", metadata={"help": "column of the text"})
    token_data: str | None = field(
        default=None, metadata={"help": "saved folder of rows of token ids, columns input_ids and labels"}
    )
    document_data: str | None = field(
        default=None,
        metadata={"help": "rows of question, answer and documents: JSON lines, Parquet, a folder, a Hub id"},
    )
    document_data_config: str | None = field(default=None, metadata={"help": "configuration of that Hub data set"})
    stage: str | None = field(
        default=None, metadata={"help": f"what rows about documents are for, of a CLaRa model: {', '.join(STAGES)}"}
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
        collator: what makes batches of the rows; None for TRL's.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    summary: dict[str, Any]
    refused: Sequence[RefusedRow]
    collator: Qwen3VisionSFTCollator | DocumentCollator | None = None

    def final_summary(self) -> dict[str, Any]:
        """The summary after training: what a stream refused is known only then."""
        met = dict(Counter(row.reason for row in self.refused))
        return self.summary | {"refused_rows": self.summary["refused_rows"] | met}


def load_training_data(
    args: DataArguments,
    seed: int,
    num_proc: int | None = None,
    processor: ProcessorMixin | PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> TrainingData:
    """Read, check and split.

    Args:
        processor: of the model, of a model of text alone its tokenizer; query rows are checked with it.
        max_length: of a query row, image tokens counted; longer ones are refused.

    Raises:
        ValueError: not exactly one source, one that the model cannot read, rows refused under `on_bad_row="stop"`, or
            nothing left to train on.
    """
    sources = [name for name in SOURCES if getattr(args, name)]
    if len(sources) != 1:
        raise ValueError(
            f"Give exactly one of `{'`, `'.join(SOURCES[:-1])}` and `{SOURCES[-1]}`, got {len(sources)}"
            f"{': ' + ', '.join(sources) if sources else ''}."
        )
    fitting, hub_rows = _fitting_sources(processor)
    if processor is not None and sources[0] not in (*fitting, *hub_rows):
        raise ValueError(
            f"`{sources[0]}` is not for this model; it trains on `{'`, `'.join(fitting)}`"
            f"{'' if 'dataset_name' in fitting else ' or `dataset_name`'}."
        )
    if args.document_data:
        return _document_rows(args, seed, num_proc)
    if args.text_data or args.token_data:
        return _text_rows(args, seed)
    if args.query_data:
        return _query_rows(args, seed, num_proc, processor, max_length)
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
        name = _shown_name(args.dataset_name)
    if len(train) == 0:
        raise ValueError(f"No rows to train on in {name}; {len(refused)} were refused.")
    summary = _summary(name, train._fingerprint, train, held_out, Counter(row.reason for row in refused))
    if args.strip_thinking:
        summary["stripped_thoughts"] = stripped_thoughts
    return TrainingData(train, held_out, summary, refused)


def _fitting_sources(
    processor: ProcessorMixin | PreTrainedTokenizerBase | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sources that a model can read, by what turns its text into tensors, and those that may hold rows for any."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return TEXT_SOURCES, ("dataset_name",)
    if hasattr(processor, "passages"):
        return DOCUMENT_SOURCES, ()
    return IMAGE_SOURCES, ("dataset_name",)


def _summary(
    name: str,
    fingerprint: str,
    train: Dataset | IterableDataset,
    held_out: Dataset | None,
    refused: Mapping[str, int],
) -> dict[str, Any]:
    """What the metadata say of any data; the rows of a stream are not counted."""
    return {
        "name": name,
        "fingerprint": fingerprint,
        "train_rows": len(train) if isinstance(train, Dataset) else None,
        "eval_rows": len(held_out) if held_out is not None else 0,
        "refused_rows": dict(refused),
    }


def _shown_name(source: str) -> str:
    """A repository id as it is, of a file or folder the last part."""
    return Path(source).name if Path(source).exists() else source


def _text_rows(args: DataArguments, seed: int) -> TrainingData:
    source = args.text_data or args.token_data
    shared: dict[str, Any] = {"max_samples": args.max_samples, "eval_ratio": args.eval_ratio, "seed": seed}
    if args.text_data:
        data = load_text(source, config_name=args.text_data_config, text_key=args.text_key, **shared)
    else:
        data = load_token_rows(source, **shared)
    refused = {"empty": data.empty} if data.empty else {}
    summary = _summary(_shown_name(source), data.train._fingerprint, data.train, data.eval, refused)
    return TrainingData(data.train, data.eval, summary, ())


def _document_rows(args: DataArguments, seed: int, num_proc: int | None) -> TrainingData:
    data = load_document_rows(
        args.document_data,
        args.stage,
        config_name=args.document_data_config,
        max_samples=args.max_samples,
        eval_ratio=args.eval_ratio,
        seed=seed,
        on_bad_row=args.on_bad_row,
        num_proc=num_proc,
    )
    refused = Counter(row.reason for row in data.refused)
    summary = _summary(_shown_name(args.document_data), data.fingerprint, data.train, data.eval, refused)
    return TrainingData(data.train, data.eval, summary, data.refused)


def _query_rows(
    args: DataArguments, seed: int, num_proc: int | None, processor: ProcessorMixin, max_length: int | None
) -> TrainingData:
    if args.strip_thinking:
        raise ValueError("`strip_thinking` is for conversations; targets of `query_data` are JSON. Leave it out.")
    collator = Qwen3VisionSFTCollator(processor, max_length=max_length, system_prompt=args.system_prompt)
    shared: dict[str, Any] = {
        "image_root": args.image_root,
        "columns": QueryColumns(args.image_key, args.query_key, args.caption_key, args.target_key, args.query_text),
        "config_name": args.query_data_config,
        "seed": seed,
        "on_bad_row": args.on_bad_row,
        "collator": collator,
    }
    if args.streaming:
        data = stream_query_rows(args.query_data, eval_rows=args.streaming_eval_rows, **shared)
        if args.max_samples is not None:
            data.train = data.train.take(args.max_samples)
        if next(iter(data.train), None) is None:
            raise ValueError(
                f"No row of the stream {_shown_name(args.query_data)} can be used: {summarize_refused(data.refused)}."
            )
        data.train = data.train.repeat(None)  # in one epoch without end: resuming finds its place within one alone
    else:
        data = load_query_rows(
            args.query_data, max_samples=args.max_samples, eval_ratio=args.eval_ratio, num_proc=num_proc, **shared
        )
    refused = Counter(row.reason for row in data.refused)
    summary = _summary(_shown_name(args.query_data), data.fingerprint, data.train, data.eval, refused)
    return TrainingData(data.train, data.eval, summary | {"classes": data.classes}, data.refused, collator)


def read_in_order(training_args: TrainingArguments) -> None:
    """Settings with which every row of a stream is trained on once a pass, by one process or several."""
    # The stream is one shard, so a second worker would have nothing to read.
    training_args.dataloader_num_workers = min(training_args.dataloader_num_workers, 1)
    # By default the first process reads for all and cuts batches at rows of tensors, which images do not have.
    training_args.accelerator_config.dispatch_batches = False


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
