"""Bytes of a text file to text, or the byte at which they stop being one.

Read are UTF-8, UTF-16 and UTF-32 with a byte order mark, UTF-8 without, what the file itself declares (HTML), and of
the encodings that say nothing about themselves the two that these files are likely to be in: GB18030, which holds
GB2312 and GBK, and Windows-1252, which holds Latin-1. The two are told apart by the first byte of a pair: 95 of 100
characters of Chinese text are of GB2312's first level (B0 to D7) or its punctuation (A1 to A3), where Western text has
almost only capitals and signs, which stand alone there. A detector that knows dozens of encodings is the worse choice
here: of pieces of 6 to 60 characters of six languages (`test_short_pieces_of_six_languages`) all are read right, by
charset-normalizer 94 of 100 in Chinese and 23 to 46 of 100 in Western languages.

Korean and Japanese files fit GB18030, too, or almost. They are told by what nearly every word of theirs has and other
text has not: the commonest syllables of Korean, which are rare characters as GB18030 reads them, and the commonest
hiragana. Some sentences have enough of these; what has not is read, or refused, as if there were no such files.

Nothing is replaced without a word: bytes that fit no reading, or text that was begun in UTF-8 and goes on in something
else, are refused.
"""

import codecs
import re
from contextlib import suppress

UTF8 = "utf-8"
GB18030 = "gb18030"
WINDOWS_1252 = "cp1252"
KOREAN, SHIFT_JIS, EUC_JP = "cp949", "cp932", "euc_jp"
_MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# As browsers read them: who declares the part means the whole.
_DECLARED_AS = {"gb2312": GB18030, "gbk": GB18030, "iso8859-1": WINDOWS_1252, "ascii": WINDOWS_1252}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
# Four characters of Chinese in UTF-8. Chinese in GB18030 does not look like that for 12 bytes by chance.
_CHINESE_UTF8 = re.compile(rb"(?:[\xe3-\xe9\xef][\x80-\xbf]{2}){4}")
_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_SURELY_CHINESE = 4  # a row of German capitals looks like two
_COMMON_LEAD = frozenset((*range(0xA1, 0xA4), *range(0xB0, 0xD8)))
# Encoding -> what tells it. Of hiragana, those that are no letters of Korean alone (ㅋㅋ) in the other encoding.
_HIRAGANA = re.compile("[のにはをたがでてとるなもられっすく]")
_TELLING = {
    KOREAN: re.compile("[이다는의에을를가고하기도로지은한인서사대자시어아리]"),
    SHIFT_JIS: _HIRAGANA,
    EUC_JP: _HIRAGANA,
}
# So many in a text, and such a part of what is not ASCII there.
_FEWEST_TELLING, _LEAST_TELLING = 8, 0.1
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class EncodingProblem(ValueError):  # noqa: N818
    """Bytes that cannot be read as text; the message names the first byte at fault."""


def decode_text(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Text and the name of its encoding.

    Args:
        data: a file's content.
        declared: encoding that the file names, taken if the bytes fit it.

    Raises:
        EncodingProblem: no reading fits, or a control character shows that this is no text.
    """
    text, encoding = _decoded(data, declared)
    if control := _CONTROL.search(text):
        position = len(text[: control.start()].encode(encoding.removesuffix("-sig"), "surrogatepass"))
        raise EncodingProblem(f"byte {position} is the control character {control.group()!r} ({encoding}): no text")
    return text, encoding


def _decoded(data: bytes, declared: str | None) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                shown = f"byte {error.start + len(mark) * (encoding == 'utf-8-sig')}"
                raise EncodingProblem(f"{shown} is no {encoding}, which the file's first bytes announce") from None
    try:
        return data.decode(UTF8), UTF8
    except UnicodeDecodeError as error:
        first_fault = error.start
    if encoding := _known(declared):
        try:
            return data.decode(encoding), encoding
        except (UnicodeError, LookupError):  # "hex" is a codec, but none of text
            pass
    east_asian = _korean_or_japanese(data)
    chinese = 0 if east_asian else _chinese_pairs(data)
    of_utf8 = sum(map(len, _UTF8_SEQUENCE.findall(data)))
    # By chance up to two thirds of the bytes of a few words of Chinese look like UTF-8, and few of a Western language.
    is_mixed = of_utf8 > (0.8 if chinese or east_asian else 0.1) * len(_HIGH.findall(data))
    if is_mixed or _CHINESE_UTF8.search(data):
        raise EncodingProblem(
            f"byte {first_fault} (0x{data[first_fault]:02x}) is no UTF-8, and {of_utf8} other bytes are: encodings are "
            "mixed"
        )
    encoding = east_asian or (GB18030 if chinese else WINDOWS_1252)
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError as error:
        fault = error.start
    if 0 < chinese < _SURELY_CHINESE:
        encoding = WINDOWS_1252
        with suppress(UnicodeDecodeError):
            return data.decode(encoding), encoding
    raise EncodingProblem(
        f"byte {fault} (0x{data[fault]:02x}) is neither UTF-8 nor {encoding}, as which the rest could be read"
    )


def _known(declared: str | None) -> str | None:
    try:
        name = codecs.lookup(declared or "").name
    except LookupError:
        return None
    # What cannot come after "declared": UTF-16 without a mark would not have let the declaration be read.
    return None if name.startswith(("utf", "unicode", "raw", "idna", "punycode")) else _DECLARED_AS.get(name, name)


def _korean_or_japanese(data: bytes) -> str | None:
    """The encoding that all bytes fit and that gives enough of what tells it."""
    for encoding, telling in _TELLING.items():
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        found = len(telling.findall(text))
        if found >= max(_FEWEST_TELLING, _LEAST_TELLING * len(_NOT_ASCII.findall(text))):
            return encoding
    return None


def _chinese_pairs(data: bytes) -> int:
    """How many pairs are common characters of Chinese; 0 if most pairs are not."""
    pairs = _PAIR.findall(data)
    common = sum(pair[0] in _COMMON_LEAD and pair[1] >= 0xA1 for pair in pairs)
    return common if 2 * common > len(pairs) else 0


__all__ = ["GB18030", "UTF8", "WINDOWS_1252", "EncodingProblem", "decode_text"]
