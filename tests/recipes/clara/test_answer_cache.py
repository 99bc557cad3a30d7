"""The cache of answers: what is stored stays, and what is damaged is refused."""

import hashlib
import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_grafts.recipes.clara.answer_cache import LAYOUT, AnswerCache


def name(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def answer(number: int) -> dict[str, object]:
    return {"text": f"Antwort {number} 答案 \n" * 20, "finish_reason": "stop", "tokens": number}


def filled(path: Path, count: int = 200) -> None:
    cache = AnswerCache(path)
    cache.store({name(number): answer(number) for number in range(count)})
    cache.close()


def test_answers_stay(tmp_path):
    path = tmp_path / "folder" / "cache.sqlite"
    filled(path)
    cache = AnswerCache(path)
    assert len(cache) == 200
    assert all(cache.find(name(number)) == answer(number) for number in range(200))
    assert cache.find(name(200)) is None
    # What a cut of power would show and a test cannot: each commit is flushed.
    assert cache._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert cache._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    cache.store({name(3): {"text": "new"}})
    assert cache.find(name(3)) == {"text": "new"}
    cache.close()
    cache.close()


def test_threads_and_processes_write_at_once(tmp_path):
    path = tmp_path / "cache.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, 1000 * number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = AnswerCache(path)
    assert len(cache) == 3 * 60
    assert all(
        cache.find(name(start + number)) == answer(start + number) for start in (0, 2000) for number in range(60)
    )
    cache.close()


def _write(path: Path, start: int) -> None:
    cache = AnswerCache(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: cache.store({name(number): answer(number)}), range(start, start + 60)))
    cache.close()


def test_another_process_sees_an_answer_as_soon_as_it_is_stored(tmp_path):
    path = tmp_path / "cache.sqlite"
    writer, reader = AnswerCache(path), AnswerCache(path)
    writer.store({name(1): answer(1)})
    assert reader.find(name(1)) == answer(1)
    writer.close()
    reader.close()


def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path):
    """Whatever is overwritten, no wrong answer comes out: an error, or what was stored."""
    path = tmp_path / "cache.sqlite"
    filled(path)
    whole = path.read_bytes()
    refused = 0
    for start in range(0, len(whole), 997):
        damaged = bytearray(whole)
        for index in range(start, min(start + 8, len(whole))):
            damaged[index] ^= 0x15
        path.write_bytes(damaged)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            cache = AnswerCache(path)
        except ValueError as error:
            assert "Take it from a backup" in str(error) or "of something else" in str(error) or "layout" in str(error)
            refused += 1
            continue
        try:
            assert all(cache.find(name(number)) in (answer(number), None) for number in range(200)), start
        except ValueError as error:
            assert "is damaged" in str(error)
            refused += 1
        cache.close()
    assert refused > len(whole) / 997 / 2, (refused, len(whole))


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, None])
def test_files_that_are_no_cache(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    if content is None:
        filled(path)
        path.write_bytes(path.read_bytes()[:8192])
    else:
        path.write_bytes(content)
    if content == b"":
        cache = AnswerCache(path)
        assert len(cache) == 0
        cache.close()
        return
    with pytest.raises(ValueError, match=r"cache\.sqlite is damaged \(.+\)\. Take it from a backup, or move it away"):
        AnswerCache(path)


def test_another_layout_and_another_owner(tmp_path):
    path = tmp_path / "cache.sqlite"
    filled(path)
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {LAYOUT + 1}")
    database.close()
    with pytest.raises(ValueError, match=f"has layout {LAYOUT + 1}; this version reads and writes {LAYOUT}. Move it"):
        AnswerCache(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    with pytest.raises(ValueError, match="is a database of something else"):
        AnswerCache(other)
    with sqlite3.connect(other) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    database.close()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be opened"):
        AnswerCache(tmp_path / "folder")
