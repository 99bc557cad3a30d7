"""Rows of earlier pipelines without what is left of pictures in them: `qwen-grafts data clean`.

Read are JSON lines of all three training sets and of `raw_knowledge.jsonl`, one after the other, also mixed. Markers,
paths of images and names of their folders go out of `docs`, `question`, `answers`, `answer`, `gold_answer`,
`golden_answers` and `text`; other fields stay. A row goes if its question or answer was about nothing else, if nothing
is left of one of its parts, or if the rest is no row of its stage. Where a document goes, `pos_index` counts anew.

A file is never changed: the rows are written to another one, under a partial name first.
"""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document_row_checks import DocumentRowCheck
from ..latent_shards import put_in_place, temporary
from .raw_knowledge import json_lines
from .technical_references import asks_about_files, strip_references

ABOUT_FILES = "about a file or folder"
EMPTY_QUESTION = "no question left"
EMPTY_ANSWER = "no answer left"
EMPTY_DOCUMENT = "no document left"
EMPTY_TEXT = "no text left"
EMPTY_POSITIVE = "no document with the answer left"
UNKNOWN_FORM = "neither a training row nor raw knowledge"


@dataclass
class CleaningCounts:
    """What was done.

    Attributes:
        rows: of the file.
        kept: those of them that were written.
        changed: those of the kept ones that are not as they were.
        references: kind -> how many were taken out of rows, dropped rows included.
        dropped: reason -> rows.
        dropped_pairs: reason -> questions with their answers out of rows that were kept.
    """

    rows: int = 0
    kept: int = 0
    changed: int = 0
    references: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_pairs: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.kept:,} of {self.rows:,} rows kept, {self.changed:,} of them changed"]
        for shown, counted in (
            ("taken out", self.references),
            ("rows dropped", self.dropped),
            ("questions dropped out of other rows", self.dropped_pairs),
        ):
            if counted := +counted:
                words = ", ".join(f"{count:,} {reason}" for reason, count in counted.most_common())
                parts.append(f"{shown}: {words}")
        return "; ".join(parts) + "."


class _DroppedError(Exception):
    """A row of which nothing can be used; the argument is the reason."""


def clean_rows(source: Path, target: Path, *, show_progress: bool = True) -> CleaningCounts:
    """Write a file's rows without references.

    Args:
        source: JSON lines.
        target: new file.

    Raises:
        ValueError: `target` is there already, a line of `source` is no JSON object, or no row is left.
    """
    if not source.is_file():
        raise ValueError(f"{source} is no file.")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} is there already; name another file, nothing is cleaned in place.")
    target.parent.mkdir(parents=True, exist_ok=True)
    counts = CleaningCounts()
    with temporary(target) as partial, Progress(transient=True, disable=not show_progress) as progress:
        task = progress.add_task("Cleaning rows", total=None)
        with partial.open("wb") as lines:
            for number, row in json_lines(source):
                counts.rows += 1
                try:
                    cleaned = _clean(row, counts)
                except _DroppedError as dropped:
                    counts.dropped[dropped.args[0]] += 1
                else:
                    counts.kept += 1
                    counts.changed += cleaned != row
                    lines.write(_line(cleaned, f"{source.name}, line {number}"))
                progress.advance(task)
        if not counts.kept:
            raise ValueError(f"No row of {source.name} is left, and nothing was written: {counts}")
        put_in_place(partial, target)
    return counts


def _line(row: dict[str, Any], place: str) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise ValueError(f"{place} has half of a surrogate pair; write the whole character.") from None


def _clean(row: dict[str, Any], counts: CleaningCounts) -> dict[str, Any]:
    if row.get("docs") is not None:
        is_first = row.get("answers") is not None
        cleaned = _first_stage(row, counts) if is_first else _later_stage(row, counts)
        if reason := DocumentRowCheck("compression" if is_first else "instruction")(cleaned)["reason"]:
            raise _DroppedError(reason)
        return cleaned
    if row.get("source_type") == "image":  # its path is where it lies, and no text
        return row
    if row.get("source_type") != "text" or not isinstance(row.get("text"), str):
        raise _DroppedError(UNKNOWN_FORM)
    text = strip_references(row["text"], counts.references)
    if not _says_something(text):
        raise _DroppedError(EMPTY_TEXT)
    return row | {"text": text}


def _first_stage(row: dict[str, Any], counts: CleaningCounts) -> dict[str, Any]:
    documents, _ = _documents(row, counts)
    answers = _listed(row["answers"])
    questions = _listed(row["question"]) if row.get("data_type") == "qa" and row.get("question") is not None else []
    if len(questions) != len(answers):  # without questions, as a paraphrase is; or the check will say what is wrong
        return row | {"docs": documents, "answers": [_answer(answer, counts) for answer in answers]}
    kept: list[tuple[Any, Any]] = []
    dropped: list[str] = []
    for question, answer in zip(questions, answers, strict=True):
        try:
            kept.append((_question(question, [answer], counts), _answer(answer, counts)))
        except _DroppedError as reason:
            dropped.append(reason.args[0])
    if dropped and not kept:
        raise _DroppedError(dropped[0])
    counts.dropped_pairs.update(dropped)
    return row | {
        "docs": documents,
        "question": [question for question, _ in kept],
        "answers": [answer for _, answer in kept],
    }


def _later_stage(row: dict[str, Any], counts: CleaningCounts) -> dict[str, Any]:
    documents, places = _documents(row, counts)
    cleaned = row | {"docs": documents}
    positives = _listed(row.get("pos_index"))
    if isinstance(positives, list) and all(type(position) is int for position in positives):
        # One that was out of range stays so, for the check to see.
        kept = [places.get(position, len(documents)) for position in positives if places.get(position, 0) is not None]
        if positives and not kept:
            raise _DroppedError(EMPTY_POSITIVE)
        cleaned["pos_index"] = kept
    golds = _listed(row["golden_answers"]) if row.get("golden_answers") is not None else []
    if row.get("question") is not None:
        answers = [row[name] for name in ("answer", "gold_answer") if row.get(name) is not None]
        cleaned["question"] = _question(row["question"], [*answers, *golds], counts)
    for name in ("answer", "gold_answer"):
        if isinstance(row.get(name), str):
            cleaned[name] = _answer(row[name], counts)
    if golds:
        cleaned["golden_answers"] = [_answer(gold, counts) for gold in golds]
    return cleaned


def _documents(row: dict[str, Any], counts: CleaningCounts) -> tuple[list[Any], dict[int, int | None]]:
    """Documents in which something is left, and old place -> new one, None for one that is gone."""
    documents: list[Any] = []
    places: dict[int, int | None] = {}
    for place, document in enumerate(_listed(row["docs"])):
        stripped = _stripped(document, counts)
        is_gone = isinstance(document, str) and bool(document.strip()) and not _says_something(stripped)
        places[place] = None if is_gone else len(documents)
        if not is_gone:
            documents.append(stripped)
    if places and not documents:
        raise _DroppedError(EMPTY_DOCUMENT)
    return documents, places


def _question(question: Any, answers: list[Any], counts: CleaningCounts) -> Any:
    if not isinstance(question, str):
        return question
    if any(asks_about_files(question, answer) for answer in answers if isinstance(answer, str)):
        raise _DroppedError(ABOUT_FILES)
    stripped = _stripped(question, counts)
    if not _says_something(stripped):
        raise _DroppedError(EMPTY_QUESTION)
    return stripped


def _answer(answer: Any, counts: CleaningCounts) -> Any:
    stripped = _stripped(answer, counts)
    if isinstance(stripped, str) and (not stripped.strip() or (stripped != answer and not _says_something(stripped))):
        raise _DroppedError(EMPTY_ANSWER)
    return stripped


def _stripped(value: Any, counts: CleaningCounts) -> Any:
    return strip_references(value, counts.references) if isinstance(value, str) else value


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _listed(value: Any) -> Any:
    """A list that was written as JSON; anything that is no list goes on to the check as a list of itself."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # brackets nested too deep
            value = json.loads(value)
    return value if isinstance(value, list) else [value]


__all__ = ["CleaningCounts", "clean_rows"]
