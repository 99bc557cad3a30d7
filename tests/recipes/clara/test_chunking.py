"""Chunks lose nothing but white space, fit, and end where a reader would end them."""

import time
from pydoc_data.topics import topics

import pytest
import regex
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.clara.chunking import chunk_text

CHINESE = (
    "系统由三个部分组成：网关、服务和数据库。网关接收请求，并把请求转发给服务。服务读取数据库，然后返回结果！" * 40
)
FAMILY = "👨‍👩‍👧‍👦"
TEXTS = {
    "english": "\n\n".join(str(topics[name]) for name in ("exprlists", "assert", "with", "typesseq")),
    "chinese": CHINESE,
    "emoji": FAMILY * 60 + "🇩🇪🇫🇷" * 40 + "e\u0301" * 100,
    "mixed": f"The gateway 网关 receives {FAMILY}. It is fast！然后返回结果。\r\n\r\nNext.  \n" * 30,
    "one word": "abcdefghij" * 1_000,
    "one letter": "a" * 5_000,
    "dots": "..!?" * 1_000,
    "spaces": "begin" + " " * 3_000 + "\n" * 500 + "\u3000end \t\n",
    "decomposed": "cafe\u0301 na\u0308ive " * 200,
    "tibetan": "བོད་ཡིག་ནི་བོད་མིའི་སྐད་ཡིག་ཡིན། " * 20,
    "short": "  Hi\n",
    "nothing": " \n\t ",
}


@pytest.fixture(scope="module")
def tokenizers():
    trained = build_qwen_tokenizer(2000, texts=[str(topics["assert"]), CHINESE])
    return {"bytes": build_qwen_tokenizer(256), "trained": trained}


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def check(text, chunks, tokenizer, size):
    """Literal parts in order, white space between them, none too long; returns where they begin."""
    position, starts = 0, []
    for chunk in chunks:
        assert chunk == chunk.strip() != ""
        start = text.index(chunk, position)
        assert not text[position:start].strip(), "something was left out"
        assert count(tokenizer, chunk) <= size
        starts.append(start)
        position = start + len(chunk)
    assert not text[position:].strip()
    return starts


@pytest.mark.parametrize("size", [28, 100, 256])
@pytest.mark.parametrize("kind", ["bytes", "trained"])
@pytest.mark.parametrize("name", TEXTS)
def test_chunks_are_the_document(tokenizers, kind, name, size):
    text, tokenizer = TEXTS[name], tokenizers[kind]
    starts = check(text, chunk_text(text, tokenizer, size), tokenizer, size)
    graphemes = {found.start() for found in regex.finditer(r"\X", text)}
    assert set(starts) <= graphemes, "a chunk begins within a character"


def test_chunks_are_as_full_as_they_can_be(tokenizers):
    """Where nothing but characters can be told apart, none could take one more."""
    text, tokenizer = "龘靐齉" * 200, tokenizers["bytes"]
    chunks = chunk_text(text, tokenizer, 32)
    assert {len(chunk) for chunk in chunks[:-1]} == {10}  # three bytes each
    english = chunk_text(TEXTS["english"], tokenizers["trained"], 200)
    fill = [count(tokenizers["trained"], chunk) / 200 for chunk in english]
    assert sum(fill) / len(fill) > 0.6


def test_a_window_has_no_seam(tokenizers, monkeypatch):
    """However much is tokenized at a time, the same chunks come out."""
    text, tokenizer = "".join(TEXTS.values()), tokenizers["trained"]
    whole = chunk_text(text, tokenizer, 64)
    monkeypatch.setattr("qwen_grafts.recipes.clara.chunking._WINDOW", 1)
    small = chunk_text(text, tokenizer, 64)
    check(text, small, tokenizer, 64)
    assert abs(len(small) - len(whole)) <= len(whole) // 50


def test_a_window_may_hold_no_token_more_than_a_chunk(monkeypatch):
    """Sixteen characters a token: as few as are looked at for each one."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    monkeypatch.setattr("qwen_grafts.recipes.clara.chunking._WINDOW", 1)
    chunks = chunk_text("abcdefghijklmno " * 100, tokenizer, 4)
    assert chunks == ["abcdefghijklmno " * 3 + "abcdefghijklmno"] * 25


def test_a_chunk_may_be_as_long_as_it_may_be(tokenizers):
    assert chunk_text("aaaa bbbb cccc", tokenizers["bytes"], 9) == ["aaaa bbbb", "cccc"]


def test_whole_sentences_where_they_fit(tokenizers):
    """No sentence that fits into a chunk is cut, whatever its language."""
    sentences = regex.findall(r"[^。！]+[。！]", CHINESE)
    for chunk in chunk_text(CHINESE, tokenizers["trained"], 60):
        assert set(regex.findall(r"[^。！]+[。！]?", chunk)) <= set(sentences)
    text = 'Dr. Who asked J. Bach, e.g. this. It (he said) is "so." Four is 4.5, not five! ' * 20
    ends = ("e.g. this.", 'is "so."', "not five!")
    for chunk in chunk_text(text, tokenizers["bytes"], 100):
        assert chunk.endswith(ends)


def test_a_paragraph_is_no_wrapped_line(tokenizers):
    text = "The first line of a sentence\ngoes on in the next one, and only then ends. " * 20
    for chunk in chunk_text(text, tokenizers["bytes"], 200):
        assert chunk.endswith("ends.")
    listed = "".join(f"- item {number} of the list\n" for number in range(100))
    for chunk in chunk_text(listed, tokenizers["bytes"], 90):
        assert chunk.startswith("- item") and chunk.endswith("of the list")


def test_a_paragraph_end_is_better_than_a_later_sentence_end(tokenizers):
    text = "One sentence is here. Another one is here.\n\nA new paragraph begins. It goes on. And on."
    assert chunk_text(text, tokenizers["bytes"], 70)[0] == "One sentence is here. Another one is here."


def test_the_mark_of_a_description_is_not_parted(tokenizers):
    text = ("word " * 7 + "[IMAGE DESCRIPTION] Three boxes and an arrow ") * 40
    for size in range(40, 80):
        for chunk in chunk_text(text, tokenizers["bytes"], size):
            assert chunk.count("[IMAGE") == chunk.count("[IMAGE DESCRIPTION] T")


def test_a_cluster_that_is_too_long_is_cut_between_code_points(tokenizers):
    """A letter with a thousand accents is no reason to stop."""
    text = "a" + "\u0301" * 1_000 + f" {FAMILY}"
    check(text, chunk_text(text, tokenizers["bytes"], 8), tokenizers["bytes"], 8)


def test_a_character_that_does_not_fit_is_told(tokenizers):
    with pytest.raises(ValueError, match=r"U\+1F468\) takes 4 tokens .* may have 3\. Give at least 4"):
        chunk_text(f"ab{FAMILY}", tokenizers["bytes"], 3)
    with pytest.raises(ValueError, match="`max_tokens` is 0"):
        chunk_text("ab", tokenizers["bytes"], 0)


@pytest.mark.parametrize("unit", ["a", "中", "x ", FAMILY, "!", " ", "\n", '."', "1,", "|", "[IMAGE DESCRIPTION] "])
def test_a_line_without_end_takes_time_in_step_with_its_length(tokenizers, unit):
    text = unit * (100_000 // len(unit)) + "end"
    started = time.process_time()
    chunks = chunk_text(text, tokenizers["trained"], 256)
    assert time.process_time() - started < 10  # half a second; a quadratic search takes minutes
    check(text, chunks, tokenizers["trained"], 256)
