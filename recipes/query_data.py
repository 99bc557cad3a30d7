"""Rows `{image, query, caption, target_json}` from wherever they lie: files, folders, the Hub, a stream.

As in `llava_data`, a row that would break a run is found before the first step: texts are parsed, targets must be
JSON, every picture is decoded once, and a row with more tokens than allowed is named with both numbers. What cannot be
used stops the run or is left out and reported. Only a stream is checked while it is read.

    data = load_query_rows("sarcasm.jsonl", image_root="images", columns=QueryColumns(target="labels"))
    SFTTrainer(..., train_dataset=data.train, data_collator=Qwen3VisionSFTCollator(processor))
"""

import csv
import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image as PILImage

from ..processing.guarded_images import OUTSIDE_ROOT, ImageProblem, decode_image, open_image, upright_rgb
from .llava_data import (
    CONTROL_TOKEN,
    CONTROL_TOKENS,
    MALFORMED,
    NO_ANSWER,
    NO_PROMPT,
    RefusalError,
    RefusedRow,
    summarize_refused,
)
from .vision_sft_collator import Qwen3VisionSFTCollator

NOT_JSON = "target is not JSON"
NO_IMAGE = "no image"
TOO_LONG = "too long"
UNUSABLE = "refused by the processor"

_TEXTS = ("query", "caption", "target_json")
_CHECKED = {name: Value("string") for name in (*_TEXTS, "reason", "detail", "digest")}
_HELD_OUT = ("test", "validation")
_STREAM_BUFFER = 1_000
_ROW = "row in the stream"
# More values than this, or hardly one of them twice: the field holds free text, not a class.
_MOST_CLASSES = 50


@dataclass(frozen=True)
class QueryColumns:
    """Names of the columns in the source.

    Attributes:
        caption: may be missing in the source.
        question: asked of every row whose source has no column `query`.
    """

    image: str = "image"
    query: str = "query"
    caption: str = "caption"
    target: str = "target_json"
    question: str | None = None


@dataclass
class QueryData:
    """Rows to train on and rows held out, both with the columns `image` (open), `query`, `caption`, `target_json`.

    Attributes:
        refused: rows left out, in the source's order; of a stream, those met so far by this process.
        fingerprint: of the training rows' texts and pixels; "stream" for a stream.
        classes: field of the targets -> value -> training rows, for fields that hold classes.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    refused: list[RefusedRow]
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
    if on_bad_row not in ("stop", "skip"):
        raise ValueError(f"`on_bad_row` must be 'stop' or 'skip', got {on_bad_row!r}.")
    if not 0 <= eval_ratio < 1:
        raise ValueError(f"`eval_ratio` must be at least 0 and below 1, got {eval_ratio}.")
    rng = np.random.default_rng(seed)
    splits = {name: _canonical(rows, columns) for name, rows in _read_splits(source, config_name).items()}
    rows = splits["train"]
    picked = np.arange(len(rows))
    if max_samples is not None and max_samples < len(rows):
        picked = np.sort(rng.permutation(len(rows))[:max_samples])
        rows = rows.select(picked)
    check = _Check(_image_root(source, image_root), collator)
    good, refused = _check_rows(rows, check, num_proc, picked)
    held_out = next((splits[name] for name in _HELD_OUT if name in splits), None)
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
    buffer of 1,000.

    Args:
        eval_rows: rows to hold out from the start of the stream; they are read at once.

    Raises:
        ValueError: nothing to read, a column is missing, or a held-out row is refused under "stop".
    """
    columns = columns or QueryColumns()
    stream = _read_stream(source, config_name)
    first = next(iter(stream), None)
    if first is None:
        raise ValueError(f"No rows could be read from {Path(source).name}: it is empty.")
    _check_columns(list(first), columns)
    if isinstance((stream.features or {}).get(columns.image), Image):
        stream = stream.cast_column(columns.image, Image(decode=False))
    checked = _CheckedStream(columns, _Check(_image_root(source, image_root), collator), on_bad_row)
    stream, names = stream.map(_numbered, with_indices=True), [*first, _ROW]
    held_out = [row for row in map(checked, stream.take(eval_rows)) if row["image"] is not None] if eval_rows else []
    train = stream.skip(eval_rows).shuffle(seed=seed, buffer_size=_STREAM_BUFFER)
    train = train.map(checked, remove_columns=[name for name in names if name not in ("image", *_TEXTS)])
    train = train.filter(_is_usable)
    features = Features({"image": Image()} | {name: Value("string") for name in _TEXTS})
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


def _read_splits(source: str, config_name: str | None) -> dict[str, Dataset]:
    """`train`, and `test` or `validation` where the source has them."""
    path = Path(source)
    try:
        if path.is_file():
            reader = _READERS.get(path.suffix.lower())
            if reader is not None:
                return {"train": Dataset.from_list(list(_readable(reader, path)))}
            if path.suffix.lower() != ".parquet":
                raise ValueError(
                    f"{path.name} is no .json, .jsonl, .csv or .parquet file. Convert it, or give a folder or a data "
                    "set of the Hub."
                )
            loaded = load_dataset("parquet", data_files=glob.escape(source))
        elif path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            loaded = load_from_disk(source)
        else:
            loaded = load_dataset(source, config_name)
    except (DatasetGenerationError, StopIteration) as error:
        raise ValueError(f"No rows could be read from {path.name}: {error.__cause__ or 'it is empty'}.") from error
    if not isinstance(loaded, DatasetDict):
        return {"train": loaded}
    if "train" not in loaded:
        raise ValueError(f"{path.name} has no split `train`; it has {', '.join(loaded)}.")
    return {name: rows for name, rows in loaded.items() if name in ("train", *_HELD_OUT)}


def _read_stream(source: str, config_name: str | None) -> IterableDataset:
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if path.is_file() and reader is not None:
        return IterableDataset.from_generator(_readable, gen_kwargs={"reader": reader, "path": path})
    if path.is_file():
        return load_dataset("parquet", data_files=glob.escape(source), split="train", streaming=True)
    loaded = load_dataset(source, config_name, streaming=True)
    return loaded["train"] if isinstance(loaded, IterableDatasetDict) else loaded


# These read texts as they were written. `datasets` takes types from the values: "3" becomes a number, "NA" nothing, and
# a target object gets the keys of all the others.


def _readable(reader: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file as plain values, objects as JSON.

    Raises:
        ValueError: the file is not what its name says, with the line where that is known.
    """
    count = 0
    try:
        for row in reader(path):
            count += 1
            if not isinstance(row, dict):
                raise ValueError(f"row {count - 1} is a {type(row).__name__}, not an object")
            yield {key: _plain(value) for key, value in row.items()}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read after {count} rows: {error}.") from error
    if not count:
        raise ValueError(f"No rows could be read from {path.name}: it is empty.")


def _json_array(path: Path) -> Iterator[Any]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError(f"it holds a {type(rows).__name__}, not an array of objects")
    yield from rows


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _csv_rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines, strict=True):
            if None in row or None in row.values():
                raise ValueError("a row has more or fewer fields than the header")
            yield row


_READERS = {".json": _json_array, ".jsonl": _json_lines, ".csv": _csv_rows}


def _plain(value: Any) -> str | None:
    """A value as text; what is no text as JSON."""
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def _canonical(rows: Dataset, columns: QueryColumns) -> Dataset:
    """The rows under this module's column names; pictures stay encoded."""
    _check_columns(rows.column_names, columns)
    if not len(rows):
        raise ValueError("The data set has no rows.")
    feature = rows.features.get(columns.target)
    wanted = {"image": columns.image, "query": columns.query, "caption": columns.caption, "target_json": columns.target}
    rows = rows.select_columns([name for name in wanted.values() if name in rows.column_names])
    if isinstance(rows.features[columns.image], Image):
        rows = rows.cast_column(columns.image, Image(decode=False))
    rows = rows.rename_columns({old: new for new, old in wanted.items() if old in rows.column_names and old != new})
    if "query" not in rows.column_names:
        rows = rows.add_column("query", [columns.question] * len(rows))
    if "caption" not in rows.column_names:
        rows = rows.add_column("caption", [None] * len(rows), feature=Value("string"))
    if isinstance(feature, ClassLabel):
        names = [json.dumps({columns.target: feature.int2str(number)}) for number in rows["target_json"]]
        rows = rows.remove_columns("target_json").add_column("target_json", names)
    return rows


def _check_columns(found: list[str], columns: QueryColumns) -> None:
    needed = {"image_key": columns.image, "target_key": columns.target}
    if columns.question is None:
        needed["query_key"] = columns.query
    if missing := {setting: name for setting, name in needed.items() if name not in found}:
        raise ValueError(
            f"The data lacks {', '.join(f'{name!r} (`{setting}`)' for setting, name in missing.items())}; it has "
            f"{', '.join(found)}. Name its columns in the recipe"
            + (", or give one question for all with `query_text`." if "query_key" in missing else ".")
        )


def _image_root(source: str, image_root: str | Path | None) -> Path | None:
    """The folder that no image may leave; None where images lie in the data itself."""
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise ValueError(f"The image root {str(image_root)!r} is not a folder. Give the one that names start from.")
        return Path(image_root).absolute()
    path = Path(source)
    if path.is_dir():
        return path.absolute()
    return None if path.exists() else Path(HF_HUB_CACHE)  # where a data set of the Hub keeps its files


@dataclass(frozen=True)
class _Check:
    """One row to its texts, `reason` and `detail` set where it cannot be used."""

    image_root: Path | None
    collator: Qwen3VisionSFTCollator | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        checked = dict.fromkeys(_CHECKED)
        try:
            checked |= {
                "query": _text(row.get("query"), "query", NO_PROMPT),
                "caption": _text(row.get("caption"), "caption", None),
                "target_json": _target(row.get("target_json")),
            }
            image = _open(row["image"], self.image_root)
            self._check_length(checked | {"image": image})
        except ImageProblem as problem:
            return checked | {"reason": problem.reason, "detail": str(problem)}
        except RefusalError as refusal:
            return checked | dict(zip(("reason", "detail"), refusal.args, strict=True))
        texts = json.dumps([checked[name] for name in _TEXTS], ensure_ascii=False)
        checked["digest"] = hashlib.sha256(texts.encode("utf-8", "surrogatepass") + image.tobytes()).hexdigest()
        return checked

    def _check_length(self, row: dict[str, Any]) -> None:
        if self.collator is None:
            return
        keys = (self.collator.image_key, self.collator.query_key, self.collator.caption_key, self.collator.target_key)
        names = dict(zip(("image", *_TEXTS), keys, strict=True))
        try:
            length = self.collator.row_length({key: row[name] for name, key in names.items()})
        except ValueError as error:
            raise RefusalError(UNUSABLE, str(error)) from error
        limit = self.collator.max_length
        if limit is not None and length > limit:
            raise RefusalError(TOO_LONG, f"{length} tokens with its image, `max_length` is {limit}")


def _text(value: Any, name: str, if_empty: str | None) -> str | None:
    if not isinstance(value, str | None):
        raise RefusalError(MALFORMED, f"`{name}` must be text, not {type(value).__name__}")
    text = (value or "").strip()
    if not text and if_empty is not None:
        raise RefusalError(if_empty, f"`{name}` is empty")
    if control := CONTROL_TOKENS.search(text):
        raise RefusalError(CONTROL_TOKEN, f"`{name}` contains {control.group()}")
    return text or None


def _target(value: Any) -> str:
    text = _text(_plain(value), "target", NO_ANSWER)
    try:
        json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise RefusalError(NOT_JSON, f"{text[:60]!r}: {error}") from error
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _open(image: Any, root: Path | None) -> PILImage.Image:
    """An image of a data set: a file name, encoded bytes with or without one, or a picture.

    Raises:
        ImageProblem, RefusalError: it cannot be used.
    """
    if isinstance(image, PILImage.Image):
        return upright_rgb(image)
    name, content = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
    if content is not None:
        return decode_image(BytesIO(content), Path(name or "picture").name)
    if not name:
        raise RefusalError(NO_IMAGE, "the image is empty")
    if not isinstance(name, str):
        raise RefusalError(MALFORMED, f"the image must be a picture or a file name, not {type(name).__name__}")
    if root is None:
        raise ImageProblem(name, OUTSIDE_ROOT, "no `image_root` is given")
    path = Path(name)
    inside = isinstance(image, dict) and path.is_relative_to(root)  # `datasets` writes whole paths
    return open_image(path.relative_to(root) if inside else name, root)


def _check_rows(
    rows: Dataset, check: _Check, num_proc: int | None, indices: Sequence[int] | None = None
) -> tuple[Dataset, list[RefusedRow]]:
    """The good rows with their texts as they will be used, and the refused ones.

    Args:
        indices: of the rows in their source, where they are a subset.
    """
    verdicts = rows.map(
        check,
        remove_columns=rows.column_names,
        features=Features(_CHECKED),
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
        return batch | {"image": [_open(image, self.image_root) for image in batch["image"]]}


@dataclass
class _CheckedStream:
    """Rows of a stream, opened and checked one by one; the image of a refused one is None."""

    columns: QueryColumns
    check: _Check
    on_bad_row: str
    refused: list[RefusedRow] = field(default_factory=list)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        names, index = self.columns, row[_ROW]
        row = {
            "image": row[names.image],
            "query": row.get(names.query, names.question),
            "caption": row.get(names.caption),
            "target_json": row[names.target],
        }
        checked = self.check(row)
        texts = {name: checked[name] for name in _TEXTS}
        if checked["reason"] is None:
            return {"image": _open(row["image"], self.check.image_root)} | texts
        if self.on_bad_row == "stop":
            raise ValueError(
                f"Row {index} of the stream cannot be used: {checked['reason']}, {checked['detail']} Repair it, or "
                "leave such rows out (`on_bad_row: skip`)."
            )
        if all(index != known.index for known in self.refused):  # a stream is read once an epoch
            self.refused.append(RefusedRow(index, checked["reason"], checked["detail"]))
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
