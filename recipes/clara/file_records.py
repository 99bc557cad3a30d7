"""One file of a folder to one line of a journal: its document, its pictures, or why there is none.

A record is what `json` writes: `document`, a `RawDocument`; `new_pictures`, paths of those that this file wrote, and
how many were `repeated`; `linked`, files of the folder that it shows; `links`, each link and what it led to when the
file was read; `left_out`, [picture or None for the file itself, reason, detail].
"""

import hashlib
import re
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...processing.guarded_images import ImageProblem
from .asset_store import AssetStore
from .document_conversion import IMAGE, clean_text, convert
from .document_parts import Picture
from .file_problems import NOTHING_IN_IT, OF_A_DOCUMENT, REPEATED_PICTURE, UNREADABLE, FileProblem
from .folder_files import FolderFile, linked_file
from .raw_knowledge import EXTRACTED_ASSETS, MARKER_START, RAW_DATA, RawDocument, marker

_FILE_NAME = re.compile(r"\S+\.[A-Za-z]{3,4}")
_PLACE = re.compile("\ue000(\\d+)\ue001")
_PLACE_ENDS = re.compile("[\ue000\ue001]")
_CLOSE_TO_PLACE = re.compile("(?<=\\S)(?=\ue000)|(?<=\ue001)(?=\\w)")
_NO_MARKER = "[IMAGE REF:"


class FileRecords:
    """Reads files; knows the pictures that were written.

    Args:
        folder: of the files.
        directory: the knowledge folder.
    """

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


__all__ = ["FileRecords"]
