"""Words of a text that are about where its pictures lay and not about anything: markers, paths of images, folders.

`strip_references` takes them out and counts them; `asks_about_files` tells a question that lives by them. English and
Chinese. What a document says of files in general stays: `/usr/bin/python`, "the project's folder", "PNG is a format".
"""

import re
from collections import Counter
from collections.abc import Callable

MARKER, IMAGE_PATH, FOLDER = "marker", "image path", "folder"

# Escaped by converters, in small letters, or cut off at the end of a chunk.
_MARKER = re.compile(
    r"\[\s*IMAGE\\?[_ ]REF\s*[:：][^\[\]\r\n]*(?:\[[^\[\]\r\n]*\][^\[\]\r\n]*)*(?:\]|$)", re.IGNORECASE | re.MULTILINE
)
# `![words](…)` keeps its words.
_MARKDOWN_IMAGE = re.compile(r"!\[((?:[^\[\]\n]|\[[^\[\]\n]*\])*)\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)")
_ENDING = re.compile(
    r"\.(?:png|jpe?g|gif|webp|bmp|tiff?|svg|emf|wmf|jp2|heic)(?![A-Za-z0-9])(?:\?\w+=[\w=&%-]*)?", re.IGNORECASE
)
_OWN_FOLDER = re.compile(r"(?<![A-Za-z0-9_])(?:extracted_assets|raw_data)(?![A-Za-z0-9_])")
_LONGEST_PATH = 260  # how far is looked back from an ending; without a bound a long line would take its square in time

_PLAIN, _ANY = r"[A-Za-z0-9_.%~-]+", r"[\w.%~()-]+"
_NOT_WITHIN = r"(?<![A-Za-z0-9_.%~-])"
_ROOT = r"(?:https?://|file:/+|[A-Za-z]:[\\/]|(?<![\w.])\.{0,2}[\\/]|~/)"
# What stands before an ending, the longest first.
_BEFORE_ENDING = (
    # With folders. In Chinese no blank need stand before a path, so it begins with a step of plain letters or a root.
    re.compile(rf"(?:{_ROOT}|{_ROOT}?{_NOT_WITHIN}{_PLAIN}[\\/])(?:{_ANY}[\\/])*(?:{_ANY})?\Z"),
    # A name alone: in plain letters, or of any letters and standing apart.
    re.compile(rf"{_NOT_WITHIN}[A-Za-z0-9]{_PLAIN}\Z|{_NOT_WITHIN}[A-Za-z0-9]\Z"),
    re.compile(r"(?<![\w./\\%~-])[\w%~-]{1,20}\Z"),
)
_FOLLOWS_NAME = re.compile(r"\Z|[\s\"'`“”‘’«»」』》),.;:!?，。；：！？、）\]]")
_BEFORE_FOLDER = re.compile(rf"(?:{_ROOT}|{_NOT_WITHIN}{_PLAIN}[\\/])(?:{_PLAIN}[\\/])*\Z")
_BEHIND_FOLDER = re.compile(rf"(?:[\\/]{_PLAIN})*[\\/]?")

# Words that only lead to a reference.
_JOINS = r"(?:[\s,;:，、；：]|\b(?:also|and|or|in|at|on)\b|[和及与或])*"
_LEADS = rf"(?:{_JOINS}(?:(?:see|cf|(?:as )?shown|refer to)\b\.?|[请详参可另]?[见看]|参[阅考照]|如))+{_JOINS}"
_EMPTY_BRACKETS = re.compile(
    rf"(?<![A-Za-z0-9_])\({_LEADS}\)|[（【]{_LEADS}[）】]"
    r"|(?<!\w)\(\s*[:,]?\s*\)|[（【]\s*[:：,，、]?\s*[）】]"
    r"|(?P<quote>[\"'`])\s*(?P=quote)|“\s*”|‘\s*’|«\s*»|「\s*」|《\s*》",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_BLANK_BEFORE_STOP = re.compile(r"(?<=\S)[ \t]+(?=[,.;:!?，。；：！？、)）])")

_PICTURE = r"(?:images?|pictures?|figures?|photos?|photographs?|screenshots?|diagrams?|illustrations?)"
_FILE = r"(?:file ?paths?|file ?names?|folders?|director(?:y|ies)|paths?|file ?extensions?)"
_PICTURE_ZH, _FILE_ZH = (
    r"(?:图片|图像|截图|照片|圖片|圖像|图)",
    r"(?:文件夹|資料夾|目录|目錄|路径|路徑|文件名|檔名|扩展名)",
)
_ABOUT_PICTURE_FILES = re.compile(
    rf"\b{_FILE} (?:(?:is|are|that|which|of|to|for|holds?|contains?|has|with) ){{1,2}}(?:the |this |an? )?"
    rf"(?:\w+ ){{0,2}}{_PICTURE}\b"
    rf"|\b{_PICTURE}(?:'s)? (?:files?|{_FILE})\b"
    rf"|\b{_FILE} (?:\w+ ){{1,5}}{_PICTURE} (?:\w+ ){{0,3}}(?:stored|saved|located|kept)\b"
    rf"|\bimage_ref\b|{_PICTURE_ZH}[^，。？?]{{0,8}}{_FILE_ZH}|{_FILE_ZH}[^，。？?]{{0,4}}{_PICTURE_ZH}",
    re.IGNORECASE,
)
_FILE_WORDS = re.compile(rf"\b(?:{_FILE}|stored|saved|located)\b|{_FILE_ZH}|存放|保存在|存储在|存在哪", re.IGNORECASE)


def strip_references(text: str, found: Counter[str]) -> str:
    """The text without them; one that has none is not touched.

    Args:
        text: any.
        found: is added to: `MARKER`, `IMAGE_PATH`, `FOLDER`.
    """
    before = found.total()
    stripped, markers = _MARKER.subn("", text)
    stripped, images = _MARKDOWN_IMAGE.subn(r"\1", stripped)
    stripped, paths = _without(stripped, _ENDING, _image_path)
    stripped, folders = _without(stripped, _OWN_FOLDER, _folder)
    found.update({MARKER: markers, IMAGE_PATH: images + paths, FOLDER: folders})
    if found.total() == before:
        return text
    while (tidied := _EMPTY_BRACKETS.sub("", stripped)) != stripped:
        stripped = tidied
    return _BLANK_BEFORE_STOP.sub("", _BLANKS.sub(" ", stripped)).strip()


def asks_about_files(question: str, answer: str) -> bool:
    """Whether a question is about the file or the folder of a picture, and so about nothing that a document says."""
    found: Counter[str] = Counter()
    asked = strip_references(question, found)
    if _ABOUT_PICTURE_FILES.search(asked):
        return True
    if not _FILE_WORDS.search(asked):
        return False
    strip_references(answer, found)
    return found.total() > 0


def _without(text: str, searched: re.Pattern, span: Callable[[str, re.Match, int], tuple[int, int]]) -> tuple[str, int]:
    pieces, end, count = [], 0, 0
    for match in searched.finditer(text):
        if match.start() < end:  # within the one before
            continue
        start, stop = span(text, match, max(end, match.start() - _LONGEST_PATH))
        if stop > start:
            pieces.append(text[end:start])
            end, count = stop, count + 1
    return "".join([*pieces, text[end:]]), count


def _image_path(text: str, ending: re.Match, first: int) -> tuple[int, int]:
    """From where to where the path reaches that has this ending; nowhere if it has no name."""
    with_folders, plain_name, other_name = _BEFORE_ENDING
    window = text[first : ending.start()]
    if match := with_folders.search(window) or plain_name.search(window):
        return first + match.start(), ending.end()
    if (match := other_name.search(window)) and _FOLLOWS_NAME.match(text, ending.end()):
        return first + match.start(), ending.end()
    if window and window[-1].isalnum():  # a name behind words without a blank: only its ending is known to be of it
        return ending.span()
    return 0, 0


def _folder(text: str, name: re.Match, first: int) -> tuple[int, int]:
    match = _BEFORE_FOLDER.search(text[first : name.start()])
    return (first + match.start() if match else name.start()), _BEHIND_FOLDER.match(text, name.end()).end()


__all__ = ["FOLDER", "IMAGE_PATH", "MARKER", "asks_about_files", "strip_references"]
