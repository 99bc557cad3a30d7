"""A folder of real files into a knowledge folder: `raw_knowledge.jsonl` and the pictures that its texts name.

One file after the other is read, and what came of it is one line of a journal: path, size and digest of the file, what
its links led to, its document, its pictures, or why there is none (`file_records`). A run that was stopped, however
that came about, takes the journal's lines as long as they are about the same files in the same order, and goes on
behind them; so it ends with the same bytes as one that was not. `raw_knowledge.jsonl` is written from the journal when
all files are through, under a partial name first. No text is in memory for longer than its file takes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from ..whole_files import partial_of
from .collect_report import CollectReport, count_records, refusal_message
from .document_conversion import check_libraries
from .file_problems import UNREADABLE
from .file_records import FileRecords
from .folder_files import FolderFile, list_files
from .raw_knowledge import EXTRACTED_ASSETS, RAW_DATA, RAW_KNOWLEDGE

REPORT = "collect_report.json"
LEFT_OUT = "left_out.jsonl"
JOURNAL = "collect_journal.jsonl"
_OURS = (JOURNAL, EXTRACTED_ASSETS, RAW_DATA)


def collect(folder: Path, directory: Path, *, on_bad_file: Literal["stop", "skip"] = "stop") -> CollectReport:
    """Read all files of a folder.

    Args:
        folder: with files and folders of any depth.
        directory: the knowledge folder; new, or that of a run that was stopped.
        on_bad_file: "stop" raises when all files were looked at and some cannot be read, "skip" leaves these out. What
            was read is kept either way, so the same call with "skip" takes no longer than reading digests.

    Returns:
        The counts, which are also in `collect_report.json`; every file and picture that was left out, with reason and
        detail, is in `left_out.jsonl`.

    Raises:
        ValueError: no such folder or nothing in it, `directory` holds something else, files cannot be read under
            "stop", or no document is left.
    """
    if on_bad_file not in ("stop", "skip"):
        raise ValueError(f"`on_bad_file` must be stop or skip, got {on_bad_file!r}.")
    check_libraries()
    _check_folders(folder, directory)
    target, journal = directory / RAW_KNOWLEDGE, directory / JOURNAL
    if target.exists():  # killed between the last rename and this
        journal.unlink()
        return CollectReport(**json.loads((directory / REPORT).read_text(encoding="utf-8")))
    files = list_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no file.")
    directory.mkdir(parents=True, exist_ok=True)
    files_read = FileRecords(folder, directory)
    journal.touch()
    with journal.open("r+b") as lines, Progress(transient=True) as progress:
        going_on = True
        for file in progress.track(files, description="Reading files"):
            written = _fingerprint(folder, file)
            place = lines.tell()
            record = _record(lines.readline()) if going_on else None
            if record is not None and files_read.can_take(record, written):
                files_read.take(record)
                continue
            if going_on:  # the file, or one before it, is not the one that was read
                lines.truncate(lines.seek(place))
                going_on = False
            lines.write(json.dumps(written | files_read.read(file), ensure_ascii=False).encode() + b"\n")
            lines.flush()
        lines.truncate()  # of files that are gone
    report = count_records(_records(journal))
    if (report.refused and on_bad_file == "stop") or not report.documents:
        raise ValueError(refusal_message(report, _records(journal)))
    files_read.drop_others()
    _write(directory, report)
    return report


def _check_folders(folder: Path, directory: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Give the one that the files are in.")
    if directory.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{directory} lies in {folder}, and would be read with it. Choose a folder elsewhere.")
    if (folder / RAW_KNOWLEDGE).is_file():
        raise ValueError(
            f"{folder} holds {RAW_KNOWLEDGE}: it is a knowledge folder already. Go on with `data describe`."
        )
    if (directory / RAW_KNOWLEDGE).exists() and not (directory / JOURNAL).exists():
        raise ValueError(f"{directory} is finished. Go on with `data describe`, or choose another folder.")
    others = [path.name for path in directory.glob("*") if path.name not in _OURS]
    if others and not (directory / JOURNAL).exists():
        raise ValueError(
            f"{directory} holds {len(others)} files that are not of a run that was stopped ({min(others)} is one). "
            "Choose another folder, or remove it."
        )


def _fingerprint(folder: Path, file: FolderFile) -> dict[str, Any]:
    """What a file is known by: path, size and digest, or what is wrong with it from outside."""
    if file.problem is not None:
        return {"path": file.path, "size": 0, "digest": file.problem.reason}
    try:
        with (folder / file.path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"path": file.path, "size": stream.tell(), "digest": digest}
    except OSError as error:
        return {"path": file.path, "size": 0, "digest": f"{UNREADABLE}: {error.strerror}"}


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None for one that was cut off, and behind the last."""
    return json.loads(line) if line.endswith(b"\n") else None


def _records(journal: Path) -> Iterator[dict[str, Any]]:
    with journal.open("rb") as lines:
        yield from map(json.loads, lines)


def _write(directory: Path, report: CollectReport) -> None:
    """All files of a finished run; with the last rename the folder is a knowledge folder."""
    documents, left_out = directory / RAW_KNOWLEDGE, directory / LEFT_OUT
    with partial_of(documents).open("wb") as lines, partial_of(left_out).open("wb") as reasons:
        for record in _records(directory / JOURNAL):
            if record["document"] is not None:
                kept = {name: value for name, value in record["document"].items() if value is not None}
                lines.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
            for picture, reason, detail in record["left_out"]:
                row = {"file": record["path"], "picture": picture, "reason": reason, "detail": detail}
                reasons.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    partial_of(directory / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    for path in (left_out, directory / REPORT, documents):
        partial_of(path).replace(path)
    (directory / JOURNAL).unlink()


__all__ = ["JOURNAL", "LEFT_OUT", "REPORT", "CollectReport", "collect"]
