"""The latent index against a naive search, through every change of it, and what it refuses."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_latents import (
    SETTINGS,
    SIZE,
    KilledError,
    add,
    all_latents,
    all_passages,
    contents,
    documents,
    killed_at_rename,
    nearest,
    queries,
)

from qwen_grafts.recipes import latent_index
from qwen_grafts.recipes.latent_index import ClaraIndex

FACTORIES = {
    "SQfp16": "",
    "Flat": "",
    "IVF4,SQfp16": "nprobe=4",
    "IVF4,Flat": "nprobe=4",
    "HNSW16,Flat": "efSearch=200",
    "RR24,Flat": "",  # a rotation before it: no single rows can be left out
}


@pytest.fixture
def shown() -> list[dict[str, str]]:
    return documents(40)


@pytest.fixture
def index(tmp_path: Path, shown: list[dict[str, str]]) -> ClaraIndex:
    """Three shards."""
    index = ClaraIndex.create(tmp_path / "index", **SETTINGS)
    for start, stop in ((0, 25), (25, 26), (26, 40)):
        add(index, shown[start:stop])
    return index


def assert_searches(index: ClaraIndex, shown: list[dict[str, str]], top_k: int = 7) -> None:
    """It finds what the naive search finds among the passages of `shown`; cosines to the digits of float16."""
    latents, passages, asked = all_latents(shown), all_passages(shown), queries(9)
    assert len(index) == len(latents)
    assert index.ids() == [document["id"] for document in shown]
    assert index.num_documents == len(shown)
    scores, order = nearest(asked, latents, len(latents))
    found = index.search(asked, top_k)
    assert found.scores.dtype == torch.float32 and found.rows.dtype == torch.int64
    close = {"atol": 2e-3, "rtol": 0}
    torch.testing.assert_close(found.scores, scores[:, :top_k].float(), **close)
    for query, rows in enumerate(found.rows):
        places = torch.tensor([passages.index(passage) for passage in index.passages(rows)])
        assert len(set(places.tolist())) == top_k
        torch.testing.assert_close(found.scores[query], scores[query][order[query].argsort()][places].float(), **close)
        assert torch.equal(torch.stack(index.memory(rows)), latents[places].to(torch.float16))


def test_search_is_the_naive_one(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    assert_searches(index, shown)
    assert_searches(index, shown, top_k=len(index))
    one = index.search(queries(9)[4:5].to(torch.bfloat16), 1)
    assert one.rows.shape == (1, 1)
    index.build_search()
    assert_searches(index, shown)


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory_searches_and_leaves_deleted_rows_out(
    index: ClaraIndex, shown: list[dict[str, str]], factory: str
) -> None:
    index.build_search(factory, FACTORIES[factory])
    assert_searches(index, shown)
    best = {index.passages(rows[:1])[0]["id"] for rows in index.search(queries(9), 1).rows}
    assert len(best) > 3
    index.delete(best)
    kept = [document for document in shown if document["id"] not in best]
    assert_searches(index, kept)
    again = ClaraIndex.load(index.directory)
    assert_searches(again, kept)
    added = documents(5, first=100)
    add(again, added)
    assert_searches(again, kept + added)
    again.compact()
    assert_searches(again, kept + added)
    saved = json.loads((index.directory / "search.json").read_text())
    assert (saved["factory"], saved["parameters"]) == (factory, FACTORIES[factory])


def test_delete_add_again_and_compact(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    names = ["d0", "d3", "d4", "d25", "d39"]
    gone = [document for document in shown if document["id"] in names]
    assert index.delete(names) == len(all_passages(gone))
    kept = [document for document in shown if document["id"] not in names]
    assert_searches(index, kept)
    for _ in range(2):
        add(index, gone)
        assert_searches(index, kept + gone)
        assert index.delete(names[:2]) == len(all_passages(gone[:2]))
        assert_searches(index, kept + gone[2:])
        index.delete(names[2:])
    add(index, gone)
    assert_searches(index, kept + gone)
    before = sum(path.stat().st_size for path in index.directory.rglob("*.arrow"))
    index.compact()
    assert_searches(index, kept + gone)
    assert_searches(ClaraIndex.load(index.directory), kept + gone)
    assert len(list(index.directory.rglob("*.arrow"))) == 1
    assert sum(path.stat().st_size for path in index.directory.rglob("*.arrow")) < before
    index.delete(index.ids())
    assert len(index) == 0
    index.compact()
    assert len(ClaraIndex.load(index.directory)) == 0 and not list(index.directory.rglob("*.arrow"))
    add(index, shown)
    assert_searches(index, shown)


def test_save_and_load_are_equal(index: ClaraIndex, shown: list[dict[str, str]], tmp_path: Path) -> None:
    index.delete(["d7"])
    index.build_search("IVF4,SQfp16", "nprobe=4")
    index.save(tmp_path / "copy" / "here")
    index.save(index.directory)
    assert contents(tmp_path / "copy" / "here") == contents(index.directory)
    copy = ClaraIndex.load(tmp_path / "copy" / "here")
    assert copy.settings == index.settings
    assert_searches(copy, [document for document in shown if document["id"] != "d7"])
    with pytest.raises(ValueError, match="copy is not empty; choose another folder"):
        index.save(tmp_path / "copy")


def test_merge(index: ClaraIndex, shown: list[dict[str, str]], tmp_path: Path) -> None:
    index.delete(["d1", "d2"])
    other = ClaraIndex.create(tmp_path / "other", **SETTINGS)
    more = [*documents(6, first=200), shown[2]]
    add(other, more)
    other.delete(["d203"])
    kept = [document for document in shown if document["id"] not in ("d1", "d2")]
    kept += [document for document in more if document["id"] != "d203"]
    assert_searches(ClaraIndex.merge(tmp_path / "both", [index, other]), kept)
    assert_searches(ClaraIndex.load(tmp_path / "both"), kept)
    with pytest.raises(ValueError, match="38 of 38 ids come more than once, 'd0', 'd3', 'd4', …"):
        ClaraIndex.merge(tmp_path / "twice", [index, index])
    stranger = ClaraIndex.create(tmp_path / "stranger", **SETTINGS | {"fingerprint": "compressor-2", "hidden_size": 9})
    with pytest.raises(
        ValueError, match="fingerprint is 'compressor-1' here and 'compressor-2' there; hidden_size is 8"
    ):
        ClaraIndex.merge(tmp_path / "mixed", [index, stranger])
    with pytest.raises(ValueError, match="0 indexes"):
        ClaraIndex.merge(tmp_path / "none", [])
    assert not any((tmp_path / name).exists() for name in ("twice", "mixed", "none"))


def test_latents_come_back_as_they_were(tmp_path: Path) -> None:
    """bfloat16 within the range of float16 loses nothing there; float32 keeps every bit."""
    latents = (queries(20) * 300).to(torch.bfloat16)
    latents[0, 0, 0] = 65_024  # the largest bfloat16 that float16 has
    latents[1] = 0
    for dtype, given in (("float16", latents), ("float32", torch.randn(20, *SIZE, generator=torch.Generator()) * 1e8)):
        index = ClaraIndex.create(tmp_path / dtype, **SETTINGS, dtype=dtype)
        index.add([f"text {number}" for number in range(20)], list(given[:, None].requires_grad_()))
        back = index.memory(torch.arange(20))
        assert all(latent.dtype == getattr(torch, dtype) for latent in back)
        assert torch.equal(torch.stack(back).to(given.dtype), given)
        assert index.passages([19]) == [{"id": index.ids()[19], "passage": 0, "text": "text 19"}]
    found = index.search(given[[3]], 2)  # of the last one, by itself
    assert found.rows[0, 0] == 3 and found.scores[0, 0] == pytest.approx(1, abs=1e-3)


def test_a_passage_of_zeros_scores_nothing(tmp_path: Path) -> None:
    index = ClaraIndex.create(tmp_path / "index", **SETTINGS)
    index.add(["zeros", "ones"], [torch.zeros(1, *SIZE), torch.ones(1, *SIZE)])
    found = index.search(torch.ones(1, *SIZE), 2)
    assert found.rows.tolist() == [[1, 0]]
    assert found.scores.tolist() == [[pytest.approx(1, abs=1e-3), 0]]


def test_ids_without_a_name_are_those_of_the_text(index: ClaraIndex) -> None:
    latents = torch.ones(1, *SIZE)
    index.add(["The same.", {"text": "Another.", "id": None}], [latents, latents])
    names = index.ids()[-2:]
    assert names == [hashlib.sha256(text).hexdigest()[:32] for text in (b"The same.", b"Another.")]
    with pytest.raises(ValueError, match=f"1 of 1 documents are in the index already, '{names[0]}' the first"):
        index.add([{"text": "The same."}], [latents])


def test_ten_thousand_passages(tmp_path: Path) -> None:
    """The saved search index, made by the first search, finds what float32 finds; rows added later are found too."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(10_000, *SIZE, generator=generator)
    names = [f"text {number}" for number in range(len(latents))]
    recalls = {}
    for dtype in ("float16", "float32"):
        index = ClaraIndex.create(tmp_path / dtype, **SETTINGS, dtype=dtype)
        index.add(names, list(latents[:, None]))
        if dtype == "float32":
            index.build_search("Flat")
        asked = torch.randn(64, *SIZE, generator=generator)
        found, (scores, expected) = index.search(asked, 10), nearest(asked, latents, 10)
        torch.testing.assert_close(found.scores, scores.float(), atol=1e-6 if dtype == "float32" else 1e-3, rtol=0)
        hits = [len(set(one.tolist()) & set(other.tolist())) for one, other in zip(found.rows, expected, strict=True)]
        recalls[dtype] = sum(hits) / 640
        assert (index.directory / "search.json").is_file()
    assert recalls["float32"] == 1 and recalls["float16"] > 0.99
    index.add([f"late {number}" for number in range(100)], list(asked[0:1].repeat(100, 1, 1)[:, None]))
    assert set(index.search(asked, 100).rows[0].tolist()) == set(range(10_000, 10_100))
    assert len(list(index.directory.glob("search-*.faiss"))) == 1


def test_search_index_follows_what_is_added(index: ClaraIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are searched beside it; too many, and it is made anew."""
    monkeypatch.setattr("qwen_grafts.recipes.latent_search.FEW_ROWS", 10)
    shown, files = documents(40), set()
    index.build_search()
    for first, few in ((40, True), (43, True), (46, False), (70, True)):
        before = contents(index.directory)["search.json"]
        added = documents(3 if few else 24, first)
        add(index, added)
        shown += added
        assert_searches(index, shown)
        assert (contents(index.directory)["search.json"] == before) == few
        assert_searches(ClaraIndex.load(index.directory), shown)
        files |= {path.name for path in index.directory.glob("search-*.faiss")}
        assert len(list(index.directory.glob("search-*"))) == 1
    assert len(files) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "note"])
def test_a_broken_search_index_is_made_anew(index: ClaraIndex, shown: list[dict[str, str]], damage: str) -> None:
    index.build_search("IVF4,SQfp16", "nprobe=4")
    expected = contents(index.directory)
    path = next(index.directory.glob("search-*.faiss"))
    damaged = {"cut": path.read_bytes()[:-9], "flipped": flipped(path.read_bytes()), "note": path.read_bytes()}
    path.unlink()
    if damage != "missing":
        path.write_bytes(damaged[damage])
    if damage == "note":
        (index.directory / "search.json").write_text("{")
    again = ClaraIndex.load(index.directory)
    assert_searches(again, shown)
    assert damage == "note" or contents(index.directory) == expected


def flipped(content: bytes) -> bytes:
    """One bit of it, in the middle."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "cut": (lambda content: content[:-100], r"00000-\w+\.arrow has \d+ of \d+ bytes \(\d+ passages\)"),
    "empty": (lambda content: b"", r"00000-\w+\.arrow has 0 of \d+ bytes"),
    "flipped": (flipped, r"00000-\w+\.arrow has other content than was written"),
    "missing": (lambda content: None, r"00000-\w+\.arrow is missing \(\d+ passages\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_shards_are_refused_and_set_aside(index: ClaraIndex, shown: list[dict[str, str]], damage: str) -> None:
    change, message = DAMAGES[damage]
    index.delete(["d3", "d30"])
    path = sorted(index.directory.rglob("*.arrow"))[0]
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = contents(index.directory)
    with pytest.raises(ValueError, match=rf"^1 of 3 shards of .* are not as they were written: {message}.*repair"):
        ClaraIndex.load(index.directory)
    assert contents(index.directory) == before
    repaired = ClaraIndex.repair(index.directory)
    kept = [document for document in shown[25:] if document["id"] != "d30"]
    assert_searches(repaired, kept, top_k=3)
    if content is not None:
        assert path.with_name(f"{path.name}.broken").read_bytes() == content
    lost = [document for document in shown if document["id"] not in repaired.ids()]
    add(repaired, lost)
    assert_searches(ClaraIndex.load(index.directory), kept + lost)
    again = contents(index.directory)
    ClaraIndex.repair(index.directory)
    assert contents(index.directory) == again


def test_what_a_killed_change_leaves_does_not_disturb(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    """A half-written shard, one that no manifest names, a half-written manifest: the index is as it was before."""
    folder = index.directory / "shards"
    shard = next(folder.iterdir())
    (folder / ".00003.0a1b2c3d.partial").write_bytes(shard.read_bytes()[:50])
    (folder / "00003-0123456789ab.arrow").write_bytes(shard.read_bytes())
    (index.directory / ".index.json.0a1b2c3d.partial").write_text('{"format": 1')
    again = ClaraIndex.load(index.directory)
    assert_searches(again, shown)
    added = documents(2, first=300)
    add(again, added)
    assert_searches(ClaraIndex.load(index.directory), shown + added)
    assert len(list(folder.iterdir())) == 4


CHANGES = {
    "add": (lambda index: add(index, documents(2, first=50)), documents(40) + documents(2, first=50)),
    "delete": (lambda index: index.delete(["d3", "d30"]), [*documents(3), *documents(26, 4), *documents(9, 31)]),
    "compact": (lambda index: index.compact(), documents(40)),
}


@pytest.mark.parametrize("lived", range(2))
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_killed_before_a_file_has_its_name(
    index: ClaraIndex, shown: list[dict[str, str]], change: str, lived: int
) -> None:
    """The index is as it was until the manifest is renamed, which is the last file; then it is changed."""
    make, changed = CHANGES[change]
    with killed_at_rename(lived) as renamed, contextlib.suppress(KilledError):
        make(index)
    done = change == "delete" and lived == 1
    assert ("index.json" in renamed) == done
    again = ClaraIndex.load(index.directory)
    assert_searches(again, changed if done else shown)
    if not done:
        make(again)
    assert_searches(ClaraIndex.load(index.directory), changed)
    assert {path.name for path in index.directory.rglob("*.arrow")} == {shard.name for shard in again._manifest.shards}


def test_a_failed_write_changes_nothing(
    index: ClaraIndex, shown: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(index.directory)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("os.fsync", "hashlib.file_digest"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(name, full)
            add(index, documents(3, first=50))
        assert contents(index.directory) == before
    assert_searches(index, shown)
    add(index, documents(3, first=50))
    assert_searches(ClaraIndex.load(index.directory), shown + documents(3, first=50))


def test_two_writers_do_not_lose_each_others_documents(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    other = ClaraIndex.load(index.directory)
    added = documents(2, first=60)
    add(other, added)
    changes = {
        "add": lambda: add(index, documents(2, first=70)),
        "delete": lambda: index.delete(["d1"]),
        "compact": index.compact,
    }
    for change in changes.values():
        with pytest.raises(
            ValueError, match=r"Another process changed .*\(generation 4 on the disk, 3 here\). Load it"
        ):
            change()
    assert_searches(index, shown)  # as it was loaded
    assert_searches(ClaraIndex.load(index.directory), shown + added)


def test_a_reader_outlives_compaction(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    reader = ClaraIndex.load(index.directory)
    index.delete(["d0"])
    index.compact()
    assert_searches(reader, shown)
    assert_searches(index, shown[1:])


def test_who_loads_while_it_is_compacted_looks_again(
    index: ClaraIndex, shown: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, changes = latent_index.file_problem, [index.compact]

    def late(*words: object) -> str | None:
        if changes:
            changes.pop()()
        return look(*words)

    monkeypatch.setattr(latent_index, "file_problem", late)
    assert_searches(ClaraIndex.load(index.directory), shown)


def test_another_compressor_is_refused(index: ClaraIndex) -> None:
    index.check("compressor-1")
    with pytest.raises(ValueError, match="made by the compressor 'compressor-1', and this one is 'compressor-2'"):
        index.check("compressor-2")


def test_bad_documents_and_latents_are_refused(index: ClaraIndex) -> None:
    before = contents(index.directory)
    good, pair = torch.ones(1, *SIZE), [{"id": "a", "text": "A"}, {"id": "b", "text": "B"}]
    nan, infinite, large = (
        good.clone().index_put((torch.tensor(0),) * 3, torch.tensor(value))
        for value in (float("nan"), float("inf"), 70_000.0)
    )
    cases = [
        ([], [], None, "0 documents were given"),
        (["", "  \n", "a", {"id": "x"}], [good] * 4, None, r"3 of 4 documents .* number 0: there is no text in it"),
        ([{"id": 7, "text": "a"}], [good], None, "number 0: its id is 7, not a string"),
        ([{"id": "", "text": "a"}], [good], None, "its id is '', not a string"),
        ([("a", "b")], [good], None, "a tuple is neither a text nor a mapping"),
        (["half \ud800"], [good], None, "1 of 1 documents cannot be taken, number 0: .*surrogates not allowed"),
        ([pair[0], pair[1], pair[0]], [good] * 3, None, "1 of 2 ids come more than once, 'a'"),
        (["A", "A"], [good] * 2, None, "1 of 1 ids come more than once"),
        ([*pair, {"id": "d3", "text": "x"}], [good] * 3, None, "1 of 3 documents are in the index already, 'd3'"),
        (pair, [good], None, "2 documents came with the passages of 2 and the latents of 1"),
        (pair, [good] * 2, [["A"]], "2 documents came with the passages of 1 and the latents of 2"),
        (pair, [good] * 2, [], "2 documents came with the passages of 0"),
        (pair, [good, good.repeat(2, 1, 1)], None, r"1 of 2 documents do not fit, 'b': \(2, 3, 8\) for 1 passages\."),
        (pair, [good[..., :7], good[:0]], [["A"], []], r"2 of 2 documents .*, 'a': \(1, 3, 7\) .*\(passages, 3, 8\)"),
        (pair, [good, nan], None, r"1 of 48 values in the latents of 1 documents \('b'\) are not finite"),
        (pair, [infinite, nan], None, r"2 of 48 values in the latents of 2 documents \('a', 'b'\) are not finite"),
        (pair, [large, good], None, r"\('a'\) are beyond the largest number of float16.*dtype=\"float32\""),
    ]  # fmt: skip
    for added, latents, passages, message in cases:
        with pytest.raises(ValueError, match=message):
            index.add(added, latents, passages)
    for names, message in ((["d1", "no", "nor"], "2 of 3 documents are not in the index, 'no'"), ("d1", "not in")):
        with pytest.raises(ValueError, match=message):
            index.delete(names)
    assert contents(index.directory) == before and index.num_documents == 40
    assert index.delete([]) == 0


def test_bad_searches_are_refused(index: ClaraIndex, tmp_path: Path) -> None:
    count = len(index)
    for top_k in (count + 1, 0, -1):
        with pytest.raises(ValueError, match=f"`top_k` is {top_k}, and the index has {count} passages"):
            index.search(queries(2), top_k)
    for shape in ((2, 3, 7), (2, 4, 8), (3, 8), (0, 3, 8)):
        with pytest.raises(ValueError, match=r"this index takes \(queries, 3, 8\)"):
            index.search(torch.ones(shape), 1)
    broken = queries(3)
    broken[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 queries hold values that are not finite"):
        index.search(broken, 1)
    index.delete(["d0"])
    for rows in ([0], [count], [-1]):
        for read in (index.memory, index.passages):
            with pytest.raises(
                ValueError, match=f"1 of 2 rows are not in the index or were deleted, {rows[0]} the first"
            ):
                read([count - 1, *rows])
    with pytest.raises(ValueError, match=r"The rows have the shape \(2, 3\); give those of one query"):
        index.memory(index.search(queries(2), 3).rows)
    assert index.memory([]) == [] and index.passages([]) == []
    for factory, parameters, message in (
        ("IVF999,Flat", "", "from 81 passages: .*Number of training points"),
        ("Nonsense", "", "could not parse"),
        ("IVF4,Flat", "nprob=3", "could not set parameter"),
    ):
        with pytest.raises(ValueError, match=rf"FAISS cannot build '{factory}' .*{message}"):
            index.build_search(factory, parameters)
    index.build_search("IVF20,Flat", "nprobe=1")
    with pytest.raises(ValueError, match=r"'IVF20,Flat' found fewer than 40 passages for 2 of 2 queries.*nprobe"):
        index.search(queries(2), 40)
    empty = ClaraIndex.create(tmp_path / "empty", **SETTINGS)
    for call in (lambda: empty.search(queries(1), 1), empty.build_search, lambda: empty.push_to_hub("tester/empty")):
        with pytest.raises(ValueError, match="has 0 passages; add documents"):
            call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fingerprint": ""}, "needs the fingerprint"),
        ({"hidden_size": 0}, "`hidden_size` is 0"),
        ({"num_memory_tokens": -1}, "`num_memory_tokens` is -1"),
        ({"compression_rate": 0}, "`compression_rate` is 0"),
        ({"dtype": "bfloat16"}, "'bfloat16'; latents are stored as float16 or float32"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClaraIndex.create(tmp_path / "index", **SETTINGS | settings)
    assert not (tmp_path / "index").exists()


def test_folders_are_looked_at(index: ClaraIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="index is not empty; choose another folder"):
        ClaraIndex.create(index.directory, **SETTINGS)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"bare holds no index \(index.json is missing\)"):
        ClaraIndex.load(tmp_path / "bare")
    assert len(ClaraIndex.create(tmp_path / "bare", **SETTINGS)) == 0
    for text, message in (("{", "JSONDecodeError"), ("{}", "KeyError: 'format'"), ('{"format": 9}', "its format is 9")):
        (index.directory / "index.json").write_text(text)
        with pytest.raises(ValueError, match=f"index.json cannot be read: .*{message}"):
            ClaraIndex.load(index.directory)


def test_shards_are_data_sets(index: ClaraIndex, shown: list[dict[str, str]]) -> None:
    """`datasets` reads them by itself."""
    rows = Dataset.from_file(str(sorted(index.directory.rglob("*.arrow"))[0]))
    assert rows.column_names == ["id", "passage", "text", "latents"]
    assert rows["id"][0] == "d0" and len(rows) == len(all_passages(shown[:25]))
    assert np.array_equal(np.asarray(rows["latents"][:], np.float16), all_latents(shown[:25]).to(torch.float16).numpy())
