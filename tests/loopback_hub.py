"""A small Hugging Face Hub on 127.0.0.1, for tests that push and load by repository id over HTTP.

It answers the calls that `huggingface_hub` and `transformers` really make, so nothing has to be replaced on
the client's side: create a repository, upload (regular files and Git LFS, not Xet), commit, list, download,
branch, tag, open a pull request, delete. All of it is kept on disk below one folder (`loopback_store.py`); requests can
be made to fail or to be cut off (`loopback_http.py`).

    with LoopbackHub(tmp_path / "hub", token="hf_test") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)  # in this process
        subprocess.run(command, env=os.environ | environment(hub, tmp_path / "home"))  # or in a child
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote

import yaml
from loopback_http import Fault, HubServer, Reply, Request
from loopback_store import HubError, HubStore, Json, git_hash, history, now, repo_type_name

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".arrow", ".parquet")
LFS_THRESHOLD = 64 * 1024

_API = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<kind>datasets)/)?(?P<repo_id>[^/]+/[^/]+?)"
_REV = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/validate-yaml", "_validate_yaml"),
    ("POST", r"/api/repos/create", "_create_repo"),
    ("DELETE", r"/api/repos/delete", "_delete_repo"),
    ("POST", rf"{_WEB}\.git/info/lfs/objects/batch", "_lfs_batch"),
    ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})/(?P<size>\d+)", "_lfs_put"),
    ("GET", rf"{_WEB}/(?:resolve|raw)/{_REV}/(?P<path>.+)", "_resolve"),
    ("GET", rf"{_API}(?:/revision/{_REV})?", "_info"),
    ("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.*))?", "_tree"),
    ("POST", rf"{_API}/paths-info/{_REV}", "_paths_info"),
    ("GET", rf"{_API}/refs", "_refs"),
    ("GET", rf"{_API}/commits/{_REV}", "_commits"),
    ("POST", rf"{_API}/preupload/{_REV}", "_preupload"),
    ("POST", rf"{_API}/commit/{_REV}", "_commit"),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", "_create_ref"),
    ("POST", rf"{_API}/tag/{_REV}", "_create_ref"),
    ("DELETE", rf"{_API}/(?P<space>branch|tag)/(?P<name>[^/]+)", "_delete_ref"),
    ("GET", rf"{_API}/discussions", "_discussions"),
    ("POST", rf"{_API}/discussions", "_open_discussion"),
    ("GET", rf"{_API}/discussions/(?P<num>\d+)", "_discussion"),
]
NEED_NO_TOKEN = ("_paths_info", "_validate_yaml", "_lfs_put")  # reads by POST, and a PUT on a signed address


class LoopbackHub(HubStore):
    """The hub: a context manager that serves in a daemon thread, on a free port of 127.0.0.1.

    The one token may write to every namespace. A repository starts, as on the real Hub, with a commit that
    holds `.gitattributes`. A hub opened later on the same `root` finds the repositories again.

    `requests` lists (method, path) of all requests, the paths percent-decoded and without their query;
    `unknown_requests` those of them that this hub has no answer for.
    """

    def __init__(self, root: Path, *, token: str, username: str = "tester", lfs: bool = True) -> None:
        super().__init__(root)
        self.token, self.username, self.lfs = token, username, lfs
        self.endpoint = ""
        self.requests: list[tuple[str, str]] = []
        self.unknown_requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server: HubServer | None = None

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves until `stop` is called; `endpoint` is known from here on."""
        self._server = HubServer(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stops serving, also on the connections that clients keep open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None

    # ---------------------------------------------------------------------------------- faults

    def fail_request(
        self,
        n: int,
        status: int = 500,
        method: str | None = None,
        path_contains: str = "",
        times: int = 1,
    ) -> None:
        """Answers the n-th matching request from now on (1 is the next), and `times` in a row, with `status`.

        The client retries 408, 429 and 5xx on most calls (up to 5 times, after 1, 2, 4, 8, 8 s), the commit
        excepted; other statuses, 403 say, are final. Each fault counts for itself.
        """
        with self._lock:
            self._faults.append(Fault(n, times, status, method, path_contains))

    def drop_request(
        self,
        n: int,
        method: str | None = None,
        path_contains: str = "",
        times: int = 1,
    ) -> None:
        """The same, but closes the connection without an answer (a PUT: after half of its body)."""
        with self._lock:
            self._faults.append(Fault(n, times, None, method, path_contains))

    def receive(self, method: str, path: str) -> Fault | None:
        """Logs a request and tells which fault, if any, strikes it."""
        with self._lock:
            self.requests.append((method, path))
            struck = [fault for fault in self._faults if fault.strikes(method, path)]
        return struck[0] if struck else None

    # ---------------------------------------------------------------------------------- answering

    def answer(self, req: Request) -> Reply:
        """Checks the token, looks up the repository and the commit that the path names, and answers."""
        authorization = req.headers.get("Authorization")
        if authorization is not None and not _same(authorization, f"Bearer {self.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        action = self._route(req)
        writes = req.method not in ("GET", "HEAD") and action not in NEED_NO_TOKEN
        if authorization is None and (writes or action == "_whoami"):
            raise HubError(401, "Invalid username or password.")
        with self._lock if writes else contextlib.nullcontext():
            if "repo_id" in req.args:
                req.repo = self._load(req.args.get("kind"), req.args["repo_id"])
                if req.repo["private"] and authorization is None:
                    raise HubError(401, "Invalid username or password.", "RepoNotFound")
                req.commit = self._snapshot(req.repo, req.args.get("revision", "main"))
            answer = getattr(self, action)(req)
        return answer if isinstance(answer, Reply) else Reply(answer)

    def _route(self, req: Request) -> str:
        verb = "GET" if req.method == "HEAD" else req.method
        for method, pattern, action in ROUTES:
            if method == verb and (found := re.fullmatch(pattern, req.path)):
                named = found.groupdict().items()
                req.args = {name: unquote(value) for name, value in named if value is not None}
                return action
        self.unknown_requests.append((req.method, unquote(req.path)))
        raise HubError(404, f"No such route: {req.method} {req.path}")

    def _url(self, repo: Json) -> str:
        return f"{self.endpoint}/{'datasets/' if repo['type'] == 'dataset' else ''}{repo['id']}"

    def _whoami(self, req: Request) -> Json:
        auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        user = {"type": "user", "id": self.username, "name": self.username, "fullname": self.username}
        return {**user, "orgs": [], "auth": auth}

    def _validate_yaml(self, req: Request) -> Reply:
        try:
            card = _card_data(json.loads(req.body)["content"])
        except (yaml.YAMLError, ValueError) as error:
            return Reply({"error": "Bad metadata", "errors": [{"message": str(error)}]}, status=400)
        return Reply({"errors": [], "warnings": [] if card else [{"message": "no metadata in the card"}]})

    def _create_repo(self, req: Request) -> Reply:
        asked = json.loads(req.body)
        repo_id, kind = f"{asked.get('organization') or self.username}/{asked['name']}", asked.get("type")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo: Json = {"id": repo_id, "type": repo_type_name(kind), "private": private, "created": now()}
        named = {"url": self._url(repo), "name": repo_id}
        if self.exists(repo_id, repo["type"]):
            return Reply({"error": f"You already created this {repo['type']} repo", **named}, status=409)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        files = {".gitattributes": self._put_regular(attributes.encode())}
        repo |= {"refs": {}, "commits": [], "discussions": []}
        self._add_commit(repo, "refs/heads/main", files, "initial commit")
        return Reply(named)

    def _delete_repo(self, req: Request) -> Json:
        asked = json.loads(req.body)
        repo = self._load(asked.get("type"), f"{asked.get('organization') or self.username}/{asked['name']}")
        self._repo_file(repo["type"], repo["id"]).unlink()
        return {}

    # ---------------------------------------------------------------------------------- reading

    def _info(self, req: Request) -> Json:
        repo, commit, card = req.repo, req.commit, None
        siblings = [{"rfilename": path} for path in commit["files"]]
        if "blobs" in req.query:
            for sibling in siblings:
                blob = _file_info(sibling["rfilename"], commit["files"][sibling["rfilename"]])
                sibling |= {"size": blob["size"], "blobId": blob["oid"], "lfs": blob.get("lfs")}
        if "README.md" in commit["files"]:
            with contextlib.suppress(yaml.YAMLError, ValueError):  # a broken card hides only its own data
                card = _card_data(self._blob(commit["files"]["README.md"]["oid"]).read_text("utf-8"))
        info = {"id": repo["id"], "author": repo["id"].split("/")[0], "sha": commit["id"]}
        info |= {"private": repo["private"], "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        info |= {"createdAt": repo["created"], "lastModified": commit["date"], "siblings": siblings}
        return info | {"cardData": card, "tags": (card or {}).get("tags") or []}

    def _resolve(self, req: Request) -> Reply:
        entry = req.commit["files"].get(req.args["path"])
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=req.commit["id"])
        etag = f'"{entry["oid"]}"'
        headers = {"X-Repo-Commit": req.commit["id"], "ETag": etag, "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": etag}
        return Reply(headers=headers, file=self._blob(entry["oid"]))

    def _tree(self, req: Request) -> list[Json]:
        start = f"{req.args['path'].strip('/')}/" if req.args.get("path") else ""
        recursive = req.query.get("recursive", "false").lower() in ("true", "1")
        entries = _with_folders(req.commit["files"])
        below = [name for name in entries if name.startswith(start)]
        if start and not below:
            raise HubError(404, f"{start} does not exist", "EntryNotFound", X_Repo_Commit=req.commit["id"])
        names = sorted(name for name in below if recursive or "/" not in name[len(start) :])
        return [_file_info(name, entries[name]) for name in names]

    def _paths_info(self, req: Request) -> list[Json]:
        is_json = "json" in req.headers.get("Content-Type", "")
        paths = (json.loads(req.body) if is_json else parse_qs(req.body.decode())).get("paths", [])
        entries = _with_folders(req.commit["files"])
        return [_file_info(path, entries[path]) for path in paths if path in entries]

    def _refs(self, req: Request) -> Json:
        def below(start: str) -> list[Json]:
            refs = ((ref, oid) for ref, oid in req.repo["refs"].items() if ref.startswith(start))
            return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid} for ref, oid in refs]

        refs = {"branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": []}
        return refs | ({"pullRequests": below("refs/pr/")} if "include_prs" in req.query else {})

    def _commits(self, req: Request) -> list[Json]:
        authors = {"authors": [{"user": self.username}]}
        keys = ("id", "title", "message", "date")
        return [{key: commit[key] for key in keys} | authors for commit in history(req.repo, req.commit)]

    # ---------------------------------------------------------------------------------- writing

    def _preupload(self, req: Request) -> Json:
        answer = []
        for file in json.loads(req.body)["files"]:
            path, size, sample = file["path"], file["size"], base64.b64decode(file["sample"])
            binary = size > LFS_THRESHOLD or path.endswith(LFS_SUFFIXES) or b"\0" in sample
            mode = "lfs" if self.lfs and binary else "regular"
            oid = req.commit["files"].get(path, {}).get("oid")
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def _sign(self, oid: str, size: int | str) -> str:
        return hmac.new(self.token.encode(), f"{oid}:{size}".encode(), "sha256").hexdigest()

    def _lfs_batch(self, req: Request) -> Json:
        answer = []
        for oid, size in ((item["oid"], item["size"]) for item in json.loads(req.body)["objects"]):
            href = f"{self.endpoint}/lfs-storage/{oid}/{size}?signature={self._sign(oid, size)}"
            actions = {} if self._has_lfs(oid, size) else {"actions": {"upload": {"href": href}}}
            answer.append({"oid": oid, "size": size, **actions})
        return {"transfer": "basic", "objects": answer}

    def _lfs_put(self, req: Request) -> Reply:
        """Takes an upload on the signature in its address: the client sends no token with it."""
        oid, size = req.args["oid"], req.args["size"]
        if not _same(req.query.get("signature", ""), self._sign(oid, size)):
            raise HubError(403, "This upload address is not signed by the hub")
        if hashlib.sha256(req.body).hexdigest() != oid or len(req.body) != int(size):
            raise HubError(400, f"The content sent is not that of {oid}")
        self._replace(self._blob(oid), req.body)
        return Reply({}, headers={"ETag": f'"{oid}"'})

    def _commit(self, req: Request) -> Json:
        repo, revision, parent = req.repo, req.args["revision"], req.commit
        create_pr = req.query.get("create_pr") in ("1", "true")
        ref = next((ref for ref in (f"refs/heads/{revision}", revision) if ref in repo["refs"]), "")
        if not create_pr and not ref.startswith(("refs/heads/", "refs/pr/")):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        try:
            header, *operations = [json.loads(line) for line in req.body.splitlines() if line.strip()]
            title, text = header["value"]["summary"], header["value"].get("description", "")
            if header["key"] != "header" or not title:
                raise ValueError("the first line must be a header with a summary")
            if header["value"].get("parentCommit") not in (None, parent["id"]):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent["files"])
            for operation in operations:
                self._apply(files, operation["key"], operation["value"])
            if clash := [path for path, entry in _with_folders(files).items() if path in files and not entry]:
                raise ValueError(f"{clash[0]} is both a file and a folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(400, f"Invalid commit: {type(error).__name__}: {error}") from error
        answer = {}
        if create_pr:
            number, ref = self._add_discussion(repo, title, text, pull_request=True)
            repo["refs"][ref] = parent["id"]
            answer["pullRequestUrl"] = f"{self._url(repo)}/discussions/{number}"
        oid = self._add_commit(repo, ref, files, title, text)
        return answer | {"success": True, "commitOid": oid, "commitUrl": f"{self._url(repo)}/commit/{oid}"}

    def _apply(self, files: Json, key: str, value: Json) -> None:
        """Applies one operation of a commit to a snapshot."""
        path: str = value["path"]
        whole = key == "deletedFolder"
        folder = path.rstrip("/") + "/"
        parts = folder[:-1].split("/") if whole else path.split("/")
        if not {"", ".", "..", ".git"}.isdisjoint(parts):
            raise ValueError(f"the path {path!r} is not allowed")
        if key == "file":
            files[path] = self._put_regular(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            if value["algo"] != "sha256" or not self._has_lfs(value["oid"], value.get("size")):
                raise ValueError(f"the content of {path} was not uploaded")
            size = self._blob(value["oid"]).stat().st_size  # a copy inside the repository comes without size
            files[path] = {"oid": value["oid"], "size": size, "lfs": True}
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if (name.startswith(folder) if whole else name == path)]
            if not gone:
                what = "folder" if whole else "file"
                raise HubError(404, f"A {what} with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise ValueError(f"unknown operation {key!r}")

    def _create_ref(self, req: Request) -> Json:
        """A branch (the path names it) or a tag (the path names its target, the body the tag)."""
        repo, asked = req.repo, json.loads(req.body)
        if "branch" in req.args:
            ref = f"refs/heads/{req.args['branch']}"
            target = self._snapshot(repo, asked.get("startingPoint", "main"))
        else:
            ref, target = f"refs/tags/{asked['tag']}", req.commit
        if ref in repo["refs"]:
            raise HubError(409, f"Reference already exists: {ref}")
        repo["refs"][ref] = target["id"]
        self._save(repo)
        return {}

    def _delete_ref(self, req: Request) -> Json:
        ref = f"refs/{'heads' if req.args['space'] == 'branch' else 'tags'}/{req.args['name']}"
        if ref == "refs/heads/main":
            raise HubError(403, "The main branch cannot be deleted")
        if req.repo["refs"].pop(ref, None) is None:
            raise HubError(404, f"Reference not found: {ref}", "RevisionNotFound")
        self._save(req.repo)
        return {}

    # ---------------------------------------------------------------------------------- discussions

    def _add_discussion(self, repo: Json, title: str, text: str, *, pull_request: bool) -> tuple[int, str]:
        """Adds a discussion, not saved yet; gives its number and the ref of a pull request's commits."""
        number = len(repo["discussions"]) + 1
        about = {"author": {"name": self.username}, "repo": {"name": repo["id"], "type": repo["type"]}}
        state = {"num": number, "title": title, "status": "open", "isPullRequest": pull_request}
        repo["discussions"].append({**state, **about, "createdAt": now(), "description": text})
        return number, f"refs/pr/{number}"

    def _discussions(self, req: Request) -> Json:
        newest_first = req.repo["discussions"][::-1]
        return {"discussions": newest_first, "count": len(newest_first), "start": 0}

    def _open_discussion(self, req: Request) -> Json:
        asked = json.loads(req.body)
        pull_request = bool(asked.get("pullRequest"))
        text = asked.get("description", "")
        number, ref = self._add_discussion(req.repo, asked["title"], text, pull_request=pull_request)
        if pull_request:
            req.repo["refs"][ref] = req.commit["id"]
        self._save(req.repo)
        return {"num": number, "pullRequest": pull_request}

    def _discussion(self, req: Request) -> Json:
        found = next((item for item in req.repo["discussions"] if item["num"] == int(req.args["num"])), None)
        if found is None:
            raise HubError(404, "Discussion not found")
        comment = {"edited": False, "hidden": False, "latest": {"raw": found["description"]}}
        event = {"id": "0", "type": "comment", "createdAt": found["createdAt"], "author": found["author"]}
        details = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
        return {**found, "events": [{**event, "data": comment}], **details}


def run_script(script: str, hub: LoopbackHub, folder: Path, home: str = "home") -> str:
    """Run a script in a process whose Hub is `hub` and whose folder is `folder`; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment(hub, folder / home) | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """Variables to lay over those of a child process, which then takes `hub` for the Hub.

    `home` should be a fresh folder: the caches of the child go below it. Offline mode is switched off, since
    it blocks requests to this machine too; so is all that looks for other hosts.
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


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _with_folders(files: Json) -> dict[str, Json | None]:
    """The files with the folders that hold them, at any depth; a folder has no entry."""
    return {
        **files,
        **{str(folder): None for path in files for folder in list(PurePosixPath(path).parents)[:-1]},
    }


def _file_info(path: str, entry: Json | None) -> Json:
    """How the tree lists one file or (no entry) one folder."""
    if entry is None:
        return {"type": "directory", "path": path, "oid": git_hash("tree", path.encode()), "size": 0}
    info = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
    if entry["lfs"]:
        oid, size = entry["oid"], entry["size"]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
        lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": len(pointer)}
        info |= {"oid": git_hash("blob", pointer), "lfs": lfs}
    return info


def _card_data(card: str) -> Json | None:
    """The metadata at the head of a card, None if it has none; raises if they are no YAML mapping."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", card, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if data is not None and not isinstance(data, dict):
        raise ValueError("the metadata are not a mapping")
    return data or None
