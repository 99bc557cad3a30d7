"""Plain text to learn a language from, and rows of token ids with labels of their own.

Texts are handed to TRL, which tokenizes them, ends each with the end-of-text token and packs them (`packing: true`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from datasets import Dataset, load_from_disk

from .query_sources import HELD_OUT_SPLITS, read_splits, wanted_splits

# Real English that every Python brings along: its language reference, as `help()` prints it.
BUILT_IN = "pydoc_topics"
TOKEN_COLUMNS = ("input_ids", "labels")


@dataclass
class TextRows:
    """Rows to learn from and rows held out.

    Attributes:
        train, eval: column `text`, or `input_ids` and `labels`.
        empty: texts left out because nothing is in them.
    """

    train: Dataset
    eval: Dataset | None
    empty: int = 0


def load_text(
    source: str,
    *,
    config_name: str | None = None,
    text_key: str = "text",
    max_samples: int | None = None,
    eval_ratio: float = 0.02,
    seed: int = 0,
) -> TextRows:
    """Read texts, without those that are empty, as many rows of wikitext are.

    Args:
        source: a .txt file, whose texts have blank lines between them; a .json, .jsonl, .csv or .parquet file; a folder
            of any of these or of `save_to_disk`; a data set of the Hub; or "pydoc_topics".
        config_name: configuration of that data set ("wikitext-103-raw-v1").
        text_key: column of the text.
        max_samples: seeded random subset of this many texts.
        eval_ratio: share held out by a seeded split, where the source has no split `test` or `validation`.

    Raises:
        ValueError: no file that is read here, no such column, one that is no text, or nothing but empty texts.
    """
    shown = Path(source).name
    splits = read_texts(source, config_name)
    for name, rows in splits.items():
        if text_key not in rows.column_names:
            raise ValueError(
                f"The data lacks {text_key!r} (`text_key`); it has {', '.join(rows.column_names)}. Name its column."
            )
        if rows.features[text_key].dtype not in ("string", "large_string"):
            raise ValueError(
                f"Column {text_key!r} of {len(rows)} rows holds {rows.features[text_key].dtype}, not text. Name the "
                "column of the text with `text_key`."
            )
        rows = rows.select_columns([text_key])
        splits[name] = rows if text_key == "text" else rows.rename_column(text_key, "text")
    count = sum(map(len, splits.values()))
    splits = {
        name: rows.select([row for row, text in enumerate(rows["text"]) if text and text.strip()])
        for name, rows in splits.items()
    }
    empty = count - sum(map(len, splits.values()))
    if not len(splits["train"]):
        raise ValueError(f"{empty} of {count} texts in {shown} are empty, and none is left to train on.")
    return TextRows(*_split(splits, max_samples, eval_ratio, seed), empty)


def load_token_rows(
    source: str, *, max_samples: int | None = None, eval_ratio: float = 0.02, seed: int = 0
) -> TextRows:
    """Read rows of token ids whose labels are not the ids themselves.

    A label stands where its token would: what is predicted at position t is `labels[t + 1]`; -100 is not learned.

    Args:
        source: a folder of `save_to_disk` with `input_ids` and `labels`.
        max_samples, eval_ratio, seed: see `load_text`.

    Raises:
        ValueError: no such folder, a column is missing, or rows that teach nothing or are not of one length, counted.
    """
    if not Path(source).is_dir():
        raise ValueError(f"`token_data` is {Path(source).name!r}, which is no folder of a saved data set.")
    splits = wanted_splits(load_from_disk(source), Path(source).name)
    for name, rows in splits.items():
        if missing := [column for column in TOKEN_COLUMNS if column not in rows.column_names]:
            raise ValueError(
                f"Split {name} of the token rows lacks {', '.join(missing)}; it has {', '.join(rows.column_names)}."
            )
        splits[name] = rows = rows.select_columns(list(TOKEN_COLUMNS))
        uneven, silent = 0, 0
        for row in rows.with_format("numpy"):
            uneven += len(row["input_ids"]) != len(row["labels"])
            silent += not np.any(np.asarray(row["labels"][1:]) != -100)
        if uneven or silent:
            raise ValueError(
                f"Of {len(rows)} token rows in {name}, {uneven} have more or fewer labels than ids, and {silent} have "
                "no label behind the first position. Label t + 1 is what is predicted at t."
            )
    if not len(splits["train"]):
        raise ValueError(f"{Path(source).name} has no rows to train on.")
    return TextRows(*_split(splits, max_samples, eval_ratio, seed))


def read_texts(source: str, config_name: str | None) -> dict[str, Dataset]:
    """Split -> rows of a source as `load_text` takes it, with all their columns.

    Raises:
        ValueError: no file that is read here, or one that is no text.
    """
    path = Path(source)
    if source == BUILT_IN:
        return {"train": Dataset.from_dict({"text": [str(topic) for _, topic in sorted(topics.items())]})}
    if path.is_file() and path.suffix.lower() == ".txt":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no UTF-8 text: {error}.") from None
        return {"train": Dataset.from_dict({"text": re.split(r"\n[ \t]*\n\s*", text.strip())})}
    return read_splits(source, config_name)


def _split(
    splits: dict[str, Dataset], max_samples: int | None, eval_ratio: float, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and the held-out ones of the source or of a seeded split."""
    train = splits["train"]
    if max_samples is not None and max_samples < len(train):
        train = train.shuffle(seed=seed).select(range(max_samples))
    held_out = next((splits[name] for name in HELD_OUT_SPLITS if splits.get(name)), None)
    if held_out is None and eval_ratio > 0 and len(train) > 1:
        parts = train.train_test_split(test_size=max(1, round(eval_ratio * len(train))), seed=seed)
        train, held_out = parts["train"], parts["test"]
    return train, held_out


__all__ = ["BUILT_IN", "TextRows", "load_text", "load_token_rows", "read_texts"]
