"""How much was asked for some rows, whether in this run or in one that was killed.

What a server says it took is known of this run only. Here every question counts that the rows needed, so that a run
that went on tells the same as one that went through.
"""

import threading
from collections.abc import Callable
from typing import Any

from .chat_endpoint import UnusableAnswerError
from .request_cost import PICTURE_TOKENS, count_prompt_tokens, rough_tokens


class AskedCounts:
    """Counts what goes through `ask`; safe to use from several threads.

    Args:
        ask: `ChatEndpoint.ask`.
    """

    def __init__(self, ask: Callable[..., str]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._requests = self._prompt_tokens = self._answer_tokens = 0

    def ask(self, messages: list[dict[str, Any]], **how: Any) -> str:
        """What `ChatEndpoint.ask` gives."""
        try:
            text = self._ask(messages, **how)
        except UnusableAnswerError as error:
            self._count(messages, error.text)
            raise
        self._count(messages, text)
        return text

    def as_dict(self) -> dict[str, int]:
        """Requests, and about how many tokens they took, four bytes a token."""
        return {
            "requests": self._requests,
            "prompt tokens": self._prompt_tokens,
            "answer tokens": self._answer_tokens,
        }

    def _count(self, messages: list[dict[str, Any]], answer: str | None) -> None:
        prompt, answered = count_prompt_tokens(messages, rough_tokens, PICTURE_TOKENS), rough_tokens(answer or "")
        with self._lock:
            self._requests += 1
            self._prompt_tokens += prompt
            self._answer_tokens += answered


__all__ = ["AskedCounts"]
