"""A latent index pushed to a Hub on loopback: a data set for everybody, and the same index for who fetches it."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path, constants
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import LoopbackHub, run_script
from tiny_latents import SETTINGS, add, contents, documents, queries

from qwen_grafts.recipes import latent_hub, latent_index
from qwen_grafts.recipes.latent_index import ClaraIndex

TOKEN = "hf_loopback"
REPO = "tester/index"
# A stranger's process: no cache, no token but the one to read with.
LOAD = """
import numpy as np
import torch
from datasets import load_dataset
wanted = torch.load("latents.pt")
rows = load_dataset("tester/index", split="train")
assert rows.column_names == ["id", "passage", "text", "latents"]
def same(found, latents):
    return np.array_equal(np.asarray(found, np.float16), latents.numpy())
assert same(rows["latents"][:], wanted)
assert same(rows.select(range(3, 9))["latents"][:], wanted[3:9])
assert same(rows.filter(lambda row: row["passage"] == 0).sort("id")[:2]["latents"][0], wanted[rows["id"].index("d0")])
first = next(iter(load_dataset("tester/index", split="train", streaming=True)))
assert same([first["latents"]], wanted[:1]) and first["id"] == "d0"
print(rows.num_rows)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        assets = partial(cached_assets_path, assets_dir=tmp_path / "assets")
        monkeypatch.setattr(latent_hub, "cached_assets_path", assets)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
    assert hub.unknown_requests == []


@pytest.fixture
def index(tmp_path: Path) -> ClaraIndex:
    """Two shards, documents deleted in both."""
    index = ClaraIndex.create(tmp_path / "index", **SETTINGS)
    add(index, documents(25))
    add(index, documents(15, first=25))
    index.delete(["d3", "d4", "d39"])
    return index


def push(index: ClaraIndex, **options: object) -> str:
    return index.push_to_hub(REPO, token=TOKEN, **options)


def published(hub: LoopbackHub) -> set[str]:
    return set(hub.files(REPO, repo_type="dataset")) - {".gitattributes"}


def assert_same_rows(fetched: ClaraIndex, index: ClaraIndex) -> None:
    """Passages, latents to the bit, and what a search finds."""
    live = index._live.nonzero()[0]
    assert fetched.settings == index.settings
    assert fetched.passages(range(len(fetched))) == index.passages(live)
    assert torch.equal(torch.stack(fetched.memory(range(len(fetched)))), torch.stack(index.memory(live)))
    ours, theirs = index.search(queries(5), 6), fetched.search(queries(5), 6)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.rows, torch.from_numpy(live)[theirs.rows])


def test_a_data_set_for_everybody(hub: LoopbackHub, index: ClaraIndex, tmp_path: Path) -> None:
    push(index)
    torch.save(torch.stack(index.memory(index._live.nonzero()[0])), tmp_path / "latents.pt")
    assert run_script(LOAD, hub, tmp_path, home="stranger") == str(len(index))


def test_round_trip(hub: LoopbackHub, index: ClaraIndex, tmp_path: Path) -> None:
    before = contents(index.directory)
    commit = push(index, commit_message="An index")
    assert contents(index.directory) == before
    assert published(hub) == {"README.md", "index.json", "data/train-00000-of-00001.parquet"}
    assert [one["title"] for one in hub.commits(REPO, repo_type="dataset")] == ["An index", "initial commit"]
    fetched = ClaraIndex.from_hub(REPO, tmp_path / "fetched")
    assert_same_rows(fetched, index)
    assert_same_rows(ClaraIndex.load(tmp_path / "fetched"), index)
    with pytest.raises(ValueError, match="fetched is not empty"):
        ClaraIndex.from_hub(REPO, tmp_path / "fetched")
    card = hub.read(REPO, "README.md", repo_type="dataset").decode()
    facts = (
        "| documents | 37 |",
        f"| passages | {len(index)} |",
        "| fingerprint of the compressor | `compressor-1` |",
        "| compression rate | 16 |",
        "| memory vectors of a passage | 3 |",
        "| values of a vector | 8 (float16) |",
        f'ClaraIndex.from_hub("{REPO}")',
        "path: data/*.parquet",
    )
    assert all(fact in card for fact in facts)
    add(index, documents(3, first=100))
    push(index, revision="next")
    assert len(ClaraIndex.from_hub(REPO, tmp_path / "main")) == len(fetched)
    assert len(ClaraIndex.from_hub(REPO, tmp_path / "tag", revision=commit)) == len(fetched)
    assert_same_rows(ClaraIndex.from_hub(REPO, tmp_path / "next", revision="next"), index)


def test_several_files(hub: LoopbackHub, index: ClaraIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32, too; a second push leaves nothing of the first."""
    monkeypatch.setattr("qwen_grafts.recipes.latent_shards.BATCH_ROWS", 7)
    monkeypatch.setattr("qwen_grafts.recipes.latent_hub.SHARD_BYTES", 1000)
    index.save(tmp_path / "small")
    wide = ClaraIndex.create(tmp_path / "wide", **SETTINGS, dtype="float32")
    add(wide, documents(40))
    for pushed, count in ((index, 6), (wide, 12)):
        push(pushed)
        names = {f"data/train-{number:05d}-of-{count:05d}.parquet" for number in range(count)}
        assert published(hub) == {"README.md", "index.json", *names}
        assert_same_rows(ClaraIndex.from_hub(REPO, tmp_path / f"fetched-{count}"), pushed)


def test_without_a_folder_it_lies_in_the_cache(
    hub: LoopbackHub, index: ClaraIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = push(index)
    fetched = ClaraIndex.from_hub(REPO)
    assert fetched.directory.is_relative_to(tmp_path / "assets") and fetched.directory.name == commit
    assert_same_rows(fetched, index)
    fetched.build_search()
    del hub.requests[:]
    again = ClaraIndex.from_hub(REPO)
    assert again.directory == fetched.directory and (again.directory / "search.json").is_file()
    assert not any("parquet" in path for _, path in hub.requests)
    index.delete(["d9"])
    push(index)
    write = latent_index.write_shards

    def overtaken(*words: object) -> object:
        monkeypatch.setattr(latent_index, "write_shards", write)
        ClaraIndex.from_hub(REPO)  # by another process, while this one downloads
        return write(*words)

    monkeypatch.setattr(latent_index, "write_shards", overtaken)
    newer = ClaraIndex.from_hub(REPO)
    assert latent_index.write_shards is write and newer.directory != fetched.directory
    assert_same_rows(newer, index)


def test_what_is_no_index_or_not_whole_is_refused(hub: LoopbackHub, index: ClaraIndex, tmp_path: Path) -> None:
    api = latent_hub.HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo(REPO, repo_type="dataset")

    def upload(path: str, content: bytes) -> None:
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, repo_type="dataset")

    upload("data/train.parquet", b"PAR1")
    with pytest.raises(ValueError, match=r"tester/index holds no latent index \(index.json is missing\)"):
        ClaraIndex.from_hub(REPO, tmp_path / "fetched")
    push(index)
    manifest = json.loads(hub.read(REPO, "index.json", repo_type="dataset"))
    for changed, message in ((manifest | {"format": "parquet-9"}, "its format is 'parquet-9'"), ({}, "KeyError")):
        upload("index.json", json.dumps(changed).encode())
        with pytest.raises(ValueError, match=f"index.json of tester/index cannot be read: .*{message}"):
            ClaraIndex.from_hub(REPO, tmp_path / "fetched")
    upload("index.json", json.dumps(manifest).encode())
    name = "data/train-00000-of-00001.parquet"
    content = hub.read(REPO, name, repo_type="dataset")
    upload(name, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match=r"1 of 1 files of tester/index are not as they were pushed: .* other content"):
        ClaraIndex.from_hub(REPO, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists() and not list(tmp_path.glob(".*.partial"))


def test_a_failed_push_leaves_the_old_index(hub: LoopbackHub, index: ClaraIndex, tmp_path: Path) -> None:
    first = push(index)
    before = contents(index.directory)
    add(index, documents(3, first=100))
    hub.fail_request(1, status=403, method="POST", path_contains="/commit/")
    with pytest.raises(HfHubHTTPError, match="403"):
        push(index)
    assert hub.commits(REPO, repo_type="dataset")[0]["id"] == first
    assert set(contents(index.directory)) > set(before)  # and nothing of the push
    assert not list(index.directory.glob(".push-*"))
    push(index)
    assert_same_rows(ClaraIndex.from_hub(REPO, tmp_path / "fetched"), index)
