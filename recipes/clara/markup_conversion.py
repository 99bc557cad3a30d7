"""HTML, DOCX and Markdown: text with pictures between.

markitdown turns HTML and DOCX into Markdown. Its `keep_data_uris` alone loses pictures (those in tables and headings
become their alternative text) and has the others in memory three times. So pictures are taken out before: in HTML each
`<img>` gives way to a number between two private characters, in DOCX markitdown's own hook for pictures writes the
same, and the Markdown is cut at these. Headers, footers and charts of a DOCX are no pictures to it and stay out.

Markdown stays as it is, but for its pictures. Of links their words are kept: a target is a path or an address, and
nothing that a question should be about.
"""

import base64
import binascii
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

from bs4 import BeautifulSoup
from bs4.exceptions import ParserRejectedMarkup
from markitdown import StreamInfo
from markitdown.converters import DocxConverter, HtmlConverter

from ...processing.guarded_images import CORRUPT
from .archive_guard import check_archive
from .document_parts import Part, Picture, marked_parts
from .file_problems import BROKEN, ENCRYPTED, FileProblem
from .text_encodings import decode_text

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what Word puts an encrypted file into, and all files before 2007
# Words of links without their targets; `a_b` stays `a_b`.
_MARKDOWN_OPTIONS = {"strip": ["a"], "escape_underscores": False, "escape_asterisks": False, "escape_misc": False}
# What damaged files raise in mammoth and its XML parser.
_DOCX_ERRORS = (
    ArithmeticError,
    AttributeError,
    ExpatError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
_TOKEN = re.compile("\ue000(\\d+)\ue001")
_CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]{0,400}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARATION_WITHIN = 2048
_DATA_URI = re.compile(r"data:[^,]*?(;base64)?,(.*)", re.IGNORECASE | re.DOTALL)

# Possessive: long rows of these characters would take their square in time.
_FENCE = r"^(?P<fence>`{3,}+|~{3,}+)[^\n]*\n(?:.*?\n)??(?P=fence)[`~]*[ \t]*$|^(?:`{3,}+|~{3,}+)[^\n]*\n(?s:.)*\Z"
_CODE = r"(?<!`)(?P<ticks>`++)(?:(?!\n[ \t]*\n).)+?(?<!`)(?P=ticks)(?!`)"
_LABEL = r"\[(?P<{0}>(?:\\.|[^\[\]\\]|\[(?:\\.|[^\[\]\\])*\])*)\]"
_TARGET = (
    r"\(\s*(?:<(?P<{0}_angle>[^<>\n]*)>|(?P<{0}>(?:\\.|[^\s()\\]|\((?:\\.|[^\s()\\])*\))*))"
    r"(?:\s+(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\((?:\\.|[^()\\])*\)))?\s*\)"
)
_MARKDOWN = re.compile(
    rf"(?:{_FENCE})|{_CODE}|(?P<escaped>\\[!\[])"
    rf"|(?P<image>!{_LABEL.format('alt')}(?:{_TARGET.format('source')}|\[(?P<reference>[^\[\]\n]*)\])?)"
    r"|(?P<tag><img\b(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>)"
    rf"|(?P<link>{_LABEL.format('words')}{_TARGET.format('target')})",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_DEFINITION = re.compile(r"^ {0,3}\[([^\[\]\n]+)\]:[ \t]*(?:<([^<>\n]*)>|(\S+))[^\n]*\n?", re.MULTILINE)


def read_html(path: Path) -> Iterator[Part]:
    """Text and pictures of a page; its encoding is the declared one if the bytes fit it.

    Raises:
        EncodingProblem: it cannot be read as text.
    """
    data = path.read_bytes()
    declared = _CHARSET.search(data[:_DECLARATION_WITHIN])
    text, _ = decode_text(data, declared.group(1).decode() if declared else None)
    yield from html_parts(text)


def html_parts(text: str) -> Iterator[Part]:
    """Text and pictures of HTML.

    Raises:
        FileProblem: the parser gives up.
    """
    pictures: list[Picture] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML is no HTML; nested too deep for Markdown, it is read as plain text
        try:
            markdown = _markdown(text, pictures)
        except ParserRejectedMarkup as error:
            raise FileProblem(BROKEN, str(error).splitlines()[-1].strip()) from error
    yield from _cut_at_tokens(markdown, pictures)


def _markdown(html: str, pictures: list[Picture]) -> str:
    """Markdown with tokens for the pictures, which are put into the list."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.find_all(["img", "svg"]):
        if tag.decomposed or tag.find_parent("svg"):
            continue
        pictures.append(Picture(data=str(tag).encode()) if tag.name == "svg" else _linked(tag.attrs))
        tag.replace_with(_token(len(pictures) - 1))
    return HtmlConverter().convert_string(str(soup), **_MARKDOWN_OPTIONS).markdown


def read_docx(path: Path) -> Iterator[Part]:
    """Text and pictures of a DOCX, which is looked at before anything unpacks it.

    Raises:
        FileProblem: it is encrypted, broken or a bomb.
    """
    with path.open("rb") as stream:
        if stream.read(len(_OLE)) == _OLE:
            raise FileProblem(ENCRYPTED, "or of a Word before 2007; open it with its password and save it as .docx")
        check_archive(path)
        stream.seek(0)
        converter = _DocxWithPictures()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                markdown = converter.convert(stream, StreamInfo(extension=".docx"), **_MARKDOWN_OPTIONS).markdown
        except _DOCX_ERRORS as error:
            raise FileProblem(BROKEN, f"{type(error).__name__}: {error}") from error
    yield from _cut_at_tokens(markdown, converter.pictures)
    yield from _linked_pictures(path)


def markdown_parts(text: str) -> Iterator[Part]:
    """Text and pictures of Markdown: `![…](…)`, `![…][…]`, `<img>` and markers, but not those within code."""
    definitions = {_label(name): angle or plain for name, angle, plain in _DEFINITION.findall(text)}
    end = 0
    for match in _MARKDOWN.finditer(text):
        if match["image"] is not None:
            source = match["source"] if match["source_angle"] is None else match["source_angle"]
            if source is None:
                source = definitions.get(_label(match["reference"] or match["alt"]))
            if source is None:  # brackets that mean nothing
                continue
            part: Picture | None = _linked({"src": re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", source), "alt": match["alt"]})
        elif match["tag"] is not None:
            image = BeautifulSoup(match["tag"], "html.parser").find("img")
            if image is None:  # the parser takes it for something else
                continue
            part = _linked(image.attrs)
        else:
            part = None
        yield from _text_parts(text[end : match.start()])
        end = match.end()
        if part is not None:
            yield part
        elif match["link"] is not None:
            yield from markdown_parts(match["words"])  # a picture may be what is linked
        else:
            yield from marked_parts(match.group())
    yield from _text_parts(text[end:])


def _text_parts(text: str) -> Iterator[Part]:
    """A piece between pictures, without the definitions that only they need."""
    yield from marked_parts(_DEFINITION.sub("", text))


class _DocxWithPictures(DocxConverter):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[Picture] = []

    def _image_to_html(self, image_stream: BinaryIO, stream_info: StreamInfo, **kwargs: Any) -> str:
        self.pictures.append(Picture(data=image_stream.read()))
        return _token(len(self.pictures) - 1)


def _linked_pictures(path: Path) -> Iterator[Picture]:
    """Pictures that a DOCX has elsewhere; mammoth passes over them, and where they stood is not known."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.lower() == "word/_rels/document.xml.rels":
                for relation in ElementTree.fromstring(archive.read(name)):
                    if relation.get("TargetMode") == "External" and relation.get("Type", "").endswith("/image"):
                        yield Picture(link=relation.get("Target", ""))


def _token(number: int) -> str:
    return f"\ue000{number}\ue001"


def _cut_at_tokens(text: str, pictures: list[Picture]) -> Iterator[Part]:
    end = 0
    for match in _TOKEN.finditer(text):
        yield from marked_parts(text[end : match.start()])
        if int(match.group(1)) < len(pictures):
            yield pictures[int(match.group(1))]
        end = match.end()
    yield from marked_parts(text[end:])


def _linked(attributes: dict[str, Any]) -> Picture:
    """What `<img>` shows; pages that load late name the picture itself in `data-src`."""
    alt = " ".join(str(attributes.get("alt") or "").split())
    source = str(attributes.get("data-src") or attributes.get("src") or "").strip()
    if not (embedded := _DATA_URI.fullmatch(source)):
        return Picture(link=source, alt=alt)
    try:
        content = unquote_to_bytes(embedded[2])
        return Picture(data=base64.b64decode(content) if embedded[1] else content, alt=alt)
    except binascii.Error:
        return Picture(problem=CORRUPT, alt=alt)


def _label(name: str) -> str:
    return " ".join(name.split()).casefold()


__all__ = ["html_parts", "markdown_parts", "read_docx", "read_html"]
