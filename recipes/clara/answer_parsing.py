"""JSON out of what a model wrote: bare, in a code fence or with prose around it, or why there is none.

Nothing is repaired: what is not JSON is asked for anew.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from .refusal_reasons import MALFORMED, REFUSED

_REFUSAL = re.compile(
    r"\W*(?:(?:I['’]?m|I am) (?:very |really )?(?:sorry|afraid|unable|not able)"
    r"|I (?:cannot|can['’]t|can not|won['’]t|will not|must decline)\b|sorry\b|apologies|as an ai\b"
    r"|(?:很|非常)?(?:抱歉|对不起|遗憾)|我(?:无法|不能|没有办法)"
    r"|作为(?:一个|一名)?\s*(?:AI|人工智能))",
    re.I,
)
# An answer that says that there is none.
_NO_ANSWER = re.compile(
    r"\b(?:text|passage|document) (?:does not|doesn['’]t|do not) (?:say|state|mention|specify|provide|tell)\b"
    r"|^\W*(?:not (?:mentioned|specified|stated|provided|given)|unknown|n/?a|cannot be (?:determined|answered))\W*$"
    r"|\b(?:is|are) not (?:mentioned|specified|stated) (?:in|by) the (?:text|passage|document)\b"
    r"|(?:文中|文本|文档|文字|文章|原文)(?:中|里)?(?:并)?(?:未|没有)(?:提及|提到|说明|给出|指出)"
    r"|^\W*(?:未提及|没有提到|未说明|无法(?:回答|确定|得知)|不(?:知道|清楚))",
    re.I,
)
_OPENING = re.compile(r"[\[{]")


class UnusableError(Exception):
    """What was written is no use.

    Attributes:
        reason: `MALFORMED` or `REFUSED`, or that of whoever raises it.
        detail: what of it, where the reason leaves that open.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def parse_object(answer: str, *fields: str) -> dict[str, Any]:
    """The first JSON object in an answer that has these fields.

    Raises:
        UnusableError: there is none.
    """
    for value in _values(answer):
        if isinstance(value, dict) and all(field in value for field in fields):
            return value
    raise UnusableError(REFUSED if _REFUSAL.match(answer) else MALFORMED)


def parse_pairs(answer: str) -> list[dict[str, Any]]:
    """The questions and answers of `{"pairs": [...]}`, or of the list alone, if something is in it.

    Raises:
        UnusableError: there is no such list.
    """
    for value in _values(answer):
        pairs = value.get("pairs") if isinstance(value, dict) else value or None
        if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
            return pairs
    raise UnusableError(REFUSED if _REFUSAL.match(answer) else MALFORMED)


def is_refusal(answer: str) -> bool:
    """Whether an answer to a question only says that there is none."""
    return bool(_REFUSAL.match(answer) or _NO_ANSWER.search(answer))


def truth(value: Any) -> bool:
    """A judgement; some models write it as text.

    Raises:
        UnusableError: it is none.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise UnusableError(MALFORMED)


def _values(answer: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, from the front; those within another one are not given by themselves."""
    decoder, position = json.JSONDecoder(), 0
    while found := _OPENING.search(answer, position):
        try:
            value, position = decoder.raw_decode(answer, found.start())
        except RecursionError:  # brackets nested too deep, and each of them would be tried
            return
        except ValueError:
            position = found.end()
            continue
        yield value


__all__ = ["UnusableError", "is_refusal", "parse_object", "parse_pairs", "truth"]
