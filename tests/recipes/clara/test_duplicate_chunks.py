"""Chunks that repeat others, against comparing every pair."""

import random

import numpy as np
import pytest

from qwen_grafts.recipes.clara.compared_text import comparable, words_of
from qwen_grafts.recipes.clara.duplicate_chunks import NEAR, Fingerprints, overlap, shingles
from qwen_grafts.recipes.topic_documents import topic_documents


def duplicates(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    fingerprints = Fingerprints()
    for text in texts:
        fingerprints.add(text)
    return fingerprints.duplicates(texts.__getitem__)


def naive(texts: list[str]) -> tuple[list[bool], list[bool]]:
    """Every chunk against every one before it that is kept, by sets of words."""
    words = [words_of(text) for text in texts]
    sets = [{tuple(own[i : i + 3]) for i in range(len(own) - 2)} or {tuple(own)} for own in words]
    exact = [own in words[:number] for number, own in enumerate(words)]
    near: list[bool] = []
    for number, own in enumerate(sets):
        kept = [sets[other] for other in range(number) if not exact[other] and not near[other]]
        near.append(not exact[number] and any(len(own & other) / len(own | other) >= NEAR for other in kept))
    return exact, near


def changed(text: str, share: float, rng: random.Random) -> str:
    words = text.split()
    for place in range(len(words)):
        if rng.random() < share:
            words[place] = rng.choice(words)
    return " ".join(words)


def test_words() -> None:
    assert words_of("The \uff26\uff49\uff4c\uff45\u2019s names, 3.14 and naïve_x: 架构设计。") == [
        *("the", "file", "s", "names", "3", "14", "and", "naïve", "x"),
        *"架构设计",
    ]
    assert comparable(" One,  TWO ") == " one two " and comparable("?!") == ""
    assert comparable("two") in comparable("one two three") and comparable("tw") not in comparable("one two")
    assert comparable("设计") in comparable("架构设计如下")


def test_overlap_is_jaccard_of_three_words() -> None:
    one, two = "a b c d e f", "a b c d e g"
    assert overlap(shingles(one), shingles(two)) == pytest.approx(3 / 5)
    assert overlap(shingles("Yes"), shingles("yes!")) == 1 and overlap(shingles("yes"), shingles("no")) == 0
    assert overlap(shingles("a b c"), shingles("c b a")) == 0


def test_four_of_five_runs_of_words_are_a_repetition() -> None:
    begin = "the gateway accepts calls and hands each of them"
    texts = [f"{begin} on today", f"{begin} on tomorrow", f"{begin} over tomorrow"]
    assert overlap(shingles(texts[0]), shingles(texts[1])) == 0.8 and duplicates(texts[:2])[1].tolist() == [False, True]
    assert overlap(shingles(texts[0]), shingles(texts[2])) < 0.8 and not duplicates(texts[::2])[1].any()


def test_duplicates_are_those_of_all_pairs() -> None:
    rng = random.Random(0)
    passages = [document.text for document in topic_documents()[:150]]
    texts = list(passages)
    for share in (0.0, 0.01, 0.02, 0.04, 0.08, 0.3):
        texts += [changed(text, share, rng) for text in passages[:60]]
    texts += [text.upper().replace(",", " ;") for text in passages[60:90]]
    texts += [
        "架构设计如下\uff0c系统分为三层。",
        "架构设计如下:系统分为三层",
        "Yes.",
        "yes",
        "No.",
        "?!",
        "?!",
        "!!",
        "",
    ]
    rng.shuffle(texts)
    exact, near = duplicates(texts)
    expected_exact, expected_near = naive(texts)
    # A text without words is compared as it is written.
    wordless = [number for number, text in enumerate(texts) if not words_of(text)]
    first = {texts[number]: number for number in reversed(wordless)}
    for number in wordless:
        expected_exact[number], expected_near[number] = first[texts[number]] != number, near[number]
    assert exact.tolist() == expected_exact and near.tolist() == expected_near
    assert exact.sum() > 90 and 60 < near.sum() < 250


def test_no_chunks() -> None:
    assert [len(mask) for mask in duplicates([])] == [0, 0]


def test_more_chunks_than_a_block() -> None:
    texts = [f"number {number} {number * 7919} of many" for number in range(5000)]
    exact, near = duplicates([*texts, *texts[4090:4100]])
    assert np.flatnonzero(exact).tolist() == list(range(5000, 5010)) and not near.any()
