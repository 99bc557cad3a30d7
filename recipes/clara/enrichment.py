"""Pictures become words: every marker of a text its picture's description, every picture on its own a document.

    "The design: [IMAGE_REF: extracted_assets/a.png]"  ->  "The design: [IMAGE DESCRIPTION] Three boxes and an arrow."

What comes out is the text that questions are written from and the text that is stored: there is no other. A marker
whose picture nobody described goes, and is counted; so is a description that nothing asks for.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .raw_knowledge import MARKER, RawDocument, SourceType, image_key

DESCRIBED = "[IMAGE DESCRIPTION]"
_MARKER_LIKE = re.compile(rf"{MARKER.pattern}|\[\s*IMAGE[_ ](?:REF\b\s*:?|DESCRIPTION\s*\])")
_BEFORE_MARKER = re.compile(rf"[ \t]*{MARKER.pattern}")


@dataclass
class EnrichmentCounts:
    """What was found; complete when the last document was read.

    Attributes:
        documents: documents that came out.
        markers: of all texts.
        described: markers that became a description.
        missing_descriptions: markers that went, because nobody described their picture.
        unused_descriptions: descriptions that no marker and no picture on its own asked for.
        standalone_images: pictures that are documents of their own.
        standalone_without_description: those of them that nobody described, and that are left out.
        empty_documents: texts in which nothing is left, and that are left out.
    """

    documents: int = 0
    markers: int = 0
    described: int = 0
    missing_descriptions: int = 0
    unused_descriptions: int = 0
    standalone_images: int = 0
    standalone_without_description: int = 0
    empty_documents: int = 0


@dataclass(frozen=True)
class EnrichedDocument:
    """A document in words alone.

    Attributes:
        id, source, source_type: those of the raw document.
        text: what everything is written from.
        images: `image_key` of the pictures whose descriptions stand in it, each once, in order.
    """

    id: str
    text: str
    source: str | None
    images: tuple[str, ...]
    source_type: SourceType


def enrich(
    documents: Iterable[RawDocument], descriptions: Mapping[str, str], counts: EnrichmentCounts
) -> Iterator[EnrichedDocument]:
    """Documents with descriptions in place of pictures, one after the other.

    Args:
        documents: as `read_raw_knowledge` gives them.
        descriptions: by `image_key`, as `read_descriptions` gives them.
        counts: is added to.
    """
    used: set[str] = set()
    for document in documents:
        if document.source_type == "image":
            counts.standalone_images += 1
            wanted = [document.image]
            text = _plain(descriptions.get(document.image, ""))
            text = f"{DESCRIBED} {text}" if text else ""
            counts.standalone_without_description += not text
        else:
            wanted = [image_key(match.group(1)) for match in MARKER.finditer(document.text)]
            text = _described(document.text, descriptions, counts).strip()
            counts.empty_documents += not text
        images = tuple(key for key in dict.fromkeys(wanted) if key in descriptions)
        used.update(images)
        if text:
            counts.documents += 1
            yield EnrichedDocument(document.id, text, document.source, images, document.source_type)
    counts.unused_descriptions += len(descriptions) - len(used)


def _described(text: str, descriptions: Mapping[str, str], counts: EnrichmentCounts) -> str:
    def words(match: re.Match) -> str:
        counts.markers += 1
        description = _plain(descriptions.get(image_key(match.group(1)), ""))
        if not description:
            counts.missing_descriptions += 1
            return ""  # with the blanks before it
        counts.described += 1
        before = match.group()[: match.group().index("[")]
        return f"{before}{DESCRIBED} {description}"

    return _BEFORE_MARKER.sub(words, text)


def _plain(description: str) -> str:
    """One line, and no marker in it, whole or in part: texts are searched for what is left of markers."""
    while (plain := _MARKER_LIKE.sub("", description)) != description:  # what is left may be one again
        description = plain
    return " ".join(description.split())


__all__ = ["DESCRIBED", "EnrichedDocument", "EnrichmentCounts", "enrich"]
