"""Legacy rows of all forms, cleaned into rows that their stages read."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_grafts.recipes.clara.legacy_cleaner import (
    ABOUT_FILES,
    EMPTY_ANSWER,
    EMPTY_DOCUMENT,
    EMPTY_POSITIVE,
    EMPTY_QUESTION,
    EMPTY_TEXT,
    UNKNOWN_FORM,
    clean_rows,
)
from qwen_grafts.recipes.clara.raw_knowledge import read_raw_knowledge
from qwen_grafts.recipes.document_row_checks import MISSING, UNPAIRED, WRONG_POSITIVE, DocumentRowCheck
from qwen_grafts.recipes.llava_data import MALFORMED

EXAMPLE = "架构设计如下 [IMAGE_REF: extracted_assets/架构.png]"
COMPRESSION = {"data_type": "qa", "question": ["设计有几个部分？"], "answers": ["三个"], "docs": [EXAMPLE]}
LATER = {"question": "How many parts?", "docs": ["A note.", EXAMPLE], "gold_answer": "Three", "pos_index": [1]}


def clean(tmp_path: Path, *rows: Any) -> tuple[list[dict[str, Any]], Any]:
    source, target = tmp_path / "legacy.jsonl", tmp_path / "cleaned.jsonl"
    target.unlink(missing_ok=True)
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    before = source.read_bytes()
    counts = clean_rows(source, target, show_progress=False)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cleaned.jsonl", "legacy.jsonl"]
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()], counts


def dropped(tmp_path: Path, row: dict[str, Any]) -> str:
    """Why a row goes, beside one that stays."""
    rows, counts = clean(tmp_path, COMPRESSION, row)
    assert len(rows) == counts.kept == 1
    assert counts.rows == 2 and counts.dropped.total() == 1
    return next(iter(counts.dropped))


def test_all_forms_at_once(tmp_path: Path) -> None:
    untouched = {"question": "Why?", "docs": ["Plain."], "answer": "So.", "source": "kept/as_it.png"}
    raw = {"id": "1", "source_type": "text", "text": f"{EXAMPLE}。"}
    picture = {"id": "2", "source_type": "image", "text": "", "image": "raw_data/a.png"}
    paraphrase = {"data_type": "paraphrase", "question": "", "answers": ["Said again, see a.png"], "docs": ["Said"]}
    rows, counts = clean(tmp_path, COMPRESSION, LATER, untouched, raw, picture, paraphrase)
    assert rows == [
        COMPRESSION | {"docs": ["架构设计如下"]},
        LATER | {"docs": ["A note.", "架构设计如下"]},
        untouched,
        raw | {"text": "架构设计如下。"},
        picture,
        paraphrase | {"answers": ["Said again, see"]},
    ]
    assert (counts.rows, counts.kept, counts.changed) == (6, 6, 4)
    assert +counts.references == {"marker": 3, "image path": 1}
    assert not counts.dropped
    for row, stage in zip(rows, ("compression", "end_to_end", "instruction", "", "", "compression"), strict=True):
        assert not stage or DocumentRowCheck(stage)(row)["reason"] is None
    (tmp_path / "raw_knowledge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:5]))
    assert [document.id for document in read_raw_knowledge(tmp_path / "raw_knowledge.jsonl")] == ["1", "2"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (COMPRESSION | {"question": ["Which folder holds the image?"]}, ABOUT_FILES),
        (COMPRESSION | {"answers": ["[IMAGE_REF: a.png]"]}, EMPTY_ANSWER),
        (COMPRESSION | {"question": ["a.png ?"]}, EMPTY_QUESTION),
        (COMPRESSION | {"docs": ["[IMAGE_REF: a.png]"]}, EMPTY_DOCUMENT),
        (COMPRESSION | {"question": ["a", "b"]}, UNPAIRED),
        (COMPRESSION | {"data_type": "other"}, MALFORMED),
        ({"data_type": "qa", "answers": ["a"], "docs": ["b"]}, MISSING),
        (LATER | {"gold_answer": "extracted_assets/a.png"}, EMPTY_ANSWER),
        (LATER | {"golden_answers": ["Three", "a.png"]}, EMPTY_ANSWER),
        (LATER | {"question": "Where is it stored?", "answer": "In raw_data", "gold_answer": "x"}, ABOUT_FILES),
        (LATER | {"question": "图片存放在哪个文件夹？"}, ABOUT_FILES),
        (LATER | {"question": "[IMAGE_REF: a.png]"}, EMPTY_QUESTION),
        (LATER | {"docs": ["A note.", "a.png"]}, EMPTY_POSITIVE),
        (LATER | {"pos_index": [5]}, WRONG_POSITIVE),
        (LATER | {"pos_index": [-1]}, WRONG_POSITIVE),
        (LATER | {"pos_index": ["0"]}, MALFORMED),
        (LATER | {"docs": 3}, MALFORMED),
        (LATER | {"question": None}, MISSING),
        ({"question": "a", "docs": ["b"]}, MISSING),
        (LATER | {"answers": None, "question": ["a"]}, MALFORMED),
        ({"source_type": "text", "text": "[IMAGE_REF: a.png]."}, EMPTY_TEXT),
        ({"source_type": "text", "text": 3}, UNKNOWN_FORM),
        ({"text": "no kind"}, UNKNOWN_FORM),
    ],
)
def test_rows_that_go(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    assert dropped(tmp_path, row) == reason


def test_pairs_go_alone(tmp_path: Path) -> None:
    row = COMPRESSION | {
        "question": ["What is it?", "What is the file name of the image?", "How many, see a.png?", "Which?"],
        "answers": ["A plan", "a.png", "Three", "[IMAGE_REF: a.png]"],
    }
    rows, counts = clean(tmp_path, row)
    assert rows[0]["question"] == ["What is it?", "How many, see?"]
    assert rows[0]["answers"] == ["A plan", "Three"]
    assert counts.dropped_pairs == {ABOUT_FILES: 1, EMPTY_ANSWER: 1}
    assert not counts.dropped


def test_positives_are_counted_anew(tmp_path: Path) -> None:
    """Documents that go are not counted any more, and the others are found where they are now."""
    documents = ["[IMAGE_REF: a.png]", "zero", "images/b.png", "one", "two", "raw_data"]
    row = LATER | {"docs": documents, "pos_index": [4, 0, 1]}
    rows, _ = clean(tmp_path, row)
    assert rows[0]["docs"] == ["zero", "one", "two"]
    assert [rows[0]["docs"][place] for place in rows[0]["pos_index"]] == ["two", "zero"]


def test_lists_written_as_json(tmp_path: Path) -> None:
    row = {name: value if name == "data_type" else json.dumps(value) for name, value in COMPRESSION.items()}
    rows, _ = clean(tmp_path, row)
    assert rows == [COMPRESSION | {"docs": ["架构设计如下"]}]


def test_a_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    rows, counts = clean(tmp_path, *(row := [COMPRESSION | {"docs": ["Words."]}, LATER | {"docs": ["a", " b "]}]))
    assert rows == row
    assert counts.changed == 0
    assert str(counts) == "2 of 2 rows kept, 0 of them changed."


def test_what_cannot_be_cleaned(tmp_path: Path) -> None:
    source, target = tmp_path / "legacy.jsonl", tmp_path / "new" / "cleaned.jsonl"
    for content, message in (
        (b'{"docs": ["a"]}\n{"docs": \n', "line 2 is no JSON"),
        (b'{"a": 1}\n["a"]\n', "line 2 holds a list"),
        (b'{"a": 1}\n\n"\xff"\n', "line 3: byte 1 is no UTF-8"),
        (b"", "No row of legacy.jsonl is left"),
        (b'{"source_type": "text", "text": "a.png"}\n', "No row .* 0 of 1 rows kept.*1 no text left"),
        (b'{"source_type": "text", "text": "half \\ud83d"}\n', "line 1 has half of a surrogate pair"),
    ):
        source.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            clean_rows(source, target, show_progress=False)
        assert list(target.parent.iterdir()) == []
    with pytest.raises(ValueError, match="is no file"):
        clean_rows(tmp_path, target)
    source.write_bytes(b'{"source_type": "text", "text": "words"}\n')
    for there in (source, tmp_path / "link.jsonl"):
        if there != source:
            there.symlink_to(tmp_path / "nowhere.jsonl")
        with pytest.raises(ValueError, match="is there already; name another file"):
            clean_rows(source, there)
