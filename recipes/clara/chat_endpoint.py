"""Asking an OpenAI-compatible endpoint many questions, each of them once.

The `openai` client speaks the protocol; what it leaves to its caller is here: a cache that survives `kill -9`, retries
that are counted, limits over all threads, and one request in flight for the same question.

A request's name is the hash of all that is asked (model, messages, pictures by the bytes of their files, length,
temperature, attempt, kind of answer) and not of where it is asked. Its answer is on the disk before it is returned. So
a run that is killed and started again asks no answered request twice. What was under way at the kill, at most
`max_concurrency` requests, is asked again: the server may have answered them to nobody. Two processes that share a
cache see each other's answers, but each may ask what the other is just asking.

The key comes from the environment variable OPENAI_API_KEY and goes into one header. Whatever a server says is searched
for it before it is shown, and no error has the client's own, which hold the request, behind it.
"""

import base64
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from .answer_cache import AnswerCache
from .endpoint_connection import EndpointConnection, EndpointError, Reply
from .request_cost import PICTURE_TOKENS, UsageCounts, count_prompt_tokens, price, rough_tokens
from .request_limits import RateLimits, back_off

TRUNCATED = "cut off at max_tokens"
FILTERED = "withheld by the server's content filter"
EMPTY = "empty"

# From the first try of a request to giving it up, limits of our own aside; and how long leaving waits for what has
# arrived to be stored.
_PATIENCE_SECONDS = 900.0
_LEAVING_SECONDS = 5.0
_TEXTS_PER_REQUEST = 32
# Tries of a server that nothing has come from yet: a wrong base URL should not take minutes to be told.
_FIRST_TRIES = 3

Item, Result = TypeVar("Item"), TypeVar("Result")


class UnusableAnswerError(EndpointError):
    """The endpoint answered this request, and the answer is none to go on with. Another attempt may get a better one.

    It was paid for, so it is in the cache: asked again with the same `attempt`, the same error comes back.

    Attributes:
        reason: `TRUNCATED`, `FILTERED` or `EMPTY`.
        text: what there is of it.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"The answer is {reason}.")
        self.reason, self.text = reason, text


@dataclass(frozen=True)
class EndpointSettings:
    """Where to ask, and how fast.

    Attributes:
        base_url: None takes OPENAI_BASE_URL, and without it OpenAI's own.
        max_concurrency: requests under way at a time.
        requests_per_minute, tokens_per_minute: over all threads; prompt and answer tokens together.
        timeout: seconds for one try.
        max_retries: tries of one request beyond the first.
        input_price, output_price: of a million tokens, in any currency.
    """

    model: str
    base_url: str | None = None
    max_concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout: float = 120.0
    max_retries: int = 8
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if self.max_retries < 0:
            raise ValueError(f"`max_retries` is {self.max_retries}; give 0 or more.")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("Give both prices, of a million prompt tokens and of a million answer tokens, or neither.")


class ChatEndpoint:
    """An endpoint with its cache; a context manager, used from as many threads as one likes.

    Leaving it, or `close`, ends every wait and every open connection at once: threads that still ask get an
    `EndpointError`. With a thread pool of one's own the pool is the outer `with`, so that Ctrl-C closes the endpoint
    before it waits for the threads; `in_order` does that by itself.

    Args:
        cache: SQLite file.

    Raises:
        ValueError: `openai` is not installed, the cache cannot be used, or nothing says where to ask.
    """

    def __init__(self, settings: EndpointSettings, cache: Path) -> None:
        self.settings = settings
        self._connection = EndpointConnection(settings.base_url, settings.timeout)
        self._cache = AnswerCache(cache)
        self._limits = RateLimits(settings.requests_per_minute, settings.tokens_per_minute)
        self._slots = threading.BoundedSemaphore(settings.max_concurrency)
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Future[dict[str, Any]]] = {}
        self._usage = UsageCounts()
        self._reached = False  # whether anything has shown that a server is there

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def usage(self) -> UsageCounts:
        """The counts so far."""
        with self._lock:
            usage = self._usage
        cost = price(
            usage.prompt_tokens, usage.completion_tokens, self.settings.input_price, self.settings.output_price
        )
        return replace(usage, cost=cost)

    def ask(
        self,
        messages: list[dict[str, Any]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        attempt: int = 0,
        json_object: bool = False,
    ) -> str:
        """The answer to a conversation; a thought before it is no part of it.

        Args:
            messages: as the protocol has them; pictures as data URIs.
            max_tokens: of the answer, thought included.
            attempt: another number makes it another request, which is asked anew.
            json_object: the server is to write a JSON object.

        Raises:
            UnusableAnswerError: the answer is cut off, withheld or empty.
            EndpointError: no answer: refused at once, or given up after the retries.
            ValueError: the cache is damaged.
        """
        request = {
            "model": self.settings.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": float(temperature),
        }
        if json_object:
            request["response_format"] = {"type": "json_object"}
        digest = _digest({"kind": "chat", "attempt": attempt} | request)
        tokens = count_prompt_tokens(messages, rough_tokens, PICTURE_TOKENS) + max_tokens
        answer = self._answers([digest], 1, lambda _: (self._connection.chat(request), tokens))[0]
        text, refusal = answer["text"], answer["refusal"]
        if answer["finish_reason"] == "length":
            raise UnusableAnswerError(TRUNCATED, text)
        if answer["finish_reason"] == "content_filter" or refusal:
            raise UnusableAnswerError(FILTERED, text or refusal)
        text = _without_thought(text)
        if not text.strip():
            raise UnusableAnswerError(EMPTY, text)
        return text

    def embed(self, texts: list[str], *, model: str) -> np.ndarray:
        """Embeddings of texts, (texts, width) in float32; each text is asked and kept by itself.

        Raises:
            EndpointError: as `ask`.
            ValueError: there are no texts, or the cache is damaged.
        """
        if not texts:
            raise ValueError("There are no texts to embed.")
        digests = [_digest({"kind": "embedding", "model": model, "text": text}) for text in texts]
        by_digest = dict(zip(digests, texts, strict=True))

        def send(missing: list[bytes]) -> tuple[Callable[[], Reply], int]:
            batch = [by_digest[digest] for digest in missing]
            return self._connection.embeddings(model, batch), sum(map(rough_tokens, batch))

        answers = self._answers(digests, _TEXTS_PER_REQUEST, send)
        rows = [np.frombuffer(base64.b64decode(answer["embedding"]), "<f4") for answer in answers]
        if len(widths := {len(row) for row in rows}) > 1:
            raise EndpointError(f"The model {model!r} gave vectors of different widths: {sorted(widths)}.")
        return np.stack(rows).astype(np.float32)

    def in_order(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work` of each item, as many at a time as the settings allow, given out in the order of the items.

        Few items are taken before their turn. Whatever ends it early, an error of `work` or Ctrl-C, closes the
        endpoint, so that no thread goes on asking.
        """
        pool = ThreadPoolExecutor(self.settings.max_concurrency)
        ahead: deque[Future[Result]] = deque()
        finished = False
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 2 * self.settings.max_concurrency:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
            finished = True
        finally:
            if not finished:
                self.close()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End what waits and what is under way; what has arrived is stored first. Twice is once."""
        self._limits.leaving.set()
        self._connection.cut()
        with self._lock:
            under_way = list(self._under_way.values())
        wait(under_way, _LEAVING_SECONDS)
        self._connection.close()
        self._cache.close()

    def _answers(
        self, digests: list[bytes], batch_size: int, send: Callable[[list[bytes]], tuple[Callable[[], Reply], int]]
    ) -> list[dict[str, Any]]:
        """Answers by the hashes of what is asked: from the cache, from another thread that asks the same, or asked.

        Args:
            batch_size: hashes in one request.
            send: what asks for such a batch, and how many tokens that may take.
        """
        answers: dict[bytes, Future[dict[str, Any]]] = {}
        mine = []
        for digest in dict.fromkeys(digests):
            with self._lock:
                if digest not in self._under_way:
                    self._under_way[digest] = Future()
                    mine.append(digest)
                answers[digest] = self._under_way[digest]
        missing = []
        try:
            # Only now the cache: another thread stores an answer before it takes its mark away.
            for digest in mine:
                if (found := self._found(digest)) is None:
                    missing.append(digest)
                else:
                    self._settle(digest, found)
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                for digest, answer in zip(batch, self._send(batch, *send(batch)), strict=True):
                    self._settle(digest, answer)
        except BaseException as error:
            told = error if isinstance(error, Exception) else EndpointError("It was interrupted.")
            for digest in mine:
                if not answers[digest].done():
                    self._settle(digest, told)
            raise
        self._count(cached=len(digests) - len(missing))
        return [answers[digest].result() for digest in digests]

    def _found(self, digest: bytes) -> dict[str, Any] | None:
        self._check_open()
        return self._cache.find(digest)

    def _settle(self, digest: bytes, answer: dict[str, Any] | Exception) -> None:
        """Give an answer to whoever waits for it."""
        with self._lock:
            future = self._under_way.pop(digest)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _send(self, digests: list[bytes], send: Callable[[], Reply], tokens: int) -> list[dict[str, Any]]:
        """Ask until there is an answer, and store it."""
        with self._slots:
            tries, spent = 0, 0.0
            while True:
                self._limits.wait_for_turn(tokens)
                self._check_open()
                started = time.monotonic()
                reply = self._connection.attempt(send)
                spent += time.monotonic() - started
                if isinstance(reply, Reply):
                    self._reached = True
                    self._limits.correct(tokens, reply.prompt_tokens + reply.completion_tokens)
                    self._cache.store(dict(zip(digests, reply.answers, strict=True)))
                    self._count(
                        requests=1,
                        without_usage=int(not reply.has_usage),
                        prompt_tokens=reply.prompt_tokens,
                        completion_tokens=reply.completion_tokens,
                    )
                    return reply.answers
                self._check_open()
                if not reply.retry:
                    raise EndpointError(reply.message, reply.status)
                tries += 1
                pause = back_off(digests[0], tries)
                if reply.retry_after is not None:
                    pause += reply.retry_after
                    self._limits.pause(reply.retry_after)
                self._reached = self._reached or reply.is_servers
                most = self.settings.max_retries if self._reached else min(self.settings.max_retries, _FIRST_TRIES - 1)
                if tries > most or spent + pause > _PATIENCE_SECONDS:
                    raise EndpointError(
                        f"Given up after {tries} {'try' if tries == 1 else 'tries'} in {spent:.0f} seconds: "
                        f"{reply.message}",
                        reply.status,
                    )
                self._count(retries=1)
                self._limits.wait(pause)
                spent += pause

    def _check_open(self) -> None:
        if self._limits.leaving.is_set():
            raise EndpointError("The endpoint was closed before it answered.")

    def _count(self, **more: int) -> None:
        with self._lock:
            self._usage = replace(self._usage, **{name: getattr(self._usage, name) + n for name, n in more.items()})


def _digest(asked: dict[str, Any]) -> bytes:
    """SHA-256 of a whole request, however its keys are ordered and its pictures written down."""
    try:
        text = json.dumps(_canonical(asked), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).digest()
    except UnicodeEncodeError as error:
        raise ValueError(f"A text to send holds half a character: {error}. Read it in its own encoding.") from error


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) >= {"url"} and isinstance(value["url"], str) and value["url"].startswith("data:"):
            kind, _, data = value["url"].partition(";base64,")
            with suppress(ValueError):  # no base64: it stays what it is
                found = hashlib.sha256(base64.b64decode(data, validate=True)).hexdigest()
                value = value | {"url": f"{kind};sha256,{found}"}
        return {name: _canonical(item) for name, item in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def _without_thought(text: str) -> str:
    """What stands behind a thought; a server without a parser for thoughts leaves them in the answer."""
    if not text.lstrip().startswith("<think>"):
        return text
    return text.partition("</think>")[2].lstrip()


__all__ = [
    "EMPTY",
    "FILTERED",
    "TRUNCATED",
    "ChatEndpoint",
    "EndpointError",
    "EndpointSettings",
    "UnusableAnswerError",
]
