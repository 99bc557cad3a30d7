"""Rows `{image, query, caption, target_json}` from wherever they lie: files, folders, the Hub, a stream.

As in `llava_data`, a row that would break a run is found before the first step: texts are parsed, targets must be
JSON, every picture is decoded once, and a row with more tokens than allowed is named with both numbers. What cannot be
used stops the run or is left out and reported. Only a stream is checked while it is read.

    data = load_query_rows("sarcasm.jsonl", image_root="images", columns=QueryColumns(target="labels"))
    SFTTrainer(..., train_dataset=data.train, data_collator=Qwen3VisionSFTCollator(processor))
"""

import atexit
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, Value, concatenate_datasets

from .llava_data import RefusedRow, check_choice_of_rows, summarize_refused
from .query_row_checks import NO_IMAGE, NOT_JSON, TEXTS, TOO_LONG, UNUSABLE, VERDICT, RowCheck, open_row_image
from .query_sources import (
    HELD_OUT_SPLITS,
    QueryColumns,
    canonical_columns,
    image_root_of,
    read_splits,
    read_stream,
)
from .vision_sft_collator import Qwen3VisionSFTCollator

_STREAM_BUFFER = 1_000
_ROW = "row in the stream"
# More values than this, or hardly one of them twice: the field holds free text, not a class.
_MOST_CLASSES = 50


@dataclass
class QueryData:
    """Rows to train on and rows held out, both with the columns `image` (open), `query`, `caption`, `target_json`.

    Attributes:
        refused: rows left out, in the source's order; of a stream, those met so far by this process and its data
            workers.
        fingerprint: of the training rows' texts and pixels; "stream" for a stream.
        classes: field of the targets -> value -> training rows, for fields that hold classes.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    refused: Sequence[RefusedRow]
    fingerprint: str
    classes: dict[str, dict[str, int]] = field(default_factory=dict)


def load_query_rows(
    source: str,
    *,
    image_root: str | Path | None = None,
    columns: QueryColumns | None = None,
    config_name: str | None = None,
    max_samples: int | None = None,
    eval_ratio: float = 0.02,
    seed: int = 42,
    on_bad_row: Literal["stop", "skip"] = "stop",
    collator: Qwen3VisionSFTCollator | None = None,
    num_proc: int | None = None,
) -> QueryData:
    """Read, check and split.

    Args:
        source: a `.json`, `.jsonl`, `.csv` or `.parquet` file; a folder of images (with `metadata.jsonl` or with a
            folder a class), of data files or of a saved data set; or a data set of the Hub.
        image_root: folder that image names are relative to and may not leave; a folder of images is its own.
        config_name: of a data set of the Hub.
        max_samples: a random subset, drawn before any image is opened.
        eval_ratio: part to hold out where the source has no split `test` or `validation`.
        seed: of the subset and of the split.
        on_bad_row: "stop" raises if a row is refused, "skip" leaves it out and reports it.
        collator: rows that it would refuse, for their length for one, are refused here.
        num_proc: processes that check rows.

    Raises:
        ValueError: nothing to read, a column is missing, rows are refused under "stop", or none is left to train on.
    """
    columns = columns or QueryColumns()
    check_choice_of_rows(max_samples, eval_ratio, on_bad_row)
    rng = np.random.default_rng(seed)
    splits = {name: canonical_columns(rows, columns) for name, rows in read_splits(source, config_name).items()}
    rows = splits["train"]
    picked = np.arange(len(rows))
    if max_samples is not None and max_samples < len(rows):
        picked = np.sort(rng.permutation(len(rows))[:max_samples])
        rows = rows.select(picked)
    check = RowCheck(image_root_of(source, image_root), collator)
    good, refused = _check_rows(rows, check, num_proc, picked)
    held_out = next((splits[name] for name in HELD_OUT_SPLITS if name in splits), None)
    total = len(rows)
    if held_out is not None:
        total += len(held_out)
        held_out, refused_there = _check_rows(held_out, check, num_proc)
        refused = refused + refused_there
    name = Path(source).name
    if (refused and on_bad_row == "stop") or not len(good):
        raise ValueError(_nothing_trained(name, total, refused, len(good)))
    if held_out is None and eval_ratio:
        order, count = rng.permutation(len(good)), max(1, round(len(good) * eval_ratio))
        if count == len(good):
            raise ValueError(
                f"`eval_ratio={eval_ratio}` of {len(good)} rows leaves none to train on. Give more rows or "
                "`eval_ratio: 0`."
            )
        good, held_out = good.select(np.sort(order[count:])), good.select(np.sort(order[:count]))
    fingerprint = hashlib.sha256("".join(good["digest"][:]).encode()).hexdigest()[:16]
    classes = class_counts(good["target_json"][:])
    opening = _OpenRows(check.image_root)
    train, held_out = (
        None if part is None else part.remove_columns("digest").with_transform(opening) for part in (good, held_out)
    )
    return QueryData(train, held_out, refused, fingerprint, classes)


def stream_query_rows(
    source: str,
    *,
    image_root: str | Path | None = None,
    columns: QueryColumns | None = None,
    config_name: str | None = None,
    eval_rows: int = 0,
    seed: int = 42,
    on_bad_row: Literal["stop", "skip"] = "stop",
    collator: Qwen3VisionSFTCollator | None = None,
) -> QueryData:
    """The same rows without reading all of them first: a data set of the Hub, JSON lines, CSV or Parquet.

    A row that cannot be used stops training when it is met, or is left out and counted. Rows are shuffled within a
    buffer of 1,000, in the same order at every reading that `set_epoch` does not change.

    Args:
        eval_rows: rows to hold out from the start of the stream; they are read at once.

    Raises:
        ValueError: nothing to read, a column is missing, a held-out row is refused under "stop", or none is left to
            train on.
    """
    columns = columns or QueryColumns()
    stream = read_stream(source, config_name, columns)
    checked = _CheckedStream(columns, RowCheck(image_root_of(source, image_root), collator), on_bad_row)
    stream = stream.map(_numbered, with_indices=True)
    held_out = [row for row in map(checked, stream.take(eval_rows)) if row["image"] is not None] if eval_rows else []
    first = next(iter(stream.skip(eval_rows)), None)
    if first is None:
        raise ValueError(
            f"`eval_rows={eval_rows}` leaves no row of {Path(source).name} to train on. Hold out fewer, or give more."
        )
    train = stream.skip(eval_rows).shuffle(seed=seed, buffer_size=_STREAM_BUFFER)
    train = train.map(checked, remove_columns=[name for name in first if name not in ("image", *TEXTS)])
    train = train.filter(_is_usable)
    features = Features({"image": Image()} | {name: Value("string") for name in TEXTS})
    return QueryData(train, Dataset.from_list(held_out, features) if held_out else None, checked.refused, "stream")


def class_counts(targets: Sequence[str]) -> dict[str, dict[str, int]]:
    """Field -> value -> rows, the most frequent first, for the fields of JSON objects that hold classes.

    Values are written as JSON writes them, texts without their quotation marks.
    """
    counts: dict[str, Counter[str]] = {}
    for target in targets:
        parsed = json.loads(target)
        for name, value in parsed.items() if isinstance(parsed, dict) else ():
            if not isinstance(value, dict | list):
                counts.setdefault(name, Counter())[value if isinstance(value, str) else json.dumps(value)] += 1
    return {
        name: dict(counter.most_common())
        for name, counter in counts.items()
        if len(counter) <= _MOST_CLASSES and counter.total() >= 2 * len(counter)
    }


def imbalance(classes: dict[str, dict[str, int]]) -> str:
    """One line a field: how often each class occurs, and the most frequent one against the rarest."""
    return "\n".join(
        f"{name}: {', '.join(f'{value} {count:,}' for value, count in counts.items())}"
        f" (1 : {max(counts.values()) / min(counts.values()):.1f})"
        for name, counts in classes.items()
    )


def _check_rows(
    rows: Dataset, check: RowCheck, num_proc: int | None, indices: Sequence[int] | None = None
) -> tuple[Dataset, list[RefusedRow]]:
    """The good rows with their texts as they will be used, and the refused ones.

    Args:
        indices: of the rows in their source, where they are a subset.
    """
    verdicts = rows.map(
        check,
        remove_columns=rows.column_names,
        features=Features({name: Value("string") for name in VERDICT}),
        num_proc=num_proc,
        load_from_cache_file=False,  # files change under the same name
        desc="Checking rows",
    )
    reasons, details = verdicts["reason"][:], verdicts["detail"][:]
    refused = [
        RefusedRow(int(indices[row]) if indices is not None else row, reason, details[row])
        for row, reason in enumerate(reasons)
        if reason is not None
    ]
    good = [row for row, reason in enumerate(reasons) if reason is None]
    texts = verdicts.remove_columns(["reason", "detail"])
    return concatenate_datasets([rows.select_columns("image"), texts], axis=1).select(good), refused


def _nothing_trained(name: str, total: int, refused: list[RefusedRow], good: int) -> str:
    first = f" The first: row {refused[0].index}, {refused[0].detail}" if refused else ""
    remedy = f", or go on with the other {good:,} (`on_bad_row: skip`)." if good else "."
    return (
        f"{len(refused):,} of {total:,} rows of {name} cannot be used: {summarize_refused(refused)}.{first} Nothing "
        f"was trained. Repair the rows or files{remedy}"
    )


@dataclass(frozen=True)
class _OpenRows:
    """Format of a data set; a class rather than a closure, so that worker processes can be sent it."""

    image_root: Path | None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "image" not in batch:
            return batch
        return batch | {"image": [open_row_image(image, self.image_root) for image in batch["image"]]}


class _StreamRefusals(Sequence[RefusedRow]):
    """Rows that a stream refused, each once, in the source's order.

    They are kept in a file, since data workers are processes of their own, and what they note in memory is lost.
    """

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".jsonl", prefix="refused_rows_")
        os.close(descriptor)
        self._file, self._noted = Path(name), set()
        atexit.register(self._file.unlink, missing_ok=True)  # workers end without it

    def add(self, row: RefusedRow) -> None:
        """Note a row, in one write, so that several processes may do it at a time."""
        if row.index not in self._noted:  # a stream is read again and again
            self._noted.add(row.index)
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([row.index, row.reason, row.detail]) + "\n")

    def _rows(self) -> list[RefusedRow]:
        with self._file.open(encoding="utf-8") as lines:
            rows = {(row := RefusedRow(*json.loads(line))).index: row for line in lines}
        return [rows[index] for index in sorted(rows)]

    def __len__(self) -> int:
        return len(self._rows())

    def __getitem__(self, position: Any) -> Any:
        return self._rows()[position]


@dataclass
class _CheckedStream:
    """Rows of a stream, opened and checked one by one; the image of a refused one is None."""

    columns: QueryColumns
    check: RowCheck
    on_bad_row: str
    refused: _StreamRefusals = field(default_factory=_StreamRefusals)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        names, index = self.columns, row[_ROW]
        row = {
            "image": row[names.image],
            "query": row.get(names.query, names.question),
            "caption": row.get(names.caption),
            "target_json": row[names.target],
        }
        checked = self.check(row)
        texts = {name: checked[name] for name in TEXTS}
        if checked["reason"] is None:
            return {"image": open_row_image(row["image"], self.check.image_root)} | texts
        if self.on_bad_row == "stop":
            raise ValueError(
                f"Row {index} of the stream cannot be used: {checked['reason']}, {checked['detail']} Repair it, or "
                "leave such rows out (`on_bad_row: skip`)."
            )
        self.refused.add(RefusedRow(index, checked["reason"], checked["detail"]))
        return {"image": None} | texts


def _numbered(row: dict[str, Any], index: int) -> dict[str, Any]:
    return row | {_ROW: index}


def _is_usable(row: dict[str, Any]) -> bool:
    return row["image"] is not None


__all__ = [
    "NOT_JSON",
    "NO_IMAGE",
    "TOO_LONG",
    "UNUSABLE",
    "QueryColumns",
    "QueryData",
    "class_counts",
    "imbalance",
    "load_query_rows",
    "stream_query_rows",
]
