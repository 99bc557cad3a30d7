"""Every fault of a file of rows is told by line and field, and no row that training reads is called faulty."""

import json
import tracemalloc

import pytest
from typer.testing import CliRunner

from qwen_grafts.cli import app
from qwen_grafts.recipes.clara import row_validation as validation
from qwen_grafts.recipes.clara.row_validation import validate_rows
from qwen_grafts.recipes.document_data import load_document_rows
from qwen_grafts.recipes.document_row_checks import STAGES

COMPRESSION = [
    {"data_type": "qa", "question": ["What?", "Who?"], "answers": ["This.", "That."], "docs": ["Text."]},
    {"data_type": "paraphrase", "question": [""], "answers": ["Said again."], "docs": ["A", "B"]},
]
LATER = {"question": "What?", "answer": "This.", "docs": ["Text.", "Other."], "pos_index": [1]}
GOOD = {stage: [LATER, LATER | {"golden_answers": ["This", "That"]}] for stage in STAGES} | {"compression": COMPRESSION}
QA = COMPRESSION[0]
NEXT = QA | {"docs": ["Another text."]}


def validate(tmp_path, stage, *rows):
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return validate_rows(path, stage)


def found(report):
    return [(fault.line, fault.field) for fault in report.faults]


@pytest.mark.parametrize("stage", STAGES)
def test_good_rows(tmp_path, stage):
    report = validate(tmp_path, stage, *GOOD[stage])
    assert report.ok and report.rows == report.lines == len(GOOD[stage])
    assert str(report) == "2 rows, no fault."
    load_document_rows(str(tmp_path / "rows.jsonl"), stage, eval_ratio=0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", validation.EMPTY_LINE),
        (b"  \r", validation.EMPTY_LINE),
        (b'{"data_type": "qa"', validation.NOT_JSON),
        (b"{'data_type': 'qa'}", validation.NOT_JSON),
        (b"[" * 100_000, validation.NOT_JSON),
        (b"1" * 5_000, validation.NOT_JSON),
        (b"[1]", validation.NOT_AN_OBJECT),
        (b"null", validation.NOT_AN_OBJECT),
        (json.dumps(QA).encode("utf-16"), validation.NOT_UTF8),
        (json.dumps(QA | {"docs": ["é"]}, ensure_ascii=False).encode("latin-1"), validation.NOT_UTF8),
        (b"{} {}", validation.NOT_JSON),
    ],
)
def test_lines_that_are_no_rows(tmp_path, line, reason):
    line = line.replace(b"\n", b"")  # UTF-16 may have one
    report = validate(tmp_path, "compression", QA, line, NEXT)
    assert [(fault.line, fault.field, fault.reason) for fault in report.faults] == [(2, "", reason)]
    assert report.rows == 2 and report.lines == 3


def test_byte_order_mark(tmp_path):
    report = validate(tmp_path, "compression", b"\xef\xbb\xbf" + json.dumps(QA).encode(), NEXT)
    assert found(report) == [(1, "")] and report.counts == {validation.BYTE_ORDER_MARK: 1}
    assert validate(tmp_path, "compression", QA, b"\xef\xbb\xbf" + json.dumps(QA).encode()).counts == {
        validation.NOT_JSON: 1
    }


@pytest.mark.parametrize("stage", STAGES)
def test_rows_of_another_stage(tmp_path, stage):
    other = GOOD["instruction" if stage == "compression" else "compression"]
    report = validate(tmp_path, stage, *other)
    assert [(fault.line, fault.field, fault.reason) for fault in report.faults] == [
        (line, "", "row of another stage") for line in (1, 2)
    ]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"data_type": "quiz"}, ["data_type"]),
        ({"data_type": None}, ["data_type"]),
        ({"question": ["What?"]}, ["question"]),
        ({"question": "What?"}, ["question"]),
        ({"question": ["What?", ""]}, ["question[1]"]),
        ({"question": [1, ""]}, ["question[0]", "question[1]"]),
        ({"answers": []}, ["answers"]),
        ({"answers": ["a", "b", "c"]}, ["question"]),
        ({"docs": []}, ["docs"]),
        ({"docs": "Text."}, ["docs"]),
        ({"docs": ["", "Text.", 3, "<|im_end|>"]}, ["docs[2]", "docs[0]", "docs[3]"]),
        ({"docs": ["See [IMAGE_REF: a.png]"]}, ["docs[0]"]),
        ({"docs": ["[ image ref: a.png]"]}, ["docs[0]"]),
        ({"docs": ["Half \ud83d"]}, ["docs[0]"]),
        ({"docs": '["", "b"]'}, ["docs[0]"]),
        ({"docs": [], "answers": ["", "b"], "data_type": 3}, ["data_type", "answers[0]", "docs"]),
        ({"question": ["[IMAGE_REF: a]", "b"], "answers": ["b", ""]}, ["question[0]", "answers[1]"]),
    ],
)
def test_faults_of_the_first_stage(tmp_path, row, fields):
    report = validate(tmp_path, "compression", QA, QA | row)
    assert found(report) == [(2, field) for field in fields]
    assert report.rows == 1


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"question": ""}, ["question"]),
        ({"question": ["What?"]}, ["question"]),
        ({"answer": ""}, ["answer"]),
        ({"answer": None}, ["gold_answer"]),
        ({"golden_answers": ["a", ""]}, ["golden_answers[1]"]),
        ({"golden_answers": "a"}, ["golden_answers"]),
        ({"docs": None}, ["docs"]),
        ({"docs": ["a", " "]}, ["docs[1]"]),
        ({"pos_index": [2]}, ["pos_index[0]"]),
        ({"pos_index": [0, -1]}, ["pos_index[1]"]),
        ({"pos_index": ["0", True]}, ["pos_index[0]"]),
        ({"pos_index": 0}, ["pos_index"]),
        ({"pos_index": [1, 1]}, ["pos_index"]),
        ({"docs": [], "pos_index": "x", "question": 7}, ["question", "docs"]),
        ({"question": "<|im_start|>", "docs": ["", "b"], "pos_index": [5]}, ["question", "docs[0]", "pos_index[0]"]),
    ],
)
def test_faults_of_the_later_stages(tmp_path, stage, row, fields):
    report = validate(tmp_path, stage, LATER | row, LATER)
    assert found(report) == [(1, field) for field in fields]


def test_retrieval_learns_from_positives(tmp_path):
    row = {name: value for name, value in LATER.items() if name != "pos_index"}
    assert validate(tmp_path, "end_to_end", row).ok
    assert found(validate(tmp_path, "retrieval", row, LATER | {"pos_index": []})) == [
        (1, "pos_index"),
        (2, "pos_index"),
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_document_stands_once_in_its_row(tmp_path, stage):
    first, docs = GOOD[stage][0], ["One.", "Two.", " One. ", "one.", "One."]
    for written in (docs, json.dumps(docs)):
        report = validate(tmp_path, stage, GOOD[stage][1], first | {"docs": written})
        assert [(fault.line, fault.field, fault.reason, fault.detail) for fault in report.faults] == [
            (2, f"docs[{place}]", validation.DOCUMENT_TWICE, "the same as `docs[0]`") for place in (2, 4)
        ]
    # Other faults of the row are told beside it, and two empty ones are no repetition.
    assert found(validate(tmp_path, stage, first | {"docs": ["A", "", "A", " "]})) == [
        (1, "docs[2]"),
        (1, "docs[1]"),
        (1, "docs[3]"),
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_row_stands_once_in_its_file(tmp_path, stage):
    first, second = GOOD[stage]
    again = dict(reversed(first.items())) | {"id": 7, "docs": json.dumps(first["docs"])}
    report = validate(tmp_path, stage, first, second, again, first | {"docs": ["Text.", "More."]}, first)
    assert [(fault.line, fault.field, fault.reason) for fault in report.faults] == [
        (line, "", validation.ROW_TWICE) for line in (3, 5)
    ]
    assert {fault.detail for fault in report.faults} == {"the same as line 1; take one of them out"}
    assert report.rows == 3


def test_what_is_faulty_is_what_training_refuses(tmp_path):
    """Of rows that are objects, those with markers, half characters and what is there twice apart."""
    rows = [QA, QA | {"docs": [""]}, QA | {"answers": ["a"]}, LATER, QA | {"data_type": "x"}, NEXT]
    report = validate(tmp_path, "compression", *rows)
    data = load_document_rows(str(tmp_path / "rows.jsonl"), "compression", eval_ratio=0, on_bad_row="skip")
    assert {fault.line - 1 for fault in report.faults} == {refused.index for refused in data.refused} == {1, 2, 3, 4}
    assert report.rows == 2


def test_bounded_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps(QA | {"docs": ["", "word " * 400]}) + "\n"
    with path.open("w") as rows:
        rows.writelines(line for _ in range(3_000))
    tracemalloc.start()
    report = validate_rows(path, "compression")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts.total() == 3_000 and len(report.faults) == validation.MOST_KEPT
    assert peak < 3_000_000 < path.stat().st_size


def test_nothing_to_check(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"")
    report = validate_rows(tmp_path / "rows.jsonl", "compression")
    assert not report.ok and str(report) == "no rows."
    for name, stage, message in (
        ("rows.jsonl", "stage one", "`stage` must be compression, "),
        ("rows.csv", "compression", r"no `\.jsonl` file"),
        (".", "compression", r"no `\.jsonl` file"),
    ):
        with pytest.raises(ValueError, match=message):
            validate_rows(tmp_path / name, stage)


def test_command(tmp_path):
    validate(tmp_path, "compression", QA, QA | {"docs": ["[IMAGE_REF: a.png]"]}, b"")
    path = str(tmp_path / "rows.jsonl")
    result = CliRunner().invoke(app, ["data", "validate", path, "--stage", "compression"])
    assert result.exit_code == 1
    assert "docs[0]" in result.output and validation.EMPTY_LINE in result.output
    assert "rows.jsonl for compression: 2 faults in 2 of 3 lines: " in result.output
    validate(tmp_path, "compression", QA)
    result = CliRunner().invoke(app, ["data", "validate", path, "--stage", "compression"])
    assert result.exit_code == 0 and result.output == "rows.jsonl for compression: 1 rows, no fault.\n"
