"""Questions about documents, from wherever they lie: files, folders, saved data sets, the Hub.

`apple/CLaRa_multi_stage` is read as it is published (`document_row_checks` says what a row holds). Every row becomes
rows of one question each, in one form for all stages:

    question        text, "" where the documents are to be said again in other words
    answer          text to learn
    gold_answers    [text] to compare with
    documents       [text], at least one
    positives       [int] documents that hold the answer, where that is known; all of them in the first stage
    data_type       "qa" or "paraphrase"
    source_row      int, the row in its file or split, from 0

    data = load_document_rows("pretrain.jsonl", "compression")
    data.train[0]["question"], data.train[0]["documents"]
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value

from .document_row_checks import FIELDS, STAGES, VERDICT, DocumentRowCheck, Stage
from .llava_data import RefusedRow, check_choice_of_rows, summarize_refused
from .query_sources import HELD_OUT_SPLITS, read_splits

DOCUMENT_ROW = Features(
    {
        "question": Value("string"),
        "answer": Value("string"),
        "gold_answers": List(Value("string")),
        "documents": List(Value("string")),
        "positives": List(Value("int64")),
        "data_type": Value("string"),
        "source_row": Value("int64"),
    }
)


@dataclass
class DocumentData:
    """Rows to train on and rows held out, with the columns of `DOCUMENT_ROW`.

    Attributes:
        refused: rows of the source left out, in its order; those of a held-out split behind the others.
        fingerprint: of the training rows.
    """

    train: Dataset
    eval: Dataset | None
    refused: list[RefusedRow]
    fingerprint: str


def load_document_rows(
    source: str,
    stage: Stage,
    *,
    config_name: str | None = None,
    max_samples: int | None = None,
    eval_ratio: float = 0.02,
    seed: int = 42,
    on_bad_row: Literal["stop", "skip"] = "stop",
    num_proc: int | None = None,
) -> DocumentData:
    """Read, check and split.

    Rows about the same document are never parted: what is asked of held-out rows stands in documents that no training
    row is about. A row is about its positives; where they are not known, about all its documents. Candidates that are
    known not to hold the answer may be on both sides, or else rows with retrieved candidates, most of which share one
    with some other, would all hang together.

    Args:
        source: a `.json`, `.jsonl`, `.csv` or `.parquet` file; a folder of data files or of a saved data set; or a data
            set of the Hub.
        stage: what the rows are for, one of `STAGES`.
        config_name: of a data set of the Hub ("pretraining").
        max_samples: a random subset of the source's rows, drawn before they are checked.
        eval_ratio: part of the source's rows to hold out where it has no split `test` or `validation`.
        seed: of the subset and of the split.
        on_bad_row: "stop" raises if a row is refused, "skip" leaves it out and reports it.
        num_proc: processes that check rows.

    Raises:
        ValueError: an argument makes no sense, nothing to read, no documents in it, rows are refused under "stop", none
            is left to train on, or documents are shared so widely that no part of the rows can be held out.
    """
    if stage not in STAGES:
        raise ValueError(f"`stage` must be {', '.join(STAGES[:-1])} or {STAGES[-1]}, got {stage!r}.")
    check_choice_of_rows(max_samples, eval_ratio, on_bad_row)
    name, rng = Path(source).name, np.random.default_rng(seed)
    splits = {split: _known_columns(rows, name) for split, rows in read_splits(source, config_name).items()}
    rows = splits["train"]
    picked = np.arange(len(rows))
    if max_samples is not None and max_samples < len(rows):
        picked = np.sort(rng.permutation(len(rows))[:max_samples])
        rows = rows.select(picked)
    check = DocumentRowCheck(stage)
    good, refused = _check_rows(rows, check, num_proc, picked)
    total = len(rows)
    held_out_name = next((split for split in HELD_OUT_SPLITS if split in splits), None)
    held_out = None
    if held_out_name is not None:
        there = splits[held_out_name]
        held_out, refused_there = _check_rows(there, check, num_proc, np.arange(len(there)), f" ({held_out_name})")
        refused, total = refused + refused_there, total + len(there)
    if (refused and on_bad_row == "stop") or not len(good):
        raise ValueError(_nothing_trained(name, stage, total, refused, len(good)))
    if held_out is None and eval_ratio:
        chosen = _rows_to_hold_out(good, eval_ratio, rng)
        held_out = good.select(chosen)
        good = good.select(np.setdiff1d(np.arange(len(good)), chosen))
    fingerprint = hashlib.sha256("".join(good["digest"]).encode()).hexdigest()[:16]
    held_out = _one_row_a_question(held_out) if held_out else None
    return DocumentData(_one_row_a_question(good), held_out, refused, fingerprint)


def _known_columns(rows: Dataset, name: str) -> Dataset:
    if not len(rows):
        raise ValueError(f"{name} has no rows.")
    if "docs" not in rows.column_names:
        raise ValueError(f"{name} has no column `docs`; it has {', '.join(rows.column_names)}. Rename its columns.")
    return rows.select_columns([column for column in rows.column_names if column in FIELDS])


def _check_rows(
    rows: Dataset, check: DocumentRowCheck, num_proc: int | None, indices: np.ndarray, shown_split: str = ""
) -> tuple[Dataset, list[RefusedRow]]:
    """`VERDICT` and `source_row` of the good rows, and the refused ones.

    Args:
        indices: of the rows in their source.
        shown_split: behind the reason, where it is not plain which split an index is in.
    """
    verdicts = rows.map(
        check,
        remove_columns=rows.column_names,
        features=VERDICT,
        num_proc=num_proc,
        load_from_cache_file=False,  # files change under the same name
        desc="Checking rows",
    ).add_column("source_row", indices)
    reasons = verdicts["reason"][:]
    bad = [row for row, reason in enumerate(reasons) if reason is not None]
    refused = [
        RefusedRow(int(indices[row]), reasons[row], f"{detail}{shown_split}")
        for row, detail in zip(bad, verdicts.select(bad)["detail"], strict=True)
    ]
    return verdicts.select([row for row, reason in enumerate(reasons) if reason is None]), refused


def _nothing_trained(name: str, stage: Stage, total: int, refused: Sequence[RefusedRow], good: int) -> str:
    remedy = f", or go on with the other {good:,} (`on_bad_row: skip`)." if good else "."
    return (
        f"{len(refused):,} of {total:,} rows of {name} cannot be used for {stage}: {summarize_refused(refused)}. The "
        f"first: row {refused[0].index}, {refused[0].detail}. Nothing was trained. Repair the rows{remedy}"
    )


def _rows_to_hold_out(rows: Dataset, eval_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Whole groups of rows about the same documents, drawn at random, as many as fit into the ratio."""
    wanted = max(1, round(len(rows) * eval_ratio))
    groups = _groups(rows)
    chosen: list[int] = []
    for place in rng.permutation(len(groups)):
        if len(chosen) + len(groups[place]) <= wanted:
            chosen += groups[place]
    if len(chosen) == len(rows):
        raise ValueError(
            f"`eval_ratio={eval_ratio}` of {len(rows)} rows leaves none to train on. Give more rows or `eval_ratio: 0`."
        )
    if not chosen:
        smallest = min(map(len, groups))
        enough = math.ceil(1000 * smallest / len(rows)) / 1000
        remedy = f"`eval_ratio: {enough}` or more, " if len(groups) > 1 else ""
        raise ValueError(
            f"Rows about the same document stay together, and of {len(rows)} rows the smallest such group has "
            f"{smallest}, more than the {wanted} to hold out (`eval_ratio={eval_ratio}`). Give {remedy}a split `test` "
            "or `validation`, `pos_index` where candidates are shared, or `eval_ratio: 0`."
        )
    return np.sort(chosen)


def _groups(rows: Dataset) -> list[list[int]]:
    """Rows that are about the same document, or hang together through others that are; each row is in one group."""
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first_row: dict[bytes, int] = {}
    for row, (documents, positives) in enumerate(zip(rows["documents"], rows["positives"], strict=True)):
        for document in [documents[position] for position in positives] or documents:
            key = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            parent[root(row)] = root(first_row.setdefault(key, row))
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in range(len(rows)):
        groups[root(row)].append(row)
    return list(groups.values())


def _one_row_a_question(rows: Dataset) -> Dataset:
    return rows.map(
        _questions_apart,
        batched=True,
        remove_columns=rows.column_names,
        features=DOCUMENT_ROW,
        load_from_cache_file=False,
        desc="One row a question",
    )


def _questions_apart(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    counts = list(map(len, batch["questions"]))
    apart = {
        "question": [text for texts in batch["questions"] for text in texts],
        "answer": [text for texts in batch["answers"] for text in texts],
        "gold_answers": [golds for row_golds in batch["gold_answers"] for golds in row_golds],
    }
    for name in ("documents", "positives", "data_type", "source_row"):
        apart[name] = [value for value, count in zip(batch[name], counts, strict=True) for _ in range(count)]
    return apart


__all__ = ["DOCUMENT_ROW", "DocumentData", "load_document_rows"]
