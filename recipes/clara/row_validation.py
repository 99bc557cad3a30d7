"""Every fault of a file of rows by line and field, before a training run stops at the first one.

A row is judged by what training reads it with, `DocumentRowCheck`, and on top of that as a line of JSON: a line is one
object in UTF-8, no marker of a picture is left in it, and there is no byte order mark, which other readers of JSON
lines stumble over. Nor is anything there twice, a document in its row or a row in its file: training would take the one
for two. Of a row with several faults all are told: a field that is told is taken as good, and the row looked at again.

    report = validate_rows(Path("rows/compression.jsonl"), "compression")
    console.print(report.table())
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ..document_row_checks import FIELDS, OTHER_STAGE, STAGES, DocumentRowCheck, Stage, parsed_json

NOT_UTF8 = "no UTF-8"
BYTE_ORDER_MARK = "byte order mark"
EMPTY_LINE = "empty line"
NOT_JSON = "no JSON"
NOT_AN_OBJECT = "no object"
HALF_CHARACTER = "half of a surrogate pair"
LEFTOVER_MARKER = "marker of a picture left"
DOCUMENT_TWICE = "document twice in a row"
ROW_TWICE = "row twice in the file"
NO_ROWS = "no rows"

# Faults are counted without end and kept up to here.
MOST_KEPT = 1000
_MARKER = re.compile(r"\[\s*IMAGE[_ ]REF\b", re.IGNORECASE)
_FIELD = re.compile(r"`(\w+)((?:\[\d+\])?)`")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_DETAIL = 160


@dataclass(frozen=True)
class RowFault:
    """A fault.

    Attributes:
        line: from 1.
        field: with the place in its list ("docs[2]"); "" where the line as a whole is at fault.
        reason: what kind of fault, for the counts.
        detail: what exactly.
    """

    line: int
    field: str
    reason: str
    detail: str


@dataclass
class ValidationReport:
    """What a file holds.

    Attributes:
        lines: of the file.
        rows: lines without a fault.
        faults: the first `MOST_KEPT` of them, in the order of the file.
        counts: all of them, by reason.
    """

    lines: int = 0
    rows: int = 0
    faults: list[RowFault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.counts

    def table(self) -> Table:
        """The faults that were kept, one a line."""
        table = Table("line", "field", "fault", "what it is")
        for fault in self.faults:
            table.add_row(str(fault.line), fault.field or "-", fault.reason, fault.detail)
        return table

    def __str__(self) -> str:
        """Counts, on one line."""
        if not self.lines:
            return "no rows."
        if self.ok:
            return f"{self.rows} rows, no fault."
        counts = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        return f"{self.counts.total()} faults in {self.lines - self.rows} of {self.lines} lines: {counts}."


def validate_rows(path: Path, stage: Stage) -> ValidationReport:
    """Look at every line of a file; of a row without fault only a hash stays in memory.

    Raises:
        ValueError: no such stage, or no file of JSON lines.
    """
    if stage not in STAGES:
        raise ValueError(f"`stage` must be {', '.join(STAGES[:-1])} or {STAGES[-1]}, got {stage!r}.")
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        raise ValueError(f"{path} is no `.jsonl` file; rows are checked one line at a time.")
    report, check = ValidationReport(), DocumentRowCheck(stage)
    seen: dict[bytes, int] = {}
    with path.open("rb") as lines:  # as bytes: only "\n" ends a line, and what is no UTF-8 is told by its line
        for line in lines:
            report.lines += 1
            faulty = False
            for fault in _faults(line, report.lines, check, seen):
                faulty = True
                report.counts[fault.reason] += 1
                if len(report.faults) < MOST_KEPT:
                    report.faults.append(fault)
            report.rows += not faulty
    if not report.lines:
        report.counts[NO_ROWS] += 1
        report.faults.append(RowFault(1, "", NO_ROWS, "the file is empty"))
    return report


def _faults(line: bytes, number: int, check: DocumentRowCheck, seen: dict[bytes, int]) -> Iterator[RowFault]:
    if number == 1 and line.startswith(_BYTE_ORDER_MARK):
        yield RowFault(
            number, "", BYTE_ORDER_MARK, "the file begins with bytes EF BB BF; save it as UTF-8 without them"
        )
        line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip():
        yield RowFault(number, "", EMPTY_LINE, "take it out")
        return
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        yield RowFault(number, "", NOT_UTF8, f"byte {error.start} of the line; save the file as UTF-8")
        return
    except json.JSONDecodeError as error:
        yield RowFault(number, "", NOT_JSON, f"{error.msg} at character {error.pos}")
        return
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        yield RowFault(number, "", NOT_JSON, _shown(str(error)))
        return
    if not isinstance(row, dict):
        yield RowFault(
            number, "", NOT_AN_OBJECT, f"{type(row).__name__} where an object with the fields of a row should be"
        )
        return
    for name, text in _texts(row):
        if any("\ud800" <= character <= "\udfff" for character in text):
            yield RowFault(number, name, HALF_CHARACTER, "write the whole character")
        elif found := _MARKER.search(text):
            shown = text[found.start() : found.start() + 60]
            yield RowFault(number, name, LEFTOVER_MARKER, f"{_shown(shown)}; `data clean` takes it out")
    first_places: dict[str, int] = {}
    documents = parsed_json(row.get("docs"))
    for place, text in enumerate(documents if isinstance(documents, list) else ()):
        if isinstance(text, str) and text.strip() and first_places.setdefault(text.strip(), place) != place:
            detail = f"the same as `docs[{first_places[text.strip()]}]`"
            yield RowFault(number, f"docs[{place}]", DOCUMENT_TWICE, detail)
    yield from _row_faults(row, number, check, seen)


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of the fields that are read, with their places."""
    for name in FIELDS:
        value = row.get(name)
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value) if isinstance(item, str))


def _row_faults(
    row: dict[str, Any], number: int, check: DocumentRowCheck, seen: dict[bytes, int]
) -> Iterator[RowFault]:
    """What training refuses, fault by fault, or else whether an earlier line says the same.

    Args:
        seen: hash of a row that training reads -> its first line; is added to.
    """
    row, told = dict(row), set()
    while (verdict := check(row))["reason"] is not None:
        reason, detail = verdict["reason"], verdict["detail"]
        found = _FIELD.search(detail)
        name, place = found.groups() if found else ("", "")
        if reason == OTHER_STAGE:
            name = place = ""
        yield RowFault(number, name + place, reason, _shown(detail))
        if not name or (name, place) in told:
            return
        told.add((name, place))
        _take_as_good(row, name, place, check.stage)
    if not told:
        first = seen.setdefault(bytes.fromhex(verdict["digest"])[:8], number)
        if first != number:
            yield RowFault(number, "", ROW_TWICE, f"the same as line {first}; take one of them out")


def _take_as_good(row: dict[str, Any], name: str, place: str, stage: Stage) -> None:
    """Put something in place of what was told, so that what else is wrong shows."""
    value = row.get(name)
    value = parsed_json(value) if place else value  # a list may be written as JSON
    if place and isinstance(value, list) and name != "pos_index":
        index = int(place[1:-1])
        row[name] = [*value[:index], "-", *value[index + 1 :]]
    elif name == "data_type":
        row[name] = "qa" if isinstance(row.get("question"), list) else "paraphrase"
    elif name == "pos_index":
        row[name] = [0]
    elif name == "docs":
        row[name] = ["-"]
        if "pos_index" in row:
            row["pos_index"] = [0]  # cannot be judged without them
    elif name == "answers" or (name == "question" and stage == STAGES[0]) or name == "golden_answers":
        other = row.get("answers") if name == "question" else row.get("question")
        row[name] = ["-"] * len(other) if isinstance(other, list) and other else ["-"]
    else:
        row[name] = "-"


def _shown(text: str) -> str:
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]} …"


__all__ = [
    "BYTE_ORDER_MARK",
    "DOCUMENT_TWICE",
    "EMPTY_LINE",
    "HALF_CHARACTER",
    "LEFTOVER_MARKER",
    "MOST_KEPT",
    "NOT_AN_OBJECT",
    "NOT_JSON",
    "NOT_UTF8",
    "NO_ROWS",
    "ROW_TWICE",
    "RowFault",
    "ValidationReport",
    "validate_rows",
]
