"""What two texts have in common, against naive references."""

import random
import unicodedata

import pytest

from qwen_grafts.recipes.clara.text_facts import (
    content_letters,
    find_quotation,
    longest_common_run,
    names,
    names_missing,
    numbers,
    same_language,
    share_words,
    words,
    writing_of,
)

ENGLISH = "The gateway receives a request and hands it to one of the workers, which reads the database and answers it."
CHINESE = "网关接收请求，并把请求转发给服务 Redis。服务读取数据库，然后返回 12 条结果。"


def test_numbers():
    assert numbers("1,024 bytes, 05 files, \uff13 ports, version 3.10, 2013-05-04 and utf8") == {
        *("1024", "5", "3", "3.10", "2013", "4", "8")
    }
    assert numbers("f(1,2) or 1, 2") == {"1", "2"}
    assert numbers("13") != numbers("2013")
    assert numbers("共有\uff11\uff12个") == {"12"}
    assert numbers("0 and 0.5") == {"0", "0.5"}


def test_names():
    assert names("It runs on Redis and\nin ZooKeeper, utf8 or max_split.") == {
        "redis",
        "zookeeper",
        "utf8",
        "max_split",
    }
    assert names("网关用Redis缓存，再由 Kafka 转发，Émile 写的 café。") == {"redis", "kafka", "émile", "café"}
    assert names_missing("It needs Redis and Kafka.", "the redis server") == {"kafka"}
    assert not names_missing("It needs Redis.", "REDIS")


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("the workers, which reads", "the workers,\n  which reads"),
        ("a cafe\u0301 there", "a café there"),
        ("接收请求", "接收\n请求"),
        ("\uff21\uff22\uff23 1", "ABC 1"),
        ("fi x", "ﬁ x"),
        ("Workers", None),
        ("", None),
        ("  ", None),
        ("the workers which", None),
    ],
)
def test_find_quotation(quotation, found):
    text = "to one of the workers,\n  which reads a café there; 网关接收\n请求。ABC 1 ﬁ x"
    assert find_quotation(quotation, text) == found


def test_a_quotation_is_a_part_of_its_text():
    """Any slice, however its white space and Unicode form are changed, is found as a slice with the same letters."""
    draw = random.Random(0)
    text = "Der Café\u0301 ﬁndet “网关 接收\r\n请求” e\u0301 한글 ½ … Å end" * 2

    def plain(part):
        return "".join(unicodedata.normalize("NFKC", part).split())

    for _ in range(300):
        start, end = sorted(draw.sample(range(len(text) + 1), 2))
        wanted = unicodedata.normalize(draw.choice(["NFC", "NFD"]), text[start:end]).replace(
            " ", draw.choice(["", "\n"])
        )
        found = find_quotation(wanted, text)
        if found is None:
            assert not plain(wanted) or plain(wanted) not in plain(text)
        else:
            assert found in text and plain(wanted) in plain(found)


def test_longest_common_run():
    draw = random.Random(1)
    for _ in range(200):
        one, other = ([draw.choice("abc") for _ in range(draw.randrange(12))] for _ in range(2))
        naive = max(
            (
                length
                for length in range(len(one) + 1)
                for start in range(len(one) - length + 1)
                if any(one[start : start + length] == other[at : at + length] for at in range(len(other) - length + 1))
            ),
        )
        assert longest_common_run(" ".join(one), " ".join(other)) == naive
    assert longest_common_run("The, QUICK fox", "a the quick fox") == 3
    assert longest_common_run("网关接收请求", "他网关接收了") == 4
    assert longest_common_run("x " + "a b " * 200, "y z " + "a b " * 150) == 300  # frequent words count too


def test_words_and_letters():
    assert words("Use max_split, 网关 ok?") == ["use", "max", "split", "网", "关", "ok"]
    assert content_letters("a1 网!") == 2 + 3
    assert content_letters("+---+") == 0
    assert share_words("the workers", "Workers of the world") and not share_words("the one", "the other")


def test_writing():
    assert writing_of(ENGLISH) == "Latin"
    assert writing_of(CHINESE) == "Chinese"
    assert writing_of("これはテストです。漢字も") == "Japanese"
    assert writing_of("Это проверка") == "Cyrillic"
    assert writing_of("The word 架构 means architecture, as everybody knows who reads it.") == "Latin"
    assert writing_of("调用 os.path.join 和 os.path.split 函数，得到路径") == "Chinese"
    assert writing_of("12 + 3 = ?") is None


@pytest.mark.parametrize(
    ("part", "text", "same"),
    [
        ("What does the gateway receive?", ENGLISH, True),
        ("网关接收什么？", ENGLISH, False),
        ("What does the gateway receive?", CHINESE, False),
        ("Redis 服务读取什么？", CHINESE, True),
        ("Redis", CHINESE, True),
        ("12", CHINESE, True),
        ("It is a server of some kind", CHINESE, False),
        ("What does 网关 mean here?", ENGLISH + " 网关", True),
        ("什么是 gateway 和 workers？", ENGLISH, False),
        ("Что получает шлюз?", ENGLISH, False),
        ("Welche Anfragen nimmt das Tor der Anlage heute entgegen?", ENGLISH, False),
        ("これは何ですか", CHINESE, False),
    ],
)
def test_same_language(part, text, same):
    assert same_language(part, text) is same
