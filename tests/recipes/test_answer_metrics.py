"""Measures of answers and of retrieval: exact cases, and naive references written from the definitions."""

import random
import re
import string

import pytest

from qwen_grafts.recipes.answer_metrics import (
    answer_words,
    cover_exact_match,
    cover_words,
    exact_match,
    faithfulness,
    normalise_answer,
    recall_at_k,
    score_answers,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\nsat.", "cat sat"),
        ("An apple a day", "apple day"),
        ("Theatre and anthem", "theatre and anthem"),
        ("A sofa in Panama, the", "sofa in panama"),
        ("U.S.A.", "usa"),
        ("“Café” \u2014 1990\u20131995", "café 19901995"),
        ("\uff11\uff12 Cafe\u0301", "12 café"),
        ("The", "the"),
        (" + ", "+"),
        ("  ", ""),
        ("答案是\uff1a北京。", "答案是北京"),
    ],
)
def test_normal_form(text, normal):
    assert normalise_answer(text) == normal


def squad_form(text: str) -> str:
    """SQuAD's steps one by one, for ASCII."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_f1(prediction: str, gold: str) -> float:
    """SQuAD's F1 over words, with lists in place of counters."""
    words, wanted = squad_form(prediction).split(), squad_form(gold).split()
    left, same = list(wanted), 0
    for word in words:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def random_texts(count: int) -> list[str]:
    rng = random.Random(5)
    words = ["The", "a", "cat", "Cat,", "sat", "on", "mat.", "dog", "2012", "(dog)", "an", "non-stop"]
    return [" ".join(rng.choices(words, k=rng.randint(2, 7))) + " end" for _ in range(count)]


def test_plain_english_is_scored_as_in_squad():
    texts = random_texts(900)
    pairs = list(zip(texts[:300], texts[300:600], texts[600:], strict=True))
    for prediction, *both in pairs:
        assert normalise_answer(prediction) == squad_form(prediction)
        assert token_f1(prediction, both) == pytest.approx(max(squad_f1(prediction, gold) for gold in both))
        assert exact_match(prediction, both) == (squad_form(prediction) in map(squad_form, both))
        short = [squad_form(gold).rpartition(" ")[0] or "end" for gold in both]
        covered = [f" {squad_form(gold)} " in f" {squad_form(prediction)} " for gold in short]
        assert cover_exact_match(prediction, short) == any(covered)
        scattered = [all(w in squad_form(prediction).split() for w in squad_form(gold).split()) for gold in short]
        assert cover_words(prediction, short) == any(scattered)
    assert len({token_f1(prediction, both) for prediction, *both in pairs}) > 10


def test_a_gold_answer_is_covered_by_whole_words():
    assert cover_exact_match("It was in the year 2012, in May.", ["2011", "2012"])
    assert not cover_exact_match("a party", ["art"])
    assert not cover_exact_match("2012", ["in the year 2012"])
    assert cover_exact_match("the New York Times", ["York, Times"])
    assert not cover_exact_match("York and the Times", ["York Times"])
    assert cover_words("Times, of York", ["York Times"])
    assert not cover_words("Times", ["York Times"])
    assert cover_words("Times", ["York Times", "times"])
    assert not cover_words("anything", [" "]) and not cover_exact_match("anything", [" "])
    assert exact_match(" ", [""])
    assert not exact_match("b", ["The"]) and exact_match("the", ["The"])


def test_chinese_characters_are_words():
    assert answer_words("在2012年\uff0cPython 3.11") == ["在", "2012", "年", "python", "311"]
    assert answer_words("カタカナ・ひら") == ["カ", "タ", "カ", "ナ", "ひ", "ら"]
    assert answer_words("서울 시") == ["서울", "시"]
    assert exact_match("北京。", ["北 京"])
    assert cover_exact_match("首都是北京市", ["北京"])
    assert not cover_exact_match("北方的京城", ["北京"]) and cover_words("北方的京城", ["北京"])
    assert token_f1("北京市", ["北京"]) == pytest.approx(0.8)
    assert token_f1("上海", ["北京"]) == 0


def test_repeats_count_in_f1():
    assert token_f1("no no no", ["no"]) == pytest.approx(0.5)
    assert token_f1("one two", ["three", "two three"]) == pytest.approx(0.5)
    assert token_f1("", ["x"]) == 0 and token_f1("", [""]) == 1


@pytest.mark.parametrize("golds", ["Paris", [], ()])
@pytest.mark.parametrize("measure", [exact_match, cover_exact_match, cover_words, token_f1])
def test_gold_answers_are_a_list(measure, golds):
    with pytest.raises(ValueError, match="list of at least one text"):
        measure("Paris", golds)


def test_faithfulness():
    documents = ["Guido wrote Python in 1991.", "It is named after a comedy troupe."]
    assert faithfulness("Guido wrote it in 1991, and he named it.", documents) == 1
    assert faithfulness("Guido wrote Perl in 1987.", documents) == pytest.approx(2 / 4)
    assert faithfulness("Perl Perl Perl Guido", documents) == pytest.approx(1 / 2)
    assert faithfulness("Yes, it is.", documents) is None and faithfulness("", documents) is None
    assert faithfulness("Guido", []) == 0
    assert faithfulness("北京市", ["首都是北京。"]) == pytest.approx(1 / 2)
    assert faithfulness("京北", ["首都是北京。"]) == 0
    assert faithfulness("中", ["中", "国"]) == 1 and faithfulness("中国", ["中", "国"]) == 0


def test_means():
    predictions, golds = ["Paris", "in Rome", "Oslo", "no"], [["paris"], ["Rome"], ["Bergen", "Oslo!"], ["Lima"]]
    documents = [["Paris"], ["Rome"], ["Bergen"], ["Lima"]]
    assert score_answers(predictions, golds, documents) == pytest.approx(
        {
            "exact_match": 0.5,
            "cover_exact_match": 0.75,
            "cover_words": 0.75,
            "token_f1": (1 + 2 / 3 + 1 + 0) / 4,
            "faithfulness": 2 / 3,
            "rows": 4,
        }
    )
    assert "faithfulness" not in score_answers(predictions, golds)
    assert "faithfulness" not in score_answers(["no"], [["x"]], [["y"]])
    with pytest.raises(ValueError, match="got 4 predictions, 3 gold answers"):
        score_answers(predictions, golds[:3])
    with pytest.raises(ValueError, match="4 gold answers, 1 documents"):
        score_answers(predictions, golds, documents[:1])
    with pytest.raises(ValueError, match="at least one prediction"):
        score_answers([], [])


def test_retrieval():
    retrieved = [[3, 1, 2], [0, 5], [7, 8, 9], [4, 4, 4]]
    positives = [[1, 2], [5], [0], []]
    assert recall_at_k(retrieved, positives, 1) == {"hit_rate@1": 0, "recall@1": 0, "queries": 3}
    assert recall_at_k(retrieved, positives, 2) == pytest.approx(
        {"hit_rate@2": 2 / 3, "recall@2": (1 / 2 + 1 + 0) / 3, "queries": 3}
    )
    assert recall_at_k(retrieved, positives, 10) == pytest.approx(
        {"hit_rate@10": 2 / 3, "recall@10": 2 / 3, "queries": 3}
    )
    assert recall_at_k([[1, 1]], [[1, 1, 2]], 2)["recall@2"] == pytest.approx(1 / 2)
    for message, arguments in {
        "at least 1, got 0": (retrieved, positives, 0),
        "got 4 retrieved and 3 right": (retrieved, positives[:3], 1),
        "None of 2 queries": ([[1], [2]], [[], []], 1),
    }.items():
        with pytest.raises(ValueError, match=message):
            recall_at_k(*arguments)
