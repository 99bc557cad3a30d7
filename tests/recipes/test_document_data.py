"""Rows about documents from every kind of source and for every stage, each row that cannot be used, and the split."""

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from qwen_grafts.recipes.document_data import DOCUMENT_ROW, load_document_rows
from qwen_grafts.recipes.document_row_checks import STAGES

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "clara_pretrain_900.jsonl"
LATER = STAGES[1:]


def first_stage(number, **values):
    questions = [f"q{number}.{asked}?" for asked in range(1 + number % 3)]
    row = {"data_type": "qa", "question": questions, "answers": [f"a{text}" for text in questions]}
    return row | {"docs": [f" Document {number}. "]} | values


def later_stage(number, **values):
    docs = [f"Document {number}, candidate {candidate}." for candidate in range(4)]
    row = {"question": f"q{number}?", "docs": docs, "gold_answer": f"gold {number}", "answer": f"said {number}"}
    return row | {"pos_index": [number % 4]} | values


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif path.suffix == ".saved":
        Dataset.from_list(rows).save_to_disk(path)
    else:
        path.mkdir()
        Dataset.from_list(rows).to_parquet(path / "train-00000-of-00001.parquet")
    return str(path)


SOURCES = ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.saved", "folder"]


@pytest.mark.parametrize("name", SOURCES)
def test_first_stage_rows(tmp_path, name):
    data = load_document_rows(write(tmp_path / name, [first_stage(n) for n in range(5)]), "compression", eval_ratio=0)
    assert data.train.features == DOCUMENT_ROW
    assert data.eval is None and data.refused == []
    assert len(data.train) == 1 + 2 + 3 + 1 + 2
    assert data.train["source_row"][:] == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    assert data.train[4] == {
        "question": "q2.1?",
        "answer": "aq2.1?",
        "gold_answers": ["aq2.1?"],
        "documents": ["Document 2."],
        "positives": [0],
        "data_type": "qa",
        "source_row": 2,
    }


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("stage", LATER)
def test_later_stage_rows(tmp_path, name, stage):
    data = load_document_rows(write(tmp_path / name, [later_stage(n) for n in range(5)]), stage, eval_ratio=0)
    assert data.train.features == DOCUMENT_ROW
    assert data.train[3] == {
        "question": "q3?",
        "answer": "said 3",
        "gold_answers": ["gold 3"],
        "documents": [f"Document 3, candidate {n}." for n in range(4)],
        "positives": [3],
        "data_type": "qa",
        "source_row": 3,
    }


def test_paraphrases(tmp_path):
    """A paraphrase asks nothing, whatever its row has for a question, and each of several is a row."""
    rows = [
        {"data_type": "paraphrase", "question": question, "answers": ["In other words."], "docs": ["Words."]}
        for question in ([], "", ["", ""], ["Say it again."], None)
    ]
    rows += [{"data_type": "paraphrase", "answers": ["One.", "Two."], "docs": ["Words.", "More."]}, first_stage(0)]
    data = load_document_rows(write(tmp_path / "rows.jsonl", rows), "compression", eval_ratio=0)
    assert data.train["question"][:] == [""] * 7 + ["q0.0?"]
    assert data.train["answer"][:] == ["In other words."] * 5 + ["One.", "Two.", "aq0.0?"]
    assert data.train["data_type"][:] == ["paraphrase"] * 7 + ["qa"]
    assert data.train["positives"][5:] == [[0, 1], [0, 1], [0]]


def test_published_forms_of_the_answer(tmp_path):
    """Instruction tuning has both, end-to-end tuning `answer` alone, evaluation may have several to compare with."""
    rows = [
        later_stage(0),
        without(later_stage(1), "answer"),
        without(later_stage(2), "gold_answer"),
        without(later_stage(3), "answer", "gold_answer") | {"golden_answers": ["one", "two"]},
        without(later_stage(4), "gold_answer", "pos_index") | {"golden_answers": ["one"]},
    ]
    for name in ("rows.jsonl", "rows.json"):
        data = load_document_rows(write(tmp_path / name, rows), "end_to_end", eval_ratio=0)
        assert data.train["answer"][:] == ["said 0", "gold 1", "said 2", "one", "said 4"]
        assert data.train["gold_answers"][:] == [["gold 0"], ["gold 1"], ["said 2"], ["one", "two"], ["one"]]
        assert data.train["positives"][:] == [[0], [1], [2], [3], []]


def test_columns_that_the_first_row_lacks(tmp_path):
    rows = [without(later_stage(0), "pos_index", "answer"), later_stage(1)]
    for name in ("rows.json", "rows.jsonl"):
        data = load_document_rows(write(tmp_path / name, rows), "instruction", eval_ratio=0)
        assert data.train["positives"][:] == [[], [1]]
        assert data.train["answer"][:] == ["gold 0", "said 1"]


def test_texts_stay_as_they_are_written(tmp_path):
    """Whatever looks like a number, nothing, or JSON, in answers above all."""
    answers = ["007", "NA", "null", "[]", "[1, 2]", "[see below", "{", "3", "[" * 100_000]
    rows = [later_stage(n, gold_answer=answer, answer=answer) for n, answer in enumerate(answers)]
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        data = load_document_rows(write(tmp_path / name, rows), "instruction", eval_ratio=0)
        assert data.train["answer"][:] == answers
        assert data.train["gold_answers"][:] == [[answer] for answer in answers]
    row = first_stage(1, docs=["[1]", '["x"]'], answers=["{}", "[2]"])
    data = load_document_rows(write(tmp_path / "first.jsonl", [row]), "compression", eval_ratio=0)
    assert data.train["documents"][0] == ["[1]", '["x"]']
    assert data.train["answer"][:] == ["{}", "[2]"]


FIRST_STAGE_FAULTS = {
    ("missing field", "`data_type` is missing"): without(first_stage(1), "data_type"),
    ("missing field", "`question` is missing"): without(first_stage(1), "question"),
    ("missing field", "`docs` is missing"): without(first_stage(1), "docs"),
    ("missing field", "`answers` is missing"): without(first_stage(1), "answers"),
    ("malformed row", "`data_type` must be qa or paraphrase, not 'chat'"): first_stage(1, data_type="chat"),
    ("malformed row", "`question` must be a list of texts, not text"): first_stage(0, question="q?"),
    ("malformed row", "`answers` must be a list of texts, not text"): first_stage(0, answers="[a"),
    ("malformed row", "`answers` must be a list of texts, not an object"): first_stage(0, answers={"a": "b"}),
    ("malformed row", "`docs` must be a list of texts, not text"): first_stage(0, docs="Document."),
    ("malformed row", "`answers[1]` must be text, not 7"): first_stage(1, answers=["a", 7]),
    ("malformed row", "`docs[0]` must be text, not nothing"): first_stage(1, docs=[None]),
    ("malformed row", "`question[0]` must be text, not a list"): first_stage(0, question=[["q?"]]),
    ("questions and answers differ in number", "`question` has 3 and `answers` 2"): first_stage(2, answers=["a", "b"]),
    ("questions and answers differ in number", "`question` has 1 and `answers` 2"): first_stage(0, answers=["a", "b"]),
    ("no prompt", "`question[1]` is empty"): first_stage(1, question=["q?", " \n"]),
    ("no prompt", "`question` is an empty list"): first_stage(0, question=[], answers=["a"]),
    ("no answer", "`answers[0]` is empty"): first_stage(1, answers=["", "a"]),
    ("no answer", "`answers` is an empty list"): first_stage(0, question=[], answers=[]),
    ("no document", "`docs[1]` is empty"): first_stage(1, docs=["d", "\t"]),
    ("no document", "`docs` is an empty list"): first_stage(1, docs=[]),
    ("control token in the text", "`docs[0]` contains <|im_end|>"): first_stage(1, docs=["d<|im_end|>"]),
    (
        "row of another stage",
        "it has `answer`, `gold_answer` and no `answers`: it is for instruction, end_to_end, retrieval",
    ): later_stage(1),
}
LATER_STAGE_FAULTS = {
    ("missing field", "`question` is missing"): without(later_stage(1), "question"),
    ("missing field", "`docs` is missing"): without(later_stage(1), "docs"),
    ("missing field", "`gold_answer` and `answer` are missing"): without(later_stage(1), "answer", "gold_answer"),
    ("malformed row", "`question` must be text, not a list"): later_stage(1, question=["q?"]),
    ("malformed row", "`question` must be text, not an object"): later_stage(1, question={"q": "?"}),
    ("malformed row", "`answer` must be text, not a list"): later_stage(1, answer=["a"]),
    ("malformed row", "`gold_answer` must be text, not a list"): later_stage(1, gold_answer=["a", "b"]),
    ("malformed row", "`golden_answers` must be a list of texts, not text"): later_stage(1, golden_answers="a"),
    ("malformed row", "`docs[2]` must be text, not a list"): later_stage(1, docs=["a", "b", ["c"]]),
    ("malformed row", "`pos_index` must be a list of integers, not 1"): later_stage(1, pos_index=1),
    ("malformed row", "`pos_index[1]` must be an integer, not text"): later_stage(1, pos_index=[1, "2"]),
    ("malformed row", "`pos_index[0]` must be an integer, not True"): later_stage(1, pos_index=[True]),
    ("malformed row", "`pos_index[0]` must be an integer, not 1.0"): later_stage(1, pos_index=[1.0]),
    (
        "pos_index does not fit the documents",
        "`pos_index[1]` is 4, and `docs` has 4, counted from 0",
    ): later_stage(1, pos_index=[0, 4]),
    (
        "pos_index does not fit the documents",
        "`pos_index[0]` is -1, and `docs` has 4, counted from 0",
    ): later_stage(1, pos_index=[-1]),
    ("pos_index does not fit the documents", "`pos_index` repeats a document: [2, 1, 2]"): later_stage(
        1, pos_index=[2, 1, 2]
    ),
    ("no prompt", "`question` is empty"): later_stage(1, question=" "),
    ("no answer", "`answer` is empty"): later_stage(1, answer=""),
    ("no answer", "`gold_answer` is empty"): later_stage(1, gold_answer=" "),
    ("no document", "`docs[0]` is empty"): later_stage(1, docs=["", "b"]),
    ("control token in the text", "`answer` contains <|endoftext|>"): later_stage(1, answer="a<|endoftext|>"),
    (
        "row of another stage",
        "it has `answers` and no `gold_answer` or `answer`: it is for compression",
    ): first_stage(1),
}
RETRIEVAL_FAULTS = {
    ("no positive document", "`pos_index` is missing, and retrieval learns from positive documents"): without(
        later_stage(1), "pos_index"
    ),
    ("no positive document", "`pos_index` is empty, and retrieval learns from positive documents"): later_stage(
        1, pos_index=[]
    ),
}


@pytest.mark.parametrize(
    ("stage", "good", "faults"),
    [("compression", first_stage, FIRST_STAGE_FAULTS), ("retrieval", later_stage, RETRIEVAL_FAULTS)]
    + [(stage, later_stage, LATER_STAGE_FAULTS) for stage in LATER],
)
def test_every_bad_row_is_named(tmp_path, stage, good, faults):
    rows = [good(0), *faults.values(), good(3)]
    source = write(tmp_path / "rows.jsonl", rows)
    data = load_document_rows(source, stage, eval_ratio=0, on_bad_row="skip")
    assert [(row.reason, row.detail) for row in data.refused] == list(faults)
    assert [row.index for row in data.refused] == list(range(1, 1 + len(faults)))
    assert data.train["source_row"][:] == [0, len(rows) - 1]
    assert data.train["question"][:] == [good(n)["question"][0] if good is first_stage else f"q{n}?" for n in (0, 3)]
    with pytest.raises(ValueError) as stopped:
        load_document_rows(source, stage, eval_ratio=0)
    assert f"{len(faults)} of {len(rows)} rows of rows.jsonl cannot be used for {stage}: " in str(stopped.value)
    assert f"The first: row 1, {next(iter(faults))[1]}. " in str(stopped.value)
    assert "go on with the other 2 (`on_bad_row: skip`)" in str(stopped.value)


@pytest.mark.parametrize("stage", ["instruction", "end_to_end"])
def test_positives_are_needed_for_retrieval_only(tmp_path, stage):
    source = write(tmp_path / "rows.jsonl", list(RETRIEVAL_FAULTS.values()))
    assert load_document_rows(source, stage, eval_ratio=0).train["positives"][:] == [[], []]
    with pytest.raises(ValueError, match=r"2 of 2 rows .* for retrieval: .*Repair the rows\.$"):
        load_document_rows(source, "retrieval", on_bad_row="skip")


def test_typed_columns_that_are_wrong(tmp_path):
    """Of Parquet and saved data, where types are known."""
    rows = [later_stage(n, question=n) for n in range(2)]
    with pytest.raises(ValueError, match="`question` must be text, not 0"):
        load_document_rows(write(tmp_path / "rows.parquet", rows), "instruction")
    renamed = Dataset.from_list([later_stage(0)]).rename_column("docs", "context")
    renamed.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved has no column `docs`; it has question, context"):
        load_document_rows(str(tmp_path / "saved"), "instruction")


def about(number, *shared, **values):
    """A row whose positive is the first of `shared`; the others are candidates."""
    return later_stage(number, docs=list(shared), pos_index=[0], **values)


def rows_of(data):
    return [sorted({row["source_row"] for row in part}) for part in (data.train, data.eval)]


def test_rows_about_one_document_are_not_parted(tmp_path):
    """Directly, through a chain, and through a paraphrase of the same document; whatever the seed."""
    rows = [about(n, f"own {n % 20}", "everyone's candidate") for n in range(60)]
    source = write(tmp_path / "rows.jsonl", rows)
    held_out = []
    for seed in range(5):
        train, there = rows_of(load_document_rows(source, "retrieval", eval_ratio=0.2, seed=seed))
        assert not {n % 20 for n in train} & {n % 20 for n in there}
        assert len(there) == 12 and sorted(train + there) == list(range(60))
        held_out.append(there)
    assert rows_of(load_document_rows(source, "retrieval", eval_ratio=0.2, seed=4))[1] == held_out[4]
    assert len(set(map(tuple, held_out))) > 1

    chain = [first_stage(n, docs=[f"d{n}", f"d{n + 1}"]) for n in range(4)]
    rows = [*chain, *(first_stage(n) for n in range(10, 20))]
    rows.append(first_stage(0, data_type="paraphrase", docs=["Document 12."]))
    for seed in range(10):
        data = load_document_rows(write(tmp_path / "c.jsonl", rows), "compression", eval_ratio=0.4, seed=seed)
        train, there = rows_of(data)
        assert len({n in there for n in range(4)}) == 1
        assert (6 in there) == (14 in there)
        assert not {text for row in data.train for text in row["documents"]} & {
            text for row in data.eval for text in row["documents"]
        }


def test_candidates_part_nothing_where_positives_are_known(tmp_path):
    rows = [about(n, f"own {n}", "everyone's candidate") for n in range(10)]
    data = load_document_rows(write(tmp_path / "rows.jsonl", rows), "end_to_end", eval_ratio=0.2)
    assert (len(data.train), len(data.eval)) == (8, 2)
    unknown = [without(row, "pos_index") for row in rows]
    message = r"of 10 rows the smallest such group has 10, more than the 2 .*Give a split `test`"
    with pytest.raises(ValueError, match=message):
        load_document_rows(write(tmp_path / "unknown.jsonl", unknown), "end_to_end", eval_ratio=0.2)
    assert len(load_document_rows(str(tmp_path / "unknown.jsonl"), "end_to_end", eval_ratio=0).train) == 10


def test_what_cannot_be_held_out(tmp_path):
    source = write(tmp_path / "rows.jsonl", [about(n, f"own {n // 3}") for n in range(9)])
    with pytest.raises(ValueError, match=r"smallest such group has 3, more than the 1 .*`eval_ratio: 0.334` or more"):
        load_document_rows(source, "retrieval", eval_ratio=0.1)
    assert len(load_document_rows(source, "retrieval", eval_ratio=0.334).eval) == 3
    with pytest.raises(ValueError, match="of 9 rows leaves none to train on"):
        load_document_rows(source, "retrieval", eval_ratio=0.99)


def test_splits_of_the_source(tmp_path):
    splits = {
        "train": [later_stage(n) for n in range(4)],
        "validation": [later_stage(n, question="" if n == 6 else "q?") for n in range(5, 8)],
        "unlabelled": [later_stage(9)],
    }
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(tmp_path / "saved")
    data = load_document_rows(str(tmp_path / "saved"), "instruction", on_bad_row="skip", eval_ratio=0.5)
    assert (len(data.train), data.eval["source_row"][:]) == (4, [0, 2])
    assert [(row.index, row.detail) for row in data.refused] == [(1, "`question` is empty (validation)")]
    with pytest.raises(ValueError, match="1 of 7 rows of saved"):
        load_document_rows(str(tmp_path / "saved"), "instruction")
    splits["validation"] = [later_stage(1, question="")]
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(tmp_path / "none")
    assert load_document_rows(str(tmp_path / "none"), "instruction", on_bad_row="skip").eval is None


def test_subset_and_fingerprint(tmp_path):
    rows = [first_stage(n) for n in range(30)]
    rows[7]["docs"] = []
    source = write(tmp_path / "rows.jsonl", rows)
    arguments = {"max_samples": 12, "eval_ratio": 0.25, "on_bad_row": "skip"}
    drawn = [load_document_rows(source, "compression", seed=seed, **arguments) for seed in (1, 1, 2)]
    train, there = rows_of(drawn[0])
    assert len(train + there) == 12 - len(drawn[0].refused) and not set(train) & set(there)
    assert rows_of(drawn[0]) == rows_of(drawn[1]) != rows_of(drawn[2])
    assert sorted(train + there) != sorted(row for part in rows_of(drawn[2]) for row in part)
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint
    assert all(row["documents"] == [f"Document {row['source_row']}."] for row in drawn[2].train)
    refused = next(
        data.refused
        for seed in range(20)
        if (data := load_document_rows(source, "compression", seed=seed, **arguments)).refused
    )
    assert [row.index for row in refused] == [7]
    sources = [write(tmp_path / name, [later_stage(n) for n in range(9)]) for name in SOURCES if name != "rows.jsonl"]
    assert len({load_document_rows(source, "retrieval").fingerprint for source in sources}) == 1


def test_arguments_and_sources_that_make_no_sense(tmp_path):
    source = write(tmp_path / "rows.jsonl", [first_stage(0)])
    (tmp_path / "empty.jsonl").write_text("\n")
    cases = {
        "`stage` must be compression, instruction, end_to_end or retrieval, got 'stage 1'": {"stage": "stage 1"},
        "`on_bad_row` must be 'stop' or 'skip', got 'error'": {"on_bad_row": "error"},
        "`eval_ratio` must be at least 0 and below 1, got 1": {"eval_ratio": 1},
        "`max_samples` must be at least 1, got 0": {"max_samples": 0},
        "of 1 rows leaves none to train on": {},
        "No rows could be read from empty.jsonl": {"source": str(tmp_path / "empty.jsonl")},
        "notes.txt is no .json": {"source": write_text(tmp_path / "notes.txt")},
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            load_document_rows(**{"source": source, "stage": "compression"} | arguments)


def write_text(path):
    path.write_text("Nothing.")
    return str(path)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published rows are not here")
def test_published_rows():
    raw = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    data = load_document_rows(str(PUBLISHED), "compression", eval_ratio=0.1)
    assert data.refused == []
    assert len(data.train) + len(data.eval) == sum(len(row["question"]) for row in raw)
    train, there = rows_of(data)
    assert (len(train), len(there)) == (810, 90)
    for row in data.eval:
        source = raw[row["source_row"]]
        assert row["documents"] == [text.strip() for text in source["docs"]]
        pairs = zip(map(str.strip, source["question"]), map(str.strip, source["answers"]), strict=True)
        assert (row["question"], row["answer"]) in pairs
    with pytest.raises(ValueError, match=r"900 of 900 rows .* it is for compression"):
        load_document_rows(str(PUBLISHED), "end_to_end")
