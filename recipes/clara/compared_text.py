"""When two texts say the same: their words alone, without case, punctuation and width.

In scripts that put no blanks between words (Chinese, Japanese, Thai and their neighbours) each character is a word.
"""

import hashlib
import re
import unicodedata

# Thai to Myanmar, Khmer, kana, and the ideographs of all planes.
_WITHOUT_BLANKS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\W_{_WITHOUT_BLANKS}]+")
WITHOUT_BLANKS = re.compile(f"[{_WITHOUT_BLANKS}]")


def words_of(text: str) -> list[str]:
    """The words to compare by, in their order."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def comparable(text: str) -> str:
    """The same as one text, with a blank before, between and behind; "" without words.

    So one text stands in another, as whole words, where `comparable(one) in comparable(other)`.
    """
    words = words_of(text)
    return f" {' '.join(words)} " if words else ""


def digest64(text: str) -> int:
    """64 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


__all__ = ["WITHOUT_BLANKS", "comparable", "digest64", "words_of"]
