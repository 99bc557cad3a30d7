"""HTTP for servers on loopback: one request in, one answer out, faults on demand. What they mean is the server's."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import traceback
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_store import HubError, Json


@dataclass
class Request:
    """One request, and what its path names: the groups of its route, the repository, the commit."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes
    args: dict[str, str] = field(default_factory=dict)
    repo: Json = field(default_factory=dict)
    commit: Json = field(default_factory=dict)


@dataclass
class Reply:
    """One answer: something that JSON can hold, bytes as they are, or a file on disk of which a range may be asked.

    With `cut_after` the connection breaks behind so many bytes of it, and without a status before the first one.
    """

    payload: Any = None
    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    content: bytes | None = None
    cut_after: int | None = None


@dataclass
class Fault:
    """Strikes the matching requests `first` to `first + times - 1`; without a status it cuts them off."""

    first: int
    times: int
    status: int | None
    method: str | None
    path_contains: str
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if self.method not in (None, method) or self.path_contains not in path:
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class Hub(Protocol):
    """Who answers."""

    def receive(self, method: str, path: str) -> Fault | None:
        """Logs a request and tells which fault, if any, strikes it."""

    def answer(self, req: Request) -> Reply:
        """Answers a request, or raises `HubError`."""


class HubServer(ThreadingHTTPServer):
    """A threaded server that knows its open connections and says nothing of those that a client breaks."""

    daemon_threads = True
    request_queue_size = 128  # clients that come all at once wait for none of their connections

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # errors of an answer become a 500; only broken connections come here


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; what they mean is the hub's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        fault = hub.receive(self.command, unquote(url.path))
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.status is None:
            self.rfile.read(length // 2 if self.command == "PUT" else length)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client went away
            self.close_connection = True
            return
        try:
            if fault is not None and fault.status is not None:
                raise HubError(fault.status, "Failed because the test asked for it")
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            reply = hub.answer(Request(self.command, url.path, query, self.headers, body))
        except HubError as error:
            reply = Reply({"error": str(error)}, error.status, error.headers)
        except Exception:
            reply = Reply({"error": traceback.format_exc()}, 500)
        if reply.status is None:
            self.close_connection = True
            return
        self._send(reply)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # the base class looks up one method for each HTTP method
            return self._serve
        raise AttributeError(name)

    def _send(self, reply: Reply) -> None:
        status, headers, start, content = reply.status, dict(reply.headers), 0, b""
        if reply.file is None:
            content = reply.content if reply.content is not None else json.dumps(reply.payload, default=str).encode()
            length = len(content)
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        else:
            size, headers["Content-Type"] = reply.file.stat().st_size, "application/octet-stream"
            status, start, length = _byte_range(self.headers.get("Range"), size)
            if status != 200:
                part = f"{start}-{start + length - 1}" if status == 206 else "*"
                headers["Content-Range"] = f"bytes {part}/{size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: reply.cut_after])
        if reply.cut_after is not None:
            self.close_connection = True
        if reply.file is not None:
            with reply.file.open("rb") as file:
                file.seek(start)
                while length > 0 and (piece := file.read(min(length, 1 << 20))):
                    self.wfile.write(piece)
                    length -= len(piece)

    def log_message(self, *args: Any) -> None:
        pass


def _byte_range(header: str | None, size: int) -> tuple[int, int, int]:
    """(status, start, length) of the part of a file that a `Range` header asks for."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "", re.IGNORECASE)
    if found is None or not (found[1] or found[2]):
        return 200, 0, size
    if found[1]:
        start, end = int(found[1]), min(int(found[2] or size), size - 1)
    else:
        start, end = max(size - int(found[2]), 0), size - 1
    return (206, start, end - start + 1) if start <= end else (416, 0, 0)
