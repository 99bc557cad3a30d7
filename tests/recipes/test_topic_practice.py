"""Practice questions of CLaRa's demo: of real text, several a document, nothing of what is held out."""

from collections import Counter

import pytest

from qwen_grafts.recipes.topic_documents import bare_words, topic_documents
from qwen_grafts.recipes.topic_practice import NEW_WORDING, QUOTED, TOPIC_WORDINGS, name_questions, practice_batches
from qwen_grafts.recipes.topic_task import BLANK, split_topic_questions, topic_questions


@pytest.fixture(scope="module")
def split():
    documents = topic_documents()[:60]
    return split_topic_questions(documents, topic_questions(documents))


def test_batches_ask_several_times_about_each_document(split):
    questions = practice_batches(split.train_documents, batches=3, batch_documents=10, per_document=4)
    assert len(questions) == 3 * 10 * 4
    for start in range(0, len(questions), 40):
        asked = Counter(question.document for question in questions[start : start + 40])
        assert len(asked) == 10 and set(asked.values()) == {4}
    assert questions == practice_batches(split.train_documents, batches=3, batch_documents=10, per_document=4)
    assert questions != practice_batches(split.train_documents, seed=1, batches=3, batch_documents=10, per_document=4)


def test_pieces_and_words_are_the_documents_own(split):
    text = {document.id: document.text for document in split.train_documents}
    kinds = Counter()
    for question in practice_batches(split.train_documents, batches=4, batch_documents=20):
        kinds[question.kind] += 1
        quoted = question.question.split("“", 1)[1].rsplit("”", 1)[0]
        if question.kind == "words":
            words = quoted.split("”, “")
            assert 1 <= len(words) <= 6 and set(words) <= set(bare_words(text[question.document].lower()))
        elif question.kind == "missing":
            assert quoted.replace(BLANK, question.answer, 1) in text[question.document]
        else:
            assert f"{quoted} {question.answer}" in text[question.document]
    assert set(kinds) == {"missing", "next", "words"} and kinds["words"] > kinds["next"] > 0


def test_no_held_out_question_is_quoted(split):
    """Not four words in a row of one about the same document; some practice is left out for it."""
    questions = practice_batches(split.train_documents, split.new_questions, batches=8)
    assert len(questions) < len(practice_batches(split.train_documents, batches=8))
    for question in questions:
        quoted = f" {question.question} {question.answer} ".lower().replace("”?", " ").replace("”", " ")
        for other in split.new_questions:
            words = other.question.split("“", 1)[1].split("”", 1)[0].lower().split()
            runs = (" ".join(words[start : start + QUOTED]) for start in range(len(words) - QUOTED + 1))
            if other.document == question.document and question.kind != "words":
                assert not any(f" {run} " in quoted for run in runs)


def test_topics_are_asked_in_every_wording(split):
    asked = name_questions(split.held_out_documents)
    assert len(asked) == len(TOPIC_WORDINGS) * len(split.held_out_documents)
    assert NEW_WORDING not in TOPIC_WORDINGS
    topics = {document.id: document.topic for document in split.held_out_documents}
    assert all(question.answer == topics[question.document] for question in asked)
