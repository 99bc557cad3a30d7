"""The endpoint's client against a real server: every fault that servers have, nothing asked twice, the key nowhere."""

import base64
import io
import logging
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_http import Reply
from PIL import Image
from scripted_endpoint import (
    FAULTS,
    TRANSIENT,
    ChatRequest,
    ScriptedEndpoint,
    completion,
    echo,
    endpoint_process,
    hashed_embedding,
    refusal,
    slow_echo,
)

from qwen_grafts.recipes.clara import request_limits
from qwen_grafts.recipes.clara.chat_endpoint import (
    EMPTY,
    FILTERED,
    TRUNCATED,
    ChatEndpoint,
    EndpointError,
    EndpointSettings,
    UnusableAnswerError,
)

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No settings of whoever runs the tests; back-off in hundredths of a second."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(request_limits, "_FIRST_WAIT", 0.01)


def client(server: ScriptedEndpoint, folder: Path, model: str = "writer", **settings: Any) -> ChatEndpoint:
    return ChatEndpoint(EndpointSettings(model, server.base_url, **settings), folder / "answers.sqlite")


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_an_answer_and_what_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedEndpoint(echo, key=KEY) as server, client(server, tmp_path) as endpoint:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "为什么"}]
        assert endpoint.ask(messages, max_tokens=7, temperature=0.5, json_object=True) == "为什么"
        assert server.chats[0].body == {
            "model": "writer",
            "messages": messages,
            "max_tokens": 7,
            "temperature": 0.5,
            "response_format": {"type": "json_object"},
        }
        usage = endpoint.usage
        assert (usage.requests, usage.cached, usage.retries) == (1, 0, 0)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cost) == (3, 1, None)


@pytest.mark.parametrize("fault", TRANSIENT)
def test_every_transient_fault_is_asked_again(tmp_path, fault):
    with ScriptedEndpoint(echo, faults={1: fault, 2: fault}) as server, client(server, tmp_path) as endpoint:
        assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"
        assert [call.fault for call in server.calls] == [fault, fault, None]
        assert (endpoint.usage.requests, endpoint.usage.retries) == (1, 2)


def test_a_server_that_is_too_slow_is_asked_again(tmp_path):
    with (
        ScriptedEndpoint(echo, faults={1: "hang"}, hang_seconds=1.0) as server,
        client(server, tmp_path, timeout=0.25) as endpoint,
    ):
        assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"
        assert endpoint.usage.retries == 1


def test_a_server_that_drips_is_not_waited_for_without_end(tmp_path):
    """Each byte arrives in time and the answer never does."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection = listener.accept()[0]
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            connection.close()

    threading.Thread(target=drip, daemon=True).start()
    settings = EndpointSettings("m", f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.4, max_retries=0)
    late = pytest.raises(EndpointError, match=r"no answer within 0\.4 seconds")
    with listener, ChatEndpoint(settings, tmp_path / "a.sqlite") as endpoint, late:
        endpoint.ask(user("Hello"), max_tokens=9)


def test_it_gives_up_with_the_last_reason(tmp_path):
    faults = dict.fromkeys(range(1, 20), "503")
    with ScriptedEndpoint(echo, faults=faults) as server, client(server, tmp_path, max_retries=3) as endpoint:
        with pytest.raises(EndpointError, match=r"Given up after 4 tries .* 503: The server is overloaded\.") as caught:
            endpoint.ask(user("Hello"), max_tokens=9)
        assert caught.value.status == 503
        assert len(server.calls) == 4


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (400, "The context is too long.", "too short a context"),
        (401, "Incorrect API key provided.", "OPENAI_API_KEY is not set"),
        (403, "Not allowed.", "may not use this"),
        (404, "The model `writer` does not exist.", "Check the name of the model, and the base URL"),
        (422, "Unexpected field.", "Look at what the server says"),
    ],
)
def test_what_asking_again_does_not_mend_ends_at_once(tmp_path, status, words, remedy):
    with ScriptedEndpoint(lambda request: refusal(status, words)) as server, client(server, tmp_path) as endpoint:
        with pytest.raises(EndpointError) as caught:
            endpoint.ask(user("Hello"), max_tokens=9)
        assert str(status) in str(caught.value) and words in str(caught.value) and remedy in str(caught.value)
        assert caught.value.status == status
        assert len(server.calls) == 1


def test_an_empty_quota_is_no_rate_limit(tmp_path):
    def script(request: ChatRequest) -> Reply:
        return refusal(429, "You exceeded your current quota.", "insufficient_quota")

    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint:
        with pytest.raises(EndpointError, match="exceeded your current quota"):
            endpoint.ask(user("Hello"), max_tokens=9)
        assert len(server.calls) == 1


@pytest.mark.parametrize("fault", ["length", "null", "filter"])
def test_an_unusable_answer_is_an_error_and_is_paid_for_once(tmp_path, fault):
    reason = {"length": TRUNCATED, "null": EMPTY, "filter": FILTERED}[fault]
    with ScriptedEndpoint(echo, faults={1: fault}) as server:
        for _ in range(2):  # the second time from the cache, by another process as it were
            with client(server, tmp_path) as endpoint:
                with pytest.raises(UnusableAnswerError) as caught:
                    endpoint.ask(user("Hello"), max_tokens=9)
                assert caught.value.reason == reason
                assert caught.value.text == ("This answer is cut" if fault == "length" else "")
        assert len(server.calls) == 1
        with client(server, tmp_path) as endpoint:
            assert endpoint.ask(user("Hello"), max_tokens=9, attempt=1) == "Hello"


def in_parts(request: ChatRequest) -> Reply:
    """As some servers answer, and without usage."""
    reply = completion(request, None)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    reply.payload["choices"][0]["message"]["content"] = parts
    del reply.payload["usage"]
    return reply


def test_a_refusal_and_parts_and_a_thought(tmp_path):
    answers = {
        "refuse": lambda request: completion(request, None, refusal="I cannot help with that."),
        "parts": in_parts,
        "think": lambda request: "<think>\nWhat is asked?\n</think>\n\nIt speaks of <think>.",
        "only think": lambda request: "<think>\nWhat is asked?",
        "half": lambda request: "half of a pair: \ud83d",
    }
    script = lambda request: answers[request.question](request)  # noqa: E731
    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint:
        with pytest.raises(UnusableAnswerError) as caught:
            endpoint.ask(user("refuse"), max_tokens=9)
        assert (caught.value.reason, caught.value.text) == (FILTERED, "I cannot help with that.")
        assert endpoint.ask(user("parts"), max_tokens=9) == "one two"
        assert endpoint.ask(user("think"), max_tokens=9) == "It speaks of <think>."
        with pytest.raises(UnusableAnswerError, match=EMPTY):
            endpoint.ask(user("only think"), max_tokens=9)
        assert endpoint.ask(user("half"), max_tokens=9) == "half of a pair: ?"
        assert endpoint.usage.without_usage == 1


def test_an_error_with_status_200_is_told(tmp_path):
    script = lambda request: Reply({"error": {"message": "Provider returned error", "code": 502}})  # noqa: E731
    with ScriptedEndpoint(script) as server, client(server, tmp_path, max_retries=1) as endpoint:
        with pytest.raises(EndpointError, match="Provider returned error"):
            endpoint.ask(user("Hello"), max_tokens=9)
        assert len(server.calls) == 2


def test_values_that_newer_models_refuse_are_sent_otherwise(tmp_path):
    def script(request: ChatRequest) -> str | Reply:
        if "max_tokens" in request.body:
            return refusal(400, "Use 'max_completion_tokens' instead.", "unsupported_parameter", "max_tokens")
        if "temperature" in request.body:
            return refusal(400, "Only the default is supported.", "unsupported_value", "temperature")
        return request.question

    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint:
        assert endpoint.ask(user("one"), max_tokens=9) == "one"
        assert endpoint.ask(user("two"), max_tokens=9) == "two"
        assert len(server.calls) == 4
        assert server.chats[-1].body == {"model": "writer", "messages": user("two"), "max_completion_tokens": 9}


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_retry_after_is_honoured(tmp_path, form):
    def script(request: ChatRequest) -> str | Reply:
        if request.number > 1:
            return request.question
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        header = {"seconds": {"Retry_After": "1"}, "milliseconds": {"Retry_After_Ms": "1000"}, "date": {}}[form]
        return refusal(429, "Slow down.", **(header or {"Retry_After": soon}))

    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint:
        endpoint.ask(user("Hello"), max_tokens=9)
        first, second = (call.time for call in server.calls)
        assert second - first > 0.9


def test_a_pause_holds_for_all_threads(tmp_path):
    def script(request: ChatRequest) -> str | Reply:
        return refusal(429, "Slow down.", Retry_After="1") if request.number == 1 else request.question

    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint, ThreadPoolExecutor(2) as pool:
        first = pool.submit(endpoint.ask, user("one"), max_tokens=9)
        while not server.calls:
            time.sleep(0.01)
        time.sleep(0.2)  # the first answer has come
        endpoint.ask(user("two"), max_tokens=9)
        first.result()
        times = [call.time for call in server.calls]
        assert min(times[1:]) - times[0] > 0.9


def test_a_wait_longer_than_patience_is_told(tmp_path):
    script = lambda request: refusal(429, "Come back tomorrow.", Retry_After="86400")  # noqa: E731
    told = pytest.raises(EndpointError, match=r"Given up after 1 try .*Come back tomorrow")
    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint, told:
        endpoint.ask(user("Hello"), max_tokens=9)


def test_headers_that_say_nothing():
    for value in ("soon", "", "nan", "Fri, 99 Foo 2026"):
        assert request_limits.seconds_to_wait({"retry-after": value}) is None, value
    assert request_limits.seconds_to_wait({"retry-after": "-3"}) == 0
    assert request_limits.seconds_to_wait({}) is None


def test_back_off_grows_is_spread_and_repeats(monkeypatch):
    monkeypatch.setattr(request_limits, "_FIRST_WAIT", 0.5)
    for tries in range(1, 12):
        waits = {request_limits.back_off(bytes([number]), tries) for number in range(50)}
        whole = min(60.0, 0.5 * 2 ** (tries - 1))
        assert len(waits) == 50
        assert whole / 2 <= min(waits) < 0.6 * whole and 0.9 * whole < max(waits) <= whole
    assert request_limits.back_off(b"x", 3) == request_limits.back_off(b"x", 3)


def test_nothing_is_asked_twice(tmp_path):
    with ScriptedEndpoint(echo) as server:
        with client(server, tmp_path) as endpoint:
            for _ in range(2):
                assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"
            assert (endpoint.usage.requests, endpoint.usage.cached) == (1, 1)
        with ScriptedEndpoint(echo) as elsewhere, client(elsewhere, tmp_path) as endpoint:
            assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"
            assert not elsewhere.calls  # where it is asked is no part of what is asked
        with client(server, tmp_path) as endpoint:
            endpoint.ask(user("Hello"), max_tokens=9, attempt=1)
            endpoint.ask(user("Hello"), max_tokens=10)
            endpoint.ask(user("Hello"), max_tokens=9, temperature=0.5)
            endpoint.ask(user("Hello"), max_tokens=9, json_object=True)
            endpoint.ask(user("Hello."), max_tokens=9)
            assert (endpoint.usage.requests, endpoint.usage.cached) == (5, 0)
        with client(server, tmp_path, model="other") as endpoint:
            endpoint.ask(user("Hello"), max_tokens=9)
        assert len(server.calls) == 7


def picture(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def test_pictures_are_told_apart_by_their_bytes(tmp_path):
    def ask(url: str) -> list[dict[str, Any]]:
        image = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]

    with ScriptedEndpoint(echo) as server, client(server, tmp_path) as endpoint:
        for colour in ("red", "green", "red"):
            endpoint.ask(ask(picture(colour)), max_tokens=9)
        assert (endpoint.usage.requests, endpoint.usage.cached) == (2, 1)
        assert Image.open(io.BytesIO(server.chats[1].images[0])).getpixel((0, 0)) == (0, 128, 0)


def test_one_request_for_threads_that_ask_the_same(tmp_path):
    with ScriptedEndpoint(slow_echo) as server, client(server, tmp_path) as endpoint, ThreadPoolExecutor(16) as pool:
        questions = [f"Question {number % 4}" for number in range(64)]
        answers = list(pool.map(lambda text: endpoint.ask(user(text), max_tokens=9), questions))
        assert answers == questions
        assert len(server.calls) == 4
        assert (endpoint.usage.requests, endpoint.usage.cached) == (4, 60)


def test_threads_that_wait_for_the_same_hear_of_the_error(tmp_path):
    def script(request: ChatRequest) -> Reply:
        time.sleep(0.2)
        return refusal(400, "No.")

    with ScriptedEndpoint(script) as server, client(server, tmp_path) as endpoint, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(endpoint.ask, user("Hello"), max_tokens=9) for _ in range(4)]
        for future in futures:
            with pytest.raises(EndpointError, match="No"):
                future.result()
        assert len(server.calls) == 1
        with pytest.raises(EndpointError, match="No"):  # an error is not kept
            endpoint.ask(user("Hello"), max_tokens=9)
        assert len(server.calls) == 2


def test_no_more_under_way_than_allowed(tmp_path):
    under_way, most, lock = 0, 0, threading.Lock()

    def script(request: ChatRequest) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.03)
        with lock:
            under_way -= 1
        return "x"

    with (
        ScriptedEndpoint(script) as server,
        client(server, tmp_path, max_concurrency=3) as endpoint,
        ThreadPoolExecutor(12) as pool,
    ):
        list(pool.map(lambda number: endpoint.ask(user(str(number)), max_tokens=9), range(24)))
        assert most == 3


def test_in_order_whatever_answers_first(tmp_path):
    def script(request: ChatRequest) -> str:
        time.sleep(0.001 * (int(request.question) * 7 % 23))
        return request.question

    taken = 0

    def items():
        nonlocal taken
        for number in range(60):
            taken += 1
            yield number

    faults = {"fault_share": 0.2, "seed": 5}
    with ScriptedEndpoint(script, **faults) as server, client(server, tmp_path, max_concurrency=4) as endpoint:
        results = []
        for result in endpoint.in_order(lambda number: endpoint.ask(user(str(number)), max_tokens=9), items()):
            results.append(result)
            assert taken - len(results) < 2 * 4  # bounded, however many there are
        assert results == [str(number) for number in range(60)]
        assert endpoint.usage.retries == len(server.calls) - 60 > 0


def test_an_error_ends_all_work(tmp_path):
    def script(request: ChatRequest) -> str | Reply:
        if request.question == "3":
            return refusal(403, "Enough.")
        time.sleep(0.02)
        return request.question

    with ScriptedEndpoint(script) as server, client(server, tmp_path, max_concurrency=2) as endpoint:
        with pytest.raises(EndpointError, match="Enough"):
            list(endpoint.in_order(lambda number: endpoint.ask(user(str(number)), max_tokens=9), range(1000)))
        assert len(server.calls) < 12


@pytest.mark.parametrize("limit", ["requests", "tokens"])
def test_limits_hold_over_all_threads(tmp_path, limit):
    """Ten a second: by the server's clock no second has more than that and what a second's bucket held."""
    tokens = 5 + 1 + 44  # a message, its text of four bytes, the answer
    settings = {"requests_per_minute": 600} if limit == "requests" else {"tokens_per_minute": 600 * tokens}
    reply = lambda request: _with_usage(completion(request, "x"), tokens)  # noqa: E731
    with (
        ScriptedEndpoint(reply) as server,
        client(server, tmp_path, max_concurrency=8, **settings) as endpoint,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda number: endpoint.ask(user(f"{number:04}"), max_tokens=44), range(35)))
        times = sorted(call.time for call in server.calls)
        assert times[-1] - times[0] > 2.2  # (35 - 10) / 10, less what the machine is late at the start


def _with_usage(reply: Reply, tokens: int) -> Reply:
    reply.payload["usage"] = {"prompt_tokens": tokens - 44, "completion_tokens": 44}
    return reply


def test_short_answers_give_back_what_was_held_for_long_ones(tmp_path):
    """Six hundred tokens a second, a thousand allowed an answer, fifty written: not two seconds for each request."""
    reply = lambda request: _with_usage(completion(request, "x"), 50)  # noqa: E731
    with ScriptedEndpoint(reply) as server, client(server, tmp_path, tokens_per_minute=36_000) as endpoint:
        started = time.monotonic()
        for number in range(30):
            endpoint.ask(user(str(number)), max_tokens=1000)
        assert time.monotonic() - started < 30  # 48 without


def test_tokens_are_put_right_by_what_the_server_counts():
    """Answers a tenth as long as allowed: ten times as many requests pass."""
    bucket, corrected = request_limits.TokenBucket(6000), request_limits.TokenBucket(6000)
    waits = [bucket.take(100) for _ in range(5)]
    for _ in range(5):
        wait = corrected.take(100)
        corrected.take(10 - 100)
    assert waits[-1] == pytest.approx(4.0, abs=0.1)
    assert wait < 0.5
    assert request_limits.TokenBucket(None).take(10**9) == 0
    small = request_limits.TokenBucket(60)
    assert small.take(600) == 0  # larger than the bucket: when that is full
    assert small.take(1) == pytest.approx(600, abs=0.1)


def test_embeddings(tmp_path):
    texts = [f"Text {number}" for number in range(70)] + ["Text 3"]
    wanted = np.stack([hashed_embedding(text) for text in texts])
    with ScriptedEndpoint(echo) as server:
        with client(server, tmp_path) as endpoint:
            vectors = endpoint.embed(texts, model="embedder")
            assert vectors.dtype == np.float32
            assert np.abs(vectors - wanted).max() < 1e-6
            assert [len(call.body["input"]) for call in server.calls] == [32, 32, 6]
            assert (endpoint.usage.requests, endpoint.usage.cached) == (3, 1)
            assert endpoint.usage.prompt_tokens == 140
            endpoint.embed(["Text 5", "new", "Text 3"], model="embedder")
            assert server.calls[-1].body["input"] == ["new"]
            endpoint.embed(["Text 5"], model="another")
            assert len(server.calls) == 5
            with pytest.raises(ValueError, match="no texts"):
                endpoint.embed([], model="embedder")
        with client(server, tmp_path) as endpoint:
            assert np.array_equal(endpoint.embed(texts, model="embedder"), vectors)
            assert endpoint.usage.requests == 0


def test_embeddings_of_many_threads(tmp_path):
    """Overlapping lists: each text once, and no two threads that wait for each other."""
    texts = [f"Text {number}" for number in range(60)]
    lists = [texts[start % 40 : start % 40 + 20] for start in range(0, 200, 7)] + [texts[::-1]]
    with ScriptedEndpoint(echo) as server, client(server, tmp_path) as endpoint, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda part: endpoint.embed(part, model="e"), lists))
        for part, result in zip(lists, results, strict=True):
            assert np.abs(result - np.stack([hashed_embedding(text) for text in part])).max() < 1e-6
        asked = Counter(text for call in server.calls for text in call.body["input"])
        assert asked == Counter(texts)


@pytest.mark.parametrize(
    "data", [[], [{"index": 0}], [{"index": 0, "embedding": [float("nan")]}], "x", [{"index": 0, "embedding": ["a"]}]]
)
def test_malformed_embeddings_are_never_kept(tmp_path, data, monkeypatch):
    import scripted_endpoint

    right = scripted_endpoint._embeddings
    monkeypatch.setattr(scripted_endpoint, "_embeddings", lambda body: Reply({"data": data}))
    with ScriptedEndpoint(echo) as server, client(server, tmp_path, max_retries=1) as endpoint:
        with pytest.raises(EndpointError, match="embeddings"):
            endpoint.embed(["x"], model="e")
        monkeypatch.setattr(scripted_endpoint, "_embeddings", right)
        assert endpoint.embed(["x"], model="e").shape == (1, 64)


def test_costs_by_the_users_prices(tmp_path):
    with ScriptedEndpoint(echo) as server:
        with client(server, tmp_path, input_price=2.0, output_price=10.0) as endpoint:
            endpoint.ask(user("one two three"), max_tokens=9)
            assert endpoint.usage.cost == pytest.approx((3 * 2 + 3 * 10) / 1e6)
            assert str(endpoint.usage).endswith("cost 0.0000.")
        with pytest.raises(ValueError, match="both prices"):
            client(server, tmp_path, input_price=2.0)


@pytest.mark.parametrize("name", ["max_concurrency", "requests_per_minute", "tokens_per_minute", "timeout"])
def test_settings_that_cannot_work(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        EndpointSettings("m", **{name: 0})


def test_where_to_ask(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="give `--base-url` or set OPENAI_BASE_URL"):
        ChatEndpoint(EndpointSettings("m"), tmp_path / "a.sqlite")
    for url in ("localhost:8000/v1", "ftp://host/v1", "http:///v1"):
        with pytest.raises(ValueError, match="should read http"):
            ChatEndpoint(EndpointSettings("m", url), tmp_path / "a.sqlite")
    assert not (tmp_path / "a.sqlite").exists()
    with ScriptedEndpoint(echo) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with ChatEndpoint(EndpointSettings("m"), tmp_path / "a.sqlite") as endpoint:
            assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"


@pytest.mark.parametrize("wrong", ["closed port", "no such host", "web page", "no v1"])
def test_a_wrong_base_url_is_told_soon(tmp_path, wrong):
    page = lambda request: FAULTS["html"](request)  # noqa: E731
    with ScriptedEndpoint(page) as server:
        url = {
            "closed port": "http://127.0.0.1:9/v1",
            "no such host": "http://no-such-host.invalid/v1",
            "web page": server.base_url,
            "no v1": server.base_url.removesuffix("/v1"),
        }[wrong]
        with ChatEndpoint(EndpointSettings("m", url), tmp_path / "a.sqlite") as endpoint:
            with pytest.raises(EndpointError) as caught:
                endpoint.ask(user("Hello"), max_tokens=9)
            word = {"web page": "check the base URL", "no v1": "usually ends in /v1"}.get(wrong, "cannot be reached")
            assert word in str(caught.value)
            assert len(server.calls) == (3 if wrong == "web page" else 0)


def test_half_a_character_is_told(tmp_path):
    told = pytest.raises(ValueError, match="half a character")
    with ScriptedEndpoint(echo) as server, client(server, tmp_path) as endpoint, told:
        endpoint.ask(user("\ud83d"), max_tokens=9)


@pytest.mark.parametrize(
    "words", ["Incorrect API key provided: {key}.", '{{"detail": "token {key} unknown"}}', "<b>{key}</b>"]
)
def test_the_key_is_nowhere(tmp_path, monkeypatch, caplog, capfd, words):
    """A server that repeats the key, in each kind of error; then every file, all output and all that errors hold."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = words.format(key=KEY)
    kinds = {
        "refused": lambda request: refusal(401, said),
        "plain": lambda request: Reply(content=said.encode(), status=403, headers={"Content-Type": "text/plain"}),
        "busy": lambda request: refusal(500, said),
        "no json": lambda request: Reply(content=said.encode()),
        "error": lambda request: Reply({"error": said}),
        "cut": FAULTS["cut"],
        "fine": lambda request: "Fine.",
    }
    caplog.set_level(logging.DEBUG)
    script = lambda request: kinds[request.question](request)  # noqa: E731
    with ScriptedEndpoint(script) as server, client(server, tmp_path, max_retries=1) as endpoint:
        for kind in kinds:
            try:
                endpoint.ask(user(kind), max_tokens=9)
            except EndpointError as error:
                assert KEY not in "".join(traceback.format_exception(error))
                assert error.__context__ is None and error.__cause__ is None
                assert kind in ("cut", "no json") or "[key]" in str(error)
        assert KEY not in repr(endpoint.settings) and KEY not in str(endpoint.usage)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in caplog.text
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
    assert len(server.calls) > 8


def test_the_right_key_is_sent_and_spaces_around_it_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with ScriptedEndpoint(echo, key=KEY) as server, client(server, tmp_path) as endpoint:
        assert endpoint.ask(user("Hello"), max_tokens=9) == "Hello"
    for wrong in ("sk-\nsecond line", "sk-ключ"):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        with pytest.raises(ValueError, match="characters that no key has") as caught:
            ChatEndpoint(EndpointSettings("m", "http://127.0.0.1:9/v1"), tmp_path / "b.sqlite")
        assert wrong not in str(caught.value)


def test_closing_ends_what_waits(tmp_path):
    """A thread reads from a server that does not answer, one backs off, one waits for its turn: all end at once."""

    def script(request: ChatRequest) -> str | Reply:
        if request.question == "slow":
            server._leaving.wait(30)
        return refusal(503, "Busy.", Retry_After="30")

    with ScriptedEndpoint(script) as server, ThreadPoolExecutor(4) as pool:
        endpoint = client(server, tmp_path, max_concurrency=2)
        futures = [pool.submit(endpoint.ask, user(text), max_tokens=9) for text in ("slow", "busy", "third", "fourth")]
        while len(server.calls) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        started = time.monotonic()
        endpoint.close()
        endpoint.close()
        for future in futures:
            with pytest.raises(EndpointError, match="closed before it answered"):
                future.result()
        assert time.monotonic() - started < 20  # the server answers after 30
        with pytest.raises(EndpointError, match="closed"):
            endpoint.ask(user("late"), max_tokens=9)


def run_child(server_url: str, folder: Path, questions: int) -> subprocess.Popen:
    code = """
import signal, sys
from pathlib import Path
from qwen_grafts.recipes.clara.chat_endpoint import ChatEndpoint, EndpointSettings
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what is started in the background
url, cache, count = sys.argv[1:]
with ChatEndpoint(EndpointSettings("m", url, max_concurrency=4), Path(cache)) as endpoint:
    def work(number):
        return endpoint.ask([{"role": "user", "content": f"Question {number}"}], max_tokens=9)
    for answer in endpoint.in_order(work, range(int(count))):
        print(answer, flush=True)
    print(endpoint.usage.requests, endpoint.usage.cached, flush=True)
"""
    command = [sys.executable, "-c", code, server_url, str(folder / "answers.sqlite"), str(questions)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_and_run_again(tmp_path):
    """Killed three times. No answered request is asked again, and of those under way at a kill four at most."""
    with endpoint_process(tmp_path, "slow_echo") as server:
        for kill_behind in (6, 17, 31):
            child = run_child(server.base_url, tmp_path, 60)
            for _ in range(kill_behind):
                assert child.stdout.readline().startswith("Question")
            child.kill()
            child.wait()
            child.stdout.close()
        child = run_child(server.base_url, tmp_path, 60)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert out.split("\n")[:60] == [f"Question {number}" for number in range(60)]
        requests, cached = map(int, out.split("\n")[60].split())
        assert requests + cached == 60 and cached >= 31
        lines = server.lines("asked")
    asked = Counter(line["digest"] for line in lines)
    assert len(asked) == 60
    assert sum(asked.values()) - 60 <= 3 * 4
    # The answers that were on the disk before a kill were not asked again: those the child printed, at least.
    first = {line["body"]["messages"][0]["content"]: asked[line["digest"]] for line in lines}
    assert all(first[f"Question {number}"] == 1 for number in range(6))


def test_ctrl_c_ends_soon(tmp_path):
    code = "def never(request):\n    import time\n    time.sleep(60)\n    return 'x'\n"
    (tmp_path / "never_script.py").write_text(code)
    with endpoint_process(tmp_path, "never_script:never", scripts=tmp_path) as server:
        child = run_child(server.base_url, tmp_path, 10)
        while len(server.lines("asked")) < 4:
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)  # the server is silent for twice as long
        assert "KeyboardInterrupt" in err


def test_without_the_client_it_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from pathlib import Path\n"
        "from qwen_grafts.recipes.clara.chat_endpoint import ChatEndpoint, EndpointSettings\n"
        "ChatEndpoint(EndpointSettings('m', 'http://127.0.0.1:9/v1'), Path('a.sqlite'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (
        "ValueError: Asking an endpoint takes the `openai` client: pip install 'qwen-grafts[synthesis]'." in done.stderr
    )
    assert not list(tmp_path.iterdir())
