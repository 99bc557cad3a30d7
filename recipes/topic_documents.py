"""Passages of real English prose: Python's language reference, as `help()` prints it, cut into documents.

`pydoc_data.topics` comes with every Python, so nothing is downloaded. Its topics hold headings, grammar, code, tables
and prose; only prose is taken, in passages of 60 to 120 words that end where a sentence ends. Some topics repeat others
word for word ("compound" holds "with", "try" and more): a passage that repeats twelve words of another is left out, so
that no two documents say the same. How many there are depends on the version of Python: 420 to 500.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pydoc_data.topics import topics

FEWEST_WORDS, MOST_WORDS = 60, 120
# A paragraph that goes on behind this many words is cut at its next sentence end.
_LONG = 85
_REPEATED_WORDS = 12

# Code has hardly any of these, prose has one in four words or so.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be been but by can could do does for from has have if in into is it its may must no not of
        on only or other than that the their then there these they this those to used was when where which while will
        with you""",
    )
)
_LEAST_FUNCTION_WORDS = 0.2
_FEWEST_IN_PARAGRAPH = 8
# A term on a line of its own, and indented what it means; the lines of an item behind its bullet look alike.
_TERM = re.compile(r"^(( *)(?![ *]|\d+\.)[^\n]*[^\s.,:;])\n(?=\2 )")
_SENTENCE_END = re.compile(r"[.:!?][\"”\u2019)]*$")
_SENTENCE_START = re.compile(r"[\"“(_]*[A-Z_]")
_ABBREVIATIONS = ("e.g.", "i.e.", "(e.g.", "(i.e.")
_AROUND_WORDS = ".,;:!?()[]{}\"'`“”\u2018\u2019…"


@dataclass(frozen=True)
class TopicDocument:
    """A passage.

    Attributes:
        id: its place among all passages, from 0.
        topic: name that `help()` knows it by.
        sentences: what it says.
    """

    id: int
    topic: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole passage, on one line."""
        return " ".join(self.sentences)


def topic_documents(source: Mapping[str, str] = topics) -> list[TopicDocument]:
    """All passages, the same ones in the same order at every call.

    Args:
        source: topic -> text.
    """
    documents: list[TopicDocument] = []
    seen: set[tuple[str, ...]] = set()
    # Of what several topics hold, the shortest one's passage stays: its name says most.
    for topic in sorted(source, key=lambda name: (len(source[name]), name)):
        for passage in _passages(str(source[topic])):
            words = bare_words(" ".join(passage).lower())
            runs = {tuple(words[start : start + _REPEATED_WORDS]) for start in range(len(words) - _REPEATED_WORDS + 1)}
            if not runs & seen:
                seen |= runs
                documents.append(TopicDocument(len(documents), topic, passage))
    return documents


def _passages(text: str) -> Iterator[tuple[str, ...]]:
    """Sentences of the paragraphs of prose, one after the other, in passages of the right length."""
    passage: list[str] = []
    count = 0
    for paragraph in re.split(r"\n[ \t]*\n", text):
        pieces = _sentences(_prose(paragraph))
        for place, sentence in enumerate(pieces):
            length = len(sentence.split())
            if count + length > MOST_WORDS:
                if count >= FEWEST_WORDS:
                    yield tuple(passage)
                passage, count = [], 0
            if length > MOST_WORDS:
                continue
            passage.append(sentence)
            count += length
            if count >= (FEWEST_WORDS if place == len(pieces) - 1 else _LONG):
                yield tuple(passage)
                passage, count = [], 0


def _prose(paragraph: str) -> str:
    """The paragraph on one line without bullet, marks of emphasis and footnotes; "" if it is no prose.

    Headings, tables, grammar and most code do not end as a sentence does, and the rest of the code has few words.
    """
    text = _TERM.sub(r"\1: ", paragraph.strip("\n"))
    text = " ".join(re.sub(r"(?<=\w-)\n\s*(?=\w)", "", text).split())
    text = re.sub(r"^(\*|\d+\.) ", "", text)
    text = re.sub(r"(?<![\w*\"`])(\*\*?)(\w[^*\"`]*)\1(?!\w)", r"\2", text)
    text = re.sub(r" ?\[\d+\]", "", text)
    words = bare_words(text.lower())
    common = sum(word in _FUNCTION_WORDS for word in words)
    enough = len(words) >= _FEWEST_IN_PARAGRAPH and common >= _LEAST_FUNCTION_WORDS * len(words)
    return text if enough and _SENTENCE_END.search(text) else ""


def _sentences(text: str) -> list[str]:
    """Sentences of a text, with single spaces."""
    found: list[list[str]] = [[]]
    for word in text.split():
        ended = found[-1] and _SENTENCE_END.search(found[-1][-1]) and found[-1][-1] not in _ABBREVIATIONS
        if ended and _SENTENCE_START.match(word):
            found.append([])
        found[-1].append(word)
    return [" ".join(sentence) for sentence in found if sentence]


def bare_words(text: str) -> list[str]:
    """What spaces part, without punctuation and quotation marks around it; what is nothing else stays out."""
    return [word for piece in text.split() if (word := piece.strip(_AROUND_WORDS))]


__all__ = ["FEWEST_WORDS", "MOST_WORDS", "TopicDocument", "bare_words", "topic_documents"]
