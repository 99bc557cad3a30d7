"""What the loopback Hub keeps on disk: contents under their hash, each repository one JSON file of commits.

A commit is a whole snapshot and the file is replaced in one step, so a commit is seen whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


class HubError(Exception):
    """An error answer; the client turns `code` into an exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers["X-Error-Message"] = message.encode("ascii", "replace").decode().replace("\n", " ")
        if code is not None:
            self.headers["X-Error-Code"] = code


class HubStore:
    """The repositories below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        for folder in ("blobs", "incoming"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def exists(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether the repository is there, private or not."""
        return self._repo_file(repo_type, repo_id).is_file()

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes | int]:
        """The paths at a revision: the content of a regular file, the size of an LFS file."""
        entries = self._snapshot(self._load(repo_type, repo_id), revision)["files"]
        regular = (path for path, entry in entries.items() if not entry["lfs"])
        sizes = {path: entry["size"] for path, entry in entries.items()}
        return sizes | {path: self._blob(entries[path]["oid"]).read_bytes() for path in regular}

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """The content of one file, regular or LFS."""
        entries = self._snapshot(self._load(repo_type, repo_id), revision)["files"]
        return self._blob(entries[path]["oid"]).read_bytes()

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Json]:
        """The commits behind a revision, newest first: {id, parent, title, message, date, files}."""
        repo = self._load(repo_type, repo_id)
        return list(history(repo, self._snapshot(repo, revision)))

    def _blob(self, oid: str) -> Path:
        return self.root / "blobs" / oid

    def _repo_file(self, kind: str | None, repo_id: str) -> Path:
        if not re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", repo_id):
            raise HubError(404, f"Repository not found: {repo_id}", "RepoNotFound")
        return self.root / "repos" / repo_type_name(kind) / f"{repo_id}.json"

    def _load(self, kind: str | None, repo_id: str) -> Json:
        try:
            return json.loads(self._repo_file(kind, repo_id).read_bytes())
        except FileNotFoundError:
            raise HubError(404, f"Repository not found: {repo_id}", "RepoNotFound") from None

    def _save(self, repo: Json) -> None:
        self._replace(self._repo_file(repo["type"], repo["id"]), json.dumps(repo, indent=1).encode())

    def _replace(self, path: Path, content: bytes) -> None:
        """Writes a file in one step: a reader sees the old content or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.root / "incoming", delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)

    def _put_regular(self, content: bytes) -> Json:
        oid = git_hash("blob", content)
        self._replace(self._blob(oid), content)
        return {"oid": oid, "size": len(content), "lfs": False}

    def _has_lfs(self, oid: str, size: int | None) -> bool:
        if not re.fullmatch(r"[0-9a-f]{64}", oid) or not self._blob(oid).is_file():
            return False
        return size is None or self._blob(oid).stat().st_size == size

    def _add_commit(self, repo: Json, ref: str, files: Json, title: str, text: str = "") -> str:
        parent = repo["refs"].get(ref)
        commit = {"parent": parent, "title": title, "message": text, "date": now(), "files": files}
        oid = git_hash("commit", json.dumps([len(repo["commits"]), repo["id"], commit]).encode())
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


def repo_type_name(kind: str | None) -> str:
    """`model` or `dataset`, from that or from the plural that addresses use (nothing: a model)."""
    singular = (kind or "model").removesuffix("s")
    if singular not in ("model", "dataset"):
        raise HubError(400, f"Repositories of type {kind} are not served here")
    return singular


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_hash(what: str, content: bytes) -> str:
    return hashlib.sha1(f"{what} {len(content)}\0".encode() + content).hexdigest()


def history(repo: Json, commit: Json | None) -> Iterator[Json]:
    by_id = {item["id"]: item for item in repo["commits"]}
    while commit is not None:
        yield commit
        commit = by_id.get(commit["parent"])
