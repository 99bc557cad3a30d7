"""A PDF page by page: its text as pypdf reads it, and its pictures between the lines where they stand.

A page draws its pictures in any order, often all of them first, so the order of drawing says nothing. Where a picture
stands is told by its place on the page: behind the last line of its own columns whose baseline lies above its middle.
Pictures without such a place (within a form, or written into the page itself) come at the end of their page. Taken are
those that the page shows; many files list the pictures of all pages with every page.

pypdf and not markitdown, which reads PDFs through pdfminer and drops their pictures.
"""

import logging
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pypdf import PageObject, PasswordType, PdfReader
from pypdf.errors import DependencyError, PyPdfError

from ...processing.guarded_images import CORRUPT, MAX_PIXELS, TOO_LARGE
from .document_parts import Part, Picture
from .file_problems import BROKEN, ENCRYPTED, FileProblem

# What damaged files raise in pypdf; there is no one class for it.
_PDF_ERRORS = (
    PyPdfError,
    DependencyError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_CHARACTER_WIDTH = 0.5  # of the font's size; only to tell columns apart


class _Box(NamedTuple):
    """Left, right, bottom and top on the page."""

    left: float
    right: float
    bottom: float
    top: float


def read_pdf(path: Path) -> Iterator[Part]:
    """Text and pictures of a PDF.

    Raises:
        FileProblem: it is encrypted with a password, or broken.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every damage that it gets over
    try:
        with PdfReader(path) as reader:
            # Without a password many can be read that forbid printing.
            if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
                raise FileProblem(ENCRYPTED, "it opens with a password only")
            for page in reader.pages:
                yield from _page_parts(page)
                yield "\n\n"
    except FileProblem:
        raise
    except _PDF_ERRORS as error:
        raise FileProblem(BROKEN, f"{type(error).__name__}: {error}") from error


def _page_parts(page: PageObject) -> Iterator[Part]:
    lines: list[tuple[str, _Box]] = []
    shown: dict[str, _Box] = {}
    own_pictures = {name for name in page.images.keys() if isinstance(name, str)}  # noqa: SIM118  no mapping

    def see_text(text: str, cm: list[float], tm: list[float], _: Any, size: float) -> None:
        left, baseline = _moved(tm[4], tm[5], cm)
        scale = abs(tm[0] * cm[0]) or abs(tm[1] * cm[1]) or 1.0
        width = _CHARACTER_WIDTH * size * scale * len(text.strip())
        lines.append((text, _Box(left, left + width, baseline, baseline)))

    def see_operation(operator: bytes, operands: list[Any], cm: list[float], _: list[float]) -> None:
        if operator == b"Do" and operands and operands[0] in own_pictures:
            corners = [_moved(x, y, cm) for x, y in ((0, 0), (1, 0), (0, 1), (1, 1))]
            across, up = zip(*corners, strict=True)
            shown.setdefault(operands[0], _Box(min(across), max(across), min(up), max(up)))

    page.extract_text(visitor_text=see_text, visitor_operand_before=see_operation)
    placed: dict[int, list[str]] = {}
    for name, box in sorted(shown.items(), key=lambda item: -item[1].top):
        placed.setdefault(_line_before(box, lines), []).append(name)
    for position in range(len(lines) + 1):
        for name in placed.get(position, ()):
            yield from ("\n", _picture(page, name), "\n")
        if position < len(lines):
            yield lines[position][0]
    for name in page.images.keys():  # noqa: SIM118
        if not isinstance(name, str) or name.startswith("~"):
            yield from ("\n", _picture(page, name))


def _moved(x: float, y: float, matrix: list[float]) -> tuple[float, float]:
    a, b, c, d, e, f = matrix
    return x * a + y * c + e, x * b + y * d + f


def _line_before(picture: _Box, lines: list[tuple[str, _Box]]) -> int:
    """How many lines come before a picture."""
    written = [(number, box) for number, (text, box) in enumerate(lines) if text.strip()]
    widths: dict[int, float] = {}  # lines that begin below each other are a column, as wide as the longest of them
    for _, box in written:
        widths[round(box.left)] = max(box.right, widths.get(round(box.left), box.right))
    beside = [
        (number, box) for number, box in written if box.left < picture.right and widths[round(box.left)] > picture.left
    ]
    middle = (picture.bottom + picture.top) / 2
    for group in (beside, written):
        if above := [number for number, box in group if box.bottom > middle]:
            return above[-1] + 1
        if group:
            return group[0][0]
    return len(lines)


def _picture(page: PageObject, name: str | list[str]) -> Picture:
    """One picture of a page; its size is judged before it is unpacked."""
    try:
        stream: Any = page
        for part in [name] if isinstance(name, str) else name:
            if part.startswith("~"):  # pypdf has it already
                break
            stream = stream["/Resources"]["/XObject"][part]
        else:
            if int(stream["/Width"]) * int(stream["/Height"]) > MAX_PIXELS:
                return Picture(problem=TOO_LARGE)
        return Picture(data=page.images[tuple(name) if isinstance(name, list) else name].data)
    except _PDF_ERRORS:
        return Picture(problem=CORRUPT)


__all__ = ["read_pdf"]
