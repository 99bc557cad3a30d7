"""The files of a folder of real documents, in an order that is the same every time, and what a name in them leads to.

Documents come before pictures: a picture that a document shows is part of it and no document of its own, wherever the
two lie. Links are never followed: one that stays in the folder leads to a file that comes anyway.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from ...processing.guarded_images import MISSING, ImageProblem, resolve_image_path
from .document_conversion import IMAGE, check_size, kind_of
from .file_problems import (
    BAD_NAME,
    HIDDEN,
    LINK_WITHIN,
    NO_REGULAR_FILE,
    OUTSIDE,
    REMOTE,
    SAME_ID,
    UNREADABLE,
    FileProblem,
)
from .raw_knowledge import parts_within

_REMOTE = re.compile(r"//|(?!file:)[A-Za-z][A-Za-z0-9+.-]+:", re.IGNORECASE)  # of one letter is a drive


@dataclass(frozen=True)
class FolderFile:
    """A file below a folder.

    Attributes:
        path: relative to the folder, with "/"; bytes that are no text are written `\\xNN`.
        kind: one of `KINDS`'; None if it is not known or there is a problem.
        problem: why it cannot be read, as far as it can be told from outside.
    """

    path: str
    kind: str | None = None
    problem: FileProblem | None = None


def list_files(folder: Path) -> list[FolderFile]:
    """Every file below a folder: documents, then pictures, each by name."""
    files, seen = [], {}
    for file in _walk(folder, folder.resolve(), PurePosixPath()):
        key = unicodedata.normalize("NFC", file.path)
        if file.problem is None and key in seen:  # one name, written in composed and in decomposed letters
            file = FolderFile(file.path, problem=FileProblem(SAME_ID, repr(seen[key])))
        seen.setdefault(key, file.path)
        files.append(file)
    return [file for file in files if file.kind != IMAGE] + [file for file in files if file.kind == IMAGE]


def _walk(folder: Path, root: Path, below: PurePosixPath) -> Iterator[FolderFile]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield FolderFile(str(below), problem=FileProblem(UNREADABLE, error.strerror or ""))
        return
    for entry in found:
        relative = below / entry.name
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            shown = str(relative).encode(errors="surrogateescape").decode(errors="backslashreplace")
            yield FolderFile(shown, problem=FileProblem(BAD_NAME, "rename it in UTF-8"))
            continue
        if entry.name.startswith((".", "~$")):  # "~$": Word's note that a file is open
            yield FolderFile(str(relative), problem=FileProblem(HIDDEN))
        elif entry.is_symlink():
            inside = Path(entry.path).resolve().is_relative_to(root)
            problem = FileProblem(LINK_WITHIN) if inside else FileProblem(OUTSIDE, "a symbolic link")
            yield FolderFile(str(relative), problem=problem)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), root, relative)
        elif not entry.is_file(follow_symlinks=False):
            kind = stat.filemode(entry.stat(follow_symlinks=False).st_mode)[0]
            yield FolderFile(str(relative), problem=FileProblem(NO_REGULAR_FILE, f"{kind!r} in its mode"))
        else:
            try:
                yield FolderFile(str(relative), kind_of(Path(entry.name)))
            except FileProblem as problem:
                yield FolderFile(str(relative), problem=problem)


def linked_file(link: str, document: str, folder: Path) -> str:
    """The file that a document's link leads to, relative to the folder.

    Args:
        link: as the document writes it, relative to the document.
        document: its path in the folder.
        folder: what nothing may lead out of.

    Raises:
        FileProblem: `REMOTE`, `OUTSIDE`, `EMPTY`, `TOO_LARGE`.
        ImageProblem: there is no such file.
    """
    link = link.strip()
    if _REMOTE.match(link):
        raise FileProblem(REMOTE)
    if not link:
        raise ImageProblem(link, MISSING, "the link is empty")
    for written in _readings(link):
        try:
            path = resolve_image_path(_beside(document, written), folder)
        except ImageProblem as problem:
            if problem.reason != MISSING:
                raise FileProblem(OUTSIDE) from problem
        else:
            check_size(path, IMAGE)
            return path.relative_to(folder.resolve()).as_posix()
    raise ImageProblem(link, MISSING)


def _readings(link: str) -> list[str]:
    """What a link may mean, the plainest first: as it is, unquoted, in other forms of letters, without its query."""
    readings = []
    for name in (link, re.sub(r"[?#].*", "", link)):
        plain = unquote(name)
        readings += [name, plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)]
    return list(dict.fromkeys(readings))


def _beside(document: str, link: str) -> str:
    """A link's path from the folder on; that of the document is taken as it is."""
    written = PureWindowsPath(link)  # reads both kinds of slash
    if written.drive or written.root or link.lower().startswith("file:"):
        raise FileProblem(OUTSIDE, "an absolute path")
    parts = parts_within(PurePosixPath(document).parent.parts + written.parts)
    if parts is None:
        raise FileProblem(OUTSIDE)
    return "/".join(parts)


__all__ = ["FolderFile", "linked_file", "list_files"]
