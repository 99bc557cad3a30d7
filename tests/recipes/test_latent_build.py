"""Building a latent index: killed and resumed, by several processes, and with what does not belong together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_latents import (
    BUILD,
    SETTINGS,
    SIZE,
    KilledError,
    all_passages,
    compress,
    contents,
    documents,
    killed_at_rename,
)

from qwen_grafts.recipes import latent_build
from qwen_grafts.recipes.latent_build import build_index
from qwen_grafts.recipes.latent_index import ClaraIndex

CHILD = Path(__file__).parents[1] / "children" / "build_latents.py"
COUNT = 47  # five shards, the last one not full


class Compressor:
    """Counts the documents it compresses; fails at the batch that holds a text."""

    def __init__(self, fails_at: str = "") -> None:
        self.texts: list[str] = []
        self.sizes: list[int] = []
        self.fails_at = fails_at

    def __call__(self, texts: list[str]) -> list[tuple[list[str], torch.Tensor]]:
        if self.fails_at in texts:
            raise RuntimeError("out of memory")
        self.texts += texts
        self.sizes.append(len(texts))
        return compress(texts)


def build(directory: Path, shown: Any = None, compressor: Callable = compress, **settings: Any) -> ClaraIndex | None:
    shown = documents(COUNT) if shown is None else shown
    return build_index(directory, shown, compressor, **SETTINGS | BUILD | settings)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Files of an uninterrupted run."""
    build(tmp_path / "whole")
    return contents(tmp_path / "whole")


def start(directory: Path, num_processes: int = 1, process_index: int = 0, seconds: float = 0) -> subprocess.Popen:
    words = map(str, (CHILD, directory, COUNT, num_processes, process_index, seconds))
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True
    )


def finished(child: subprocess.Popen) -> int:
    """Wait for it; the documents it compressed."""
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors[-3000:]
    return int(output.splitlines()[-1])


def test_build(tmp_path: Path) -> None:
    compressor = Compressor()
    index = build(tmp_path / "index", compressor=compressor)
    assert compressor.texts == [document["text"] for document in documents(COUNT)]
    assert compressor.sizes == [4, 4, 2] * 4 + [4, 3]
    assert index.passages(range(len(index))) == all_passages(documents(COUNT))
    assert set(contents(tmp_path / "index")) == {
        "index.json",
        *(f"shards/{shard.name}" for shard in index._manifest.shards),
    }
    assert [shard.name[:6] for shard in index._manifest.shards] == ["00000-", "00001-", "00002-", "00003-", "00004-"]
    added = ClaraIndex.create(tmp_path / "added", **SETTINGS)
    made = compress([document["text"] for document in documents(COUNT)])
    added.add(documents(COUNT), [latents for _, latents in made], [texts for texts, _ in made])
    assert torch.equal(torch.stack(added.memory(range(len(added)))), torch.stack(index.memory(range(len(index)))))


@pytest.mark.parametrize("source", ["generator", "data set", "texts"])
def test_any_documents(tmp_path: Path, whole: dict[str, bytes], source: str) -> None:
    shown = documents(COUNT)
    sources = {
        "generator": (document for document in shown),
        "data set": Dataset.from_list(shown).add_column("more", range(COUNT)),
        "texts": [document["text"] for document in shown],
    }
    index = build(tmp_path / "index", sources[source])
    if source == "texts":
        assert [record["text"] for record in index.passages(range(len(index)))] == [
            passage["text"] for passage in all_passages(shown)
        ]
    else:
        assert contents(tmp_path / "index") == whole


@pytest.mark.slow
def test_killed_runs_go_on_where_they_were(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Twice killed with -9, behind the first shard and behind the third, it ends with the same bytes."""
    directory = tmp_path / "index"
    left = COUNT
    for wanted in (1, 3):
        child = start(directory, seconds=0.15)
        while not (directory / "build" / f"{wanted - 1:05d}.json").is_file():
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        time.sleep(0.2)  # into the next shard
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not (directory / "index.json").exists()
        assert len(list((directory / "shards").glob("*.arrow"))) == wanted
        assert len(list((directory / "shards").glob(".*.partial"))) == (1 if wanted == 1 else 2)
        with pytest.raises(ValueError, match="cut off, run the same build again"):
            ClaraIndex.load(directory)
        left = COUNT - 10 * wanted
    compressor = Compressor()
    index = build(directory, compressor=compressor)
    assert compressor.texts == [document["text"] for document in documents(COUNT)[-left:]]
    assert contents(directory) == whole
    assert len(index) == len(all_passages(documents(COUNT)))


@pytest.mark.parametrize("lived", range(12))  # settings, five shards with their notes, the manifest
def test_a_run_may_stop_at_every_write(tmp_path: Path, whole: dict[str, bytes], lived: int) -> None:
    """However many files get their name before it dies."""
    with killed_at_rename(lived), pytest.raises(KilledError):
        build(tmp_path / "index")
    assert not (tmp_path / "index" / "index.json").exists()
    compressor = Compressor()
    build(tmp_path / "index", compressor=compressor)
    assert len(compressor.texts) == COUNT - 10 * max(0, (lived - 1) // 2) if lived < 11 else not compressor.texts
    assert contents(tmp_path / "index") == whole


def test_a_failing_compressor_loses_only_its_shard(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path / "index", compressor=Compressor(documents(COUNT)[25]["text"]))
    assert not list((tmp_path / "index").rglob("*.partial"))
    compressor = Compressor()
    build(tmp_path / "index", compressor=compressor, batch_size=4)
    assert len(compressor.texts) == COUNT - 20
    assert contents(tmp_path / "index") == whole


@pytest.mark.slow
def test_two_processes_at_a_time_build_what_one_builds(tmp_path: Path, whole: dict[str, bytes]) -> None:
    children = [start(tmp_path / "index", 2, index, 0.05) for index in range(2)]
    assert [finished(child) for child in children] == [27, 20]
    assert contents(tmp_path / "index") == whole


def test_processes_build_what_one_builds(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Three one after the other, and one that goes on where another of two stopped."""
    for process_index, count in ((2, 10), (0, 20), (1, 17)):
        compressor = Compressor()
        index = build(tmp_path / "three", compressor=compressor, num_processes=3, process_index=process_index)
        assert (index is None) == (process_index != 1)
        assert len(compressor.texts) == count
    assert contents(tmp_path / "three") == whole
    assert build(tmp_path / "one", num_processes=2, process_index=1) is None
    compressor = Compressor()
    build(tmp_path / "one", compressor=compressor)
    assert len(compressor.texts) == 27
    assert contents(tmp_path / "one") == whole


def test_who_finishes_second_loads(tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writes the manifest, and removes the notes, between this one's last shard and its end."""
    looked = []

    def late(self: Any, number: int) -> Any:
        if number == COUNT // 10 and not looked and (self.directory / "build" / "00004.json").is_file():
            looked.append(number)
            build(tmp_path / "index")
        return finished_shard(self, number)

    finished_shard = latent_build._Build._finished
    monkeypatch.setattr(latent_build._Build, "_finished", late)
    assert len(build(tmp_path / "index")) == len(all_passages(documents(COUNT)))
    assert looked and contents(tmp_path / "index") == whole


def test_a_finished_build_is_given_back(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    before, compressor = contents(tmp_path / "index"), Compressor()
    assert len(build(tmp_path / "index", compressor=compressor)) == len(index)
    assert len(build(tmp_path / "index", compressor=compressor, num_processes=2, process_index=1)) == len(index)
    assert compressor.texts == [] and contents(tmp_path / "index") == before
    index.delete(["d5"])
    assert len(build(tmp_path / "index", compressor=compressor)) == len(index)
    for shown in (documents(COUNT - 1), documents(COUNT, first=1)):
        with pytest.raises(ValueError, match="holds a finished index of other documents"):
            build(tmp_path / "index", shown, compressor)
    assert compressor.texts == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_shard_broken_before_the_end_is_built_again(tmp_path: Path, whole: dict[str, bytes], damage: str) -> None:
    directory = tmp_path / "index"
    build(directory, num_processes=2)
    path = sorted(directory.rglob("*.arrow"))[1]
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] if damage == "cut" else content[:-200] + b"\1" + content[-199:])
    compressor = Compressor()
    build(directory, compressor=compressor)
    assert len(compressor.texts) == 30
    assert contents(directory) == whole


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "finished"])
def test_shards_of_another_run_are_refused(tmp_path: Path, stopped: bool) -> None:
    directory = tmp_path / "index"
    build(directory, **{"num_processes": 2} if stopped else {})
    before, compressor = contents(directory), Compressor()
    for settings, message in (
        ({"fingerprint": "compressor-2"}, "fingerprint was 'compressor-1' and is 'compressor-2'"),
        ({"shard_size": 20, "dtype": "float32"}, "dtype was 'float16' and is 'float32'; shard_size was 10 and is 20"),
        ({"compression_rate": 8}, "compression_rate was 16 and is 8"),
    ):
        with pytest.raises(ValueError, match=f"index holds shards of another run: {message}. Give that run's"):
            build(directory, compressor=compressor, **settings)
    if stopped:
        changed = documents(COUNT)
        changed[23]["text"] += " Changed."
        with pytest.raises(ValueError, match=r"Shard 2 in .* was built from other documents"):
            build(directory, changed, compressor)
        assert len(compressor.texts) == 10  # shard 1, which was missing and is kept
    else:
        assert contents(directory) == before and compressor.texts == []


def test_bad_documents_are_refused_before_anything_is_compressed(tmp_path: Path) -> None:
    compressor, good = Compressor(), documents(COUNT)
    cases = [
        ([], "0 documents were given"),
        (iter([]), "0 documents were given"),
        ([*good, {"id": "x", "text": " "}], "1 of 48 documents cannot be taken, number 47: there is no text"),
        ([*good, good[3], good[4]], "2 of 47 ids come more than once, 'd3', 'd4'"),
        (["same"] * 2, "1 of 1 ids come more than once"),
    ]
    for number, (shown, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            build(tmp_path / str(number), shown, compressor)
        assert not list((tmp_path / str(number)).rglob("*.arrow"))
    with pytest.raises(ValueError, match=r"1 of 8 ids come more than once, 'd3'"):  # seen only when it is reached
        build(tmp_path / "stream", iter([*good, good[3]]), compressor)
    assert compressor.texts == [document["text"] for document in good[:40]]
    for settings, message in (
        ({"process_index": 2, "num_processes": 2}, "`process_index` is 2 of 2 processes"),
        ({"process_index": -1}, "`process_index` is -1 of 1"),
        ({"batch_size": 0}, "`batch_size` is 0 and `shard_size` 10"),
        ({"shard_size": 0}, "`batch_size` is 4 and `shard_size` 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(tmp_path / "never", **settings)
    assert not (tmp_path / "never").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"used holds 1 files that are no index \(notes.txt is one\)"):
        build(tmp_path / "used")


def test_bad_latents_are_refused(tmp_path: Path) -> None:
    def results(latents: torch.Tensor, passages: int = 1) -> Callable:
        return lambda texts: [([text] * passages, latents) for text in texts]

    for compressor, message in (
        (results(torch.full((1, *SIZE), float("nan"))), r"96 of 96 values in the latents of 4 documents .* not finite"),
        (results(torch.zeros(1, 3, 9)), "The latents of 4 of 4 documents do not fit"),
        (results(torch.zeros(1, *SIZE), passages=2), "for 2 passages"),
        (results(torch.zeros(0, *SIZE), passages=0), "for 0 passages"),
        (lambda texts: compress(texts)[1:], "4 documents came with the passages of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build(tmp_path / "index", compressor=compressor)
    assert not list((tmp_path / "index" / "shards").iterdir())
    assert len(build(tmp_path / "index")) == len(all_passages(documents(COUNT)))


def test_documents_are_read_shard_by_shard(tmp_path: Path) -> None:
    """A stream is never in memory as a whole."""
    read, most = 0, 0
    compressed: list[str] = []

    def stream() -> Iterator[dict[str, str]]:
        nonlocal read, most
        for document in documents(COUNT):
            read += 1
            most = max(most, read - len(compressed))
            yield document

    def counting(texts: list[str]) -> list:
        compressed.extend(texts)
        return compress(texts)

    build(tmp_path / "index", stream(), counting)
    assert most <= 10
