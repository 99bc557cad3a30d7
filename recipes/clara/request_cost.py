"""What asking an endpoint takes: an estimate before the first request, and a count of what the server says it took.

Nobody knows beforehand how long answers will be and how many of them must be written again, so the estimate is a range:
the least, what to expect, and the most that the limits allow. Prices are the user's; without them there are tokens
only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table

# A chat template's own tokens around a message; and of a picture, where nobody knows better: 1,024 x 768 pixels in the
# squares of 28 pixels that are a token to Qwen2.5-VL. Other models take a quarter of that, or twice as much.
_MESSAGE_TOKENS = 5
PICTURE_TOKENS = 1000


class Range(NamedTuple):
    """The least, what to expect, the most."""

    low: float
    expected: float
    high: float


ONCE = Range(1, 1, 1)


@dataclass(frozen=True)
class PlannedRequests:
    """Requests of one kind that a run will send.

    Attributes:
        name: shown.
        count: how many, if none is repeated and none is in the cache.
        prompt_tokens: of all of them together.
        answer_tokens: of one answer; the most is what `max_tokens` allows.
        rounds: how often each is asked, regeneration included; the most is what the run allows.
    """

    name: str
    count: int
    prompt_tokens: int
    answer_tokens: Range
    rounds: Range = ONCE


@dataclass(frozen=True)
class CostEstimate:
    """What a run will take; `cost` in the currency of the prices, None without them."""

    requests: Range
    prompt_tokens: Range
    completion_tokens: Range
    cost: Range | None

    def table(self) -> Table:
        """To print."""
        table = Table("", "at least", "expected", "at most")
        for name, values in (
            ("requests", self.requests),
            ("prompt tokens", self.prompt_tokens),
            ("answer tokens", self.completion_tokens),
        ):
            table.add_row(name, *(f"{value:,.0f}" for value in values))
        if self.cost is not None:
            table.add_row("cost", *(f"{value:,.4f}" for value in self.cost))
        return table


def estimate(
    planned: Sequence[PlannedRequests], input_price: float | None = None, output_price: float | None = None
) -> CostEstimate:
    """Add up what is planned.

    Args:
        input_price, output_price: of a million tokens.
    """
    columns = list(zip(*(kind.rounds for kind in planned), strict=True)) or [(), (), ()]
    requests = Range(*(sum(k.count * r for k, r in zip(planned, rounds, strict=True)) for rounds in columns))
    prompts = Range(*(sum(k.prompt_tokens * r for k, r in zip(planned, rounds, strict=True)) for rounds in columns))
    answers = Range(
        *(
            sum(kind.count * kind.rounds[level] * kind.answer_tokens[level] for kind in planned)
            for level in range(len(Range._fields))
        )
    )
    costs = [price(*tokens, input_price, output_price) for tokens in zip(prompts, answers, strict=True)]
    return CostEstimate(requests, prompts, answers, None if costs[0] is None else Range(*costs))


def price(
    prompt_tokens: float, completion_tokens: float, input_price: float | None, output_price: float | None
) -> float | None:
    """What so many tokens cost; None unless both prices are given."""
    if input_price is None or output_price is None:
        return None
    return (prompt_tokens * input_price + completion_tokens * output_price) / 1e6


def count_prompt_tokens(
    messages: Iterable[dict[str, Any]], count_tokens: Callable[[str], int], picture_tokens: int = PICTURE_TOKENS
) -> int:
    """Tokens of a request's messages.

    Args:
        count_tokens: of a text, by the tokenizer that the user has; the server's may differ.
        picture_tokens: of a picture.
    """
    total = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        total += _MESSAGE_TOKENS
        total += sum(count_tokens(part["text"]) if part["type"] == "text" else picture_tokens for part in parts)
    return total


def rough_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: four bytes each."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


@dataclass(frozen=True)
class UsageCounts:
    """What was asked, by the server's own count.

    Attributes:
        requests: answered by the server in this run.
        cached: answered from the cache, or together with the same request of another thread.
        retries: tries beyond a request's first.
        without_usage: of `requests`, those whose tokens the server did not tell; they are not in the sums below.
        cost: None without prices.
    """

    requests: int = 0
    cached: int = 0
    retries: int = 0
    without_usage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def __str__(self) -> str:
        text = f"{self.requests:,} requests, {self.cached:,} answers from the cache, {self.retries:,} retries; "
        text += f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} answer tokens"
        if self.without_usage:
            text += f" without {self.without_usage:,} requests whose tokens the server did not tell"
        return text + ("." if self.cost is None else f"; cost {self.cost:,.4f}.")


__all__ = [
    "PICTURE_TOKENS",
    "CostEstimate",
    "PlannedRequests",
    "Range",
    "UsageCounts",
    "count_prompt_tokens",
    "estimate",
    "price",
    "rough_tokens",
]
