"""Pushing to a Hub on loopback: all of it arrives in one commit, or nothing does and the message says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub, environment

from qwen_grafts.hub_cards import CleanRoomError, PublishError, push_repository, verify

TOKEN = "hf_loopback"
REPO = "tester/graft"

LOAD = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
model, info = AutoModelForImageTextToText.from_pretrained(
    "tester/graft", trust_remote_code=True, output_loading_info=True
)
processor = AutoProcessor.from_pretrained("tester/graft", trust_remote_code=True)
assert not info["missing_keys"] and not info["unexpected_keys"]
assert "qwen_grafts" not in sys.modules
assert type(model).__module__.startswith("transformers_modules.tester.graft.")
print(model.num_parameters())
"""
EXPORT = """
from qwen_grafts.hub_cards import export_repository
export_repository(model, processor, sys.argv[1])
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
    assert hub.unknown_requests == []


def published(hub: LoopbackHub, revision: str = "main") -> set[str]:
    return set(hub.files(REPO, revision)) - {".gitattributes"}


def run(script: str, hub: LoopbackHub, folder: Path, *arguments: str) -> str:
    """Run a script in a process whose Hub is `hub`; returns what it prints."""
    env = os.environ | environment(hub, folder / "home")
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_push_then_load_by_name_in_another_process(hub: LoopbackHub, copy: Path, tmp_path: Path) -> None:
    commit = push_repository(copy, REPO, token=TOKEN, commit_message="First")
    assert [c["title"] for c in hub.commits(REPO)] == ["First", "initial commit"]
    assert commit.oid == hub.commits(REPO)[0]["id"]
    assert published(hub) == {path.name for path in copy.iterdir()}
    assert 'repo_id = "tester/graft"' in hub.read(REPO, "README.md").decode()
    assert run(LOAD, hub, tmp_path) == "811712"


@pytest.mark.slow
def test_a_model_loaded_from_the_hub_exports_as_it_was_pushed(hub: LoopbackHub, copy: Path, tmp_path: Path) -> None:
    push_repository(copy, REPO, token=TOKEN, verify_first=False)
    run(LOAD + EXPORT, hub, tmp_path, str(tmp_path / "again"))
    again = tmp_path / "again"
    assert {path.name for path in again.iterdir()} == published(hub)
    for name in [name for name in published(hub) if not name.endswith(("README.md", "config.json"))]:
        assert (again / name).read_bytes() == (copy / name).read_bytes()
    verify(again)


def test_a_revision_is_exactly_the_folder(hub: LoopbackHub, copy: Path) -> None:
    (copy / "old.txt").write_text("first version")
    push_repository(copy, REPO, token=TOKEN, verify_first=False)
    (copy / "old.txt").unlink()
    (copy / "new.txt").write_text("second version")
    (copy / "checkpoint-5").mkdir()
    (copy / "checkpoint-5" / "optimizer.pt").write_bytes(b"not for others")
    push_repository(copy, REPO, token=TOKEN, verify_first=False)
    assert published(hub) == {path.name for path in copy.iterdir() if path.is_file()}
    assert len(hub.commits(REPO)) == 3
    push_repository(copy, REPO, token=TOKEN, verify_first=False, revision="trial")
    assert published(hub, "trial") == published(hub)
    (copy / "new.txt").write_text("proposed")
    pull_request = push_repository(copy, REPO, token=TOKEN, verify_first=False, create_pr=True)
    assert pull_request.pr_revision == "refs/pr/1"
    assert hub.read(REPO, "new.txt") == b"second version"


def test_what_is_not_fit_to_publish_makes_no_repository(hub: LoopbackHub, copy: Path) -> None:
    (copy / "weights.pt").write_bytes(b"")
    with pytest.raises(CleanRoomError, match=r"weights\.pt"):
        push_repository(copy, REPO, token=TOKEN)
    (copy / "README.md").unlink()
    with pytest.raises(ValueError, match="qwen-grafts card"):
        push_repository(copy, REPO, token=TOKEN)
    assert hub.requests == [] and not hub.exists(REPO)


def test_a_wrong_token(hub: LoopbackHub, copy: Path) -> None:
    with pytest.raises(PublishError, match=r"token \(401\).*`hf auth login`"):
        push_repository(copy, REPO, token="hf_wrong", verify_first=False)
    assert not hub.exists(REPO)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, r"may not write to 'tester' \(403\)"),
        (404, r"\(404\)"),
        (409, r"at the same time \(409\)"),
        (500, r"\(500\).*old revision is untouched; run the same command again"),
        (None, "connection to the Hub was lost.*old revision is untouched; run the same command again"),
    ],
)
def test_a_failing_commit_leaves_the_old_revision(
    hub: LoopbackHub, copy: Path, status: int | None, expected: str
) -> None:
    push_repository(copy, REPO, token=TOKEN, verify_first=False)
    before, weights = hub.commits(REPO)[0]["id"], hub.read(REPO, "model.safetensors")
    (copy / "model.safetensors").write_bytes(weights[:-4] + b"next")
    if status is None:
        hub.drop_request(1, method="POST", path_contains="/commit/", times=9)
    else:
        hub.fail_request(1, status=status, method="POST", path_contains="/commit/")
    with pytest.raises(PublishError, match=expected):
        push_repository(copy, REPO, token=TOKEN, verify_first=False)
    assert hub.commits(REPO)[0]["id"] == before
    assert hub.read(REPO, "model.safetensors") == weights
    if status == 500:
        push_repository(copy, REPO, token=TOKEN, verify_first=False)
        assert hub.read(REPO, "model.safetensors").endswith(b"next")


def test_offline_mode_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        push_repository(copy, REPO, token=TOKEN, verify_first=False)
