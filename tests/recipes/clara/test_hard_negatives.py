"""Hard negatives, against sorting the whole collection."""

import numpy as np
import pytest

from qwen_grafts.recipes.clara import hard_negatives as module
from qwen_grafts.recipes.clara.chunk_vectors import LENGTH, HashedVectors, features_of, rarity_of, whole_numbers
from qwen_grafts.recipes.clara.compared_text import comparable
from qwen_grafts.recipes.clara.hard_negatives import ChunkCollection, NegativesWanted, hard_negatives
from qwen_grafts.recipes.topic_documents import topic_documents

CHUNKS = 400


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in topic_documents()[:CHUNKS]]


@pytest.fixture(scope="module")
def vectors(texts: list[str]) -> np.ndarray:
    return HashedVectors(rarity_of([texts[:100], texts[100:]]))(texts)


def naive(
    query: np.ndarray, chunk: int, telling: tuple[str, ...], allowed: list[int], vectors: np.ndarray, texts: list[str]
) -> list[int]:
    """All allowed chunks by their distance, and then those that may not be left out of them."""
    scores = vectors[allowed].astype(np.int64) @ query.astype(np.int64)
    ranked = sorted(range(len(allowed)), key=lambda place: (-scores[place], allowed[place]))
    ranked = [allowed[place] for place in ranked if allowed[place] != chunk]
    return [other for other in ranked if not any(comparable(text) in comparable(texts[other]) for text in telling)]


@pytest.mark.parametrize("count", [4, 19, 60, CHUNKS + 5])
@pytest.mark.parametrize("deepest", [40, 1000])
def test_negatives_are_those_of_a_sorted_collection(texts, vectors, count, deepest, monkeypatch) -> None:
    monkeypatch.setattr(module, "DEEPEST", deepest)
    rng = np.random.default_rng(0)
    training = np.flatnonzero(rng.random(CHUNKS) < 0.8)
    held_out = np.setdiff1d(np.arange(CHUNKS), training)
    collections = [ChunkCollection(chunks, np.array_split(vectors[chunks], 3)) for chunks in (training, held_out)]
    chunks = rng.choice(training, 30, replace=False)
    # Words that stand in few chunks, in many, and in all.
    answers = [texts[chunk].split()[number % 40] for number, chunk in enumerate(chunks)]
    wanted = [
        NegativesWanted(int(chunk), (answer, "the")[: 1 + number % 7 // 6])
        for number, (chunk, answer) in enumerate(zip(chunks, answers, strict=True))
    ]
    queries = vectors[chunks] + vectors[rng.permutation(CHUNKS)[:30]]
    for sides in (collections[:1], collections):
        allowed = sorted(int(chunk) for side in sides for chunk in side.chunks)
        found = hard_negatives(queries, wanted, sides, lambda chunk: comparable(texts[chunk]), count)
        depths = [min(2 * count + 8, len(allowed))]
        while depths[-1] < min(len(allowed), max(deepest, depths[-1])):
            depths.append(min(4 * depths[-1], len(allowed), max(deepest, depths[-1])))
        short = 0
        for query, one, chosen in zip(queries, wanted, found, strict=True):
            scores = vectors[allowed].astype(np.int64) @ query.astype(np.int64)
            nearest = sorted(range(len(allowed)), key=lambda place: (-scores[place], allowed[place]))[: depths[-1]]
            expected = naive(query, one.chunk, one.telling, sorted(allowed[place] for place in nearest), vectors, texts)
            assert chosen == expected[:count]
            short += len(chosen) < count
        assert short < len(wanted) or count > CHUNKS / 2


def test_inner_products_are_exact(vectors) -> None:
    """float32 gives what whole numbers give, in any order."""
    assert vectors.dtype == np.int16
    queries = (vectors[:50] + vectors[50:100]).astype(np.float32)
    exact = queries.astype(np.int64) @ vectors.T.astype(np.int64)
    assert np.array_equal(queries @ vectors.T.astype(np.float32), exact)
    assert np.array_equal(queries[:, ::-1] @ vectors[:, ::-1].T.astype(np.float32), exact)
    assert exact.max() < 2**24
    wide = whole_numbers(np.random.default_rng(0).standard_normal((4, 4096)))
    assert 2 * (wide.astype(np.int64) ** 2).sum(axis=1).max() < 2**24
    assert not whole_numbers(np.zeros((1, 8))).any()


def test_equally_near_chunks_come_in_their_order() -> None:
    vectors = np.tile(np.array([[LENGTH, 0]], np.int16), (30, 1))
    sides = [ChunkCollection(np.arange(start, 30, 2), [vectors[start::2]]) for start in (1, 0)]
    found = hard_negatives(vectors[:1], [NegativesWanted(3, ())], sides, lambda chunk: " x ", 12)
    assert found == [[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]]


def test_nothing_to_choose_from() -> None:
    alone = ChunkCollection(np.array([7]), [np.array([[LENGTH, 0]], np.int16)])
    empty = ChunkCollection(np.array([], np.int64), [])
    query = np.array([[LENGTH, 0]], np.int16)
    assert hard_negatives(query, [NegativesWanted(7, ("a",))], [alone, empty], lambda chunk: " a ", 5) == [[]]
    assert hard_negatives(query, [NegativesWanted(7, ())], [empty], lambda chunk: "", 5) == [[]]


def test_vectors_know_what_is_alike(texts, vectors) -> None:
    """A sentence is nearest to its own passage, also in Chinese, which has no blanks."""
    sentences = [document.sentences[-1] for document in topic_documents()[:CHUNKS]]
    chosen = [number for number, sentence in enumerate(sentences) if len(sentence.split()) >= 10]
    hashed = HashedVectors(rarity_of([texts]))
    products = hashed([sentences[number] for number in chosen]).astype(np.int64) @ vectors.T.astype(np.int64)
    assert (products.argmax(axis=1) == chosen).mean() > 0.97
    chinese = ["系统架构设计分为三层结构", "数据库保存用户的订单信息", "网络协议规定了消息的格式"]
    products = HashedVectors(rarity_of([chinese]))([*chinese, "订单信息在哪里"]).astype(np.int64)
    assert (products[3] @ products[:3].T).argmax() == 1
    assert features_of("ab 架构 c") == ["ab", "架", "构", "c", "架构"]
