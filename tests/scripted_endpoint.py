"""An OpenAI-compatible server on loopback that answers as a script says, and fails where a test wants it to.

A script is a function from a `ChatRequest` to an answer: text, or a `Reply` for anything else (`FAULTS` has those that
real servers give). Faults strike by the number of the request, or a share of all requests; then what is asked and how
often it was asked decide, so that the same requests meet the same faults in whatever order they come.

    with ScriptedEndpoint(lambda request: "Yes.", faults={2: "429", 3: "cut body"}) as endpoint:
        OpenAI(base_url=endpoint.base_url, api_key="none")

In a process of its own, for tests that kill whoever asks (`endpoint_process` starts one):

    python tests/scripted_endpoint.py --port-file port --log log.jsonl --script my_module:my_script

The log has one line when a request arrives ("asked") and one when its answer begins to go out ("answered").
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from loopback_http import Fault, HubServer, Reply, Request
from loopback_store import HubError

EMBEDDING_WIDTH = 64
MODEL = "scripted"


@dataclass
class Call:
    """One request to the server.

    Attributes:
        number: of the requests to this path, from 1.
        body: what was asked.
        time, answered: seconds by the server's clock.
        fault: what it was answered with instead of the script's answer.
    """

    number: int
    path: str
    body: dict[str, Any]
    time: float
    fault: str | None = None
    answered: float | None = None

    @property
    def digest(self) -> str:
        """Same for the same body."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()


@dataclass
class ChatRequest(Call):
    """A request for a chat completion, and what scripts want to know of it."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]

    @property
    def text(self) -> str:
        """All texts of all messages, one below the other."""
        return "\n".join(part["text"] for part in self._parts() if part["type"] == "text")

    @property
    def question(self) -> str:
        """Texts of the last message."""
        return "\n".join(part["text"] for part in _parts(self.messages[-1]) if part["type"] == "text")

    @property
    def images(self) -> list[bytes]:
        """The files of the pictures, in their order."""
        urls = [part["image_url"]["url"] for part in self._parts() if part["type"] == "image_url"]
        return [base64.b64decode(url.partition(";base64,")[2]) for url in urls]

    def _parts(self) -> list[dict[str, Any]]:
        return [part for message in self.messages for part in _parts(message)]


Script: TypeAlias = Callable[[ChatRequest], "str | Reply"]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def completion(request: ChatRequest, content: str | None, finish_reason: str = "stop", **message: Any) -> Reply:
    """A well-formed answer; a word counts as a token."""
    prompt, answer = len(request.text.split()), len((content or "").split())
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    choice = {"index": 0, "finish_reason": finish_reason}
    choice["message"] = {"role": "assistant", "content": content} | message
    return Reply(
        {
            "id": f"chatcmpl-{request.number}",
            "object": "chat.completion",
            "created": int(request.time),
            "model": request.body["model"],
            "choices": [choice],
            "usage": usage,
        }
    )


def refusal(status: int, message: str, code: str | None = None, param: str | None = None, **headers: str) -> Reply:
    """An error in the words of OpenAI's servers; a header's underscores become hyphens."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Reply({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def page(status: int) -> Reply:
    """What a proxy in front of the server says."""
    text = f"<html><head><title>{status}</title></head><body><h1>{status} Bad gateway</h1></body></html>"
    return Reply(content=text.encode(), status=status, headers={"Content-Type": "text/html"})


def cut(reply: Reply) -> Reply:
    """The same answer, of which half arrives."""
    content = json.dumps(reply.payload).encode()
    return Reply(content=content, cut_after=len(content) // 2)


# Name -> what is answered instead. "cut" breaks the connection before an answer, "hang" waits before it answers.
FAULTS: dict[str, Callable[[ChatRequest], Reply]] = {
    "429": lambda request: refusal(429, "Rate limit reached.", "rate_limit_exceeded", Retry_After="0.05"),
    "500": lambda request: refusal(500, "The server had an error."),
    "502": lambda request: page(502),
    "503": lambda request: refusal(503, "The server is overloaded."),
    "529": lambda request: refusal(529, "Overloaded."),
    "cut": lambda request: Reply(status=None),
    "cut body": lambda request: cut(completion(request, "This answer does not arrive as a whole.")),
    "hang": lambda request: completion(request, "This answer comes too late."),
    "html": lambda request: page(200),
    "no json": lambda request: Reply(content=b'{"choices": [', headers={"Content-Type": "application/json"}),
    "no choices": lambda request: Reply({"id": "1", "object": "chat.completion", "choices": [], "usage": None}),
    "length": lambda request: completion(request, "This answer is cut", "length"),
    "null": lambda request: completion(request, None),
    "filter": lambda request: completion(request, None, "content_filter"),
    "400": lambda request: refusal(400, "The request is not valid."),
    "404": lambda request: refusal(404, f"The model `{request.body['model']}` does not exist.", "model_not_found"),
}
# Those that a client gets over by asking again.
TRANSIENT = ("429", "500", "502", "503", "529", "cut", "cut body", "html", "no json", "no choices")


class ScriptedEndpoint:
    """The server; a context manager that serves in threads of this process.

    Args:
        script: what to answer.
        faults: number of the chat request -> name in `FAULTS`.
        fault_share: so many of the chat requests fail besides, with one of `fault_names` each.
        key: refuse whoever has another.
        models: refuse all others, if there are any.
        hang_seconds: how long "hang" waits.
        log: file that gets a line for each request.

    Attributes:
        calls: all requests, in the order of their arrival.
    """

    def __init__(
        self,
        script: Script,
        *,
        faults: Mapping[int, str] | None = None,
        fault_share: float = 0.0,
        fault_names: tuple[str, ...] = TRANSIENT,
        seed: int = 0,
        key: str | None = None,
        models: tuple[str, ...] = (),
        hang_seconds: float = 2.0,
        log: Path | None = None,
    ) -> None:
        self.script, self.faults, self.fault_share, self.fault_names = script, faults or {}, fault_share, fault_names
        self.seed, self.key, self.models, self.hang_seconds = seed, key, models, hang_seconds
        self.calls: list[Call] = []
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._log = log.open("a", encoding="utf-8") if log is not None else None
        self._leaving = threading.Event()
        self._server = HubServer(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[ChatRequest]:
        """The chat requests so far."""
        return [call for call in self.calls if isinstance(call, ChatRequest)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving.set()  # answers that are late on purpose
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        if self._log is not None:
            self._log.close()

    def receive(self, method: str, path: str) -> Fault | None:
        """Faults strike what is asked, which is not known yet."""

    def answer(self, req: Request) -> Reply:
        """One request, logged."""
        if self.key is not None and req.headers.get("Authorization") != f"Bearer {self.key}":
            given = req.headers.get("Authorization", "").removeprefix("Bearer ")
            return refusal(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
        kind = req.path.removeprefix("/v1") if req.path.startswith("/v1/") else None
        if kind == "/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
            return Reply({"object": "list", "data": listed or [{"id": MODEL, "object": "model"}]})
        if kind not in ("/chat/completions", "/embeddings"):
            raise HubError(404, f"Not found: {req.path}")
        body = json.loads(req.body)
        call = self._arrived(ChatRequest if kind == "/chat/completions" else Call, kind, body)
        if self.models and body["model"] not in self.models:
            reply = refusal(404, f"The model `{body['model']}` does not exist.", "model_not_found")
        elif isinstance(call, ChatRequest):
            reply = self._chat(call)
        else:
            reply = _embeddings(body)
        call.answered = time.time()
        self._write(call, "answered")
        return reply

    def _arrived(self, kind: type[Call], path: str, body: dict[str, Any]) -> Any:
        with self._lock:
            number = sum(call.path == path for call in self.calls) + 1
            call = kind(number, path, body, time.time())
            self.calls.append(call)
            self._seen[call.digest] += 1
            if isinstance(call, ChatRequest):
                call.fault = self.faults.get(number)
                draw = random.Random(f"{self.seed} {call.digest} {self._seen[call.digest]}")
                if call.fault is None and draw.random() < self.fault_share:
                    call.fault = draw.choice(self.fault_names)
        self._write(call, "asked")
        return call

    def _chat(self, request: ChatRequest) -> Reply:
        if request.fault is not None:
            if request.fault == "hang":
                self._leaving.wait(self.hang_seconds)
            return FAULTS[request.fault](request)
        said = self.script(request)
        return completion(request, said) if isinstance(said, str) else said

    def _write(self, call: Call, event: str) -> None:
        if self._log is None:
            return
        line = {"event": event, "number": call.number, "path": call.path, "digest": call.digest, "time": time.time()}
        line |= {"fault": call.fault, "body": call.body}
        with self._lock:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()


def hashed_embedding(text: str) -> np.ndarray:
    """A vector of length 1 from the words and the pairs of characters of a text: alike for texts that are alike."""
    vector = np.zeros(EMBEDDING_WIDTH)
    text = text.lower()
    for piece in [*text.split(), *(text[start : start + 2] for start in range(len(text) - 1))]:
        digest = hashlib.sha256(piece.encode()).digest()
        vector[digest[0] % EMBEDDING_WIDTH] += 1.0 if digest[1] % 2 else -1.0
    return vector / (np.linalg.norm(vector) or 1.0)


def _embeddings(body: dict[str, Any]) -> Reply:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = []
    for index, text in enumerate(texts):
        vector = hashed_embedding(text)
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        wanted = encoded if body.get("encoding_format") == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": wanted})
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply({"object": "list", "model": body["model"], "data": data, "usage": usage})


def echo(request: ChatRequest) -> str:
    """The question."""
    return request.question


def slow_echo(request: ChatRequest) -> str:
    """The question, a twentieth of a second later."""
    time.sleep(0.05)
    return request.question


def slow_look(request: ChatRequest) -> str:
    """A sentence that no two pictures have in common, a twentieth of a second later."""
    time.sleep(0.05)
    return f"A picture with the check sum {zlib.crc32(request.images[0])}."


@contextmanager
def endpoint_process(
    folder: Path, script: str, *options: str, scripts: Path | None = None
) -> Iterator[EndpointProcess]:
    """This server in a process of its own, until the end of the `with`.

    Args:
        folder: gets the log and the port.
        script: a function here, or module:function.
        options: more of the command line.
        scripts: folder of that module.
    """
    log, port = folder / "endpoint_log.jsonl", folder / "endpoint_port"
    port.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--port-file", port, "--log", log, "--script", script, *options]
    process = subprocess.Popen(command, env=os.environ | ({"PYTHONPATH": str(scripts)} if scripts is not None else {}))
    try:
        while not port.exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield EndpointProcess(f"http://127.0.0.1:{port.read_text()}/v1", log)
    finally:
        process.kill()
        process.wait()


@dataclass
class EndpointProcess:
    """A server that runs elsewhere."""

    base_url: str
    log: Path

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What the log has of one kind so far."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["event"] == event]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="echo", help="a function here, or module:function")
    parser.add_argument("--port-file", type=Path, required=True, help="gets the port as soon as it is open")
    parser.add_argument("--log", type=Path, help="gets a line for each request")
    parser.add_argument("--fault-share", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    module, _, name = args.script.rpartition(":")
    script = getattr(importlib.import_module(module), name) if module else globals()[name]
    with ScriptedEndpoint(script, fault_share=args.fault_share, seed=args.seed, log=args.log) as endpoint:
        partial = args.port_file.with_suffix(".partial")
        partial.write_text(str(endpoint.port), encoding="utf-8")
        partial.replace(args.port_file)
        threading.Event().wait()


if __name__ == "__main__":
    _main()
