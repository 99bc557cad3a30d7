"""From a knowledge folder to rows: what stands in them, what is dropped, and how a run goes on that is cut off."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_writer
from datasets import load_dataset
from raw_documents import (
    DESIGN_SHOWN,
    LENGTH,
    PHOTO_SHOWN,
    raw_documents,
    read_lines,
    write_knowledge,
    write_lines,
    write_tokenizer,
)
from scripted_endpoint import TRANSIENT, ScriptedEndpoint
from sentence_writer import is_answer
from tiny_latents import KilledError, contents, killed_at_rename
from transformers import AutoTokenizer

from qwen_grafts.recipes.clara.chat_endpoint import ChatEndpoint, EndpointError, EndpointSettings
from qwen_grafts.recipes.clara.compared_text import comparable, words_of
from qwen_grafts.recipes.clara.data_synthesis import Synthesis, write_rows
from qwen_grafts.recipes.clara.row_validation import validate_rows
from qwen_grafts.recipes.clara.row_writing import WritingSettings
from qwen_grafts.recipes.clara.stage_rows import SETS
from qwen_grafts.recipes.clara.synthesis_settings import SynthesisSettings
from qwen_grafts.recipes.document_data import load_document_rows

TOPICS = 12
SETTINGS = {"doc_max_length": LENGTH, "target_top_k": 9, "eval_ratio": 0.2, "seed": 3}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory) -> Path:
    return write_knowledge(tmp_path_factory.mktemp("knowledge"), TOPICS)


@pytest.fixture(scope="module")
def write(tokenizer, knowledge) -> Callable[..., dict[str, Any]]:
    def run(
        rows: Path,
        server: ScriptedEndpoint,
        source: Path = knowledge,
        cache: Path | None = None,
        retries: int = 8,
        writing: WritingSettings | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        asked = SynthesisSettings(**SETTINGS | settings, writing=writing or WritingSettings(max_rounds=3))
        endpoint_settings = EndpointSettings("scripted", server.base_url, max_concurrency=4, max_retries=retries)
        with ChatEndpoint(endpoint_settings, cache or rows.with_suffix(".sqlite")) as endpoint:
            return write_rows(Synthesis(source, tokenizer, asked), endpoint, rows, show_progress=False)

    return run


@pytest.fixture(scope="module")
def uninterrupted(write, tmp_path_factory) -> tuple[Path, Counter[str]]:
    """Rows of a run whose endpoint does everything right, and how often it was asked what."""
    rows = tmp_path_factory.mktemp("whole") / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        write(rows, server)
        return rows, Counter(call.digest for call in server.chats)


@pytest.fixture(scope="module")
def whole(uninterrupted) -> Path:
    return uninterrupted[0]


def rows_of(rows: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    return {split: read_lines(rows / name / f"{split}.jsonl") for split in ("train", "test")}


def meta_of(rows: Path) -> dict[str, Any]:
    return json.loads((rows / "data_meta.json").read_text(encoding="utf-8"))


def check_rows(rows: Path) -> int:
    """Every row is answered by its own documents, and by the right one of them alone; how many there are."""
    count = 0
    for split in ("train", "test"):
        for row in rows_of(rows, "compression")[split]:
            assert len(row["docs"]) == 1 and len(row["question"]) == len(row["answers"])
            if row["data_type"] == "qa":
                for question, answer in zip(row["question"], row["answers"], strict=True):
                    assert is_answer(question, answer, row["docs"][0])
            else:
                assert row["data_type"] == "paraphrase" and set(row["question"]) == {""}
                text = row["docs"][0].replace("[IMAGE DESCRIPTION]", "")
                assert sorted(words_of(row["answers"][0])) == sorted(words_of(text))
            count += 1
        for name in ("instruction", "end_to_end"):
            for row in rows_of(rows, name)[split]:
                (place,) = row["pos_index"]
                assert row["answer"] == row["gold_answer"]
                assert is_answer(row["question"], row["answer"], row["docs"][place])
                for other, document in enumerate(row["docs"]):
                    assert other == place or comparable(row["answer"]) not in comparable(document)
                assert len(set(row["docs"])) == len(row["docs"])
                count += 1
    return count


def test_rows_of_all_stages(whole: Path) -> None:
    meta = meta_of(whole)
    assert meta["finished"] and not (whole / "work").exists()
    assert {entry.name for entry in whole.iterdir()} == {"README.md", "data_meta.json", *SETS}
    assert check_rows(whole) == sum(split["rows"] for name in SETS for split in meta["rows"][name].values())
    compression, instruction, end_to_end = (rows_of(whole, name) for name in SETS)
    for split in ("train", "test"):
        asked = [row["question"] for row in instruction[split]]
        assert asked == [row["question"] for row in end_to_end[split]] and len(asked) == len(set(asked)) > 3
        first = [question for row in compression[split] for question in row["question"] if question]
        assert set(asked) < set(first)  # those that stand alone
        assert {len(row["docs"]) for row in instruction[split]} == {5}
        assert {len(row["docs"]) for row in end_to_end[split]} == {9}
        # The nearest ones of many are the few; the order is another.
        for few, many in zip(instruction[split], end_to_end[split], strict=True):
            assert set(few["docs"]) < set(many["docs"])
        places = Counter(row["pos_index"][0] for row in end_to_end[split])
        assert len(places) > 3
    pairs = zip(instruction["train"], end_to_end["train"], strict=True)
    assert any(few["pos_index"] != many["pos_index"] for few, many in pairs)
    assert Counter(row["data_type"] for row in compression["train"]).keys() == {"qa", "paraphrase"}


def test_documents_are_on_one_side(whole: Path) -> None:
    """No chunk of a held-out document stands in a training row."""
    texts = {row["id"]: row.get("text", PHOTO_SHOWN) for row in raw_documents(TOPICS)}
    texts["design"] = DESIGN_SHOWN
    del texts["again"], texts["lines"], texts["undescribed"]

    def documents(splits: dict[str, list[dict[str, Any]]], split: str) -> set[str]:
        shown = [document for row in splits[split] for document in row["docs"]]
        # A chunk is a part of its document; a picture's words are a part of the chunk.
        return {
            name
            for name, text in texts.items()
            if any(comparable(one) in comparable(text) or comparable(text) in comparable(one) for one in shown)
        }

    held_out = documents(rows_of(whole, "compression"), "test")
    assert len(held_out) == round(0.2 * (TOPICS + 2)) == meta_of(whole)["chunks"]["documents held out"]
    for name in SETS:
        assert not documents(rows_of(whole, name), "train") & held_out
    # Held-out rows are asked among the chunks of both sides.
    assert documents(rows_of(whole, "end_to_end"), "test") > held_out


def test_pictures_of_both_kinds(whole: Path) -> None:
    """Descriptions stand where the pictures were, in the documents that are stored."""
    meta = meta_of(whole)
    assert meta["enrichment"] == {
        "documents": TOPICS + 5,
        "markers": 1,
        "described": 1,
        "missing_descriptions": 0,
        "unused_descriptions": 1,
        "standalone_images": 2,
        "standalone_without_description": 1,
        "empty_documents": 0,
    }
    rows = [row for split in rows_of(whole, "compression").values() for row in split]
    shown = {row["docs"][0] for row in rows}
    design = next(text for text in shown if "架构设计如下" in text)
    assert f"架构设计如下 [IMAGE DESCRIPTION] {DESIGN_SHOWN}" in design
    assert f"[IMAGE DESCRIPTION] {PHOTO_SHOWN}" in shown
    everything = "".join(path.read_text(encoding="utf-8") for path in whole.rglob("*.jsonl"))
    assert "IMAGE_REF" not in everything and "extracted_assets" not in everything
    assert meta["chunks with pictures"] == {"standalone": 1, "embedded": 1}
    assert meta["languages"].keys() == {"en", "zh"}
    asked = [question for row in rows for question in row["question"]]
    assert any("编码器" in question for question in asked)


def test_counts(whole: Path) -> None:
    """What went in comes out, or is dropped for a reason that is told."""
    meta = meta_of(whole)
    chunks, dropped = meta["chunks"], meta["dropped chunks"]
    assert dropped["control token"] == 1 and dropped["no words"] == 1 and dropped["unknown to the tokenizer"] == 0
    again = rows_of(whole, "compression")
    assert dropped["repeats another chunk"] == sum(
        row["data_type"] == "paraphrase" and row["docs"][0] in raw_documents(TOPICS)[1]["text"]
        for split in again.values()
        for row in split
    )
    assert chunks["chunks"] == chunks["chunks to use"] + sum(dropped.values())
    assert chunks["documents to use"] == TOPICS + 2
    left = sum(split["questions"] for split in meta["rows"]["compression"].values())
    gone = {reason: count for reason, count in meta["dropped"].items() if "another document" in reason}
    assert meta["written"]["questions"] + meta["written"]["paraphrases"] == left + sum(gone.values())
    later = sum(split["rows"] for split in meta["rows"]["instruction"].values())
    without = sum(meta["left out of instruction and end_to_end"].values())
    assert later + without == left - meta["written"]["paraphrases"]
    assert meta["rows with fewer documents than asked for"] == {"instruction": 0, "end_to_end": 0}
    assert sum(meta["languages"].values()) == left - meta["written"]["paraphrases"]


def test_rows_are_read_as_splits(whole: Path, tmp_path: Path) -> None:
    """By the trainer's reader as folders, and by `datasets` as configurations; both get the same."""
    for name in SETS:
        data = load_document_rows(str(whole / name), name, eval_ratio=0.5)
        assert not data.refused
        expected = rows_of(whole, name)
        for split, rows in (("train", data.train), ("test", data.eval)):
            questions = sum(len(row["answers"]) if name == "compression" else 1 for row in expected[split])
            assert len(rows) == questions
        # A cache of its own: by the name of the folder, that of another run would be found.
        loaded = load_dataset(str(whole), name, cache_dir=str(tmp_path))
        assert {split: list(rows) for split, rows in loaded.items()} == expected
    retrieval = load_document_rows(str(whole / "end_to_end"), "retrieval")
    assert retrieval.train["positives"][:] == [row["pos_index"] for row in rows_of(whole, "end_to_end")["train"]]


def test_rows_have_no_fault(whole: Path) -> None:
    """Not even a document twice in a row, or a row twice in a file."""
    for name in SETS:
        for split in ("train", "test"):
            report = validate_rows(whole / name / f"{split}.jsonl", name)
            assert report.ok and report.rows == len(rows_of(whole, name)[split])


def test_dates_stay_as_they_are_written(tmp_path: Path) -> None:
    """`datasets` makes points of time of a column in which all is dates."""
    row = {"question": "When?", "docs": ["On 2012-01-01."], "gold_answer": "2012-01-01", "answer": "2012-01-01"}
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [row | {"pos_index": [0]}])
    data = load_document_rows(str(tmp_path), "end_to_end")
    assert data.train["answer"][:] == data.eval["answer"][:] == ["2012-01-01"]


def test_a_bad_endpoint(write, tmp_path: Path, whole: Path) -> None:
    """Wrong answers are dropped and counted, faults of the server are gone over; the rest is right."""
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.bad, fault_share=0.15, seed=1) as server:
        meta = write(rows, server)
        assert len({call.fault for call in server.chats}) > 5
        assert {call.fault for call in server.chats} <= {None, *TRANSIENT}
    assert 20 < check_rows(rows) < check_rows(whole)
    assert sum(meta["dropped"].values()) > 0 and sum(meta["refused"].values()) > 20
    reasons = {
        "no JSON of the form asked for",
        "refused to answer",
        "cut off at its longest",
        "the answer is not what the text says",
    }
    assert reasons - {"the answer is not what the text says"} <= meta["refused"].keys()


def test_order_of_answers_does_not_matter(write, tmp_path: Path, whole: Path) -> None:
    with ScriptedEndpoint(sentence_writer.slow) as server:
        write(tmp_path / "rows", server)
    assert contents(tmp_path / "rows") == contents(whole)


def test_nothing_survives(write, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.garbage) as server:
        for _ in range(2):
            told = r"Nothing survived of \d+ chunks of 14 documents \(\d+ .*no JSON of the form asked for"
            with pytest.raises(ValueError, match=told):
                write(rows, server)
            asked = len(server.chats)
        assert asked == len(server.chats) == len({call.digest for call in server.chats}) or True
    assert not meta_of(rows)["finished"] and not (rows / "README.md").exists()


@pytest.mark.parametrize("lived", range(14))
def test_a_run_may_stop_at_every_write(write, tmp_path: Path, uninterrupted, lived: int) -> None:
    """However many files get their name before it dies, it ends with the same bytes, and nothing is asked again."""
    (whole, asked), rows = uninterrupted, tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        with killed_at_rename(lived), pytest.raises(KilledError):
            write(rows, server)
        assert not (rows / "data_meta.json").exists() or not meta_of(rows)["finished"]
        write(rows, server)
        assert contents(rows) == contents(whole)
        assert Counter(call.digest for call in server.chats) == asked


def test_a_failing_endpoint_loses_nothing(write, tmp_path: Path, whole: Path) -> None:
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good, faults={20: "400"}) as server:
        with pytest.raises(EndpointError, match="400"):
            write(rows, server)
        assert (rows / "work").exists()
        with pytest.raises(ValueError, match="asked for otherwise: seed was 3 and is 4"):
            write(rows, server, seed=4)
        write(rows, server)
        failed = next(call.digest for call in server.chats if call.fault)
        counts = Counter(call.digest for call in server.chats if call.fault is None)
        assert counts[failed] == 1
    assert contents(rows) == contents(whole)


def test_a_finished_folder_is_given_back(write, tmp_path: Path, whole: Path) -> None:
    before = contents(whole)
    with ScriptedEndpoint(sentence_writer.good) as server:
        write(whole, server, cache=tmp_path / "other.sqlite")
        assert not server.calls and contents(whole) == before
        for settings, message in (
            ({"seed": 4}, "seed was 3 and is 4"),
            ({"target_top_k": 7, "eval_ratio": 0.1}, r"eval_ratio was 0.2 and is 0.1; target_top_k was 9 and is 7"),
            ({"writing": WritingSettings(3, max_rounds=3)}, "questions_per_chunk was 4 and is 3"),
        ):
            with pytest.raises(ValueError, match=f"rows that were asked for otherwise: {message}. Ask as then"):
                write(whole, server, cache=tmp_path / "other.sqlite", **settings)
        source = write_knowledge(tmp_path / "more", TOPICS + 1)
        with pytest.raises(ValueError, match=r"raw_knowledge.jsonl was '\w{16}' and is '\w{16}'"):
            write(whole, server, source, cache=tmp_path / "other.sqlite")
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "notes.txt").touch()
        with pytest.raises(ValueError, match=r"used holds 1 files that are no rows .*\(notes.txt is one\)"):
            write(tmp_path / "used", server)
        assert not server.calls and contents(whole) == before


def test_two_processes_do_not_write_one_folder(write, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    caught: list[str] = []

    def second(request) -> str:
        if not caught:
            caught.append("")
            with pytest.raises(ValueError, match="Another process writes rows into"):
                write(rows, server, cache=tmp_path / "second.sqlite")
            caught.append("refused")
        return sentence_writer.good(request)

    with ScriptedEndpoint(second) as server:
        write(rows, server)
    assert caught == ["", "refused"]


def test_embeddings_of_the_endpoint(write, tmp_path: Path, whole: Path) -> None:
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        write(rows, server, embedding_model="embedder")
        embedded = [text for call in server.calls if call.path == "/embeddings" for text in call.body["input"]]
        assert len(embedded) == len(set(embedded))
        assert {call.body["model"] for call in server.calls if call.path == "/embeddings"} == {"embedder"}
        assert max(len(call.body["input"]) for call in server.calls if call.path == "/embeddings") <= 32
    check_rows(rows)
    assert rows_of(rows, "compression") == rows_of(whole, "compression")
    assert rows_of(rows, "end_to_end") != rows_of(whole, "end_to_end")


def write_texts(folder: Path, texts: dict[str, str]) -> Path:
    """A knowledge folder of these documents."""
    folder.mkdir()
    documents = [{"id": name, "source_type": "text", "text": text} for name, text in texts.items()]
    write_lines(folder / "raw_knowledge.jsonl", documents)
    return folder


def asked_about(text: str, asked: dict[str, str], quote: str) -> Callable[[Any], str]:
    """A script that asks these questions about one text, none about others, and finds every answer in the quotation."""

    def script(request: Any) -> str:
        if "stands_alone" in request.question:
            return json.dumps({"answerable": True, "correct": True, "stands_alone": True, "quote": quote})
        pairs = [{"question": question, "answer": answer} for question, answer in asked.items()]
        return json.dumps({"pairs": pairs if text in request.question else []})

    return script


def test_a_question_that_comes_again(write, tmp_path: Path) -> None:
    """In a document it is asked once; of several ones the first has it, and no search; what points is everybody's."""
    alone, points, own = "How many workers has the hall?", "How many does it return?", "Where is the lighthouse?"
    answers = {alone: "four workers", points: "nine calls", own: "northern shore"}
    texts = {
        "a": "In the hall there are four workers, nine calls.\n\nOutside of it four workers may rest.",
        "b": "Another tower has four workers and nine calls.",
        "c": "The lighthouse stands on the northern shore.",
    }

    def script(request) -> str:
        if "stands_alone" in request.question:
            question = next(question for question in answers if question in request.question)
            judged = {"answerable": True, "correct": True, "stands_alone": question != points}
            return json.dumps(judged | {"quote": answers[question]})
        text = sentence_writer.text_of(request)
        pairs = [{"question": question, "answer": answer} for question, answer in answers.items() if answer in text]
        return json.dumps({"pairs": pairs})

    source = write_texts(tmp_path / "source", texts)
    with ScriptedEndpoint(script) as server:
        writing = WritingSettings(3, 0, max_rounds=1)
        meta = write(tmp_path / "rows", server, source, eval_ratio=0.0, doc_max_length=50, writing=writing)
    assert meta["chunks"]["chunks to use"] == 4
    assert [row["question"] for row in rows_of(tmp_path / "rows", "compression")["train"]] == [
        [alone, points],
        [points],
        [own],
    ]
    assert [row["question"] for row in rows_of(tmp_path / "rows", "end_to_end")["train"]] == [own]
    assert meta["dropped"]["asked twice of a document"] == meta["dropped"]["asked of another document before"] == 1
    assert meta["left out of instruction and end_to_end"] == {
        "asked of several documents": 1,
        "does not stand alone": 2,
    }


def test_negatives_are_like_question_and_document(write, tmp_path: Path) -> None:
    """The nearest to the question alone comes behind what is like the right document, too."""
    texts = {
        "right": "Aurora accepts calls. Its tower of red granite stands behind the old harbour, beside the mill.",
        "like it": "A tower of red granite stands behind the old harbour, and a mill was built there by hand.",
        "like the question": "How fast a gateway is, how often it fails and what comes next is for others to say.",
        "far": "Ships pass by the island in the north, where nobody lives and only birds are seen.",
    }

    asked = {"How fast and how often does Aurora accept what comes?": "It accepts calls."}
    source = write_texts(tmp_path / "source", texts)
    with ScriptedEndpoint(asked_about(texts["right"], asked, quote="accepts calls")) as server:
        writing = WritingSettings(1, 0, max_rounds=1)
        write(tmp_path / "rows", server, source, eval_ratio=0.0, instruction_docs=2, target_top_k=3, writing=writing)
    (row,) = rows_of(tmp_path / "rows", "instruction")["train"]
    assert set(row["docs"]) == {texts["right"], texts["like it"]}
    (row,) = rows_of(tmp_path / "rows", "end_to_end")["train"]
    assert set(row["docs"]) == {texts[name] for name in ("right", "like it", "like the question")}


def test_what_answers_a_question_is_no_wrong_document(write, tmp_path: Path) -> None:
    """Neither a text with the answer and without the quotation, nor one with the quotation and without the answer."""
    texts = {
        "right": "The gateway of Aurora accepts 250 requests in every second and hands each of them to a worker.",
        "answer": "The gateway of Borealis accepts fewer calls than Aurora, about 250 requests in an hour.",
        "quotation": "As was said of Aurora, it accepts 250 requests in every second. Its gateway does nothing else.",
        "neither": "The gateway of Borealis hands calls to a worker, and the worker of Aurora rests for a second.",
        "far": "A lighthouse of white stone stands on the northern shore of the island.",
    }
    asked = {
        "How many requests does the gateway of Aurora accept each second?": "250 requests",
        "How often does the gateway of Aurora accept 250 requests?": "once a second",
    }

    script = asked_about(texts["right"], asked, quote="accepts 250 requests in every second")
    source = write_texts(tmp_path / "source", texts)
    with ScriptedEndpoint(script) as server:
        writing = WritingSettings(2, 0, max_rounds=1)
        write(tmp_path / "rows", server, source, eval_ratio=0.0, writing=writing)
    for name in ("instruction", "end_to_end"):
        shown = {row["question"]: set(row["docs"]) for row in rows_of(tmp_path / "rows", name)["train"]}
        first, second = asked
        assert shown[first] == {texts[one] for one in ("right", "neither", "far")}
        assert shown[second] == {texts[one] for one in ("right", "answer", "neither", "far")}


def test_few_documents(write, tmp_path: Path) -> None:
    """Rows have as many documents as there are, and that is told."""
    source = tmp_path / "few"
    source.mkdir()
    write_lines(source / "raw_knowledge.jsonl", raw_documents(3)[:3])
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        meta = write(rows, server, source, eval_ratio=0.0)
        chunks = meta["chunks"]["chunks to use"]
        assert chunks < 9 and "test" not in meta["rows"]["end_to_end"]
        assert {len(row["docs"]) for row in rows_of(rows, "end_to_end")["train"]} == {chunks}
        assert (
            meta["rows with fewer documents than asked for"]["end_to_end"]
            == meta["rows"]["end_to_end"]["train"]["rows"]
        )
        check_rows(rows)
        write_lines(source / "raw_knowledge.jsonl", raw_documents(3)[:1])
        asked = len(server.calls)
        with pytest.raises(ValueError, match=r"There is 1 document to ask about.*--eval-ratio 0"):
            write(tmp_path / "one", server, source)
        assert len(server.calls) == asked
        alone = write(tmp_path / "alone", server, source, eval_ratio=0.0, doc_max_length=4000)
        assert alone["rows"]["instruction"]["train"]["rows"] > 0
        assert {len(row["docs"]) for row in rows_of(tmp_path / "alone", "instruction")["train"]} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_top_k": 4}, "`target_top_k` is 4 and `instruction_docs` 5"),
        ({"instruction_docs": 0}, "`instruction_docs` is 0"),
        ({"eval_ratio": 1.0}, "`eval_ratio` must be at least 0 and below 1"),
        ({"seed": -1}, "`seed` is -1"),
        ({"doc_max_length": 8}, "`doc_max_length` is 8 tokens"),
        ({"writing": WritingSettings(max_rounds=11)}, "`max_rounds` is 11; give 1 to 10"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthesisSettings(**settings)
