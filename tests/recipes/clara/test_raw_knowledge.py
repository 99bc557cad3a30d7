"""Reading knowledge folders, those of others too: every fault is told by file, line and field."""

import json
from pathlib import Path

import pytest
from real_files import CHINA

from qwen_grafts.processing.guarded_images import ImageProblem
from qwen_grafts.recipes.clara.raw_knowledge import (
    RawDocument,
    image_file,
    image_key,
    image_references,
    marker,
    read_descriptions,
    read_raw_knowledge,
)


def written(folder: Path, *rows: object, name: str = "raw_knowledge.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("extracted_assets/架构.png", "extracted_assets/架构.png"),
        (" ./extracted_assets//a.png ", "extracted_assets/a.png"),
        ("extracted_assets\\sub\\a.png", "extracted_assets/sub/a.png"),
        ("extracted_assets/a%20b.png", "extracted_assets/a b.png"),
        ("extracted_assets/%E6%9E%B6%E6%9E%84.png", "extracted_assets/架构.png"),
        ("extracted_assets/a%2520b.png", "extracted_assets/a b.png"),
        ("extracted_assets/100%.png", "extracted_assets/100%.png"),
        ("raw_data/../extracted_assets/a.png", "extracted_assets/a.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("scan[1].png", "scan[1].png"),
    ],
)
def test_one_form_of_a_path(written: str, key: str) -> None:
    assert image_key(written) == key
    assert image_key(key) == key
    assert image_references(f"a {marker(written)} b") == [key]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../a.png", "leads out"),
        ("a/../../b.png", "leads out"),
        ("a\\..\\..\\b.png", "leads out"),
        ("%2e%2e/a.png", "leads out"),
        ("%252e%252e/a.png", "leads out"),
        ("/etc/a.png", "absolute"),
        ("%2Fetc/a.png", "absolute"),
        ("C:\\a.png", "absolute"),
        ("C:a.png", "absolute"),
        ("\\\\host\\share\\a.png", "absolute"),
        ("https://example.org/a.png", "absolute"),
        ("file:///a.png", "absolute"),
        ("data:image/png;base64,AAAA", "absolute"),
        ("", "names no picture"),
        (" . ", "names no picture"),
        ("a%0Ab.png", "names no picture"),
        ("a%00.png", "names no picture"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_key(path)


def test_a_path_that_is_no_utf8() -> None:
    with pytest.raises(ValueError, match="codec can't decode"):
        image_key("%ff.png")


def test_markers_are_found_in_order() -> None:
    text = "a [IMAGE_REF: x.png] b [IMAGE_REF:scan[1].png]\n[IMAGE_REF:  y z.png ] [IMAGE: no.png] IMAGE_REF: no"
    assert image_references(text) == ["x.png", "scan[1].png", "y z.png"]
    for cut in ("a [IMAGE_REF: x.png", "[IMAGE_REF: x\n.png]", "[IMAGE_REF: a.png] [IMAGE_REF: [b.png"):
        with pytest.raises(ValueError, match=f"at character {cut.rindex('[IMAGE_REF:')} .* has no end"):
            image_references(cut)


def test_where_the_picture_of_a_key_lies(tmp_path: Path) -> None:
    (tmp_path / "of%20a folder").mkdir()
    names = ("plain.png", "a%20b.png", "cafe\u0301.png", "a%20b c.png", "c%20e\u0301 f.png", "of%20a folder/x y%25.png")
    for name in names:
        CHINA.save(tmp_path / name)
        assert image_file(image_key(name), tmp_path) == tmp_path.resolve() / name
    for key in ("no.png", "nowhere/a b c.png", "plain.png/a b.png"):
        with pytest.raises(ImageProblem, match="missing"):
            image_file(key, tmp_path)
    CHINA.save(tmp_path / "a b c.png")
    assert image_file("a b c.png", tmp_path).name == "a b c.png", "the plainest"
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    with pytest.raises(ImageProblem, match="outside"):
        image_file("out.png", tmp_path)


def test_documents(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "source_type": "text", "text": "架构设计如下 [IMAGE_REF: extracted_assets/架构.png]", "more": [1]},
        {"source_type": "text", "text": "", "source": "notes/b.md"},
        {"source_type": "text", "text": "u\u2028v", "id": None},
        {"id": "p", "source_type": "image", "image": ".\\raw_data\\p.png", "text": None},
        {"source_type": "image", "text": "[IMAGE_REF: raw_data/q%20r.png]"},
    ]
    path = written(tmp_path, *rows[:2], "", *rows[2:])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_raw_knowledge(path)) == [
        RawDocument("a", "text", rows[0]["text"]),
        RawDocument("notes/b.md", "text", "", None, "notes/b.md"),
        RawDocument("line-4", "text", "u\u2028v"),
        RawDocument("p", "image", "", "raw_data/p.png"),
        RawDocument("raw_data/q r.png", "image", "", "raw_data/q r.png"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 2: `source_type` is missing"),
        ({"source_type": "pdf", "text": "a"}, r"line 2: `source_type` must be text or image, not 'pdf'"),
        ({"source_type": "text"}, r"line 2: `text` is missing"),
        ({"source_type": "text", "text": ["a"]}, r"line 2: `text` is list and not text"),
        ({"source_type": "text", "text": "a", "id": 3}, r"line 2: `id` is int and not text"),
        ({"source_type": "text", "text": "a", "id": " "}, r"line 2: `id` is empty"),
        ({"source_type": "text", "text": "a", "id": "first"}, r"line 2: `id` is 'first', as in line 1"),
        ({"source_type": "text", "text": "[IMAGE_REF: ../a.png]"}, r"line 2: `text`: '\.\./a\.png' leads out"),
        ({"source_type": "text", "text": "[IMAGE_REF: /a.png]"}, r"line 2: `text`: '/a\.png' is absolute"),
        ({"source_type": "text", "text": "[IMAGE_REF: a.png"}, r"line 2: `text`: the marker at character 0"),
        ({"source_type": "image"}, r"line 2: `image` is missing"),
        ({"source_type": "image", "text": "[IMAGE_REF: a.png] [IMAGE_REF: b.png]"}, r"line 2: `image` is missing"),
        ({"source_type": "image", "image": "../a.png"}, r"line 2: `image`: '\.\./a\.png' leads out"),
        ('{"source_type": "text", "text": "a\\ud800b"}', r"line 2: `text` has half of a surrogate pair at character 1"),
        ("[1]", r"line 2 holds a list"),
        ("null", r"line 2 holds a NoneType"),
        ('{"id": ', r"line 2 is no JSON"),
        ("[" * 100_000, r"line 2 is no JSON"),
    ],
)
def test_faults_are_told_by_line_and_field(tmp_path: Path, row: object, message: str) -> None:
    documents = read_raw_knowledge(written(tmp_path, {"id": "first", "source_type": "text", "text": "t"}, row))
    assert next(documents).id == "first"
    with pytest.raises(ValueError, match=rf"^raw_knowledge\.jsonl, {message}"):
        next(documents)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "raw_knowledge.jsonl"
    path.write_bytes(
        b'{"id": "a", "source_type": "text", "text": "ok"}\n{"text": "' + "架构".encode("gb18030") + b'"}\n'
    )
    with pytest.raises(ValueError, match="line 2: byte 10 is no UTF-8"):
        list(read_raw_knowledge(path))


def test_descriptions(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"image": "./a.png", "description": " A boat. "},
        {"image": "a.png", "description": "A boat."},
        {"image": "b.png", "description": " "},
        name="image_descriptions.jsonl",
    )
    assert read_descriptions(path) == {"a.png": "A boat."}
    for row, message in (
        ({"image": "c\\..\\a.png", "description": "Two boats."}, "`image` 'a.png' was described otherwise"),
        ({"image": "/a.png", "description": "x"}, "`image`: '/a.png' is absolute"),
        ({"image": "x.png"}, "`description` is missing"),
        ({"description": "x"}, "`image` is missing"),
    ):
        written(tmp_path, {"image": "a.png", "description": "A boat."}, row, name=path.name)
        with pytest.raises(ValueError, match=f"^image_descriptions.jsonl, line 2: {message}"):
            read_descriptions(path)
