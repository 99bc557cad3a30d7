"""Documents into chunks on the disk: which of them are used, which are held out, and what is counted."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.clara.chunk_store import ChunkStore, write_chunks
from qwen_grafts.recipes.clara.enrichment import EnrichedDocument, EnrichmentCounts

KNOWN = re.findall(r"\w+", "the gateway hands each request to one of four workers and waits for its answer")


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., ChunkStore]:
    """Documents, by their ids, as chunks."""
    stores = []

    def make(texts: dict[str, str], tokenizer: Any, max_tokens: int = 64, **values: Any) -> ChunkStore:
        folder = tmp_path / str(len(stores))
        folder.mkdir()
        documents = [EnrichedDocument(name, text, None, (), "text") for name, text in texts.items()]
        options = {"eval_ratio": 0.0, "seed": 0} | values
        write_chunks(folder, documents, EnrichmentCounts(), tokenizer, max_tokens, **options)
        stores.append(ChunkStore(folder))
        return stores[-1]

    yield make
    for one in stores:
        one.close()


@pytest.fixture(scope="module")
def words_tokenizer() -> PreTrainedTokenizerFast:
    """Knows some words and has one token for all others."""
    model = WordLevel({word: place for place, word in enumerate(("[UNK]", *KNOWN))}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    return build_qwen_tokenizer(256)


def test_chunks_that_the_tokenizer_hardly_knows_are_dropped(store, words_tokenizer):
    """One unknown word of ten is no reason, two are."""
    texts = {
        "known": " ".join(KNOWN[:10]),
        "one of ten": " ".join([*KNOWN[1:10], "Redis"]),
        "two of ten": " ".join([*KNOWN[2:10], "Redis", "Kafka"]),
        "none": "Alle Menschen sind frei und gleich an Würde und Rechten geboren",
    }
    made = store(texts, words_tokenizer)
    assert [made.text(chunk) for chunk in range(4)] == list(texts.values())
    assert made.usable.tolist() == [True, True, False, False]
    assert made.counts["dropped chunks"]["unknown to the tokenizer"] == 2
    assert made.counts["chunks"]["chunks to use"] == 2 and made.counts["chunks"]["documents to use"] == 2


def test_a_writing_without_tokens_of_its_own_is_counted(store, bytes_tokenizer):
    """Of bytes: Latin letters are one token a character, accents in every word not two, ideographs three."""
    texts = {
        "en": "All human beings are born free and equal in dignity and rights.",
        "fr": "Tous les êtres humains naissent libres et égaux.",
        "zh": "人人生而自由，在尊严和权利上一律平等。",
        "bo": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་ཆེ་མཐོངས་དང༌།",
    }
    made = store(texts, bytes_tokenizer)
    chunks = made.counts["chunks"]
    assert chunks["documents hardly known to the tokenizer"] == 2
    assert chunks["characters"] == sum(map(len, texts.values()))
    # White space between two chunks is nobody's.
    assert 0 <= sum(len(text.encode()) for text in texts.values()) - chunks["tokens"] <= chunks["chunks"]
    assert made.usable.all(), "cut short, and kept"


def test_a_mark_without_words_is_no_text(store, bytes_tokenizer):
    made = store({"a": "[IMAGE DESCRIPTION] --", "b": "[IMAGE DESCRIPTION] A boat."}, bytes_tokenizer)
    assert made.usable.tolist() == [False, True] and made.counts["dropped chunks"]["no words"] == 1


def held_out(made: ChunkStore) -> set[str]:
    return {made[chunk]["id"] for chunk in range(len(made)) if made.held_out[chunk]}


def test_a_document_stays_on_its_side(store, bytes_tokenizer):
    """Whatever order documents come in; another seed chooses others; a half is a half, and not all of them go."""
    texts = {f"document {place}": f"The {word} stands alone." for place, word in enumerate(KNOWN[1:9])}
    half = held_out(store(texts, bytes_tokenizer, eval_ratio=0.5))
    assert len(half) == 4
    assert held_out(store(dict(reversed(texts.items())), bytes_tokenizer, eval_ratio=0.5)) == half
    assert len({frozenset(held_out(store(texts, bytes_tokenizer, eval_ratio=0.5, seed=seed))) for seed in range(4)}) > 1
    assert len(held_out(store(texts, bytes_tokenizer, eval_ratio=0.99))) == 7
    assert len(held_out(store(texts, bytes_tokenizer, eval_ratio=0.01))) == 1


def test_what_cannot_be_asked_about_is_not_held_out(store, bytes_tokenizer):
    texts = {f"empty {place}": "--" for place in range(20)} | {"a": "One boat.", "b": "Two boats.", "c": "A temple."}
    made = store(texts, bytes_tokenizer, eval_ratio=0.4)
    assert len(held_out(made)) == 1 == made.counts["chunks"]["documents held out"]
    assert not {name for name in held_out(made) if name.startswith("empty")}
