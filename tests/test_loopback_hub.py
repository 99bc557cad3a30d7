"""The Hub that other tests talk to, checked with the real clients: what they push they get back."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import LoopbackHub, environment

TOKEN = "hf_loopback"
REPO = "tester/graft"
CARD = "---\nlicense: apache-2.0\ntags: [graft]\n---\n# Graft\n"
WEIGHTS = bytes(range(256)) * 400  # 100 KiB
CODE = "VALUE = 1\n"


@pytest.fixture(autouse=True)
def online_without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads these settings when it is imported, perhaps by another test, under other variables."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        yield hub
    assert hub.unknown_requests == []


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=TOKEN)


@pytest.fixture
def anonymous(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "code" / "graft.py").write_text(CODE)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def head(api: HfApi, folder: Path) -> str:
    """The hash of the commit that uploaded `folder`."""
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="First upload").oid


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def names(hub: LoopbackHub, revision: str = "main") -> set[str]:
    return set(hub.files(REPO, revision)) - {".gitattributes"}


# ---------------------------------------------------------------------------------- push and load


def test_create_repo_twice(hub: LoopbackHub, api: HfApi) -> None:
    url = api.create_repo(REPO)
    assert (url.repo_id, url.repo_type) == (REPO, "model")
    assert api.create_repo(REPO, exist_ok=True) == url
    assert api.create_repo("graft", exist_ok=True) == url  # the namespace is that of the token
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert hub.exists(REPO) and not hub.exists(REPO, repo_type="dataset")
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_upload_folder_is_one_commit(hub: LoopbackHub, api: HfApi, head: str) -> None:
    assert [commit["title"] for commit in hub.commits(REPO)] == ["First upload", "initial commit"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["First upload", "initial commit"]
    assert names(hub) == {"README.md", "code/graft.py", "model.safetensors"}
    assert set(api.list_repo_files(REPO)) == set(hub.files(REPO))
    assert hub.files(REPO)["code/graft.py"] == CODE.encode()
    assert hub.files(REPO)["model.safetensors"] == len(WEIGHTS)  # LFS
    assert hub.read(REPO, "model.safetensors") == WEIGHTS
    assert sum(method == "PUT" for method, _ in hub.requests) == 1


def test_info_and_listings(api: HfApi, head: str) -> None:
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == head and not info.private and info.tags == ["graft"]
    assert info.card_data.license == "apache-2.0"
    weights = next(file for file in info.siblings if file.rfilename == "model.safetensors")
    assert weights.size == weights.lfs.size == len(WEIGHTS)
    assert {item.path for item in api.list_repo_tree(REPO)} >= {"README.md", "code"}
    assert [item.path for item in api.list_repo_tree(REPO, "code", recursive=True)] == ["code/graft.py"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "no-folder"))
    found = api.get_paths_info(REPO, ["code", "model.safetensors", "missing"])
    assert [item.path for item in found] == ["code", "model.safetensors"]
    assert found[1].lfs.sha256 == weights.lfs.sha256
    assert api.whoami()["name"] == "tester"


def test_download_gives_the_same_bytes(hub: LoopbackHub, api: HfApi, head: str, tmp_path: Path) -> None:
    api.upload_file(path_or_fileobj=b"VALUE = 2\n", path_in_repo="code/graft.py", repo_id=REPO)
    for revision, code in (("main", "VALUE = 2\n"), (head, CODE)):
        where = {"cache_dir": tmp_path / f"cache-{revision}", "endpoint": hub.endpoint, "token": False}
        one = hf_hub_download(REPO, "model.safetensors", revision=revision, **where)
        assert Path(one).read_bytes() == WEIGHTS
        whole = Path(snapshot_download(REPO, revision=revision, **where))
        assert (whole / "code" / "graft.py").read_text() == code
        assert (whole / "README.md").read_text() == CARD
        assert whole.name == api.model_info(REPO, revision=revision).sha
    assert hub.read(REPO, "code/graft.py", revision=head) == CODE.encode()


def test_ranges(hub: LoopbackHub, head: str) -> None:
    url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
    size = len(WEIGHTS)
    for header, start, end in (("5-9", 5, 10), (f"{size - 3}-", size - 3, size), ("-4", size - 4, size)):
        request = urllib.request.Request(url, headers={"Range": f"bytes={header}"})
        with urllib.request.urlopen(request) as response:
            assert response.status == 206
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
            assert response.read() == WEIGHTS[start:end]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={size}-"}))


def test_what_did_not_change_is_not_sent_again(hub: LoopbackHub, api: HfApi, folder: Path, head: str) -> None:
    del hub.requests[:]
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == head
    assert not any(method == "PUT" or "/commit/" in path for method, path in hub.requests)
    assert len(hub.commits(REPO)) == 2


def test_a_hub_without_lfs(folder: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "plain", token=TOKEN, lfs=False) as hub:
        api = HfApi(endpoint=hub.endpoint, token=TOKEN)
        api.create_repo(REPO)
        api.upload_folder(repo_id=REPO, folder_path=folder)
        assert hub.files(REPO)["model.safetensors"] == WEIGHTS
    with LoopbackHub(tmp_path / "plain", token=TOKEN) as again:  # what was pushed outlives the server
        assert again.read(REPO, "model.safetensors") == WEIGHTS


def test_dataset(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("tester/pairs", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=b"PAR1" + bytes(9),
        path_in_repo="data/train.parquet",
        repo_id="tester/pairs",
        repo_type="dataset",
    )
    assert api.dataset_info("tester/pairs").sha == hub.commits("tester/pairs", repo_type="dataset")[0]["id"]
    where = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint, "token": False}
    got = snapshot_download("tester/pairs", repo_type="dataset", **where)
    assert (Path(got) / "data" / "train.parquet").read_bytes() == b"PAR1" + bytes(9)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/pairs")


# ---------------------------------------------------------------------------------- commits and refs


def test_delete_and_copy(hub: LoopbackHub, api: HfApi, head: str) -> None:
    api.delete_file("README.md", REPO)
    assert names(hub) == {"code/graft.py", "model.safetensors"}
    assert "README.md" in names(hub, head)
    move = [CommitOperationCopy("model.safetensors", "weights/model.safetensors")]
    move += [CommitOperationDelete("model.safetensors"), CommitOperationDelete("code/")]
    api.create_commit(REPO, move, commit_message="Move")
    assert hub.files(REPO)["weights/model.safetensors"] == len(WEIGHTS)
    assert names(hub) == {"weights/model.safetensors"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("README.md", REPO)


def test_branch_and_tag(hub: LoopbackHub, api: HfApi, head: str) -> None:
    api.create_branch(REPO, branch="next/try")
    api.create_branch(REPO, branch="next/try", exist_ok=True)
    api.create_tag(REPO, tag="v1", tag_message="First")
    new = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO, revision="next/try").oid
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": head, "next/try": new}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": head}
    assert len(api.list_repo_commits(REPO, revision="next/try")) == 3
    assert "x.txt" in names(hub, "next/try") - names(hub)
    assert api.model_info(REPO, revision="v1").sha == head
    for call in (lambda: api.create_tag(REPO, tag="v1"), lambda: api.create_branch(REPO, branch="next/try")):
        with pytest.raises(HfHubHTTPError, match="409"):
            call()
    api.delete_branch(REPO, branch="next/try")
    api.delete_tag(REPO, tag="v1")
    assert len(api.list_repo_refs(REPO).branches) == 1 and not api.list_repo_refs(REPO).tags
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO, revision="next/try")


def test_pull_request_leaves_main_as_it_is(hub: LoopbackHub, api: HfApi, head: str) -> None:
    pull = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO, create_pr=True)
    assert pull.pr_url == f"{hub.endpoint}/{REPO}/discussions/1" and pull.pr_revision == "refs/pr/1"
    assert hub.commits(REPO)[0]["id"] == head and "x.txt" not in names(hub)
    assert "x.txt" in names(hub, "refs/pr/1")
    api.upload_file(path_or_fileobj=b"y", path_in_repo="y.txt", repo_id=REPO, revision="refs/pr/1")
    assert {"x.txt", "y.txt"} <= names(hub, "refs/pr/1")
    assert api.create_discussion(REPO, "A question").num == 2
    assert api.create_pull_request(REPO, "An empty one").git_reference == "refs/pr/3"
    found = {item.num: item.is_pull_request for item in api.get_repo_discussions(REPO)}
    assert found == {1: True, 2: False, 3: True}
    pulls = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert [ref.ref for ref in pulls] == ["refs/pr/1", "refs/pr/3"]


def test_a_commit_is_checked_as_a_whole(hub: LoopbackHub, api: HfApi, head: str) -> None:
    unsent = add("new.bin", bytes(100))
    unsent._is_uploaded, unsent._upload_mode = True, "lfs"  # so that the client does not upload it
    with pytest.raises(BadRequestError, match="not uploaded"):
        api.create_commit(REPO, [add("good.txt", b"good"), unsent], commit_message="Half")
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        api.create_commit(REPO, [add("code", b"a file")], commit_message="Clash")
    with pytest.raises(HfHubHTTPError, match="412"):
        old = hub.commits(REPO)[1]["id"]
        api.create_commit(REPO, [add("good.txt", b"good")], commit_message="Late", parent_commit=old)
    assert hub.commits(REPO)[0]["id"] == head and len(hub.commits(REPO)) == 2


def test_a_broken_card_is_refused(hub: LoopbackHub, api: HfApi, head: str) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, [add("README.md", b"---\ntags: [\n---\n")], commit_message="Card")
    assert hub.commits(REPO)[0]["id"] == head


# ---------------------------------------------------------------------------------- errors and rights


def test_missing_things(hub: LoopbackHub, api: HfApi, head: str, tmp_path: Path) -> None:
    where = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint, "token": False}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "missing.json", **where)
    assert [path.name for path in (tmp_path / "cache").rglob(".no_exist/*/*")] == ["missing.json"]
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/missing", "config.json", **where)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "README.md", revision="missing", **where)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="0" * 40)
    with pytest.raises(RepositoryNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="tester/missing")
    assert api.file_exists(REPO, "README.md") and not api.file_exists(REPO, "missing")
    assert api.repo_exists(REPO) and not api.repo_exists("tester/missing")


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_writing_needs_the_token(hub: LoopbackHub, head: str, token: str | bool) -> None:
    stranger = HfApi(endpoint=hub.endpoint, token=token)
    calls = [
        lambda: stranger.create_repo("tester/other"),
        lambda: stranger.delete_repo(REPO),
        lambda: stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO),
        lambda: stranger.create_branch(REPO, branch="other"),
        lambda: stranger.create_tag(REPO, tag="other"),
        lambda: stranger.create_discussion(REPO, "Hello"),
    ]
    calls += [stranger.whoami] if token else []
    for call in calls:
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert caught.value.response.status_code == 401
        assert caught.value.response.json()["error"]
    assert not hub.exists("tester/other") and hub.commits(REPO)[0]["id"] == head


def test_an_upload_address_must_be_signed(hub: LoopbackHub) -> None:
    url = f"{hub.endpoint}/lfs-storage/{'0' * 64}/1?signature=no"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, data=b"x", method="PUT"))


def test_private_repo(hub: LoopbackHub, api: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO, private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO)
    assert api.model_info(REPO).private
    where = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    for call in (
        lambda: anonymous.model_info(REPO),
        lambda: anonymous.list_repo_files(REPO),
        lambda: hf_hub_download(REPO, "x.txt", token=False, **where),
    ):
        with pytest.raises(RepositoryNotFoundError):
            call()
    assert Path(hf_hub_download(REPO, "x.txt", token=TOKEN, **where)).read_bytes() == b"x"


def test_delete_repo(hub: LoopbackHub, api: HfApi, head: str) -> None:
    api.delete_repo(REPO)
    assert not hub.exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)
    api.delete_repo(REPO, missing_ok=True)
    assert api.create_repo(REPO).repo_id == REPO and names(hub) == set()


# ---------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("dropped", [False, True])
def test_a_failed_commit_changes_nothing(
    hub: LoopbackHub,
    api: HfApi,
    folder: Path,
    head: str,
    dropped: bool,
) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    (hub.drop_request if dropped else hub.fail_request)(1, method="POST", path_contains="/commit/main")
    with pytest.raises(Exception, match="disconnected" if dropped else "500"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.commits(REPO)[0]["id"] == head and hub.read(REPO, "model.safetensors") == WEIGHTS
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert len(hub.commits(REPO)) == 3 and hub.read(REPO, "model.safetensors") == WEIGHTS[::-1]
    assert sum(method == "PUT" for method, _ in hub.requests) == 2  # the content was there already


def test_a_dropped_upload_changes_nothing(hub: LoopbackHub, api: HfApi, folder: Path, head: str) -> None:
    """The client tries again by itself when the connection breaks, but not when it is told 403."""
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    hub.drop_request(1, method="PUT")
    hub.fail_request(2, status=403, method="PUT", path_contains="/lfs-storage/")
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.commits(REPO)[0]["id"] == head and hub.read(REPO, "model.safetensors") == WEIGHTS
    assert len(list((hub.root / "blobs").glob("?" * 64))) == 1
    hub.drop_request(1, method="PUT")
    api.upload_folder(repo_id=REPO, folder_path=folder)  # cut off once more, and sent again by the client
    assert hub.read(REPO, "model.safetensors") == WEIGHTS[::-1] and not any((hub.root / "incoming").iterdir())


def test_faults_count_matching_requests(hub: LoopbackHub, anonymous: HfApi, head: str) -> None:
    hub.fail_request(2, status=418, method="GET", path_contains=f"/models/{REPO}", times=2)
    outcomes = []
    for _ in range(5):
        try:
            outcomes.append(anonymous.model_info(REPO).sha == head)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)
    assert outcomes == [True, 418, 418, True, True]


# ---------------------------------------------------------------------------------- transformers, in children

PUSH = """
import torch
from transformers import Qwen3Config, Qwen3Model
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=16,
)
model = Qwen3Model(config)
model.push_to_hub("tester/tiny")
print(sum(parameter.double().abs().sum().item() for parameter in model.parameters()))
"""
LOAD = """
from transformers import AutoModel
model = AutoModel.from_pretrained("tester/tiny")
assert type(model).__name__ == "Qwen3Model"
print(sum(parameter.double().abs().sum().item() for parameter in model.parameters()))
"""


def test_transformers_pushes_and_loads(hub: LoopbackHub, tmp_path: Path) -> None:
    printed = []
    for name, code in (("push", PUSH), ("load", LOAD)):
        env = os.environ | environment(hub, tmp_path / name)
        command = [sys.executable, "-c", code]
        child = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert child.returncode == 0, child.stderr
        printed.append(child.stdout)
    assert printed[0] == printed[1] and float(printed[0]) > 0
    assert {"config.json", "model.safetensors"} <= set(hub.files("tester/tiny"))
    head = hub.commits("tester/tiny")[0]["id"]
    assert ("GET", f"/tester/tiny/resolve/{head}/model.safetensors") in hub.requests
