"""Query rows as they are written: from JSON, JSON lines, CSV, Parquet, folders, saved data sets, the Hub, or a stream.

What is read here is not checked yet. Texts stay as they were written: `datasets` takes types from the values, so "3"
becomes a number, "NA" nothing, and a target object gets the keys of all the others.
"""

import csv
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.constants import HF_HUB_CACHE

HELD_OUT_SPLITS = ("test", "validation")


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


def read_splits(source: str, config_name: str | None) -> dict[str, Dataset]:
    """`train`, and `test` or `validation` where the source has them.

    Raises:
        ValueError: no file that is read here, nothing in it, or no split `train`.
    """
    path = Path(source)
    try:
        if path.is_file():
            reader = _READERS.get(path.suffix.lower())
            if reader is not None:
                return {"train": _as_written(reader, path)}
            if path.suffix.lower() != ".parquet":
                raise ValueError(
                    f"{path.name} is no .json, .jsonl, .csv or .parquet file. Convert it, or give a folder or a data "
                    "set of the Hub."
                )
            loaded = load_dataset("parquet", data_files=glob.escape(source))
        elif path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            loaded = load_from_disk(source)
        elif path.is_dir() and config_name is None and (path / "train.jsonl").is_file():
            there = [name for name in ("train", *HELD_OUT_SPLITS) if (path / f"{name}.jsonl").is_file()]
            return {name: _as_written(_json_lines, path / f"{name}.jsonl") for name in there}
        else:
            loaded = load_dataset(source, config_name)
    except (DatasetGenerationError, StopIteration, IndexError) as error:  # IndexError: a saved data set without rows
        raise ValueError(f"No rows could be read from {path.name}: {error.__cause__ or 'it is empty'}.") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"No rows could be read from {path.name}: it is empty.") from error
    return wanted_splits(loaded, path.name)


def _as_written(reader: Any, path: Path) -> Dataset:
    """All rows of a file."""
    rows = list(_readable(reader, path))
    # Not `Dataset.from_list`, which knows the columns of the first row only.
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def wanted_splits(loaded: Dataset | DatasetDict, shown: str) -> dict[str, Dataset]:
    """Of a data set, `train`, and `test` or `validation` where it has them; without splits all of it is `train`.

    Raises:
        ValueError: no split `train`.
    """
    if not isinstance(loaded, DatasetDict):
        return {"train": loaded}
    if "train" not in loaded:
        raise ValueError(f"{shown} has no split `train`; it has {', '.join(loaded)}.")
    return {name: rows for name, rows in loaded.items() if name in ("train", *HELD_OUT_SPLITS)}


def read_stream(source: str, config_name: str | None, columns: QueryColumns) -> IterableDataset:
    """The training rows, read while they are asked for; pictures stay encoded, and a class becomes its name as JSON.

    One shard, whatever it is stored in: `datasets` gives each data worker shards of its own, and then has each of them
    skip and number rows by itself, so that rows held out would be trained on and others left out.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if path.is_file() and reader is not None:
        stream = IterableDataset.from_generator(_readable, gen_kwargs={"reader": reader, "path": path})
    else:
        files = {"path": "parquet", "data_files": glob.escape(source), "split": "train"} if path.is_file() else None
        loaded = load_dataset(**(files or {"path": source, "name": config_name}), streaming=True)
        stream = loaded["train"] if isinstance(loaded, IterableDatasetDict) else loaded
    first = next(iter(stream), None)
    if first is None:
        raise ValueError(f"No rows could be read from {path.name}: it is empty.")
    check_columns(list(first), columns)
    features = stream.features or {}
    if isinstance(features.get(columns.image), Image):
        stream = stream.cast_column(columns.image, Image(decode=False))
    target = features.get(columns.target)
    if isinstance(target, ClassLabel):
        features = Features(stream.features | {columns.target: Value("string")})
        named = {"column": columns.target, "feature": target}
        stream = stream.map(_named_class, fn_kwargs=named, features=features)
    return IterableDataset.from_generator(_one_by_one, gen_kwargs={"stream": stream})


def _one_by_one(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    for batch in stream.iter(batch_size=1):  # unlike `iter(stream)` it does not look which data worker asks
        yield {name: values[0] for name, values in batch.items()}


def _named_class(row: dict[str, Any], column: str, feature: ClassLabel) -> dict[str, Any]:
    return {column: json.dumps({column: feature.int2str(row[column])})}


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
            yield {key: as_text(value) for key, value in row.items()}
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


def as_text(value: Any) -> str | None:
    """A value as text; what is no text as JSON."""
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def canonical_columns(rows: Dataset, columns: QueryColumns) -> Dataset:
    """The rows as `image`, `query`, `caption` and `target_json`, where a caption may be None; pictures stay encoded.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    check_columns(rows.column_names, columns)
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


def check_columns(found: list[str], columns: QueryColumns) -> None:
    """See that the columns are there.

    Raises:
        ValueError: one is missing, with those that are there.
    """
    needed = {"image_key": columns.image, "target_key": columns.target}
    if columns.question is None:
        needed["query_key"] = columns.query
    if missing := {setting: name for setting, name in needed.items() if name not in found}:
        raise ValueError(
            f"The data lacks {', '.join(f'{name!r} (`{setting}`)' for setting, name in missing.items())}; it has "
            f"{', '.join(found)}. Name its columns in the recipe"
            + (", or give one question for all with `query_text`." if "query_key" in missing else ".")
        )


def image_root_of(source: str, image_root: str | Path | None) -> Path | None:
    """The folder that no image may leave; None where images lie in the data itself."""
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise ValueError(f"The image root {str(image_root)!r} is not a folder. Give the one that names start from.")
        return Path(image_root).absolute()
    path = Path(source)
    if path.is_dir():
        return path.absolute()
    return None if path.exists() else Path(HF_HUB_CACHE)  # where a data set of the Hub keeps its files


__all__ = [
    "HELD_OUT_SPLITS",
    "QueryColumns",
    "as_text",
    "canonical_columns",
    "check_columns",
    "image_root_of",
    "read_splits",
    "read_stream",
    "wanted_splits",
]
