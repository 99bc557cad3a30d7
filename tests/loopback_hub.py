"""A small Hugging Face Hub on 127.0.0.1, for tests that push and load by repository id over HTTP.

It answers the calls that `huggingface_hub` and `transformers` really make, so nothing has to be replaced on the
client's side: create a repository, upload (regular files and Git LFS, not Xet), commit, list, download, branch, tag,
open a pull request, delete. Everything is kept on disk below one folder: contents by their hash, and for each
repository one JSON file with its commits, every commit a whole snapshot. That file is replaced in one step, so a
commit is seen whole or not at all. Requests can be made to fail or to be cut off, by order, method and path.

    with LoopbackHub(tmp_path / "hub", token="hf_test") as hub:
        api = HfApi(endpoint=hub.endpoint, token="hf_test")          # in this process
        run([sys.executable, ...], env=os.environ | environment(hub, tmp_path / "home"))   # or in a child
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import re
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

Json: TypeAlias = dict[str, Any]

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".arrow", ".parquet")
LFS_THRESHOLD = 64 * 1024
CHUNK = 1 << 20

_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
_REV = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], str]] = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", r"/api/whoami-v2", "_whoami"),
        ("POST", r"/api/validate-yaml", "_validate_yaml"),
        ("POST", r"/api/repos/create", "_create_repo"),
        ("DELETE", r"/api/repos/delete", "_delete_repo"),
        ("POST", rf"{_WEB}\.git/info/lfs/objects/batch", "_lfs_batch"),
        ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})", "_lfs_put"),
        ("GET", rf"{_WEB}/(?:resolve|raw)/{_REV}/(?P<path>.+)", "_resolve"),
        ("GET", rf"{_API}(?:/revision/{_REV})?", "_info"),
        ("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.*))?", "_tree"),
        ("POST", rf"{_API}/paths-info/{_REV}", "_paths_info"),
        ("GET", rf"{_API}/refs", "_refs"),
        ("GET", rf"{_API}/commits/{_REV}", "_commits"),
        ("POST", rf"{_API}/preupload/{_REV}", "_preupload"),
        ("POST", rf"{_API}/commit/{_REV}", "_commit"),
        ("POST", rf"{_API}/(?P<space>branch|tag)/(?P<name>[^/]+)", "_create_ref"),
        ("DELETE", rf"{_API}/(?P<space>branch|tag)/(?P<name>[^/]+)", "_delete_ref"),
        ("GET", rf"{_API}/discussions", "_discussions"),
        ("POST", rf"{_API}/discussions", "_open_discussion"),
        ("GET", rf"{_API}/discussions/(?P<num>\d+)", "_discussion"),
    )
]


class HubError(Exception):
    """An error answer: its HTTP status, its text and the code that the client turns into an exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message.encode("ascii", "replace").decode().replace("\n", " ")}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Request:
    """One request, its body already read: into memory, or for a PUT into the file `upload`."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes = b""
    upload: Path | None = None

    def json(self) -> Json:
        """The body as a JSON object (an empty body is an empty object)."""
        try:
            payload = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not valid JSON: {error}") from error
        if not isinstance(payload, dict):
            raise HubError(400, "The body is not a JSON object")
        return payload


@dataclass
class Reply:
    """One answer: something JSON can hold, or (`file`) a file on disk of which a range may be asked."""

    payload: Any = None
    status: int = 200
    headers: dict[str, str] | None = None
    file: Path | None = None


@dataclass
class Fault:
    """Fails the requests number `first` to `first + times - 1` among those that match (no `status`: cut off)."""

    first: int
    times: int
    status: int | None
    method: str | None
    path_contains: str
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Counts the request if it matches, and tells whether it is one that must fail."""
        if self.method not in (None, method) or self.path_contains not in path:
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class LoopbackHub:
    """The hub: a context manager that serves in a daemon thread, on a free port of 127.0.0.1.

    Every namespace may be written to with the one token. A repository starts, as on the real Hub, with a first
    commit that holds `.gitattributes`. A hub opened later on the same `root` finds the repositories again.
    """

    def __init__(self, root: Path, *, token: str, username: str = "tester", lfs: bool = True) -> None:
        self.root, self.token, self.username, self.lfs = Path(root), token, username, lfs
        self.endpoint = ""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request received, the path percent-decoded and without its query."""
        self.unknown_requests: list[tuple[str, str]] = []
        """Those of `requests` for which this hub has no answer (404 without an error code)."""
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server: _Server | None = None
        for folder in ("blobs", "repos", "incoming"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ running

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves until `stop` is called; `endpoint` is set from here on."""
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stops serving and closes the connections that clients keep open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None

    def fail_request(
        self, n: int, status: int = 500, method: str | None = None, path_contains: str = "", times: int = 1
    ) -> None:
        """Answers the n-th matching request from now on (1: the next one), and `times` in a row, with `status`.

        The client itself retries 408, 429 and 5xx on most calls (up to 5 times, waiting 1, 2, 4, 8, 8 s), but not on
        the commit; another status (403, say) is final. Faults given one after the other count independently.
        """
        with self._lock:
            self._faults.append(Fault(n, times, status, method, path_contains))

    def drop_request(
        self, n: int, method: str | None = None, path_contains: str = "", times: int = 1
    ) -> None:
        """The same, but the connection is closed without an answer; for a PUT, after half of its body."""
        with self._lock:
            self._faults.append(Fault(n, times, None, method, path_contains))

    # ------------------------------------------------------------------ looking in from a test

    def exists(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether the repository is there, private or not."""
        return self._repo_file(repo_type, repo_id).is_file()

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes | int]:
        """The paths at a revision; with the content of a regular file, with the size of an LFS file."""
        files = self._snapshot(self._load(repo_type, repo_id), revision)["files"]
        return {
            path: entry["size"] if entry["lfs"] else self._blob(entry["oid"]).read_bytes()
            for path, entry in files.items()
        }

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """The content of one file, LFS or not."""
        files = self._snapshot(self._load(repo_type, repo_id), revision)["files"]
        return self._blob(files[path]["oid"]).read_bytes()

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Json]:
        """The commits that lead to a revision, newest first: {id, parent, title, message, date, files}."""
        repo = self._load(repo_type, repo_id)
        return list(self._history(repo, self._snapshot(repo, revision)))

    # ------------------------------------------------------------------ storage

    def _blob(self, oid: str) -> Path:
        return self.root / "blobs" / oid

    def _repo_file(self, kind: str | None, repo_id: str) -> Path:
        if not re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", repo_id):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.root / "repos" / _repo_type(kind) / f"{repo_id}.json"

    def _load(self, kind: str | None, repo_id: str) -> Json:
        try:
            return json.loads(self._repo_file(kind, repo_id).read_bytes())
        except FileNotFoundError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def _save(self, repo: Json) -> None:
        self._replace(self._repo_file(repo["type"], repo["id"]), json.dumps(repo, indent=1).encode())

    def _replace(self, path: Path, content: bytes) -> None:
        """Writes a file in one step: a reader sees the old content or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.root / "incoming")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)

    def _put_regular(self, content: bytes) -> Json:
        """Stores the content of a regular file under its git hash."""
        oid = _git_hash("blob", content)
        self._replace(self._blob(oid), content)
        return {"oid": oid, "size": len(content), "lfs": False}

    def _add_commit(
        self, repo: Json, ref: str, parent: str | None, title: str, text: str, files: Json
    ) -> str:
        commit = {"parent": parent, "title": title, "message": text, "date": _now(), "files": files}
        oid = _git_hash("commit", json.dumps([len(repo["commits"]), repo["id"], commit]).encode())
        repo["commits"].append({"id": oid, **commit})
        repo["refs"][ref] = oid
        self._save(repo)
        return oid

    def _snapshot(self, repo: Json, revision: str) -> Json:
        """The commit that a branch, a tag, a full ref or a commit hash stands for."""
        refs = repo["refs"]
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        oid = next((refs[name] for name in names if name in refs), revision)
        for commit in repo["commits"]:
            if commit["id"] == oid:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _history(self, repo: Json, commit: Json | None) -> Iterator[Json]:
        by_id = {item["id"]: item for item in repo["commits"]}
        while commit is not None:
            yield commit
            commit = by_id.get(commit["parent"])

    # ------------------------------------------------------------------ answering

    def answer(self, request: Request) -> Reply:
        """Finds the route of a request and answers it."""
        authorization = request.headers.get("Authorization")
        if authorization is not None and not self._is_token(authorization):
            raise HubError(401, "Invalid credentials in Authorization header")
        wanted = "GET" if request.method == "HEAD" else request.method
        for method, pattern, name in ROUTES:
            if method == wanted and (match := pattern.fullmatch(request.path)):
                groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                if method == "GET" or name in ("_paths_info", "_validate_yaml", "_lfs_put"):
                    return getattr(self, name)(request, **groups)
                self._require_token(request)
                with self._lock:
                    return getattr(self, name)(request, **groups)
        self.unknown_requests.append((request.method, unquote(request.path)))
        raise HubError(404, f"No such route: {request.method} {request.path}")

    def _is_token(self, authorization: str) -> bool:
        return hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())

    def _require_token(self, request: Request) -> None:
        if request.headers.get("Authorization") is None:
            raise HubError(401, "Invalid username or password.")

    def _open(self, request: Request, kind: str | None, repo_id: str) -> Json:
        """The repository, if the caller may see it."""
        repo = self._load(kind, repo_id)
        if repo["private"] and request.headers.get("Authorization") is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _url(self, repo: Json) -> str:
        return f"{self.endpoint}/{'' if repo['type'] == 'model' else repo['type'] + 's/'}{repo['id']}"

    def _whoami(self, request: Request) -> Reply:
        self._require_token(request)
        auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        user = {"type": "user", "id": self.username, "name": self.username, "fullname": self.username}
        return Reply({**user, "email": None, "isPro": False, "orgs": [], "auth": auth})

    def _validate_yaml(self, request: Request) -> Reply:
        try:
            card = _card_data(request.json()["content"])
        except (yaml.YAMLError, ValueError) as error:
            return Reply({"error": "Bad metadata", "errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if card is not None else [{"message": "empty or missing yaml metadata in repo card"}]
        return Reply({"errors": [], "warnings": warnings})

    def _create_repo(self, request: Request) -> Reply:
        asked = request.json()
        kind, repo_id = asked.get("type"), f"{asked.get('organization') or self.username}/{asked.get('name')}"
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = {"id": repo_id, "type": _repo_type(kind), "private": private, "created": _now()}
        url = {"url": self._url(repo), "name": repo_id}
        if self.exists(repo_id, _repo_type(kind)):
            return Reply({"error": f"You already created this {repo['type']} repo", **url}, 409)
        repo |= {"refs": {}, "commits": [], "discussions": []}
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        files = {".gitattributes": self._put_regular(attributes.encode())}
        self._add_commit(repo, "refs/heads/main", None, "initial commit", "", files)
        return Reply(url)

    def _delete_repo(self, request: Request) -> Reply:
        asked = request.json()
        repo_id = f"{asked.get('organization') or self.username}/{asked.get('name')}"
        self._load(asked.get("type"), repo_id)
        self._repo_file(asked.get("type"), repo_id).unlink()
        return Reply({})

    # ------------------------------------------------------------------ reading

    def _info(self, request: Request, kind: str, repo_id: str, revision: str | None) -> Reply:
        repo = self._open(request, kind, repo_id)
        commit = self._snapshot(repo, revision or "main")
        siblings = []
        for path, entry in commit["files"].items():
            blob = _file_info(path, entry)
            detail = {"size": blob["size"], "blobId": blob["oid"]}
            detail |= {"lfs": {**blob["lfs"], "sha256": entry["oid"]}} if entry["lfs"] else {}
            siblings.append({"rfilename": path, **(detail if "blobs" in request.query else {})})
        info = {"_id": repo_id, "id": repo_id, "author": repo_id.split("/")[0], "sha": commit["id"]}
        info |= {"private": repo["private"], "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        info |= {"createdAt": repo["created"], "lastModified": commit["date"], "siblings": siblings}
        card = None
        if (readme := commit["files"].get("README.md")) is not None:
            try:
                card = _card_data(self._blob(readme["oid"]).read_text("utf-8"))
            except (yaml.YAMLError, ValueError):
                pass  # a broken card hides its data, not the repository
        tags = (card or {}).get("tags") or []
        info |= {"tags": tags, **({"cardData": card} if card else {})}
        return Reply(info | ({"modelId": repo_id} if repo["type"] == "model" else {}))

    def _resolve(self, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Reply:
        commit = self._snapshot(self._open(request, kind, repo_id), revision)
        entry = commit["files"].get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit["id"])
        headers = {"X-Repo-Commit": commit["id"], "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": headers["ETag"]}
        return Reply(headers=headers, file=self._blob(entry["oid"]))

    def _tree(self, request: Request, kind: str, repo_id: str, revision: str, path: str | None) -> Reply:
        commit = self._snapshot(self._open(request, kind, repo_id), revision)
        start = f"{path.strip('/')}/" if path else ""
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {**_folders(commit["files"]), **commit["files"]}
        below = [name for name in entries if name.startswith(start)]
        if start and not below:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        kept = sorted(name for name in below if recursive or "/" not in name[len(start) :])
        return Reply([_file_info(name, entries[name]) for name in kept])

    def _paths_info(self, request: Request, kind: str, repo_id: str, revision: str) -> Reply:
        commit = self._snapshot(self._open(request, kind, repo_id), revision)
        if "json" in request.headers.get("Content-Type", ""):
            paths = request.json().get("paths", [])
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        entries = {**_folders(commit["files"]), **commit["files"]}
        return Reply([_file_info(path, entries[path]) for path in paths if path in entries])

    def _refs(self, request: Request, kind: str, repo_id: str) -> Reply:
        repo = self._open(request, kind, repo_id)

        def named(start: str) -> list[Json]:
            refs = ((ref, oid) for ref, oid in repo["refs"].items() if ref.startswith(start))
            return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid} for ref, oid in refs]

        answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
        asked = "include_prs" in request.query
        return Reply(answer | ({"pullRequests": named("refs/pr/")} if asked else {}))

    def _commits(self, request: Request, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._open(request, kind, repo_id)
        authors = [{"user": self.username}]
        return Reply(
            [
                {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": authors}
                for commit in self._history(repo, self._snapshot(repo, revision))
            ]
        )

    # ------------------------------------------------------------------ writing

    def _preupload(self, request: Request, kind: str, repo_id: str, revision: str) -> Reply:
        present = self._snapshot(self._open(request, kind, repo_id), revision)["files"]
        answer = []
        for file in request.json()["files"]:
            binary = file["size"] > LFS_THRESHOLD or file["path"].endswith(LFS_SUFFIXES)
            mode = "lfs" if self.lfs and (binary or b"\0" in base64.b64decode(file["sample"])) else "regular"
            oid = present.get(file["path"], {}).get("oid")
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Reply({"files": answer})

    def _sign(self, oid: str, size: int | str) -> str:
        return hmac.new(self.token.encode(), f"{oid}:{size}".encode(), "sha256").hexdigest()

    def _lfs_batch(self, request: Request, kind: str | None, repo_id: str) -> Reply:
        self._open(request, kind, repo_id)
        answer: list[Json] = []
        for item in request.json()["objects"]:
            oid, size = item["oid"], item["size"]
            answer.append({"oid": oid, "size": size})
            if not self._has_lfs(oid, size):  # no actions: the content is there already
                query = urlencode({"size": size, "signature": self._sign(oid, size)})
                answer[-1]["actions"] = {"upload": {"href": f"{self.endpoint}/lfs-storage/{oid}?{query}"}}
        return Reply({"transfer": "basic", "objects": answer})

    def _has_lfs(self, oid: Any, size: int | None) -> bool:
        if not re.fullmatch(r"[0-9a-f]{64}", str(oid)) or not self._blob(oid).is_file():
            return False
        return size is None or self._blob(oid).stat().st_size == size

    def _lfs_put(self, request: Request, oid: str) -> Reply:
        """Takes an upload on the signature in its address: the client sends no token with it."""
        size, signature = (request.query.get(name, [""])[0] for name in ("size", "signature"))
        if not hmac.compare_digest(signature, self._sign(oid, size)):
            raise HubError(403, "The upload address is not signed by this hub")
        assert request.upload is not None
        with request.upload.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != oid or request.upload.stat().st_size != int(size):
            raise HubError(400, f"The content sent is not that of {oid}")
        os.replace(request.upload, self._blob(oid))
        return Reply({}, headers={"ETag": f'"{oid}"'})

    def _commit(self, request: Request, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._open(request, kind, repo_id)
        create_pr = request.query.get("create_pr", ["0"])[0] in ("1", "true")
        ref = next((r for r in (f"refs/heads/{revision}", revision) if r in repo["refs"]), None)
        if (ref is None and not create_pr) or str(ref).startswith("refs/tags/"):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = self._snapshot(repo, revision)
        try:
            header, *operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
            title, text = header["value"]["summary"], header["value"].get("description", "")
            if header["key"] != "header" or not title:
                raise ValueError("the first line must be a header with a summary")
            if header["value"].get("parentCommit") not in (None, parent["id"]):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent["files"])
            for operation in operations:
                self._apply(files, operation["key"], operation["value"])
            if clash := next((path for path in _folders(files) if path in files), None):
                raise ValueError(f"{clash} is both a file and a folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(400, f"Invalid commit: {type(error).__name__}: {error}") from error
        answer: Json = {"success": True}
        if create_pr:
            number, ref = self._new_discussion(repo, title, text, pull_request=True)
            answer["pullRequestUrl"] = f"{self._url(repo)}/discussions/{number}"
        oid = self._add_commit(repo, str(ref), parent["id"], title, text, files)
        return Reply({**answer, "commitOid": oid, "commitUrl": f"{self._url(repo)}/commit/{oid}"})

    def _apply(self, files: Json, key: str, value: Json) -> None:
        """Applies one operation of a commit to a snapshot."""
        path = value["path"]
        folder = path.rstrip("/") + "/"
        parts = folder[:-1].split("/") if key == "deletedFolder" else path.split("/")
        if not {"", ".", "..", ".git"}.isdisjoint(parts):
            raise ValueError(f"the path {path!r} is not allowed")
        if key == "file":
            if value.get("encoding", "base64") != "base64":
                raise ValueError(f"the encoding of {path} is not base64")
            files[path] = self._put_regular(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            oid = value["oid"]
            if value.get("algo") != "sha256" or not self._has_lfs(oid, value.get("size")):
                raise ValueError(f"the content of {path} was not uploaded: {oid}")
            files[path] = {"oid": oid, "size": self._blob(oid).stat().st_size, "lfs": True}
        elif key in ("deletedFile", "deletedFolder"):
            what = key.removeprefix("deleted").lower()
            gone = [name for name in files if (name.startswith(folder) if what == "folder" else name == path)]
            if not gone:
                raise HubError(404, f"A {what} with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise ValueError(f"unknown operation {key!r}")

    def _create_ref(self, request: Request, kind: str, repo_id: str, space: str, name: str) -> Reply:
        repo, asked = self._open(request, kind, repo_id), request.json()
        if space == "branch":
            ref, start = f"refs/heads/{name}", asked.get("startingPoint") or "main"
        else:  # the address of a new tag names the revision, its body the tag
            ref, start = f"refs/tags/{asked['tag']}", name
        if ref in repo["refs"] and not asked.get("overwrite"):
            raise HubError(409, f"Reference already exists: {ref}")
        repo["refs"][ref] = self._snapshot(repo, start)["id"]
        self._save(repo)
        return Reply({})

    def _delete_ref(self, request: Request, kind: str, repo_id: str, space: str, name: str) -> Reply:
        repo = self._open(request, kind, repo_id)
        ref = f"refs/{'heads' if space == 'branch' else 'tags'}/{name}"
        if ref == "refs/heads/main":
            raise HubError(403, "The main branch cannot be deleted")
        if repo["refs"].pop(ref, None) is None:
            raise HubError(404, f"Reference not found: {ref}", "RevisionNotFound")
        self._save(repo)
        return Reply({})

    # ------------------------------------------------------------------ discussions and pull requests

    def _new_discussion(self, repo: Json, title: str, text: str, *, pull_request: bool) -> tuple[int, str]:
        """Adds a discussion (not saved yet); gives its number and the ref of its commits."""
        number = len(repo["discussions"]) + 1
        base = {"num": number, "title": title, "status": "open", "isPullRequest": pull_request}
        repo["discussions"].append({**base, "createdAt": _now(), "description": text})
        return number, f"refs/pr/{number}"

    def _discussion_info(self, repo: Json, discussion: Json) -> Json:
        about = {"author": {"name": self.username}, "repo": {"name": repo["id"], "type": repo["type"]}}
        return {**discussion, **about}

    def _discussions(self, request: Request, kind: str, repo_id: str) -> Reply:
        repo = self._open(request, kind, repo_id)
        wanted, status = (request.query.get(name, ["all"])[0] for name in ("type", "status"))
        author = request.query.get("author", [self.username])[0]
        found = [
            self._discussion_info(repo, item)
            for item in reversed(repo["discussions"])
            if wanted == "all" or item["isPullRequest"] == (wanted == "pull_request")
            if status == "all" or item["status"] == status
            if author == self.username
        ]
        return Reply({"discussions": found, "count": len(found), "start": 0})

    def _open_discussion(self, request: Request, kind: str, repo_id: str) -> Reply:
        repo, asked = self._open(request, kind, repo_id), request.json()
        pull_request = bool(asked.get("pullRequest"))
        number, ref = self._new_discussion(
            repo, asked["title"], asked.get("description", ""), pull_request=pull_request
        )
        if pull_request:
            repo["refs"][ref] = repo["refs"]["refs/heads/main"]
        self._save(repo)
        return Reply({"num": number, "pullRequest": pull_request})

    def _discussion(self, request: Request, kind: str, repo_id: str, num: str) -> Reply:
        repo = self._open(request, kind, repo_id)
        found = next((item for item in repo["discussions"] if item["num"] == int(num)), None)
        if found is None:
            raise HubError(404, "Discussion not found")
        common = {"author": {"name": self.username}, "createdAt": found["createdAt"]}
        comment = {"edited": False, "hidden": False, "latest": {"raw": found["description"]}}
        events = [{"id": f"{num}-0", "type": "comment", "data": comment, **common}]
        if found["isPullRequest"]:
            main = {commit["id"] for commit in self._history(repo, self._snapshot(repo, "main"))}
            own = [
                c for c in self._history(repo, self._snapshot(repo, f"refs/pr/{num}")) if c["id"] not in main
            ]
            for commit in reversed(own):
                data = {"subject": commit["title"], "oid": commit["id"]}
                events.append({"id": commit["id"], "type": "commit", "data": data, **common})
        more = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
        return Reply({**self._discussion_info(repo, found), "events": events, **more})

    # ------------------------------------------------------------------ called by the handler

    def _receive(self, method: str, path: str) -> Fault | None:
        """Logs a request and picks the fault, if any, that it must suffer."""
        with self._lock:
            self.requests.append((method, path))
            struck = [fault for fault in self._faults if fault.strikes(method, path)]  # each one counts
        return struck[0] if struck else None


class _Server(ThreadingHTTPServer):
    """A threaded server that knows its open connections and keeps quiet about those a client closes."""

    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
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
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # what goes wrong in an answer is answered with 500; here only broken connections are left


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; what they mean is the hub's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        request = Request(self.command, url.path, parse_qs(url.query, keep_blank_values=True), self.headers)
        fault = hub._receive(self.command, unquote(url.path))
        sink: BinaryIO = io.BytesIO()
        if self.command == "PUT":
            descriptor, name = tempfile.mkstemp(dir=hub.root / "incoming")
            sink, request.upload = os.fdopen(descriptor, "wb"), Path(name)
        try:
            with sink:
                half = fault is not None and fault.status is None and self.command == "PUT"
                for chunk in self._body(half):
                    sink.write(chunk)
                if isinstance(sink, io.BytesIO):
                    request.body = sink.getvalue()
            if fault is not None and fault.status is None:
                raise ConnectionAbortedError("cut off, as the test asked")
            try:
                if fault is not None and fault.status is not None:
                    raise HubError(fault.status, "Failed, as the test asked")
                reply = hub.answer(request)
            except HubError as error:
                reply = Reply({"error": str(error)}, error.status, error.headers)
            except Exception:
                reply = Reply({"error": traceback.format_exc()}, 500)
            self._send(reply)
        except ConnectionError:
            self.close_connection = True
        finally:
            if request.upload is not None:
                request.upload.unlink(missing_ok=True)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _body(self, half: bool) -> Iterator[bytes]:
        """The body of the request in pieces, sent with a length or in chunks; on wish only half of it."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self._exactly(size // 2 if half else size)
                if half:
                    return
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0) // (2 if half else 1)
        while left > 0:
            yield self._exactly(min(left, CHUNK))
            left -= min(left, CHUNK)

    def _exactly(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionResetError("the client went away within the body")
        return content

    def _send(self, reply: Reply) -> None:
        status, headers = reply.status, dict(reply.headers or {})
        content, start = b"", 0
        if reply.file is None:
            content = json.dumps(reply.payload).encode()
            length = len(content)
            headers["Content-Type"] = "application/json; charset=utf-8"
        else:
            size = reply.file.stat().st_size
            status, start, length = _byte_range(self.headers.get("Range"), size)
            headers["Content-Type"] = "application/octet-stream"
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
            elif status == 416:
                headers["Content-Range"] = f"bytes */{size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.file is None or length == 0:
            self.wfile.write(content)
            return
        with reply.file.open("rb") as file:
            file.seek(start)
            while length > 0 and (piece := file.read(min(length, CHUNK))):
                self.wfile.write(piece)
                length -= len(piece)

    def log_message(self, *args: Any) -> None:
        pass


def environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """Variables to lay over those of a child process, which then takes `hub` for the Hub.

    `home` should be a fresh folder: the child's caches are below it. Offline mode is switched off, because it would
    block requests to this machine too, and so is anything that would look for another host.
    """
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _repo_type(kind: str | None) -> str:
    """`model`, `dataset` or `space`, from that or from the plural that addresses use (nothing: a model)."""
    singular = (kind or "model").removesuffix("s")
    if singular not in ("model", "dataset", "space"):
        raise HubError(400, f"Invalid repository type: {kind}")
    return singular


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _git_hash(what: str, content: bytes) -> str:
    return hashlib.sha1(f"{what} {len(content)}\0".encode() + content).hexdigest()


def _folders(paths: Iterable[str]) -> dict[str, None]:
    """The folders that hold these files, at any depth."""
    return {str(folder): None for path in paths for folder in list(PurePosixPath(path).parents)[:-1]}


def _file_info(path: str, entry: Json | None) -> Json:
    """How the tree lists one file, or (no entry) one folder."""
    if entry is None:
        return {"type": "directory", "path": path, "oid": _git_hash("tree", path.encode()), "size": 0}
    if not entry["lfs"]:
        return {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
    version = "https://git-lfs.github.com/spec/v1"
    pointer = f"version {version}\noid sha256:{entry['oid']}\nsize {entry['size']}\n".encode()
    lfs = {"oid": entry["oid"], "size": entry["size"], "pointerSize": len(pointer)}
    return {
        "type": "file",
        "path": path,
        "oid": _git_hash("blob", pointer),
        "size": entry["size"],
        "lfs": lfs,
    }


def _card_data(card: str) -> Json | None:
    """The metadata at the head of a card, or None if it has none; raises if they are not a YAML mapping."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", card, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if data is not None and not isinstance(data, dict):
        raise ValueError("the metadata are not a mapping")
    return data or None


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
