"""Which pictures the documents of a knowledge folder have, what stands around each, and how to ask about it.

A picture that stands in a document is asked about with the text before and behind it at hand, in that text's language.
A picture of its own has no text: it is asked about in the language of most documents.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .raw_knowledge import MARKER, RawDocument, image_references

Language: TypeAlias = Literal["en", "zh"]

_BEFORE, _AFTER = 800, 400  # characters of context

_PROMPTS: dict[Language, dict[str, str]] = {
    "en": {
        "ask": "Describe this picture in English for a reader who cannot see it. Say what it shows. Of a diagram: its "
        "parts and how they are connected. Of a chart or a table: what it is about and the figures that can be read. "
        "Of a photograph: what is to be seen. Give any writing in it word for word. Write one paragraph of plain text. "
        "Say nothing of files, names of files or folders, and nothing that cannot be seen.",
        "context": "The picture stands in a document. Use the text around it to understand the picture, and describe "
        "only the picture.",
        "before": "Text before it:",
        "after": "Text behind it:",
        "again": "Write at least one whole sentence about what is to be seen.",
    },
    "zh": {
        "ask": "请用中文为看不到图片的读者描述这张图片。说明图片展示的内容: 如果是示意图, 说明各个组成部分及其关系; "
        "如果是图表或表格, 说明其主题以及可以读出的数值; 如果是照片, 说明可以看到的事物。图片中的文字请逐字写出。"
        "只写一段纯文本。不要提及文件、文件名或文件夹, 也不要写图片中看不到的内容。",
        "context": "这张图片出现在一份文档中。请借助前后文理解图片, 但只描述图片本身。",
        "before": "图片之前的文字:",
        "after": "图片之后的文字:",
        "again": "请至少用一个完整的句子描述可以看到的内容。",
    },
}
_IDEOGRAPH, _KANA = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"), re.compile(r"[\u3040-\u30ff]")
_WORD = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


@dataclass(frozen=True)
class Picture:
    """One picture to describe.

    Attributes:
        image: path in the folder.
        before, after: the text around it, markers of other pictures left out.
        language: of the description.
    """

    image: str
    before: str = ""
    after: str = ""
    language: Language = "en"

    def prompt(self, attempt: int = 0) -> str:
        """What to ask about it."""
        words = _PROMPTS[self.language]
        parts = [words["ask"]]
        if self.before or self.after:
            parts.append(words["context"])
        parts += [f"{words[name]}\n{text}" for name in ("before", "after") if (text := getattr(self, name))]
        return "\n\n".join(parts if attempt == 0 else [*parts, words["again"]])


def pictures_of(documents: Iterable[RawDocument], default: Language = "en") -> Iterator[Picture]:
    """The pictures of documents in their order, each where it stands first.

    Args:
        default: language of pictures without any text around them.
    """
    seen: set[str] = set()
    for document in documents:
        if document.source_type == "image":
            if document.image not in seen:
                seen.add(document.image)
                yield Picture(document.image, language=default)
            continue
        pieces = MARKER.split(document.text)[::2]  # what stands between them, not the paths
        for position, image in enumerate(image_references(document.text)):
            if image in seen:
                continue
            seen.add(image)
            before = _last_characters(" ".join("".join(pieces[: position + 1]).split()))
            after = _first_characters(" ".join("".join(pieces[position + 1 :]).split()))
            language = language_of(before + after) or language_of("".join(pieces)) or default
            yield Picture(image, before, after, language)


def _last_characters(text: str) -> str:
    """The end of a text, from a space on if there is one."""
    if len(text) <= _BEFORE:
        return text
    text = text[-_BEFORE:]
    return text.partition(" ")[2] if " " in text[:80] else text


def _first_characters(text: str) -> str:
    """The beginning of a text, up to a space if there is one."""
    if len(text) <= _AFTER:
        return text
    text = text[:_AFTER]
    return text.rpartition(" ")[0] if " " in text[-80:] else text


def language_of(text: str) -> Language | None:
    """Chinese if a text has more ideographs than words of letters, and no kana; None where it has neither."""
    ideographs, words = len(_IDEOGRAPH.findall(text)), len(_WORD.findall(text))
    if not ideographs and not words:
        return None
    return "zh" if ideographs > words and not _KANA.search(text) else "en"


__all__ = ["Language", "Picture", "language_of", "pictures_of"]
