"""Estimates and counts of what asking takes."""

import io

import pytest
from rich.console import Console

from qwen_grafts.recipes.clara.request_cost import (
    PICTURE_TOKENS,
    PlannedRequests,
    Range,
    UsageCounts,
    count_prompt_tokens,
    estimate,
    rough_tokens,
)

QUESTIONS = PlannedRequests("questions", 10, 4000, Range(20, 60, 200), Range(1, 1.5, 10))
CHECKS = PlannedRequests("checks", 30, 9000, Range(1, 2, 5))


def test_an_estimate_is_the_sum_of_its_parts():
    total = estimate([QUESTIONS, CHECKS], input_price=2.0, output_price=10.0)
    assert total.requests == (10 + 30, 15 + 30, 100 + 30)
    assert total.prompt_tokens == (13_000, 15_000, 49_000)
    assert total.completion_tokens == (200 + 30, 900 + 60, 20_000 + 150)
    for level in range(3):
        tokens = total.prompt_tokens[level] * 2 + total.completion_tokens[level] * 10
        assert total.cost[level] == pytest.approx(tokens / 1e6)
    assert total.cost.low < total.cost.expected < total.cost.high


def test_without_prices_there_are_tokens_only():
    for prices in ((None, None), (1.0, None), (None, 1.0)):
        assert estimate([QUESTIONS], *prices).cost is None
    assert estimate([QUESTIONS], 0.0, 0.0).cost == (0, 0, 0)
    assert estimate([]).requests == (0, 0, 0)


def test_the_table_shows_all():
    output = io.StringIO()
    Console(file=output, width=120).print(estimate([QUESTIONS, CHECKS], 2.0, 10.0).table())
    for shown in ("at least", "expected", "at most", "13,000", "49,000", "20,150", "0.2995"):
        assert shown in output.getvalue()


def test_tokens_of_messages():
    picture = {"type": "image_url", "image_url": {"url": "data:…"}}
    messages = [
        {"role": "system", "content": "one two three"},
        {"role": "user", "content": [picture, {"type": "text", "text": "four five"}]},
    ]
    count = lambda text: len(text.split())  # noqa: E731
    assert count_prompt_tokens(messages, count) - count_prompt_tokens(messages[:1], count) == PICTURE_TOKENS + 2 + 5
    assert count_prompt_tokens(messages, count, picture_tokens=7) == 2 * 5 + 5 + 7
    assert [rough_tokens(text) for text in ("", "a", "four", "fives", "架构")] == [0, 1, 1, 2, 2]


def test_what_was_used_in_words():
    usage = UsageCounts(1200, 34, 5, 0, 67_000, 8900)
    assert str(usage) == (
        "1,200 requests, 34 answers from the cache, 5 retries; 67,000 prompt and 8,900 answer tokens."
    )
    usage = UsageCounts(3, 0, 0, 2, 10, 20, 1.25)
    assert "without 2 requests whose tokens the server did not tell; cost 1.2500." in str(usage)
