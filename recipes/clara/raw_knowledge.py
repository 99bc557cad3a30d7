"""A knowledge folder: `raw_knowledge.jsonl`, one document a line, and the pictures that its texts name.

    raw_knowledge.jsonl         {"id": …, "source_type": "text", "text": "… [IMAGE_REF: extracted_assets/a.png] …"}
                                {"id": …, "source_type": "image", "text": "", "image": "raw_data/photo.png"}
    extracted_assets/           pictures out of documents, named by markers
    raw_data/                   pictures that are documents of their own
    image_descriptions.jsonl    {"image": "extracted_assets/a.png", "description": "…"}

The folder may be one that `qwen-grafts data collect` made or one from elsewhere. Paths are written in many ways
(`./a.png`, `a\\b.png`, `a%20b.png`); `image_key` is the one form in which two of them are compared.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

from ...processing.guarded_images import MISSING, ImageProblem, resolve_image_path

SourceType = Literal["text", "image"]
RAW_KNOWLEDGE = "raw_knowledge.jsonl"
DESCRIPTIONS = "image_descriptions.jsonl"
EXTRACTED_ASSETS = "extracted_assets"
RAW_DATA = "raw_data"

# One pair of brackets within a path is part of it: `[IMAGE_REF: scan[1].png]`.
MARKER = re.compile(r"\[IMAGE_REF:((?:[^\[\]\r\n]|\[[^\[\]\r\n]*\])*)\]")
MARKER_START = "[IMAGE_REF:"


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read.

    Attributes:
        id: unique in its file.
        source_type: "text", or "image" for a picture that is a document of its own.
        text: with markers; "" for an image.
        image: of an image, its path in the knowledge folder, as `image_key` gives it.
        source: the original file's path in the folder it was collected from.
    """

    id: str
    source_type: SourceType
    text: str
    image: str | None = None
    source: str | None = None


def marker(path: str) -> str:
    """What stands in a text where a picture was."""
    return f"{MARKER_START} {path}]"


def image_references(text: str) -> list[str]:
    """`image_key` of every marker `[IMAGE_REF: path]`, in order.

    Raises:
        ValueError: a marker is cut off, names nothing, or leads out of the folder.
    """
    found = [image_key(match.group(1)) for match in MARKER.finditer(text)]
    if len(found) != text.count(MARKER_START):
        rest = MARKER.sub(lambda match: " " * len(match.group()), text)
        position = rest.index(MARKER_START)
        raise ValueError(
            f"the marker at character {position} ({text[position : position + 40]!r}) has no end; write "
            f"{marker('path')} on one line"
        )
    return found


def image_key(path: str) -> str:
    """The one form of a picture's path: relative to the knowledge folder, with `/`, nothing quoted.

    Applied to its own result it changes nothing.

    Raises:
        ValueError: it names nothing, is absolute or an address, or leads out of the folder.
    """
    key = unicodedata.normalize("NFC", path.strip())
    while (plain := unquote(key, errors="strict")) != key:  # quoted twice, `..` may hide in it
        key = plain
    windows = PureWindowsPath(key)  # reads both kinds of slash
    if windows.drive or windows.root or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", key):
        raise ValueError(f"{path.strip()!r} is absolute; name pictures relative to the knowledge folder")
    parts = parts_within(windows.parts)
    if parts is None:
        raise ValueError(f"{path.strip()!r} leads out of the knowledge folder; put a copy of the picture into it")
    if not parts or not key.isprintable():
        raise ValueError(f"{path.strip()!r} names no picture")
    return "/".join(parts)


def parts_within(parts: Iterable[str]) -> list[str] | None:
    """The parts of a path without any ".."; None if it leads out of where it starts."""
    kept: list[str] = []
    for part in parts:
        if part != "..":
            kept.append(part)
        elif kept:
            kept.pop()
        else:
            return None
    return kept


def image_file(key: str, folder: Path) -> Path:
    """Where the picture of a key lies, links followed; its name on the disk may be quoted, in whole or in part, or in
    decomposed letters.

    Raises:
        ImageProblem: there is none, or it lies outside the folder.
    """
    for name in (key, quote(key), unicodedata.normalize("NFD", key), *_quoted_in_part(key, folder)):
        try:
            return resolve_image_path(name, folder)
        except ImageProblem as problem:
            if problem.reason != MISSING:
                raise
    raise ImageProblem(key, MISSING)


def _quoted_in_part(key: str, folder: Path) -> Iterator[str]:
    """Names on the disk that have this key, whatever of them is quoted."""
    below = [PurePosixPath()]
    for part in key.split("/"):
        below = [
            path / name for path in below for name in _names(folder / path) if name == part or _plain_name(name) == part
        ]
    yield from map(str, below)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _plain_name(name: str) -> str | None:
    try:
        return image_key(name)
    except ValueError:  # means nothing as a path
        return None


def read_raw_knowledge(path: Path) -> Iterator[RawDocument]:
    """The documents of a file, one after the other; keys that mean nothing here are passed over.

    A line without `id` is called by its `source` or `image`, or else by its number. An image may be named by `image`
    or, as texts do it, by one marker in `text`.

    Raises:
        ValueError: something cannot be read, with file, line and field.
    """
    seen: dict[bytes, int] = {}  # a digest an id and not the ids, which may be long
    for number, row in json_lines(path):
        place = f"{path.name}, line {number}"
        document = _document(row, number, place)
        digest = hashlib.blake2b(document.id.encode(), digest_size=8).digest()
        if digest in seen:
            raise ValueError(
                f"{place}: `id` is {document.id!r}, as in line {seen[digest]}; each document needs one of its own."
            )
        seen[digest] = number
        yield document


def read_descriptions(path: Path) -> dict[str, str]:
    """Descriptions by `image_key`; an empty one is none.

    Raises:
        ValueError: something cannot be read, or a picture has two different descriptions; with file, line and field.
    """
    descriptions: dict[str, str] = {}
    for number, row in json_lines(path):
        place = f"{path.name}, line {number}"
        key = _path(_text(row, "image", place), "image", place)
        text = _text(row, "description", place).strip()
        if not text:
            continue
        if descriptions.setdefault(key, text) != text:
            raise ValueError(f"{place}: `image` {key!r} was described otherwise in a line above; keep one of the two.")
    return descriptions


def _document(row: dict[str, Any], number: int, place: str) -> RawDocument:
    source_type = _text(row, "source_type", place)
    if source_type not in get_args(SourceType):
        raise ValueError(f"{place}: `source_type` must be {' or '.join(get_args(SourceType))}, not {source_type!r}.")
    source = _text(row, "source", place) if row.get("source") is not None else None
    text = _text(row, "text", place) if source_type == "text" or row.get("text") is not None else ""
    try:
        references = image_references(text)
    except ValueError as error:
        raise ValueError(f"{place}: `text`: {error}.") from None
    image = None
    if source_type == "image":
        if row.get("image") is not None:
            image = _path(_text(row, "image", place), "image", place)
        elif len(references) == 1:
            image = references[0]
        else:
            raise ValueError(f"{place}: `image` is missing; it has to say where the picture of this document lies.")
        text = ""
    name = _text(row, "id", place) if row.get("id") is not None else source or image or f"line-{number}"
    if not name.strip():
        raise ValueError(f"{place}: `id` is empty.")
    return RawDocument(name, source_type, text, image, source)


def _path(value: str, field: str, place: str) -> str:
    try:
        return image_key(value)
    except ValueError as error:
        raise ValueError(f"{place}: `{field}`: {error}.") from None


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = "missing" if value is None else f"{type(value).__name__} and not text"
        raise ValueError(f"{place}: `{field}` is {found}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: `{field}` has half of a surrogate pair at character {error.start}; write the whole character."
        ) from None
    return value


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and object of every line in which something is."""
    with path.open("rb") as lines:  # as bytes: a fault is then told by its line, and only "\n" ends one
        for number, line in enumerate(lines, start=1):
            place = f"{path.name}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: byte {error.start} is no UTF-8; save the file as UTF-8.") from None
            except (ValueError, RecursionError) as error:  # brackets nested too deep
                raise ValueError(f"{place} is no JSON: {error}.") from None
            if row is None and not text.strip():
                continue
            if not isinstance(row, dict):
                raise ValueError(f"{place} holds a {type(row).__name__}, not an object.")
            yield number, row


__all__ = [
    "DESCRIPTIONS",
    "EXTRACTED_ASSETS",
    "MARKER",
    "MARKER_START",
    "RAW_DATA",
    "RAW_KNOWLEDGE",
    "RawDocument",
    "SourceType",
    "image_file",
    "image_key",
    "image_references",
    "json_lines",
    "marker",
    "read_descriptions",
    "read_raw_knowledge",
]
