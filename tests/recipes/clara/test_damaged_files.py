"""Whatever is wrong with a file, it is a `FileProblem` of that file and never the end of a run."""

import io
import random
import zipfile
from pathlib import Path

import pytest
from real_files import CHINA, write_docx, write_pdf

from qwen_grafts.recipes.clara import document_conversion
from qwen_grafts.recipes.clara.document_conversion import convert
from qwen_grafts.recipes.clara.document_parts import Picture
from qwen_grafts.recipes.clara.file_problems import BROKEN, UNREADABLE, FileProblem
from qwen_grafts.recipes.clara.knowledge_folder import collect

HTML = (
    b"<html><head><meta charset='utf-8'></head><body><h1>x</h1><p>a <a href='b'>l</a> <img src='a.png' alt=q>"
    b"<table><tr><td>1</td></tr></table><ul><li>x<ol><li>y</ol></ul><![CDATA[z]]><!-- c --><svg><text>t</text></svg>"
)
MARKDOWN = (
    b"# T\n\n![a](b.png) [![c](d.png)](e.html) `x` ![k][Ref] <img src='q.png' alt='>z'>\n```\ncode\n```\n"
    b'[IMAGE_REF: w.png]\n[ref]: r.png "T"\n'
)
INSERTED = (
    b"<![",
    b"<!",
    b"&#xFFFFFFF;",
    b"<img ",
    b"![",
    b"((",
    b"\x00",
    b"%%EOF",
    b"/Length 99999999 ",
    b"<?",
    b"R ",
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 5, 20))):
        place = chance.randrange(len(changed))
        kind = chance.random()
        if kind < 0.4:
            changed[place] = chance.randrange(256)
        elif kind < 0.6:
            del changed[place : place + chance.choice((1, 3, 50))]
        elif kind < 0.75:
            start = chance.randrange(len(changed))
            changed[place:place] = changed[start : start + 40]
        elif kind < 0.85:
            del changed[max(place, 10) :]
        else:
            changed[place:place] = chance.choice(INSERTED)
        if len(changed) < 2:
            break
    return bytes(changed)


def damaged_member(data: bytes, chance: random.Random) -> bytes:
    """A whole archive with one damaged file in it."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        chosen = chance.choice([name for name in names if name.endswith((".xml", ".rels", ".png"))])
        for name in names:
            new.writestr(name, damaged(old.read(name), chance) if name == chosen else old.read(name))
    return written.getvalue()


@pytest.mark.parametrize("ending", ["pdf", "docx", "html", "md"])
def test_damage_of_all_kinds(tmp_path: Path, ending: str) -> None:
    if ending == "pdf":
        data = write_pdf(
            tmp_path / "whole.pdf", ["Words above.", CHINA, "Words below."], ["A second page."]
        ).read_bytes()
    elif ending == "docx":
        data = write_docx(tmp_path / "whole.docx", "Words.", CHINA, ["cell", CHINA]).read_bytes()
    else:
        data = HTML if ending == "html" else MARKDOWN
    path = tmp_path / f"damaged.{ending}"
    chance, outcomes = random.Random(0), []
    for number in range(12 if ending == "docx" else 60):  # one of those takes a quarter of a second
        path.write_bytes((damaged_member if ending == "docx" and number % 4 else damaged)(data, chance))
        try:
            outcomes.append(len(list(convert(path))) > 0)
        except FileProblem:
            outcomes.append(False)
    assert any(outcomes) and not all(outcomes), "damaged too much or too little to tell anything"


def test_a_marked_section_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(b"<p>a<![CDATU[z]]></p>")
    with pytest.raises(FileProblem) as refused:
        list(convert(path))
    assert refused.value.reason == BROKEN and "CDATU" in refused.value.detail and "\n" not in refused.value.detail


def test_an_archive_whose_directory_begins_before_it(tmp_path: Path) -> None:
    path = write_docx(tmp_path / "a.docx", "Words.")
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    begins = int.from_bytes(data[end + 16 : end + 20], "little") + 100  # so that members lie before the file
    path.write_bytes(data[: end + 16] + begins.to_bytes(4, "little") + data[end + 20 :])
    with pytest.raises(FileProblem) as refused:
        list(convert(path))
    assert refused.value.reason == BROKEN


def test_a_tag_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    for tag in (b"<img/onerror<x>", b"<img\x01src='a.png'>", b"<IMG", b"<img>", b"<img src>"):
        path.write_bytes(b"before " + tag.replace(b"\x01", b"\xc2\xa0") + b" after ![x](y.png)")
        parts = list(convert(path))
        assert parts[0].startswith("before ") and Picture(link="y.png", alt="x") in parts


def test_what_is_gone_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that disappears between the look and the reading is one refused file; so is a picture one lost picture."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a.txt", "b.md"):
        (folder / name).write_text("Words. ![x](p.png)", encoding="utf-8")
    CHINA.save(folder / "p.png")
    read_bytes = Path.read_bytes

    def gone(path: Path) -> bytes:
        if path.name in ("a.txt", "p.png"):
            raise FileNotFoundError(2, "No such file or directory")
        return read_bytes(path)

    monkeypatch.setattr(document_conversion.Path, "read_bytes", gone)
    report = collect(folder, tmp_path / "knowledge", on_bad_file="skip")
    assert report.refused == {UNREADABLE: 2}  # the picture is tried as a document of its own, too
    assert report.lost_pictures == {UNREADABLE: 1}
    assert report.texts == 1
