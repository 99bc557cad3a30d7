"""A folder of real files into a knowledge folder: `raw_knowledge.jsonl` and the pictures that its texts name.

One file after the other is read, and what came of it is one line of a journal: path, size and digest of the file, its
document, its pictures, or why there is none. A run that was stopped, however that came about, takes the journal's lines
as long as they are about the same files in the same order, and goes on behind them; so it ends with the same bytes as
one that was not. `raw_knowledge.jsonl` is written from the journal when all files are through, under a partial name
first. No text is in memory for longer than its file takes.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from ...processing.guarded_images import ImageProblem
from .asset_store import AssetStore
from .document_conversion import IMAGE, check_libraries, clean_text, convert
from .document_parts import Picture
from .file_problems import (
    NOTHING_IN_IT,
    OF_A_DOCUMENT,
    PASSED_OVER,
    REPEATED_PICTURE,
    UNREADABLE,
    FileProblem,
)
from .folder_files import FolderFile, linked_file, list_files
from .raw_knowledge import EXTRACTED_ASSETS, MARKER_START, RAW_DATA, RAW_KNOWLEDGE, RawDocument, marker

REPORT = "collect_report.json"
LEFT_OUT = "left_out.jsonl"
JOURNAL = "collect_journal.jsonl"
_OURS = (JOURNAL, EXTRACTED_ASSETS, RAW_DATA)
_FILE_NAME = re.compile(r"\S+\.[A-Za-z]{3,4}")
_PLACE = re.compile("\ue000(\\d+)\ue001")
_PLACE_ENDS = re.compile("[\ue000\ue001]")
_CLOSE_TO_PLACE = re.compile("(?<=\\S)(?=\ue000)|(?<=\ue001)(?=\\w)")
_NO_MARKER = "[IMAGE REF:"
_SHOWN = 5


@dataclass
class CollectReport:
    """What came of a folder; by reason where something was left out.

    Attributes:
        files: all of them.
        texts, images: documents.
        pictures: pictures of documents that became markers: "new", or "repeated" where the same one was there already.
        lost_pictures: those that did not.
        passed_over: files that are no documents and need not be.
        refused: files that cannot be read.
    """

    files: int = 0
    texts: int = 0
    images: int = 0
    pictures: dict[str, int] = field(default_factory=dict)
    lost_pictures: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Texts and images."""
        return self.texts + self.images


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
    collector = _Collector(folder, directory)
    journal.touch()
    with journal.open("r+b") as lines, Progress(transient=True) as progress:
        going_on = True
        for file in progress.track(files, description="Reading files"):
            written = _fingerprint(folder, file)
            place = lines.tell()
            record = _record(lines.readline()) if going_on else None
            if record is not None and collector.can_take(record, written):
                collector.take(record)
                continue
            if going_on:  # the file, or one before it, is not the one that was read
                lines.truncate(lines.seek(place))
                going_on = False
            lines.write(json.dumps(written | collector.read(file), ensure_ascii=False).encode() + b"\n")
            lines.flush()
        lines.truncate()  # of files that are gone
    report = _counted(journal)
    report.files = len(files)
    if (report.refused and on_bad_file == "stop") or not report.documents:
        raise ValueError(_nothing_written(report, journal))
    collector.drop_others()
    _write(directory, report)
    return report


class _Collector:
    """Reads files; knows the pictures that were written."""

    def __init__(self, folder: Path, directory: Path) -> None:
        self.folder, self.directory = folder, directory
        self.embedded = AssetStore(directory, EXTRACTED_ASSETS)
        self.standalone = AssetStore(directory, RAW_DATA)
        self.linked: set[str] = set()  # files that documents show

    def can_take(self, record: dict[str, Any], written: dict[str, Any]) -> bool:
        """Whether a line of the journal is about this file and what it shows, and its pictures are there."""
        same = all(record[name] == value for name, value in written.items())
        if not same or any(self._shown(link, record["path"]) != seen for link, seen in record["links"].items()):
            return False
        return all((self.directory / path).is_file() for path in record["new_pictures"])

    def take(self, record: dict[str, Any]) -> None:
        """Go on as if the file had been read now."""
        self.linked.update(record["linked"])
        for path in record["new_pictures"]:
            (self.standalone if path.startswith(f"{RAW_DATA}/") else self.embedded).know(path)

    def drop_others(self) -> None:
        """Delete pictures that no line of the journal knows."""
        self.embedded.drop_others()
        self.standalone.drop_others()

    def read(self, file: FolderFile) -> dict[str, Any]:
        """What a line of the journal says about a file, beside its fingerprint."""
        record = {"document": None, "new_pictures": [], "repeated": 0, "linked": [], "links": {}, "left_out": []}
        try:
            if file.problem is not None:
                raise file.problem
            read = self._read_image if file.kind == IMAGE else self._read_document
            record["document"] = asdict(read(file.path, record))
        except (FileProblem, ImageProblem) as problem:
            for path in record["new_pictures"]:  # of its first pages
                self.embedded.forget(path)
            left_out = [None, problem.reason, problem.detail]
            record |= {"new_pictures": [], "repeated": 0, "linked": [], "left_out": [left_out]}
        self.linked.update(record["linked"])
        return record

    def _read_image(self, path: str, record: dict[str, Any]) -> RawDocument:
        if path in self.linked:
            raise FileProblem(OF_A_DOCUMENT)
        (picture,) = convert(self.folder / path)
        name, is_new = self.standalone.add(picture.data, path)
        if not is_new:
            raise FileProblem(REPEATED_PICTURE, name)
        record["new_pictures"].append(name)
        return RawDocument(unicodedata.normalize("NFC", path), "image", "", name, path)

    def _read_document(self, path: str, record: dict[str, Any]) -> RawDocument:
        pieces, markers = [], []
        for part in convert(self.folder / path):
            if isinstance(part, str):
                pieces.append(_PLACE_ENDS.sub("", part))
            elif (name := self._stored(part, path, record)) is not None:
                pieces.append(f"\ue000{len(markers)}\ue001")
                markers.append(marker(name))
            elif not _FILE_NAME.fullmatch(part.alt):
                pieces.append(part.alt)
        # Before markers come in, what looks like one goes, also where it was put together by what was left out.
        text = clean_text("".join(pieces)).replace(MARKER_START, _NO_MARKER)
        text = _CLOSE_TO_PLACE.sub(" ", text)
        text = _PLACE.sub(lambda match: markers[int(match.group(1))], text)
        if not text:
            raise FileProblem(NOTHING_IN_IT)
        return RawDocument(unicodedata.normalize("NFC", path), "text", text, None, path)

    def _stored(self, picture: Picture, path: str, record: dict[str, Any]) -> str | None:
        """The path of a document's picture in the knowledge folder; None, and a note, where it is lost."""
        try:
            data, linked = picture.data, None
            if picture.problem is not None:
                raise FileProblem(picture.problem)
            if data is None:
                record["links"][picture.link] = self._shown(picture.link, path)
                linked = linked_file(picture.link, path, self.folder)
                data = (self.folder / linked).read_bytes()
            name, is_new = self.embedded.add(data, path)
        except (FileProblem, ImageProblem) as problem:
            record["left_out"].append([picture.link or "", problem.reason, problem.detail])
            return None
        except OSError as error:
            record["left_out"].append([picture.link or "", UNREADABLE, error.strerror or ""])
            return None
        if linked is not None:
            record["linked"].append(linked)
        if is_new:
            record["new_pictures"].append(name)
        else:
            record["repeated"] += 1
        return name

    def _shown(self, link: str, path: str) -> str:
        """What a document's link leads to now: the digest of that file, or why there is none."""
        try:
            with (self.folder / linked_file(link, path, self.folder)).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except (FileProblem, ImageProblem) as problem:
            return problem.reason
        except OSError:
            return UNREADABLE


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


def _counted(journal: Path) -> CollectReport:
    report = CollectReport()
    pictures, lost, passed_over, refused = (Counter() for _ in range(4))
    for record in _records(journal):
        if record["document"] is not None:
            report.texts += record["document"]["source_type"] == "text"
            report.images += record["document"]["source_type"] == "image"
            if record["document"]["source_type"] == "text":
                pictures["new"] += len(record["new_pictures"])
                pictures["repeated"] += record["repeated"]
        for picture, reason, _ in record["left_out"]:
            (lost if picture is not None else passed_over if reason in PASSED_OVER else refused)[reason] += 1
    report.pictures = dict(+pictures)
    report.lost_pictures, report.passed_over, report.refused = map(_sorted, (lost, passed_over, refused))
    return report


def _sorted(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _nothing_written(report: CollectReport, journal: Path) -> str:
    shown = (
        f"{record['path']!r}: {reason}{f' ({detail})' if detail else ''}"
        for record in _records(journal)
        for picture, reason, detail in record["left_out"]
        if picture is None and reason not in PASSED_OVER
    )
    counts = ", ".join(f"{count} {reason}" for reason, count in report.refused.items())
    message = f"{sum(report.refused.values())} of {report.files} files cannot be read: {counts or 'none'}."
    examples = list(islice(shown, _SHOWN))
    if examples:
        message += f" The first {len(examples)}: {'; '.join(examples)}."
    if not report.documents:
        return f"{message} No document is left."
    return f"{message} Repair or remove them, or leave them out with `--on-bad-file skip`; what was read is kept."


def _write(directory: Path, report: CollectReport) -> None:
    """All files of a finished run; with the last rename the folder is a knowledge folder."""
    documents, left_out = directory / RAW_KNOWLEDGE, directory / LEFT_OUT
    with _partial(documents).open("wb") as lines, _partial(left_out).open("wb") as reasons:
        for record in _records(directory / JOURNAL):
            if record["document"] is not None:
                kept = {name: value for name, value in record["document"].items() if value is not None}
                lines.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
            for picture, reason, detail in record["left_out"]:
                row = {"file": record["path"], "picture": picture, "reason": reason, "detail": detail}
                reasons.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    _partial(directory / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    for path in (left_out, directory / REPORT, documents):
        _partial(path).replace(path)
    (directory / JOURNAL).unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


__all__ = ["JOURNAL", "LEFT_OUT", "REPORT", "CollectReport", "collect"]
