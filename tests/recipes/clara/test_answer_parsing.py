"""JSON out of what models write around it."""

import json

import pytest

from qwen_grafts.recipes.clara.answer_parsing import UnusableError, is_refusal, parse_object, parse_pairs, truth
from qwen_grafts.recipes.clara.refusal_reasons import MALFORMED, REFUSED

PAIRS = [{"question": "What {is} it?", "answer": "A [list]."}]
BARE = json.dumps({"pairs": PAIRS})


@pytest.mark.parametrize(
    "answer",
    [
        BARE,
        f"```json\n{BARE}\n```",
        f"```\n{BARE}\n```",
        f"Here are the {{questions}} [1]:\n\n{BARE}\n\nI hope that helps.",
        f'{{"thought": "none"}} {BARE}',
        json.dumps(PAIRS),
        json.dumps({"pairs": PAIRS, "more": 1}, indent=2),
        f"好的，结果如下：{BARE}。",
        f"{BARE}{BARE}",
        "{{[" * 50 + BARE,
    ],
)
def test_pairs_are_found(answer):
    assert parse_pairs(answer) == PAIRS


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (BARE[:-3], MALFORMED),
        ("", MALFORMED),
        ("Question: What? Answer: That.", MALFORMED),
        ('{"pairs": "none"}', MALFORMED),
        ('{"pairs": ["What?"]}', MALFORMED),
        ("{'pairs': []}", MALFORMED),
        ("[" * 100_000, MALFORMED),
        ("I cannot help with that.", REFUSED),
        ("I'm sorry, but I can't do that.", REFUSED),
        ("I\u2019m sorry, no.", REFUSED),
        ("As an AI, I write no questions.", REFUSED),
        ("抱歉，我无法完成这个请求。", REFUSED),
        ("很抱歉，不行。", REFUSED),
        ("我无法回答。", REFUSED),
        ("作为一个人工智能，我不写问题。", REFUSED),
    ],
)
def test_why_there_are_none(answer, reason):
    with pytest.raises(UnusableError) as error:
        parse_pairs(answer)
    assert error.value.reason == reason


def test_no_pairs_are_pairs():
    assert parse_pairs('{"pairs": []}') == []


def test_an_object_has_its_fields():
    assert parse_object('{"a": 1} and {"a": 2, "b": {"c": 3}}', "a", "b") == {"a": 2, "b": {"c": 3}}
    with pytest.raises(UnusableError, match=MALFORMED):
        parse_object('{"a": 1}', "a", "b")
    with pytest.raises(UnusableError, match=REFUSED):
        parse_object("Sorry, no.", "a")


def test_truth():
    assert truth(True) and truth("true") and truth(" True ") and not truth(False) and not truth("FALSE")
    for value in (None, 1, "yes", [], {}):
        with pytest.raises(UnusableError, match=MALFORMED):
            truth(value)


@pytest.mark.parametrize(
    "answer",
    [
        "The text does not say.",
        "Not mentioned.",
        "N/A",
        "I cannot answer this.",
        "This is not specified in the text.",
        "文中未提及。",
        "无法确定",
        "抱歉，我不知道。",
        "原文没有说明。",
    ],
)
def test_an_answer_that_is_none(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "None.",
        "It returns None if the value is not specified by the caller.",
        "An error that does not say where it comes from.",
        "He said that he cannot come.",
        "无法写入的文件",
        "It is unknown to the gateway.",
        "Information.",
    ],
)
def test_an_answer_that_sounds_like_none(answer):
    assert not is_refusal(answer)
