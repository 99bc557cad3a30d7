"""Archives that would fill the memory, lie about their size, or lead out."""

import struct
import zipfile
from pathlib import Path

import pytest
from real_files import CHINA, write_docx, write_zip

from qwen_grafts.recipes.clara import archive_guard
from qwen_grafts.recipes.clara.archive_guard import check_archive
from qwen_grafts.recipes.clara.file_problems import BOMB, BROKEN, ENCRYPTED, OUTSIDE, FileProblem


def refused(path: Path) -> FileProblem:
    with pytest.raises(FileProblem) as problem:
        check_archive(path)
    return problem.value


def test_real_documents_pass(tmp_path: Path) -> None:
    check_archive(write_docx(tmp_path / "a.docx", "Text", CHINA, ["cell", CHINA]))
    check_archive(write_docx(tmp_path / "b.docx", *["The same line again and again."] * 3000))


def test_a_bomb_is_told_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "bomb.docx", {"word/media/a.bmp": bytes(8 * 2**20)})
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments: opened.append(arguments))
    problem = refused(path)
    assert (problem.reason, opened) == (BOMB, [])
    assert "unpack to 8,388,608, 100 times" in problem.detail
    monkeypatch.setattr(archive_guard, "MAX_UNPACKED", 2**20)
    assert "1,048,576 at most" in refused(path).detail


def test_a_directory_that_lies(tmp_path: Path) -> None:
    """The sizes in the directory say 10 bytes; the stream gives eight million."""
    path = write_zip(tmp_path / "liar.docx", {"word/document.xml": bytes(8 * 2**20)})
    content = bytearray(path.read_bytes())
    true_size = struct.pack("<I", 8 * 2**20)
    while (place := content.find(true_size)) >= 0:
        content[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    assert refused(path).reason in (BOMB, BROKEN)


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    """A hundred entries of the directory for one member: small in the file, large in memory."""
    noise = bytes(range(256)) * 2**13
    path = write_zip(tmp_path / "shared.docx", {f"{number:03}.bin": noise for number in range(20)})
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    content = path.read_bytes()
    data_end = 30 + len(first.filename) + first.compress_size
    end = content.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", content[end + 16 : end + 20])[0]
    directory = bytearray(content[start:end])
    place = 0
    while (place := directory.find(b"PK\x01\x02", place)) >= 0:
        directory[place + 42 : place + 46] = struct.pack("<I", 0)
        place += 46
    tail = bytearray(content[end:])
    tail[16:20] = struct.pack("<I", data_end)
    path.write_bytes(content[:data_end] + directory + tail)
    assert refused(path).reason in (BOMB, BROKEN)


def test_too_much_xml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_guard, "MAX_XML", 1000)
    assert (
        "bytes of XML" in refused(write_zip(tmp_path / "a.docx", {"a.xml": b"ab" * 300, "b.rels": b"c" * 500})).detail
    )
    check_archive(write_zip(tmp_path / "b.docx", {"a.xml": b"ab" * 300, "b.bin": b"c" * 500}))


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_guard, "MAX_MEMBERS", 3)
    check_archive(write_zip(tmp_path / "a.docx", dict.fromkeys("abc", b"")))
    assert "4 members" in refused(write_zip(tmp_path / "b.docx", dict.fromkeys("abcd", b""))).detail


@pytest.mark.parametrize("name", ["../out.xml", "/etc/x", "a/../../b", "C:\\x", "..\\x"])
def test_members_that_lead_out(tmp_path: Path, name: str) -> None:
    problem = refused(write_zip(tmp_path / "a.docx", {"ok.xml": b"", name: b"x"}))
    assert problem.reason == OUTSIDE


def test_broken_and_encrypted(tmp_path: Path) -> None:
    whole = write_docx(tmp_path / "a.docx", "Text", CHINA).read_bytes()
    path = tmp_path / "b.docx"
    for content in (whole[: len(whole) // 2], b"no archive", whole[:-10]):
        path.write_bytes(content)
        assert refused(path).reason == BROKEN
    flipped = bytearray(whole)
    with zipfile.ZipFile(tmp_path / "a.docx") as archive:
        picture = next(member for member in archive.infolist() if member.filename.endswith(".png"))
    flipped[picture.header_offset + 200] ^= 0xFF
    path.write_bytes(flipped)
    assert refused(path).reason == BROKEN
    flagged = bytearray(whole)
    flagged[flagged.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(flagged)
    assert refused(path).reason == ENCRYPTED
