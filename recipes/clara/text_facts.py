"""What two texts have in common, found by looking: words, numbers, names, quotations and the language.

These checks stand beside an endpoint's own verdict and tell what is plainly wrong. A word is a run of letters and
digits, or one ideograph, which is a word of its own here.
"""

import re
import unicodedata
from difflib import SequenceMatcher

import regex

_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}\p{N}--[\p{Han}\p{Hiragana}\p{Katakana}]]+", regex.V1
)
_IDEOGRAPH = regex.compile(r"\p{Han}")
_GRAPHEME = regex.compile(r"\X")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)*|\d+(?:\.\d+)*")
# Capital in the middle of a sentence, a capital or digit within, or an underscore: names of people, places and code;
# and whatever is written in Latin letters between ideographs.
_NAME = regex.compile(
    r"""
      (?<= [\p{Ll}\d,;][ ] ) \p{Lu} [\p{Latin}\d_]+
    | (?<! [\p{Latin}\d_] ) \p{Latin}+ [\p{Lu}\d_] [\p{Latin}\d_]*
    | (?<= \p{Han} [,;:(、。《“]? [ ]? )  # normalized
      \p{Latin} [\p{Latin}\d_]+
    """,
    regex.VERBOSE,
)
_SCRIPTS = {
    name: regex.compile(rf"\p{{Script={name}}}+")
    for name in ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "Hangul", "Tibetan")
}
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
# Ideographs for each word in letters that make a text Chinese: names and code stand in Latin letters there.
_IDEOGRAPHS_A_WORD = 1 / 3
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        """a about all also an and any are as at be because been but by can could did do does done each either for from
        had has have how i if in into is it its itself kind many may might more most much must no not of off on one only
        or other our out own same should so some such than that the their them then there these they this those to too
        under up upon used was we were what when where which while who whom whose why will with would yes you your""",
    )
)


def words(text: str) -> list[str]:
    """Words without case."""
    return [found.casefold() for found in _WORD.findall(unicodedata.normalize("NFKC", text))]


def content_letters(text: str) -> int:
    """How much a text may say: its letters and digits, an ideograph as three."""
    return sum(map(str.isalnum, text)) + 2 * len(_IDEOGRAPH.findall(text))


def numbers(text: str) -> set[str]:
    """Numbers in digits, without the commas of thousands and zeros in front: "1,024" is "1024", "05" is "5"."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return {re.sub(r"^0+(?=\d)", "", number.replace(",", "")) for number in found}


def names(text: str) -> set[str]:
    """Names and identifiers, as far as their letters tell; without case."""
    return {found.casefold() for found in _NAME.findall(" ".join(unicodedata.normalize("NFKC", text).split()))}


def names_missing(text: str, other: str) -> set[str]:
    """Names of a text that do not stand in another one."""
    other = " ".join(unicodedata.normalize("NFKC", other).split()).casefold()
    return {name for name in names(text) if name not in other}


def find_quotation(quotation: str, text: str) -> str | None:
    """Where a text says what is quoted: its own words, letter by letter, or None.

    White space does not count, which ends lines where it likes, and neither does the Unicode form: a letter with its
    accent may be one sign or two.
    """
    compact, origin = [], []
    for found in _GRAPHEME.finditer(text):
        form = _compact(found.group())
        compact.append(form)
        origin.extend([found.span()] * len(form))
    wanted, there = _compact(quotation), "".join(compact)
    position = there.find(wanted) if wanted else -1
    if position < 0:
        return None
    return text[origin[position][0] : origin[position + len(wanted) - 1][1]]


def _compact(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def share_words(one: str, other: str) -> bool:
    """Whether two texts have a word in common that says something."""
    return bool(set(words(one)) & set(words(other)) - _ENGLISH)


def longest_common_run(one: str, other: str) -> int:
    """Words in a row that two texts have in common."""
    first, second = words(one), words(other)
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size


def writing_of(text: str) -> str | None:
    """ "Chinese", "Japanese", or the letters that a text is written in; None if it has none."""
    ideographs = len(_IDEOGRAPH.findall(text))
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS.items()}
    most = max(counts, key=counts.get)
    if kana := len(_KANA.findall(text)):
        return "Japanese" if ideographs + kana > counts[most] * _IDEOGRAPHS_A_WORD else most
    if ideographs > counts[most] * _IDEOGRAPHS_A_WORD:
        return "Chinese"
    return most if counts[most] else None


def same_language(part: str, text: str) -> bool:
    """Whether a question or an answer is written as its text is; anything goes where nothing can be told.

    Words that it has from the text are names of things; how the others are written decides. What is in Latin letters is
    told by English's small words: whether there are hardly any in the one and many in the other.
    """
    there = set(words(text))
    own = writing_of(" ".join(word for word in words(part) if word not in there))
    if own is None:
        return True
    if own != writing_of(text):
        return False
    if own != "Latin" or len(words(part)) < 8 or len(words(text)) < 20:
        return True
    mine, theirs = _english_share(part), _english_share(text)
    return not (theirs < 0.06 and mine > 0.25) and not (theirs > 0.25 and mine == 0)


def _english_share(text: str) -> float:
    found = words(text)
    return sum(word in _ENGLISH for word in found) / len(found)


__all__ = [
    "content_letters",
    "find_quotation",
    "longest_common_run",
    "names",
    "names_missing",
    "numbers",
    "same_language",
    "share_words",
    "words",
    "writing_of",
]
