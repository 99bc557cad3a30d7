"""Folders of real files into knowledge folders: everything that is in them, killed and resumed, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from pypdf import PdfWriter
from pypdf.generic import NameObject, StreamObject
from real_files import CHINA, FLOWER, encoded, write_docx, write_encrypted_pdf, write_pdf, write_zip
from tiny_latents import KilledError, contents, killed_at_rename

from qwen_grafts.processing.guarded_images import CORRUPT, MISSING, NOT_AN_IMAGE
from qwen_grafts.processing.guarded_images import TOO_LARGE as TOO_MANY_PIXELS
from qwen_grafts.recipes.clara import document_conversion, file_records, folder_files
from qwen_grafts.recipes.clara.asset_store import AssetStore
from qwen_grafts.recipes.clara.file_problems import (
    BAD_NAME,
    BOMB,
    BROKEN,
    EMPTY,
    ENCODING,
    ENCRYPTED,
    HIDDEN,
    LINK_WITHIN,
    NO_REGULAR_FILE,
    NOTHING_IN_IT,
    OF_A_DOCUMENT,
    OUTSIDE,
    REMOTE,
    REPEATED_PICTURE,
    SAME_ID,
    TINY,
    UNKNOWN_TYPE,
    FileProblem,
)
from qwen_grafts.recipes.clara.knowledge_folder import JOURNAL, LEFT_OUT, REPORT, collect
from qwen_grafts.recipes.clara.raw_knowledge import image_file, image_references, read_raw_knowledge

EXAMPLE = "架构设计如下 [IMAGE_REF: extracted_assets/架构.png]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen files of all kinds, nothing wrong with them."""
    folder = tmp_path_factory.mktemp("made") / "files"
    for below in ("notes/img", "extracted_assets", "photos"):
        (folder / below).mkdir(parents=True)
    write_pdf(folder / "a.pdf", ["First page.", CHINA, "Below."], [FLOWER, "Second page."])
    write_docx(folder / "b.docx", "Words ", CHINA, ["head", "cell"], ["x", FLOWER])
    (folder / "c.html").write_text('<meta charset="utf-8"><p>Page <img src="notes/img/f%20g.png"></p>')
    (folder / "notes" / "d.md").write_text("# Notes\n\n![f](img/f%20g.png) ![h](../photos/h.jpg)\n", encoding="utf-16")
    (folder / "notes" / "e.txt").write_bytes("三层组成，缓存命中率为百分之九十。".encode("gb18030"))
    (folder / "example.txt").write_text(EXAMPLE, encoding="utf-8")
    FLOWER.save(folder / "notes" / "img" / "f g.png")
    CHINA.rotate(90, expand=True).save(folder / "photos" / "h.jpg")
    CHINA.crop((20, 20, 80, 80)).save(folder / "extracted_assets" / "架构.png")
    FLOWER.crop((10, 10, 90, 90)).save(folder / "photos" / "i [1].webp")
    CHINA.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "photos" / "j.tiff")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "files")


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, bytes]:
    """What an uninterrupted run leaves of them and a file that is refused."""
    folder = shutil.copytree(made, made.with_name("with a bad one"))
    (folder / "zero.txt").touch()
    collect(folder, made.with_name("whole"), on_bad_file="skip")
    return contents(made.with_name("whole"))


def left_out(directory: Path) -> dict[str, tuple[str, str]]:
    """File or picture -> reason and detail."""
    rows = map(json.loads, (directory / LEFT_OUT).read_text(encoding="utf-8").splitlines())
    return {row["picture"] or row["file"]: (row["reason"], row["detail"]) for row in rows}


def test_real_files(files: Path, tmp_path: Path) -> None:
    directory = tmp_path / "knowledge"
    report = collect(files, directory)
    documents = {document.id: document for document in read_raw_knowledge(directory / "raw_knowledge.jsonl")}
    assert list(documents) == [
        "a.pdf", "b.docx", "c.html", "example.txt", "notes/d.md", "notes/e.txt", "photos/i [1].webp", "photos/j.tiff"
    ]  # fmt: skip
    assert (report.files, report.texts, report.images) == (11, 6, 2)
    assert report.pictures == {"new": 4, "repeated": 4}
    assert report.passed_over == {OF_A_DOCUMENT: 3}
    assert report.refused == report.lost_pictures == {}
    assert json.loads((directory / REPORT).read_text())["pictures"] == report.pictures
    china, flower = image_references(documents["a.pdf"].text)
    assert documents["a.pdf"].text.split() == [
        *["First", "page.", "[IMAGE_REF:"], f"{china}]", *["Below.", "[IMAGE_REF:"], f"{flower}]", "Second", "page."
    ]  # fmt: skip
    assert documents["c.html"].text == f"Page [IMAGE_REF: {flower}]"
    assert documents["b.docx"].text.endswith(f"| --- | --- |\n| x | [IMAGE_REF: {flower}] |")
    assert documents["notes/e.txt"].text == "三层组成，缓存命中率为百分之九十。"
    (architecture,) = image_references(documents["example.txt"].text)
    assert documents["example.txt"].text == f"架构设计如下 [IMAGE_REF: {architecture}]"
    shown = {"a.pdf": CHINA, "example.txt": CHINA.crop((20, 20, 80, 80))}
    for name, picture in shown.items():
        path = image_file(image_references(documents[name].text)[0], directory)
        assert Image.open(path).tobytes() == picture.tobytes()
    assert Image.open(directory / image_references(documents["notes/d.md"].text)[1]).format == "JPEG"
    assert documents["photos/j.tiff"].image.startswith("raw_data/j-")
    assert Image.open(directory / documents["photos/j.tiff"].image).format == "PNG"
    named = {path for document in documents.values() for path in image_references(document.text)}
    named |= {document.image for document in documents.values() if document.image}
    assert set(contents(directory)) == {"raw_knowledge.jsonl", LEFT_OUT, REPORT, *named}


def test_bad_files_each_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, directory = tmp_path / "files", tmp_path / "knowledge"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "outside.txt").write_text("secret")
    CHINA.save(tmp_path / "outside.png")
    write_encrypted_pdf(folder / "locked.pdf", "secret")
    write_zip(folder / "bomb.docx", {"word/document.xml": bytes(9 * 2**20)})
    write_zip(folder / "out.docx", {"../../x": b"x"})
    (folder / "zero.md").touch()
    (folder / "broken.png").write_bytes(encoded(CHINA)[:2000])
    (folder / "wrong.jpg").write_bytes(b"%PDF-1.4 no picture")
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    (folder / "mixed.txt").write_bytes("人人生而自由".encode() + "在尊严".encode("gb18030"))
    (folder / "table.xlsx").write_bytes(b"x")
    (folder / "blank.html").write_text("<p> </p>")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    (folder / "caf\u00e9.txt").write_text("one")
    (folder / "cafe\u0301.txt").write_text("two")
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    (folder / ".hidden.txt").write_text("x")
    (folder / "~$open.docx").write_text("x")
    Image.new("RGB", (1, 1)).save(folder / "spacer.gif")
    Image.new("RGB", (64, 64), "white").save(folder / "white.png")
    FLOWER.save(folder / "good.png")
    FLOWER.save(folder / "twin.bmp")
    (folder / "below" / "n\n]x[IMAGE_REF: y].md").write_text("odd name ![x](../good2.png)")
    CHINA.save(folder / "good2.png")
    outside = ["../../outside.png", "/etc/x.png", "../folder/outside.png", "%2e%2e/%2e%2e/outside.png", "C:\\u.png"]
    others = ["http://e.org/r.png", "//e.org/s.png", "no.png", "file:///t.png", "../broken.png"]
    pictures = [*outside, *others, "data:image/png;base64,AAAA"]
    (folder / "below" / "links.md").write_text("Words " + " ".join(f"![alt]({picture})" for picture in pictures))
    (folder / "below" / "marker.txt").write_text("[IMAGE_REF: ..\\..\\outside.png] [IMAGE_REF: cut")
    report = collect(folder, directory, on_bad_file="skip")
    reasons = left_out(directory)
    files = {
        "locked.pdf": ENCRYPTED,
        "bomb.docx": BOMB,
        "out.docx": OUTSIDE,
        "zero.md": EMPTY,
        "broken.png": CORRUPT,
        "wrong.jpg": NOT_AN_IMAGE,
        "huge.png": TOO_MANY_PIXELS,
        "mixed.txt": ENCODING,
        "table.xlsx": UNKNOWN_TYPE,
        "blank.html": NOTHING_IN_IT,
        "link.txt": OUTSIDE,
        "folder": OUTSIDE,
        "pipe.txt": NO_REGULAR_FILE,
        "caf\u00e9.txt": SAME_ID,
        "\\xff.txt": BAD_NAME,
    }
    passed_over = {
        "loop": LINK_WITHIN,
        ".hidden.txt": HIDDEN,
        "~$open.docx": HIDDEN,
        "spacer.gif": TINY,
        "white.png": TINY,
        "twin.bmp": REPEATED_PICTURE,
        "good2.png": OF_A_DOCUMENT,
    }
    lost = {
        "../../outside.png": OUTSIDE,
        "/etc/x.png": OUTSIDE,
        "http://e.org/r.png": REMOTE,
        "//e.org/s.png": REMOTE,
        "no.png": MISSING,
        "../folder/outside.png": OUTSIDE,
        "file:///t.png": OUTSIDE,
        "%2e%2e/%2e%2e/outside.png": OUTSIDE,
        "../broken.png": CORRUPT,
        "C:\\u.png": OUTSIDE,
        "..\\..\\outside.png": OUTSIDE,
        "below/links.md": NOT_AN_IMAGE,  # the one that is written into it
    }
    assert {name: reason for name, (reason, _) in reasons.items()} == files | passed_over | lost
    assert report.refused == Counter(files.values())
    assert report.passed_over == Counter(passed_over.values())
    assert report.lost_pictures == Counter(lost.values())
    documents = {document.id: document.text for document in read_raw_knowledge(directory / "raw_knowledge.jsonl")}
    (odd,) = (name for name in documents if "\n" in name)
    (picture,) = image_references(documents[odd])
    assert picture.startswith("extracted_assets/n-x-IMAGE-REF-y-")
    assert documents["below/links.md"] == " ".join(["Words", *["alt"] * len(pictures)])
    assert documents["below/marker.txt"] == "[IMAGE REF: cut"
    assert list(documents) == ["below/links.md", "below/marker.txt", odd, "caf\u00e9.txt", "good.png"]
    assert "secret" not in (directory / "raw_knowledge.jsonl").read_text(encoding="utf-8")


def test_links_and_words_that_are_odd(tmp_path: Path) -> None:
    folder, directory = tmp_path / "files", tmp_path / "knowledge"
    (folder / "50%20 off").mkdir(parents=True)
    for number, name in enumerate(("plain.png", "q#1.png", "a b.png", "c%20d.png")):
        CHINA.rotate(number).save(folder / "50%20 off" / name)
    links = ("plain.png?v=2#top", "q%231.png", "./a%20b.png#x", "c%20d.png", "../50%2520%20off/plain.png")
    text = " ".join(f"![]({link})" for link in links)
    (folder / "50%20 off" / "a.md").write_text(
        f"{text} ![plan.png](no.png) ![a plan](no.png) \ue0007\ue001 \ue0000\ue001"
    )
    report = collect(folder, directory)
    assert report.lost_pictures == {MISSING: 2}
    assert report.passed_over == {OF_A_DOCUMENT: 4}
    (document,) = read_raw_knowledge(directory / "raw_knowledge.jsonl")
    first, second, third, fourth, again = image_references(document.text)
    assert len({first, second, third, fourth}) == 4 and again == first
    assert document.text.partition(again)[2].partition(again)[2] == "]  a plan 7 0"


def test_nothing_is_left_of_a_document_that_breaks_off(tmp_path: Path) -> None:
    """The first page gives a picture, the second one cannot be read."""
    folder, directory = tmp_path / "files", tmp_path / "knowledge"
    folder.mkdir()
    writer = PdfWriter(clone_from=write_pdf(tmp_path / "a.pdf", ["One.", CHINA], ["Two."]))
    stream = StreamObject()
    stream.set_data(b"BT ET")
    stream[NameObject("/Filter")] = NameObject("/NoSuchDecode")
    writer.pages[1][NameObject("/Contents")] = writer._add_object(stream)
    writer.write(folder / "a.pdf")
    write_docx(folder / "b.docx", "Words ", CHINA)
    report = collect(folder, directory, on_bad_file="skip")
    assert report.refused == {BROKEN: 1}
    assert report.pictures == {"new": 1}
    (picture,) = (directory / "extracted_assets").iterdir()
    assert picture.name.startswith("b-")


def test_the_last_file_may_go(spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 empty file"):
        collect(spoilt, tmp_path / "knowledge")
    (spoilt / "photos" / "j.tiff").unlink()
    collect(spoilt, tmp_path / "knowledge", on_bad_file="skip")
    collect(spoilt, tmp_path / "fresh", on_bad_file="skip")
    assert contents(tmp_path / "knowledge") == contents(tmp_path / "fresh")


def test_stop_is_the_default_and_loses_nothing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "knowledge"
    (files / "zero.txt").touch()
    (files / "x.unknown").write_text("x")
    message = (
        r"^2 of 13 files cannot be read: 1 empty file, 1 unknown kind of file\. The first 2: 'x\.unknown': .* skip`"
    )
    with pytest.raises(ValueError, match=message):
        collect(files, directory)
    assert not (directory / "raw_knowledge.jsonl").exists()
    monkeypatch.setattr(file_records, "convert", None)  # nothing is read a second time
    report = collect(files, directory, on_bad_file="skip")
    assert report.documents == 8


def test_folders_that_cannot_be(files: Path, tmp_path: Path) -> None:
    done = tmp_path / "knowledge"
    collect(files, done)
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "a.txt").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for arguments, message in (
        ((tmp_path / "none", tmp_path / "new"), "is no folder"),
        ((tmp_path / "empty", tmp_path / "new"), "holds no file"),
        (
            (tmp_path / "zero", tmp_path / "new0", "skip"),
            "1 of 1 files cannot be read: 1 empty.* No document is left",
        ),
        ((files, files / "knowledge"), "lies in"),
        ((files, files), "lies in"),
        ((done, tmp_path / "new"), "it is a knowledge folder"),
        ((files, done), "is finished"),
        ((files, other), r"thesis\.txt is one"),
        ((files, tmp_path / "new", "ignore"), "must be stop or skip"),
    ):
        with pytest.raises(ValueError, match=message):
            collect(*arguments[:2], **({"on_bad_file": arguments[2]} if len(arguments) > 2 else {}))
    assert (other / "thesis.txt").read_text() == "mine"


@pytest.fixture
def spoilt(files: Path) -> Path:
    """The copy with a file that is refused."""
    (files / "zero.txt").touch()
    return files


@pytest.mark.parametrize("lived", range(9))  # six pictures, three files
def test_a_run_may_stop_at_every_rename(spoilt: Path, tmp_path: Path, whole: dict[str, bytes], lived: int) -> None:
    directory = tmp_path / "knowledge"
    with killed_at_rename(lived), pytest.raises(KilledError):
        collect(spoilt, directory, on_bad_file="skip")
    assert not (directory / "raw_knowledge.jsonl").exists()
    collect(spoilt, directory, on_bad_file="skip")
    assert contents(directory) == whole


def test_a_run_may_stop_before_its_journal_goes(spoilt: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    directory = tmp_path / "knowledge"
    collect(spoilt, directory, on_bad_file="skip")
    (directory / JOURNAL).write_bytes(b"")
    report = collect(spoilt, directory)
    assert report.documents == 8
    assert contents(directory) == whole


def test_a_journal_may_be_cut_anywhere(spoilt: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    stopped = tmp_path / "stopped"
    with pytest.raises(ValueError, match="1 empty file"):
        collect(spoilt, stopped)
    journal = (stopped / JOURNAL).read_bytes()
    line_ends = [place for place, byte in enumerate(journal) if byte == 10]
    for place in [0, 1, line_ends[0], *(end + 1 for end in line_ends[::3]), len(journal) - 1]:
        directory = tmp_path / f"cut-{place}"
        shutil.copytree(stopped, directory)
        (directory / JOURNAL).write_bytes(journal[:place])
        collect(spoilt, directory, on_bad_file="skip")
        assert contents(directory) == whole, place


def test_files_may_change_in_between(files: Path, tmp_path: Path) -> None:
    """Changed, new, gone: what comes out is what a first run would give, and no picture is left behind."""
    (files / "zero.txt").touch()
    with pytest.raises(ValueError, match="1 empty file"):
        collect(files, tmp_path / "knowledge")
    write_docx(files / "b.docx", "Other words.")
    (files / "zero.txt").unlink()
    (files / "photos" / "j.tiff").unlink()
    FLOWER.rotate(180).save(files / "photos" / "k.png")
    collect(files, tmp_path / "knowledge")
    collect(files, tmp_path / "fresh")
    assert contents(tmp_path / "knowledge") == contents(tmp_path / "fresh")


def test_a_lost_picture_is_written_again(spoilt: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    directory = tmp_path / "knowledge"
    with pytest.raises(ValueError, match="1 empty file"):
        collect(spoilt, directory)
    next((directory / "extracted_assets").iterdir()).unlink()
    collect(spoilt, directory, on_bad_file="skip")
    assert contents(directory) == whole


def test_only_what_is_missing_is_read(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    convert = document_conversion.convert
    monkeypatch.setattr(file_records, "convert", lambda path: read.append(path.name) or convert(path))
    with killed_at_rename(4), pytest.raises(KilledError):
        collect(files, tmp_path / "knowledge")
    before = list(read)
    collect(files, tmp_path / "knowledge")
    assert read[len(before) :][0] == before[-1]
    assert len(read) == len(set(read)) + 1


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """`kill -9` in the middle of a hundred and sixty files."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(80):
        CHINA.rotate(number).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.md").write_text(f"Turned by {number}: ![]({number:03}.png)")
    collect(folder, tmp_path / "whole")
    directory = tmp_path / "knowledge"
    words = [sys.executable, "-m", "qwen_grafts.cli", "data", "collect", str(folder), str(directory)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = directory / JOURNAL
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 50:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (directory / "raw_knowledge.jsonl").exists()
    assert 50 <= journal.read_bytes().count(b"\n") < 160
    collect(folder, directory)
    assert contents(directory) == contents(tmp_path / "whole")


def test_texts_are_not_kept_in_memory(tmp_path: Path) -> None:
    """Ten megabytes of text pass through, one file of which has nearly one."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{number} words " * 100_000)
    collect(folder, tmp_path / "first")  # imports and caches
    tracemalloc.start()
    collect(folder, tmp_path / "knowledge")
    _, collecting = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    read = sum(len(document.text) for document in read_raw_knowledge(tmp_path / "knowledge" / "raw_knowledge.jsonl"))
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read > 9_000_000
    assert collecting < 7_000_000
    assert reading < 5_000_000


def test_files_come_in_one_order(tmp_path: Path) -> None:
    for name in ("b/z.png", "b/a.md", "a.png", "c.txt", "B.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [file.path for file in folder_files.list_files(tmp_path)]
    assert found == ["B.txt", "b/a.md", "b.txt", "c.txt", "a.png", "b/z.png"]


def test_pictures_are_written_once_and_bare(tmp_path: Path) -> None:
    store = AssetStore(tmp_path, "extracted_assets")
    notes = Image.Exif()
    notes[0x0112], notes[0x010F] = 6, "a maker of cameras"
    path, is_new = store.add(encoded(CHINA, "JPEG", exif=notes), "below/scan [1] 架构.jpg")
    assert is_new
    assert path.startswith("extracted_assets/scan-1-架构-") and path.endswith(".jpg")
    stored = Image.open(tmp_path / path)
    assert (stored.size, dict(stored.getexif())) == ((107, 160), {})
    png, _ = store.add(encoded(CHINA), "x" * 300 + ".png")
    assert store.add(encoded(CHINA, "BMP"), "other.bmp") == (png, False)
    assert len(Path(png).name) < 100
    name, _ = store.add(encoded(FLOWER), "[]()!.png")
    assert Path(name).name.startswith("picture-")
    for tiny in (CHINA.crop((0, 0, 15, 107)), Image.new("RGB", (64, 64), "red")):
        with pytest.raises(FileProblem, match=TINY):
            store.add(encoded(tiny), "a.png")
