"""A document in pieces that a CLaRa model compresses as one passage each.

A piece ends, in this order, at the end of a paragraph, of a sentence, of a line, of a word, between two graphemes (what
a reader takes for one character: a letter with its accents, a family of emoji), or, where one grapheme alone is too
long, between two code points. Every piece is literally a part of the text; what is left out is white space between two
of them. A piece alone may take other tokens than it does within its text, so each is counted as it stands.

    pieces = chunk_text(text, tokenizer, max_tokens=256)
"""

from collections.abc import Iterator

import regex
from transformers import PreTrainedTokenizerBase

from .enrichment import DESCRIBED

# Characters tokenized at a time: time and memory stay in step with the text, however long it is.
_WINDOW = 1 << 16
# A cut looks that far ahead, to see whether a sentence ends at the very limit.
_AHEAD = 64

_PARAGRAPH_END = regex.compile(r"(?=\n[^\S\n]*+\n)")
# No sentence ends in "e.g. this", "Dr. Who" or "J. Bach". A list's item, a heading and a row of a table begin a line;
# any other line may be a wrapped one.
_SENTENCE_END = regex.compile(
    r"""
      [。！？；…]++ [”’」』）】》"']*+
    | (?<! \b (?:e\.g|i\.e|cf|vs|etc|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Eq|[A-Z]) ) [.!?] ["'”’)\]]*+
      (?= \s++ [^\sa-z] | \s*+ \Z)
    | (?= \n \s*+ (?: [-*+•|>\#] | \d{1,3}[.)] ) \s )
    """,
    regex.VERBOSE,
)
_LINE_END = regex.compile(r"(?=\n)")
_WORD_END = regex.compile(r"(?=\s)|[，、：](?!\d)")
_GRAPHEME = regex.compile(r"\X")
_SPACE = regex.compile(r"\s*+")
_MARK = regex.compile(regex.escape(DESCRIBED) + r"\s*+")


def chunk_text(text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[str]:
    """Pieces of at most `max_tokens` tokens; joined they are the text, but for white space between them.

    Args:
        tokenizer: a fast one; special tokens that it adds by itself do not count.

    Raises:
        ValueError: `max_tokens` is too small for a single character of the text, or the tokenizer cannot tell where
            its tokens stand.
    """
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` is {max_tokens}; give 1 or more.")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not tell where its tokens stand; give a fast tokenizer.")
    return [text[start:end] for start, end in _spans(text, tokenizer, max_tokens)]


def _spans(text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Iterator[tuple[int, int]]:
    size = max(_WINDOW, 16 * max_tokens)
    start = _SPACE.match(text).end()
    while start < len(text):
        window_start, window_end = start, min(start + size, len(text))
        tokens = [window_start + begin for begin in _token_starts(text[start:window_end], tokenizer)]
        if window_end < len(text) and len(tokens) <= max_tokens:
            size *= 2  # few long tokens, as of many spaces
            continue
        first = 0
        while start < window_end:
            while first < len(tokens) and tokens[first] < start:
                first += 1
            if window_end < len(text) and first + max_tokens >= len(tokens):
                break  # the next piece may reach beyond this window
            end = _end_of_piece(text, start, tokens, first, tokenizer, max_tokens)
            yield start, end
            start = _SPACE.match(text, end).end()


def _end_of_piece(
    text: str, start: int, tokens: list[int], first: int, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> int:
    """Where the piece from `start` ends.

    Args:
        tokens: where the tokens from some place before `start` begin.
        first: the first of them that is not before `start`.
    """
    room = max_tokens
    while room > 0:
        if first + room < len(tokens):
            limit = tokens[first + room]
            end = _cut(text, start, limit) if limit > start else start
        else:
            end = len(text)
        end = start + len(text[start:end].rstrip())
        if end <= start:
            break
        excess = len(_token_starts(text[start:end], tokenizer)) - max_tokens
        if excess <= 0:
            return end
        room = min(room, len(tokens) - first) - excess
    count = len(_token_starts(text[start], tokenizer))
    if count > max_tokens:
        raise ValueError(
            f"The character {text[start]!r} (U+{ord(text[start]):04X}) takes {count} tokens of this tokenizer, and a "
            f"piece may have {max_tokens}. Give at least {count} as `max_tokens`."
        )
    return start + 1


def _cut(text: str, start: int, limit: int) -> int:
    """The best place for an end behind `start` and not behind `limit`."""
    ahead = min(limit + _AHEAD, len(text))
    marks = [found.span() for found in _MARK.finditer(text, start, ahead)]
    half = start + (limit - start) // 2
    # A short paragraph before a long one would make a piece of its own; a sentence is kept whole even so.
    for pattern, least in ((_PARAGRAPH_END, half), (_SENTENCE_END, start), (_LINE_END, half), (_WORD_END, half)):
        ends = [found.end() for found in pattern.finditer(text, start, ahead) if least < found.end() <= limit]
        # The mark of a description is not parted from it.
        for end in reversed(ends):
            if not any(mark_start < end <= mark_end for mark_start, mark_end in marks):
                return end
    end = start
    for found in _GRAPHEME.finditer(text, start, ahead):
        if found.end() > limit:
            break
        end = found.end()
    return end if end > start else limit


def _token_starts(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where each token begins; the tokens of one character all begin where it does."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [begin for begin, _ in encoded["offset_mapping"]]


__all__ = ["chunk_text"]
