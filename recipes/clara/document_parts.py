"""What a document is made of once it is read: pieces of text, and between them pictures where they stood."""

from collections.abc import Iterator
from dataclasses import dataclass

from .raw_knowledge import MARKER


@dataclass(frozen=True)
class Picture:
    """A picture in a document: its bytes, or where they lie, or why it could not be taken out.

    Attributes:
        data: of the file, where it is embedded.
        link: as the document writes it, where it is not.
        problem: reason, where it was lost on the way.
        alt: words that the document gives for it.
    """

    data: bytes | None = None
    link: str | None = None
    problem: str | None = None
    alt: str = ""


Part = str | Picture


def marked_parts(text: str) -> Iterator[Part]:
    """A text in which the marker of a picture counts as a link to it."""
    end = 0
    for match in MARKER.finditer(text):
        yield text[end : match.start()]
        yield Picture(link=match.group(1).strip())
        end = match.end()
    yield text[end:]


__all__ = ["Part", "Picture", "marked_parts"]
