"""The demo's passages and questions: real text, answers that stand in it, nothing of what is held out in training."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from qwen_grafts.recipes.document_data import load_document_rows
from qwen_grafts.recipes.document_row_checks import STAGES
from qwen_grafts.recipes.topic_documents import bare_words
from qwen_grafts.recipes.topic_task import (
    BLANK,
    CANDIDATES,
    KINDS,
    TopicDocument,
    TopicQuestion,
    split_topic_questions,
    topic_documents,
    topic_questions,
    topic_rows,
)


@pytest.fixture(scope="module")
def documents():
    return topic_documents()


@pytest.fixture(scope="module")
def questions(documents):
    return topic_questions(documents)


@pytest.fixture(scope="module")
def split(documents, questions):
    return split_topic_questions(documents, questions)


def letters(text):
    """The text as nothing but its letters, so that line breaks, marks and numbers of footnotes do not count."""
    return re.sub(r"[\W\d_]", "", text)


def test_passages_are_real_prose(documents):
    assert len(documents) >= 200
    assert [document.id for document in documents] == list(range(len(documents)))
    assert len({document.topic for document in documents}) >= 50
    source = {topic: letters(str(text)) for topic, text in topics.items()}
    for document in documents:
        assert 60 <= len(document.text.split()) <= 120
        assert document.text == " ".join(document.text.split())
        assert re.search(r"[.:!?][\"”’)]*$", document.text)
        assert not re.search(r"::=|>>>|={4}|-{4}|\+--|^\* ", document.text)
        assert all(letters(sentence) in source[document.topic] for sentence in document.sentences)


def test_no_two_passages_say_the_same(documents):
    holders = {}
    for document in documents:
        words = bare_words(document.text.lower())
        for start in range(len(words) - 11):
            run = " ".join(words[start : start + 12])
            assert holders.setdefault(run, document.id) == document.id


def said(tag, words):
    """A sentence of so many words that no other tag has."""
    return "The " + " ".join("the" if n % 2 else f"{tag}{n}" for n in range(1, words)) + f"{tag}."


def lengths(*paragraphs):
    """Words of the passages that paragraphs of sentences become."""
    found = topic_documents({"t": "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)})
    return [len(document.text.split()) for document in found]


def test_passages_end_where_paragraphs_or_sentences_end():
    tags = iter("abcdefghijklmnopqrstuvwxyz")
    some = [said(next(tags), 20) for _ in range(16)]
    assert lengths(some[:3]) == [60]
    assert lengths(some[:2]) == []
    assert lengths(some[:4], some[4:7]) == [80, 60]
    assert lengths(some[:2], some[2:4], some[4:6]) == [80]
    assert lengths(some[:10]) == [100, 100]
    assert lengths(some[:5], some[5:6], some[6:8]) == [100, 60]
    assert lengths([said("x", 50)], [said("y", 80)], some[:1]) == [80]
    assert lengths([said("x", 50), said("z", 30), said("y", 50)]) == [80]
    assert lengths([*some[:3], said("x", 121), *some[3:6]]) == [60, 60]
    assert lengths([said("x", 120)], [said("y", 59)]) == [120]


def test_of_repeated_text_the_shortest_topic_keeps_it():
    one, two, third, fourth = (" ".join(said(f"{tag}{n}", 20) for n in range(4)) for tag in "wxyz")
    few, many = (" ".join(two.split()[:count]) for count in (11, 12))
    found = topic_documents(
        {"long": f"{one}\n\n{two}", "short": two, "few": f"{third} {few} end.", "many": f"{fourth} {many} end."}
    )
    assert [(document.topic, document.text) for document in found] == [
        ("short", two),
        ("few", f"{third} {few} end."),
        ("long", one),
    ]


def test_what_is_no_prose_stays_out():
    prose = "The value of *x* is what the function\n   returns to its caller, and no one else can see it."
    topic = "\n\n".join(
        [
            "This is the heading of the text that is in here\n************************",
            'with_stmt ::= "with" with_item ("," with_item)* ":" suite',
            ">>> [x for x in range(3) if x is not None]\n[0, 1, 2]",
            "if a:\n   b = [c for d in e]\n   f(g, h, i, j, k)",
            "abs all any ascii bin bool breakpoint bytearray bytes callable chr.",
            "This is it, as it was.",
            "This has no end as the others have and so it is the head of what is to come",
            "+----+\n| is | and the like is in a table that is here.\n+----+",
            "A term\n   This is what the **term** means, which is not the same as any of the others.",
            "* " + prose + " [1]",
            "1. The left-\n   hand side is the one on the left, and it is not on the right e.g. Here.",
            "It is only as a whole that the words of this are more than the few that would be left out. " * 2,
            "This is said to be enough for a passage of the length that is wanted by the one who is to read it.",
        ]
    )
    (document,) = topic_documents({"topic": topic})
    assert (
        document.text
        == (
            "A term: This is what the term means, which is not the same as any of the others. "
            "The value of x is what the function returns to its caller, and no one else can see it. "
            "The left-hand side is the one on the left, and it is not on the right e.g. Here. "
            + "It is only as a whole that the words of this are more than the few that would be left out. "
            * 2
        ).strip()
    )


def test_sentences_and_words():
    text = f'{said("x", 60)} One "is." Two is (e.g. Here). "Three": Four is the five? six. Six!'
    (document,) = topic_documents({"t": text})
    assert document.sentences[1:] == ('One "is."', "Two is (e.g. Here).", '"Three":', "Four is the five? six.", "Six!")
    assert bare_words('The "a.b()" (is) — x, “y”. = * …') == ["The", "a.b", "is", "—", "x", "y", "=", "*"]


def test_questions_are_many_and_of_several_kinds(documents, questions):
    kinds = Counter(question.kind for question in questions)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > len(questions) / 10
    about = Counter(question.document for question in questions)
    assert len(about) > 0.98 * len(documents) and max(about.values()) == 12
    assert sum(about.values()) > 6 * len(documents)
    assert all(10 <= len(question.question.split()) <= 20 for question in questions)
    assert len(set(questions)) == len(questions)
    answers = Counter(question.answer.lower() for question in questions)
    assert answers.most_common(1)[0][1] / len(questions) < 0.005


def test_answers_stand_in_their_passages_and_not_in_the_question(documents, questions):
    texts = [bare_words(document.text.lower()) for document in documents]
    holding = Counter(word for words in texts for word in set(words))
    answers = set()
    for question in questions:
        answer = question.answer.lower()
        assert question.answer in bare_words(documents[question.document].text)
        assert answer not in question.question.lower()
        assert holding[answer] <= 5
        assert (question.document, answer) not in answers
        answers.add((question.document, answer))


def quoted(question):
    return re.findall("“(.*)”", question.question)[0]


def test_a_question_tells_its_passage_from_all_others(documents, questions):
    """Found by searching all texts, and the answer can be read at the place found."""
    texts = [" ".join(["", *bare_words(document.text.lower()), ""]) for document in documents]
    for question in random.Random(1).sample(questions, 600):
        if question.kind == "initial":
            start, *named = re.findall("“([^”]*)”", question.question)
            holding = [text for text in texts if all(f" {word.lower()} " in text for word in named)]
            assert holding == [texts[question.document]] and len(named) == 3
            assert {word for word in holding[0].split() if word.startswith(start.lower())} == {question.answer.lower()}
            assert question.answer.startswith(start)
            continue
        piece = quoted(question) + (f" {BLANK}" if question.kind == "next" else "")
        assert 6 <= len(piece.split()) - (question.kind == "next") <= 12
        assert piece.split().index(next(w for w in piece.split() if BLANK in w)) > 0
        assert question.kind == "next" or BLANK not in piece.split()[-1]
        words = [r"\S+" if BLANK in word else re.escape(bare_words(word.lower())[0]) for word in piece.split()]
        found = [
            (place, match) for place, text in enumerate(texts) for match in re.findall(f"(?= {' '.join(words)} )", text)
        ]
        assert len(found) == 1
        assert found[0][0] == question.document
        answer = re.search(" ".join(words).replace(r"\S+", r"(\S+)"), texts[question.document]).group(1)
        assert answer == question.answer.lower()


def test_a_question_quotes_one_sentence(documents, questions):
    for question in questions:
        if question.kind != "initial":
            piece = quoted(question).replace(BLANK, question.answer)
            parts = (" ".join(w for w in s.split() if bare_words(w)) for s in documents[question.document].sentences)
            assert any(piece in part for part in parts)


def test_the_seed_decides(documents):
    assert documents == topic_documents()
    some = documents[:40]
    assert topic_questions(some, seed=1) == topic_questions(some, seed=1) != topic_questions(some, seed=2)


MADE = """
split = split_topic_questions(documents, questions)
made = repr([questions, split, topic_rows("end_to_end", split.new_documents, documents)])
digest = hashlib.sha256(made.encode()).hexdigest()
"""


@pytest.mark.slow
def test_another_process_makes_the_same(documents, questions):
    """Sets have another order there."""
    head = "import hashlib\nfrom qwen_grafts.recipes.topic_task import *\n"
    here = {"documents": documents, "questions": questions}
    exec(head + MADE, here)
    there = f"{head}documents = topic_documents()\nquestions = topic_questions(documents)\n{MADE}\nprint(digest)"
    printed = subprocess.run([sys.executable, "-c", there], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == here["digest"]


def test_fewer_questions_and_kinds(documents):
    some = documents[:60]
    for kind in KINDS:
        found = topic_questions(some, kinds=[kind], per_document=2)
        assert {question.kind for question in found} == {kind}
        assert set(Counter(question.document for question in found).values()) <= {1, 2}
        behind = [
            some[question.document].text.find(question.answer) > len(some[question.document].text) / 2
            for question in found
        ]
        assert 0.25 < sum(behind) / len(behind) < 0.75  # a few questions are not all about the beginning
    assert topic_questions(some, per_document=0) == []
    bare = [TopicDocument(0, "t", ("It is so, as it was.",)), TopicDocument(1, "t", ("It was as it is.",))]
    assert topic_questions(bare) == topic_questions([]) == []
    with pytest.raises(ValueError, match="missing, next, initial, got 'other'"):
        topic_questions(some, kinds=["missing", "other"])


def test_what_is_held_out_is_not_trained_on(documents, questions, split):
    seen, held = ({document.id for document in part} for part in (split.train_documents, split.held_out_documents))
    assert seen | held == {document.id for document in documents} and not seen & held
    assert len(held) == round(0.1 * len(documents))
    assert {question.document for question in split.new_documents} <= held
    assert {question.document for question in split.train} == {
        question.document for question in split.new_questions
    } | {question.document for question in split.train}
    assert {question.document for question in split.train + split.new_questions} <= seen
    assert len(split.new_documents) == sum(question.document in held for question in questions)
    about_seen = [question for question in questions if question.document in seen]
    assert len(split.new_questions) == round(0.1 * len(about_seen))
    assert set(split.train) | set(split.new_questions) <= set(about_seen)
    assert len(split.train) > 0.75 * len(about_seen)
    assert {question.document for question in split.train} == {question.document for question in about_seen}
    asked = {}
    for question in split.train:
        asked.setdefault(question.document, []).append(f"{question.question} {question.answer}".lower())
    for question in split.new_questions:
        assert not any(question.answer.lower() in text for text in asked[question.document])


def test_split_is_seeded_and_refuses_nonsense(documents, questions, split):
    other = split_topic_questions(documents, questions, seed=1)
    assert other.held_out_documents != split.held_out_documents and other.new_questions != split.new_questions
    assert split_topic_questions(documents, questions) == split
    whole = split_topic_questions(documents, questions, new_documents=0, new_questions=0)
    assert (whole.train, whole.new_questions, whole.new_documents) == (questions, [], [])
    for shares in ({"new_documents": 1}, {"new_questions": -0.1}):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            split_topic_questions(documents, questions, **shares)
    with pytest.raises(ValueError, match="0 questions about 3 documents leave none"):
        split_topic_questions(documents[:3], [])


def test_every_document_keeps_a_question(documents):
    few = [TopicQuestion(n, "next", f"{n} {asked}?", f"a{n}{asked}") for n in range(4) for asked in range(2)]
    split = split_topic_questions(documents[:4], few, new_documents=0, new_questions=0.9)
    assert Counter(question.document for question in split.train) == dict.fromkeys(range(4), 1)
    assert len(split.new_questions) == 4
    told = [TopicQuestion(0, "next", "x?", "first"), TopicQuestion(0, "next", "the first?", "second")]
    split = split_topic_questions(documents[:1], told, new_documents=0, new_questions=0.5)
    assert split.train == told[:1] and split.new_questions == told[1:]


def written(path: Path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_first_stage_rows(tmp_path, documents, split):
    rows = topic_rows("compression", split.train, split.train_documents)
    assert Counter(row["data_type"] for row in rows) == dict.fromkeys(
        ("qa", "paraphrase"), len({question.document for question in split.train})
    )
    data = load_document_rows(written(tmp_path / "rows.jsonl", rows), "compression", eval_ratio=0)
    texts = {document.id: document.text for document in documents}
    asked = {(question.question, question.answer, texts[question.document]) for question in split.train}
    loaded = [(row["question"], row["answer"], *row["documents"]) for row in data.train if row["data_type"] == "qa"]
    assert set(loaded) == asked and len(loaded) == len(asked)
    again = [row for row in data.train if row["data_type"] == "paraphrase"]
    assert {row["answer"] for row in again} == {text for *_, text in asked}
    assert all((row["question"], row["documents"]) == ("", [row["answer"]]) for row in again)
    for data_type in ("qa", "paraphrase"):
        part = topic_rows("compression", split.new_questions, documents, data_types=[data_type])
        assert {row["data_type"] for row in part} == {data_type}
        assert len(part) == len({question.document for question in split.new_questions})


@pytest.mark.parametrize("stage", STAGES[1:])
def test_later_stage_rows(tmp_path, documents, split, stage):
    asked = split.train[::4]
    rows = topic_rows(stage, asked, split.train_documents)
    assert len(rows) == len(asked)
    data = load_document_rows(written(tmp_path / "rows.jsonl", rows), stage, eval_ratio=0)
    by_text = {document.text: document for document in documents}
    held_out = {document.id for document in split.held_out_documents}
    alike = 0
    for row, question in zip(data.train, asked, strict=True):
        shown = [by_text[text] for text in row["documents"]]
        (right,) = row["positives"]
        assert (row["question"], row["answer"], row["gold_answers"]) == (
            question.question,
            question.answer,
            [question.answer],
        )
        assert shown[right].id == question.document
        assert len({document.id for document in shown}) == len(shown) == CANDIDATES[stage]
        assert not {document.id for document in shown} & held_out
        holding = [document.id for document in shown if question.answer.lower() in document.text.lower()]
        assert holding == [question.document]
        alike += sum(document.topic == shown[right].topic for document in shown) - 1
    places = Counter(place for row in data.train for place in row["positives"])
    assert set(places) == set(range(CANDIDATES[stage]))
    assert max(places.values()) < 2 * len(rows) / CANDIDATES[stage]
    assert alike / len(rows) > (CANDIDATES[stage] - 1) / 4


def test_candidates_are_hard_to_tell_apart(documents, split):
    """They share more words with the right document than others do, and rarer ones."""
    holding = Counter(word for document in documents for word in set(bare_words(document.text.lower())))
    words = {document.text: set(bare_words(document.text.lower())) for document in documents}
    rng, near, far = random.Random(3), 0.0, 0.0
    rows = topic_rows("instruction", split.new_documents, documents)
    assert topic_rows("instruction", split.new_documents, documents) == rows
    assert topic_rows("instruction", split.new_documents, documents, seed=1) != rows
    for row in rows:
        right = row["docs"][row["pos_index"][0]]
        for other in set(row["docs"]) - {right}:
            near += sum(1 / holding[word] for word in words[right] & words[other])
            far += sum(1 / holding[word] for word in words[right] & words[rng.choice(documents).text])
    assert near > 3 * far


def test_rows_that_cannot_be_made(documents, split):
    cases = {
        "`stage` must be compression, instruction, end_to_end or retrieval, got 'stage 2'": {"stage": "stage 2"},
        r"\d+ of \d+ questions are about documents that are not among the 3 given": {"documents": documents[:3]},
        "Types of rows are qa and paraphrase, got 'chat'": {"data_types": ["qa", "chat"]},
        "`candidates` must be at least 1, got 0": {"stage": "retrieval", "candidates": 0},
        r"Of \d+ documents, \d+ do not hold the answer .* too few for 1000": {"stage": "retrieval", "candidates": 1000},
    }
    for message, arguments in cases.items():
        given = {"stage": "compression", "questions": split.train, "documents": documents} | arguments
        with pytest.raises(ValueError, match=message):
            topic_rows(**given)
    lone = topic_rows("retrieval", split.train[:1], documents, candidates=1)
    assert (len(lone[0]["docs"]), lone[0]["pos_index"]) == (1, [0])
    two = [TopicDocument(5, "t", ("The answer is blue.",)), TopicDocument(9, "t", ("Nothing.",))]
    rows = topic_rows("retrieval", [TopicQuestion(5, "next", "The answer is?", "blue")], two, candidates=2)
    assert rows[0]["docs"][rows[0]["pos_index"][0]] == two[0].text
