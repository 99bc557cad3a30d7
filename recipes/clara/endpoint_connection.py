"""One try at an OpenAI-compatible endpoint by the `openai` client: its answer, or what went wrong as plain data.

The client's exceptions hold the request, and with it the key. So none of them leaves this file, not even as the context
of another: a try that fails returns a `Fault`. What servers say is searched for the key.
"""

import base64
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np

from .request_limits import seconds_to_wait

try:
    import httpx2
    import openai
except ImportError:  # the extra `synthesis`
    openai = None

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_CONNECT_SECONDS = 10.0
_SHOWN_CHARACTERS = 500
_NO_KEY = "none"  # servers without keys take any
_REMEDIES = {
    400: "The model may have too short a context for the request, or no eyes for its pictures",
    401: f"Put a valid key into the environment variable {KEY_VARIABLE}",
    403: f"The key in {KEY_VARIABLE} may not use this; ask whoever runs the server",
    404: "Check the name of the model, and the base URL: it usually ends in /v1",
    429: "Wait until there is quota again",
}


class EndpointError(RuntimeError):
    """The endpoint does not answer.

    Attributes:
        status: of the server's last word; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """What came back: one answer, or one for each text to embed."""

    answers: list[dict[str, Any]]
    has_usage: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Fault:
    """Why a try failed.

    Attributes:
        retry: whether another try may succeed.
        retry_after: seconds that the server asks to wait.
        is_servers: it came from what understands the protocol, or from a connection that stood; otherwise the base URL
            may be wrong.
    """

    message: str
    status: int | None = None
    retry: bool = True
    retry_after: float | None = None
    is_servers: bool = True


class _MalformedError(Exception):
    """An answer that is none."""


class EndpointConnection:
    """The client, with its key.

    Args:
        base_url: None takes OPENAI_BASE_URL, and without it OpenAI's own, if there is a key.
        timeout: seconds until an answer begins, and again until it ends.

    Raises:
        ValueError: `openai` is not installed, the key is none, or nothing says where to ask.
    """

    def __init__(self, base_url: str | None, timeout: float) -> None:
        if openai is None:
            raise ValueError("Asking an endpoint takes the `openai` client: pip install 'qwen-grafts[synthesis]'.")
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key.isascii() or not key.isprintable():
            raise ValueError(f"{KEY_VARIABLE} holds characters that no key has. Set it again.")
        base_url = base_url or os.environ.get(URL_VARIABLE, "").strip() or None
        if base_url is None and not key:
            raise ValueError(
                f"Nothing says where to ask: give `--base-url` or set {URL_VARIABLE}. For OpenAI's own endpoint set "
                f"{KEY_VARIABLE}."
            )
        if base_url is not None and not re.match(r"https?://[^/]", base_url):
            raise ValueError(f"The base URL {base_url!r} should read http://HOST:PORT/v1 or https://HOST/v1.")
        self.timeout = timeout
        self._key = key
        self._lock = threading.Lock()
        self._leaving = False
        self._sockets: WeakSet[socket.socket] = WeakSet()
        # Newer models of OpenAI refuse these two, and say so: they have another name for the one and take no other.
        self._limit_name, self._sends_temperature = "max_tokens", True
        self._client = openai.OpenAI(
            api_key=key or _NO_KEY,
            base_url=base_url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
                event_hooks={"request": [self._watch]},
            ),
        )

    def chat(self, request: dict[str, Any]) -> Callable[[], Reply]:
        """What asks for a chat completion when it is called."""

        def send() -> Reply:
            values = dict(request)
            values[self._limit_name] = values.pop("max_tokens")
            if not self._sends_temperature:
                del values["temperature"]
            with self._client.chat.completions.with_streaming_response.create(**values) as response:
                return _chat_reply(self._read(response))

        return send

    def embeddings(self, model: str, texts: list[str]) -> Callable[[], Reply]:
        """What asks for the embeddings of some texts when it is called."""

        def send() -> Reply:
            with self._client.embeddings.with_streaming_response.create(
                model=model, input=texts, encoding_format="float"
            ) as response:
                return _embeddings_reply(self._read(response), len(texts))

        return send

    def attempt(self, send: Callable[[], Reply]) -> Reply | Fault:
        """One try."""
        try:
            return send()
        except _MalformedError as error:
            html = str(error).startswith("an HTML page")
            return Fault(self._told(f"the server answered with {error}."), is_servers=not html)
        except (openai.APITimeoutError, httpx2.TimeoutException):
            return Fault(f"no answer within {self.timeout:g} seconds.")
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            unreachable = isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol)
            what = f"{self._where()} cannot be reached" if unreachable else "the connection broke"
            return Fault(self._told(f"{what}: {cause or type(cause).__name__}."), is_servers=not unreachable)
        except openai.APIStatusError as error:
            fault = self._refused(error)
            if fault.status == 400 and self._adapt(error):
                return self.attempt(send)
            return fault

    def cut(self) -> None:
        """Break all connections, so that whoever reads from one of them stops; there will be no more."""
        with self._lock:
            self._leaving = True
            for connection in list(self._sockets):
                _shut(connection)

    def close(self) -> None:
        """Give everything back."""
        self._client.close()

    def _watch(self, request: Any) -> None:
        request.extensions["trace"] = self._connected

    def _connected(self, event: str, info: dict[str, Any]) -> None:
        if not event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            return
        connection = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets.add(connection)
            if self._leaving:
                _shut(connection)

    def _read(self, response: Any) -> Any:
        """The JSON of an answer. A server that sends a byte now and then does not keep us for ever."""
        started, pieces = time.monotonic(), []
        for piece in response.iter_bytes():
            pieces.append(piece)
            if time.monotonic() - started > self.timeout:
                raise httpx2.ReadTimeout("")
        content = b"".join(pieces)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            shown = content[:_SHOWN_CHARACTERS].decode("utf-8", "replace").strip()
        if shown.startswith("<"):
            raise _MalformedError(f"an HTML page instead of JSON ({_words(shown)}); check the base URL")
        raise _MalformedError(f"something that is no JSON: {_words(shown)!r}")

    def _refused(self, error: Any) -> Fault:
        """What an answer with an error status says."""
        status, body = error.status_code, error.body
        code = body.get("code") if isinstance(body, dict) else None
        said = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
        said = _words(said if isinstance(said, str) else json.dumps(said, default=str))
        out_of_quota = code == "insufficient_quota"
        retry = (status in (408, 409, 429) or status >= 500) and not out_of_quota
        message = f"{self._where()} answered with {status}: {said or 'without a word'}"
        message = message if message.endswith((".", "!", "?")) else f"{message}."
        if not retry:
            remedy = _REMEDIES.get(status, "Look at what the server says of the request")
            if status == 401 and not self._key:
                remedy = f"{KEY_VARIABLE} is not set; put the server's key into it"
            message += f" {remedy}."
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return Fault(self._told(message), status, retry, seconds_to_wait(headers) if retry else None)

    def _adapt(self, error: Any) -> bool:
        """Whether the next try has a better chance, because a value that this model refuses is sent otherwise."""
        if error.param == "max_tokens" and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
            return True
        if error.param == "temperature" and self._sends_temperature:
            self._sends_temperature = False
            return True
        return False

    def _where(self) -> str:
        url = self._client.base_url
        return f"{url.scheme}://{url.netloc.decode()}{url.path}".rstrip("/")

    def _told(self, message: str) -> str:
        """A message without the key, whole or in the way that JSON and URLs write it."""
        return message.replace(self._key, "[key]") if self._key else message


def _chat_reply(data: Any) -> Reply:
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices:
        error = data.get("error") if isinstance(data, dict) else None
        if error:  # some proxies send the error of the server behind them with status 200
            raise _MalformedError(f"an error: {_words(json.dumps(error, default=str))}")
        raise _MalformedError("no choices")
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise _MalformedError("a choice without a message")
    content = message.get("content")
    if isinstance(content, list):  # in parts, as some servers do
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if not isinstance(content, str | None):
        raise _MalformedError("a message whose content is no text")
    answer = {
        # Half of a surrogate pair is no text, and no file could be written with it.
        "text": (content or "").encode("utf-8", "replace").decode(),
        "finish_reason": choices[0].get("finish_reason"),
        "refusal": message.get("refusal") or "",
    }
    return _with_usage([answer], data)


def _embeddings_reply(data: Any, count: int) -> Reply:
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise _MalformedError(f"not {count} embeddings")
    try:
        ordered = sorted(rows, key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in ordered], dtype="<f4")
    except (TypeError, KeyError, ValueError):
        raise _MalformedError("embeddings that are no lists of numbers of one length") from None
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise _MalformedError("embeddings that are no finite numbers")
    return _with_usage([{"embedding": base64.b64encode(row.tobytes()).decode()} for row in vectors], data)


def _with_usage(answers: list[dict[str, Any]], data: dict[str, Any]) -> Reply:
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else 0 for count in counts)
    return Reply(answers, isinstance(counts[0], int), prompt, completion)


def _words(text: str) -> str:
    """A server's words on one line, without the tags of a page, and not too many of them."""
    if text.lstrip().startswith("<"):
        text = re.sub(r"<[^>]*>", " ", text)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # closed already
        # Not a TLS socket's own method, which takes its state away from the thread that reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


__all__ = ["KEY_VARIABLE", "URL_VARIABLE", "EndpointConnection", "EndpointError", "Fault", "Reply"]
