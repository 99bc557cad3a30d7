"""One file to pieces of text and pictures, by what its name says it is.

    .pdf                        `pdf_conversion`
    .docx, .html, .md           `markup_conversion`
    .txt                        its text
    .png, .jpg, …               a picture that is a document of its own

The formats are read by well-kept libraries, which are an extra of their own (`pip install 'qwen-grafts[documents]'`)
and are imported when the first such file is read.
"""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from .document_parts import Part, Picture, marked_parts
from .file_problems import EMPTY, ENCODING, TOO_LARGE, UNKNOWN_TYPE, UNREADABLE, FileProblem
from .text_encodings import EncodingProblem, decode_text

IMAGE = "image"
# Ending -> kind, and the most bytes of a file. Files are read as a whole, and a tree of HTML takes 30 times its size.
MAX_MEGABYTES = {"pdf": 512, "docx": 256, "html": 16, "markdown": 64, "text": 64, IMAGE: 128}
KINDS = {
    ".pdf": "pdf",
    ".docx": "docx",
    **dict.fromkeys((".htm", ".html", ".xhtml"), "html"),
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".txt", ".text"), "text"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"), IMAGE),
    **dict.fromkeys((".jp2", ".ppm", ".pgm", ".pbm"), IMAGE),
}
_LIBRARIES = ("markitdown", "mammoth", "pypdf", "bs4")
# Control characters but for tab and line feed, and halves of surrogate pairs, as broken fonts of PDFs give them.
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")


def check_libraries() -> None:
    """See that what reads documents is installed.

    Raises:
        ValueError: it is not, with the command that installs it.
    """
    if missing := [name for name in _LIBRARIES if find_spec(name) is None]:
        raise ValueError(
            f"Reading documents needs {', '.join(missing)}, not installed here. Run: "
            "pip install 'qwen-grafts[documents]'"
        )


def kind_of(path: Path) -> str:
    """What a file is by the end of its name.

    Raises:
        FileProblem: nothing that is read here.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise FileProblem(UNKNOWN_TYPE, f"{suffix or 'no ending'}; read are {', '.join(KINDS)}")
    return KINDS[suffix]


def check_size(path: Path, kind: str) -> None:
    """See that something is in a file, and not too much.

    Raises:
        FileProblem: it is not so.
    """
    size, limit = path.stat().st_size, MAX_MEGABYTES[kind] * 2**20
    if not size:
        raise FileProblem(EMPTY)
    if size > limit:
        raise FileProblem(TOO_LARGE, f"{size:,} bytes, {limit:,} at most; cut it into documents")


def convert(path: Path) -> Iterator[Part]:
    """Text and pictures of a file, in order.

    Raises:
        FileProblem: it cannot be read, with the reason. Parts may have come before.
    """
    kind = kind_of(path)
    try:
        check_size(path, kind)
        yield from _reader(kind)(path)
    except EncodingProblem as error:
        raise FileProblem(ENCODING, str(error)) from error
    except OSError as error:  # closed to this user, or gone since the folder was looked through
        raise FileProblem(UNREADABLE, error.strerror or "") from error


def clean_text(text: str) -> str:
    """A document's text as it is stored: what cannot be written taken out, blank lines one at a time."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n\n")
    return _BLANK_LINES.sub("\n\n", _UNWRITABLE.sub("", text)).strip()


def _reader(kind: str) -> Callable[[Path], Iterator[Part]]:
    if kind == "pdf":
        from .pdf_conversion import read_pdf

        return read_pdf
    if kind in ("html", "docx", "markdown"):
        from .markup_conversion import markdown_parts, read_docx, read_html

        return {"html": read_html, "docx": read_docx, "markdown": lambda path: markdown_parts(_text(path))}[kind]
    return _read_image if kind == IMAGE else lambda path: marked_parts(_text(path))


def _read_image(path: Path) -> Iterator[Part]:
    yield Picture(data=path.read_bytes())


def _text(path: Path) -> str:
    return decode_text(path.read_bytes())[0].replace("\r\n", "\n").replace("\r", "\n")


__all__ = ["IMAGE", "KINDS", "MAX_MEGABYTES", "check_libraries", "check_size", "clean_text", "convert", "kind_of"]
