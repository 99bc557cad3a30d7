"""Real files to text with pictures where they stood."""

import base64
import io
import random
import time
import zipfile
from pathlib import Path

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from markdown_it import MarkdownIt
from PIL import Image
from pypdf import PdfReader
from real_files import CHINA, FLOWER, encoded, write_docx, write_encrypted_pdf, write_pdf, write_zip
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from qwen_grafts.processing import guarded_images
from qwen_grafts.recipes.clara import document_conversion, pdf_conversion
from qwen_grafts.recipes.clara.document_conversion import check_libraries, clean_text, convert
from qwen_grafts.recipes.clara.document_parts import Picture
from qwen_grafts.recipes.clara.file_problems import FileProblem
from qwen_grafts.recipes.clara.markup_conversion import html_parts, markdown_parts


def shown(parts) -> str:
    """Text with `<1>` for the first different picture and so on, `<link>` for links."""
    seen, pieces = [], []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        elif part.data is None:
            pieces.append(f"<{part.problem or part.link}>")
        else:
            pixels = Image.open(io.BytesIO(part.data)).convert("RGB").tobytes()
            if pixels not in seen:
                seen.append(pixels)
            pieces.append(f"<{seen.index(pixels) + 1}>")
    return clean_text("".join(pieces))


def reason(path: Path) -> str:
    with pytest.raises(FileProblem) as problem:
        list(convert(path))
    return problem.value.reason


def links(parts) -> list[str]:
    return [part.link for part in parts if isinstance(part, Picture)]


def test_pdf_pages_in_order_with_pictures_between(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["First. " * 40, CHINA, "Second.", FLOWER, "Third."], [CHINA], ["Last."])
    text = shown(convert(path)).replace("\n", " ").replace("  ", " ")
    assert text == " ".join(["First."] * 40 + ["<1> Second. <2> Third. <1> Last."])


def test_pdf_pictures_are_placed_by_where_they_stand(tmp_path: Path) -> None:
    """Drawn before all text; in two columns; and only those that the page shows."""
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path))
    china, flower = (ImageReader(picture) for picture in (CHINA, FLOWER))
    canvas.drawImage(flower, 100, 200)
    canvas.drawImage(china, 100, 500)
    for height, word in ((750, "above"), (400, "between"), (100, "below")):
        canvas.drawString(72, height, word)
    canvas.showPage()
    canvas.drawImage(flower, 320, 650)
    canvas.drawImage(china, 72, 450)
    for left, height, words in (
        (72, 700, "left one"),
        (72, 400, "left two"),
        (320, 600, "right one"),
        (320, 300, "end"),
    ):
        canvas.drawString(left, height, words)
    canvas.showPage()
    canvas.drawString(72, 700, "no picture here")
    canvas.save()
    assert " ".join(shown(convert(path)).split()) == (
        "above <1> between <2> below left one <1> left two <2> right one end no picture here"
    )


def test_pdf_pictures_below_each_other_come_from_above(tmp_path: Path) -> None:
    """Without a line between, and drawn the other way round; a page ends a paragraph."""
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path))
    canvas.drawImage(ImageReader(CHINA), 72, 450)
    canvas.drawString(72, 700, "first")
    canvas.showPage()
    for height, picture in ((200, CHINA), (450, FLOWER)):
        canvas.drawImage(ImageReader(picture), 72, height)
    canvas.drawString(72, 700, "above")
    canvas.showPage()
    canvas.drawString(72, 700, "last")
    canvas.save()
    assert shown(convert(path)).split() == ["first", "<1>", "above", "<2>", "<1>", "last"]
    canvas = Canvas(str(path))
    for word in ("one", "two"):
        canvas.drawString(72, 700, word)
        canvas.showPage()
    canvas.save()
    assert shown(convert(path)) == "one\n\ntwo"


def test_pdf_text_is_that_of_pypdf(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["One. " * 100, CHINA, "Two. " * 30])
    parts = [part for part in convert(path) if isinstance(part, str)]
    assert "".join(parts).split() == PdfReader(path).pages[0].extract_text().split()


def test_pdf_pictures_in_forms_and_in_the_page(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path))
    canvas.beginForm("form")
    canvas.drawImage(ImageReader(CHINA), 0, 0)
    canvas.endForm()
    canvas.drawString(72, 700, "words")
    canvas.doForm("form")
    canvas.drawInlineImage(FLOWER, 100, 100)
    canvas.save()
    assert shown(convert(path)).split() == ["words", "<1>", "<2>"]


def test_scanned_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    CHINA.save(path, save_all=True, append_images=[FLOWER, CHINA])
    parts = [part for part in convert(path) if isinstance(part, Picture)]
    assert len(parts) == 3
    assert not shown(convert(path)).replace("<1>", "").replace("<2>", "").replace("<3>", "").split()


def test_pdf_passwords(tmp_path: Path) -> None:
    assert reason(write_encrypted_pdf(tmp_path / "a.pdf", "secret")) == "encrypted"
    assert shown(convert(write_encrypted_pdf(tmp_path / "b.pdf", ""))) == "Nobody reads this."


def test_pdf_with_a_picture_too_large_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Text.", CHINA])
    monkeypatch.setattr(pdf_conversion, "MAX_PIXELS", 160 * 107)
    assert shown(convert(path)).split() == ["Text.", "<1>"]
    monkeypatch.setattr(pdf_conversion, "MAX_PIXELS", 160 * 107 - 1)
    assert shown(convert(path)).split() == ["Text.", f"<{guarded_images.TOO_LARGE}>"] or "too large" in shown(
        convert(path)
    )


def test_damaged_pdfs_are_refused_or_read(tmp_path: Path) -> None:
    whole = write_pdf(tmp_path / "a.pdf", ["Text. " * 50, CHINA], ["More."]).read_bytes()
    path, rng = tmp_path / "b.pdf", random.Random(0)
    for content in (b"no PDF", b"%PDF-1.4\n", whole[:400]):
        path.write_bytes(content)
        assert reason(path) == "broken"
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 12)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            list(convert(path))
        except FileProblem as problem:
            assert problem.reason in ("broken", "encrypted")


def test_docx_pictures_wherever_they_stand(tmp_path: Path) -> None:
    document = docx.Document()
    stream = io.BytesIO(encoded(CHINA))
    document.add_heading("Title ", 1).add_run().add_picture(stream)
    document.add_paragraph("Before ").add_run().add_picture(io.BytesIO(encoded(FLOWER)))
    table = document.add_table(2, 2)
    table.cell(0, 0).text = "head"
    table.cell(1, 1).paragraphs[0].add_run("cell ").add_picture(stream)
    document.add_paragraph("item ", style="List Bullet").add_run().add_picture(stream)
    document.add_paragraph("a_b * c [IMAGE_REF: linked.png]")
    document.part.relate_to("http://example.org/x.png", RELATIONSHIP_TYPE.IMAGE, is_external=True)
    path = tmp_path / "a.docx"
    document.save(path)
    assert shown(convert(path)) == (
        "# Title <1>\n\nBefore <2>\n\n|  |  |\n| --- | --- |\n| head |  |\n|  | cell <1> |\n\n* item <1>\n\n"
        "a_b * c <linked.png><http://example.org/x.png>"
    )


def test_damaged_docx_are_refused_or_read(tmp_path: Path) -> None:
    whole = write_docx(tmp_path / "a.docx", "Text", CHINA, ["cell", FLOWER])
    path = tmp_path / "b.docx"
    assert reason(write_zip(path, {"word/document.xml": b"<w:document>"})) == "broken"
    assert reason(write_zip(path, {"other.txt": b"no Word file"})) == "broken"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    assert reason(path) == "encrypted"
    assert reason(write_zip(path, {"word/document.xml": bytes(9 * 2**20)})) == "decompression bomb"
    rng, content = random.Random(0), whole.read_bytes()
    for _ in range(30):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            list(convert(path))
        except FileProblem as problem:
            assert problem.reason in ("broken", "encrypted", "decompression bomb", "leads out of the folder")


def test_docx_xml_bomb(tmp_path: Path) -> None:
    """Entities that name each other ten times, ten deep."""
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 11))
    with_bomb = write_docx(tmp_path / "a.docx", "Text")
    with zipfile.ZipFile(with_bomb) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head, body = members["word/document.xml"].split(b"<w:document", 1)
    members["word/document.xml"] = (
        head + f"<!DOCTYPE d [{entities}]>".encode() + b"<w:document" + body.replace(b"Text", b"&a10;")
    )
    start = time.process_time()
    assert reason(write_zip(tmp_path / "b.docx", members)) == "broken"
    assert time.process_time() - start < 10


def test_html() -> None:
    data = base64.b64encode(encoded(CHINA)).decode()
    page = f"""<html><head><title>no</title><style>no</style><script>no</script></head><body><!-- no -->
    <h2>A_b <img src="a%20b.png" alt="Al"></h2><table><tr><th>k</th></tr><tr><td><img src="c.png"> v</td></tr></table>
    <p>See <a href="x/y.html">this <b>link</b></a> <a href="big.png"><img data-src="late.png" src="data:,"></a>
    <img src="data:image/png;base64,{data}"></p><pre>a  *b* <img src="d.png"></pre></body></html>"""
    assert shown(html_parts(page)) == (
        "## A_b <a%20b.png>\n\n| k |\n| --- |\n| <c.png> v |\n\nSee this **link** <late.png>\n<1>\n\n"
        "```\na  *b* <d.png>\n```"
    )


def test_html_pictures_within_the_page() -> None:
    """Drawn, with a drawing in it; or written down in letters or in base64; and what only looks like their place."""
    inner = "<svg><circle r='1'></circle></svg>"
    parts = list(
        html_parts(f"<p>one <svg>{inner}</svg> <img src='data:image/svg+xml,%3Csvg/%3E'> \ue0007\ue001 two</p>")
    )
    assert [part.data for part in parts if isinstance(part, Picture)] == [
        b'<svg><svg><circle r="1"></circle></svg></svg>',
        b"<svg/>",
    ]
    assert "".join(part for part in parts if isinstance(part, str)).split() == ["one", "two"]


def test_html_that_is_nested_too_deep_keeps_its_pictures() -> None:
    assert shown(html_parts("<div>" * 5000 + "deep <img src=q.png>")) == "deep <q.png>"


def test_html_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    for encoding, head in (
        ("gb18030", '<meta charset="gb2312">'),
        ("shift_jis", '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">'),
        ("utf-8", '<meta charset="gb2312">'),
        ("utf-16", ""),
        ("gb18030", ""),
    ):
        text = "こんにちは" if encoding == "shift_jis" else "架构设计如下"
        path.write_bytes(f"<html>{head}<p>{text}</p></html>".encode(encoding))
        assert shown(convert(path)) == text


MARKDOWN = [
    '# T ![one](a.png "t") x ![two](<b c.png>) `![no](n.png)`',
    "```\n![no](n2.png)\n```\n![yes](y.png)",
    "~~~~\n![no](n2.png)\n~~~\n![no](n3.png)\n~~~~\n![yes](y.png)",
    "[![badge](d.png)](http://e.org) [words](path/f.md)",
    "![ref][R] ![short] ![short][]\n\n[r]: g.png\n[short]: <h i.png> 't'",
    "\\![esc](esc.png) ![p](f_(1).png) ![a [b] c](d.png)",
    "![not closed](a.png ![real](b.png)",
    "`` ` ![no](a.png) `` and ` ![yes](b.png)",
    "![a\\](b.png) c](d.png)",
    "![](empty.png)![](next.png)",
    "* item ![i](li.png)\n  ![j](lj.png)\n\n> quote ![q](q.png)",
    "| a | b |\n|---|---|\n| ![t](t.png) | x |",
    "![a](b.png 'title with \"quotes\"')",
    "![missing][nowhere] ![no reference]",
    "```\n![unclosed fence](a.png)",
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_pictures_are_those_of_a_parser(text: str) -> None:
    tokens = MarkdownIt().enable("table").parse(text)
    naive = [
        inner.attrs["src"]
        for token in tokens
        for child in token.children or ()
        for inner in (child, *(child.children or ()))
        if inner.type == "image"
    ]
    assert [link.replace(" ", "%20") for link in links(markdown_parts(text))] == naive


def test_markdown_text_stays() -> None:
    text = "See [words](path/f.md) ![a](a.png), <img src='b.png' alt=\">z\"> [IMAGE_REF: 架构.png] end.\n\n[n]: x.png\n"
    assert shown(markdown_parts(f"# T\n\n{text}")) == "# T\n\nSee words <a.png>, <b.png> <架构.png> end."
    code = "```\n[n]: x.png\n[w](t)\n```"
    assert shown(markdown_parts(code)) == code


@pytest.mark.parametrize(
    "unit", ["[", "![", "`", "```\n", "<img ", "(", "![a](", "[a](b ", "\\", "[a]: ", "<img a='", "~~~"]
)
def test_markdown_takes_no_more_than_its_length(unit: str) -> None:
    text = unit * (40_000 // len(unit))
    start = time.process_time()
    list(markdown_parts(text))
    assert time.process_time() - start < 5


def test_text_and_what_is_refused_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("架构设计如下 [IMAGE_REF: 架构.png]\r\n\r\n\r\n\r\nend\x0c".encode("gb18030"))
    assert shown(convert(path)) == "架构设计如下 <架构.png>\n\nend"
    path.write_bytes("人人生而自由".encode() + "在".encode("gb18030"))
    assert reason(path) == "not readable as text"
    path.write_bytes(b"")
    assert reason(path) == "empty file"
    for name in ("a.xlsx", "none", "a.jsonl"):
        (tmp_path / name).write_bytes(b"x")
        assert reason(tmp_path / name) == "unknown kind of file"
    monkeypatch.setitem(document_conversion.MAX_MEGABYTES, "text", 1)
    (tmp_path / "WHOLE.TXT").write_bytes(b"a" * 2**20)
    assert shown(convert(tmp_path / "WHOLE.TXT")) == "a" * 2**20
    path.write_bytes(b"a" * (2**20 + 1))
    assert reason(path) == "too large"
    monkeypatch.setattr(document_conversion, "_LIBRARIES", ("bs4", "not_installed_here"))
    with pytest.raises(ValueError, match=r"needs not_installed_here.*pip install 'qwen-grafts\[documents\]'"):
        check_libraries()


def test_clean_text() -> None:
    assert clean_text(" a\x00b\ud800c\r\nd\re\n\n \n\nf\tg\x0ch\n") == "abc\nd\ne\n\nf\tg\n\nh"
