"""CLaRa's processor and memory tokens: what a token is is decided by its place, and nothing is cut off."""

import pickle
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase

from qwen_grafts.configuration.configuration_clara_qwen3 import ClaraQwen3Config
from qwen_grafts.processing import (
    ClaraQwen3Processor,
    ThinkingBudget,
    add_memory_tokens,
    build_qwen_tokenizer,
    load_chat_template,
    set_response_template,
)
from qwen_grafts.processing.memory_tokens import first_new_id, memory_token_names, new_token_names

LENGTH, RATES = 12, (4, 3)  # three memory tokens a passage, or four
FIRST = 420  # id of <|endoftext|>
PAD, END_OF_TURN = FIRST, FIRST + 2
DOCUMENT, SEPARATOR = FIRST + 26, FIRST + 27
MEMORY = {4: [DOCUMENT + 2 + index for index in range(3)], 3: [DOCUMENT + 5 + index for index in range(4)]}
PLAIN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TEXT = "a<|im_end|>\n<|im_start|>system<|document_pad|><|document_sep|><|mem_4_0|><|mem_3_3|><|endoftext|>z"


def tokenizer() -> PreTrainedTokenizerBase:
    """Some words are one token, a Chinese character is three and an emoji more."""
    built = build_qwen_tokenizer(FIRST, [topics["assert"], topics["with"]])
    built.chat_template = load_chat_template()
    return built


@pytest.fixture(scope="module")
def processor() -> ClaraQwen3Processor:
    return ClaraQwen3Processor(add_memory_tokens(tokenizer(), LENGTH, RATES), LENGTH, RATES)


def ids_of(processor: ClaraQwen3Processor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def text_of(processor: ClaraQwen3Processor, ids: torch.Tensor | list[int]) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def latents(*counts: int) -> str:
    """How documents with that many latents are written."""
    return "".join("<|document_pad|>" * count + "<|document_sep|>" for count in counts)


def turn(content: str, opening: str = "<think>\n\n</think>\n\n") -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{opening}"


# Prompts.


@pytest.mark.parametrize(
    ("question", "documents", "written"),
    [
        ("Who?", None, "Who?"),
        ("Who?", [], "Who?"),
        ("Who?", ["A lens."], f"Background:\n{latents(3)}\n\nQuestion: Who?"),
        ("Who?", ["A lens.", "Its cape."], f"Background:\n{latents(3, 3)}\n\nQuestion: Who?"),
        (" ", ["A lens."], f"Background:\n{latents(3)}\n\nSay in other words what the background says."),
    ],
)
def test_a_prompt_in_words(
    processor: ClaraQwen3Processor, question: str, documents: list[str] | None, written: str
) -> None:
    batch = processor(question, documents)
    assert text_of(processor, batch["input_ids"][0]) == turn(written)
    assert batch["attention_mask"].all()
    assert set(batch) == {"input_ids", "attention_mask", *(["document_input_ids"] if documents else [])}


@pytest.mark.parametrize("rate", [None, 4, 3])
def test_passages_and_their_memory_tokens(processor: ClaraQwen3Processor, rate: int | None) -> None:
    """A row a passage, in reading order, padded on the right; as many placeholders as memory tokens."""
    long = "the northern cape was built " * 3
    batch = processor(["One?", "None?", "Two?"], [["A lens.", long], [], ["x"]], compression_rate=rate)
    cut = [ids for text in ("A lens.", long, "x") for ids in (piece.token_ids for piece in processor.passages(text))]
    assert len(cut) > 3
    memory = MEMORY[rate or 4]
    for row, ids in zip(batch["document_input_ids"].tolist(), cut, strict=True):
        assert row == [*ids, *memory] + [PAD] * (len(row) - len(ids) - len(memory))
    counts = (batch["input_ids"] == DOCUMENT).sum(dim=1).tolist()
    assert counts == [(len(cut) - 1) * len(memory), 0, len(memory)]
    assert (batch["input_ids"] == SEPARATOR).sum(dim=1).tolist() == [2, 0, 1]


@pytest.mark.parametrize("where", ["document", "question", "answer"])
def test_special_tokens_in_a_text_are_text(processor: ClaraQwen3Processor, where: str) -> None:
    """Special tokens stand where the processor put them: a text that spells them adds none, and is read as written."""
    plain = {"document": "lens", "question": "Who?", "answer": "Nobody."}
    spelled = plain | {where: SPECIAL_TEXT}
    batches = [processor(texts["question"], [texts["document"]], answers=texts["answer"]) for texts in (plain, spelled)]
    found = [[token for token in batch["input_ids"][0].tolist() if token >= FIRST] for batch in batches]
    passages = len(processor.passages(spelled["document"]))
    pad = found[0].index(DOCUMENT)
    assert found[1] == found[0][:pad] + [DOCUMENT] * 3 * passages + found[0][pad + 3 :]
    read = [token for row in batches[1]["document_input_ids"] for token in row.tolist() if token >= FIRST]
    assert [token for token in read if token != PAD] == MEMORY[4] * passages
    written = text_of(processor, batches[1]["input_ids"][0])
    assert (SPECIAL_TEXT in written) == (where != "document")
    assert "".join(piece.text for piece in processor.passages(SPECIAL_TEXT)) == SPECIAL_TEXT
    assert [token for token in processor.query_inputs(SPECIAL_TEXT)[0].tolist() if token >= FIRST] == MEMORY[4]


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_batches_equal_one_by_one(processor: ClaraQwen3Processor, side: str) -> None:
    """No documents to twenty of them, each question of another length."""
    counts = [0, 1, 20, 3]
    questions = ["Who " * (index + 1) for index in range(4)]
    documents = [[f"lens {index} " * (1 + index % 5) for index in range(count)] for count in counts]
    answers = ["On it.", "1871", "The northern cape.", "?"]
    batch = processor(questions, documents, answers=answers, padding_side=side)
    rows = 0
    for index in range(4):
        alone = processor(questions[index], documents[index], answers=answers[index])
        length = alone["input_ids"].shape[1]
        place = slice(-length, None) if side == "left" else slice(length)
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(batch[name][index, place], alone[name][0]), name
        outside = torch.ones(batch["input_ids"].shape[1], dtype=torch.bool)
        outside[place] = False
        assert batch["input_ids"][index, outside].eq(PAD).all()
        assert not batch["attention_mask"][index, outside].any()
        assert batch["labels"][index, outside].eq(-100).all()
        if documents[index]:
            own = alone["document_input_ids"]
            found = batch["document_input_ids"][rows : rows + len(own)]
            assert torch.equal(found[:, : own.shape[1]], own) and found[:, own.shape[1] :].eq(PAD).all()
            rows += len(own)
    assert rows == len(batch["document_input_ids"])


def test_placeholders_for_latents_at_hand(processor: ClaraQwen3Processor) -> None:
    """The same prompt without the passages; documents may have any number of latents."""
    long = "the northern cape was built " * 3
    counts = [3 * len(processor.passages(text)) for text in ("A lens.", long)]
    batch = processor("Who?", placeholders=[counts])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], processor("Who?", ["A lens.", long])["input_ids"])
    ragged = processor(["Who?", "Where?"], placeholders=[[], [1, 5]])
    assert text_of(processor, ragged["input_ids"][1]) == turn(f"Background:\n{latents(1, 5)}\n\nQuestion: Where?")


# Answers.


def test_labels_cover_the_answer_and_its_end_of_turn(processor: ClaraQwen3Processor) -> None:
    batch = processor(["Who?", "Where, then?"], [["A lens."], []], answers=["Nobody.", "A cape"], padding_side="right")
    for row, answer in enumerate(("Nobody.", "A cape")):
        prompt = processor(["Who?", "Where, then?"][row], [["A lens."], []][row])["input_ids"][0].tolist()
        expected = [*ids_of(processor, answer), END_OF_TURN]
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        assert ids[: len(prompt) + len(expected)] == prompt + expected
        assert labels == [-100] * len(prompt) + expected + [-100] * (len(ids) - len(prompt) - len(expected))


@pytest.mark.parametrize(
    ("template", "thinking", "opening"),
    [
        (None, False, "<think>\n\n</think>\n\n"),
        (None, True, "<think>\n"),
        (PLAIN_TEMPLATE, False, ""),
        (PLAIN_TEMPLATE, True, ""),
    ],
)
def test_thinking_as_the_template_has_it(
    processor: ClaraQwen3Processor, template: str | None, thinking: bool, opening: str
) -> None:
    chosen = ClaraQwen3Processor(processor.tokenizer, LENGTH, RATES, chat_template=template)
    batch = chosen("Who?", ["A lens."], enable_thinking=thinking)
    assert text_of(chosen, batch["input_ids"][0]) == turn(f"Background:\n{latents(3)}\n\nQuestion: Who?", opening)


def test_a_thought_is_told_from_the_answer() -> None:
    built = ClaraQwen3Processor(set_response_template(add_memory_tokens(tokenizer(), LENGTH, RATES)), LENGTH, RATES)
    written = [*ids_of(built, "A cape, so north.\n</think>\n\nNorth."), END_OF_TURN]
    prompt = built("Where?", ["A cape."], enable_thinking=True)["input_ids"][0].tolist()
    message = built.parse_response(written, prefix=prompt)
    assert message == {"role": "assistant", "reasoning_content": "A cape, so north.", "content": "North."}
    assert isinstance(built.thinking_budget(5), ThinkingBudget)


# Passages.


TEXTS = {
    "short": "lens",
    "exactly one": "x" * LENGTH,
    "one more": "x" * (LENGTH + 1),
    "words": "The lighthouse on the northern cape was built in 1871. " * 9,
    "chinese": "北角的灯塔建于一八七一年。至今仍使用最初的透镜。" * 4,
    "emoji": "🗼👩‍👩‍👧🇯🇵" * 5,
    "space": "  \n\n\tlens \r\n  " * 6,
    "decomposed": "e\u0301te\u0301 a\u0308 " * 9,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_passages_are_even_and_are_the_document(processor: ClaraQwen3Processor, text: str) -> None:
    pieces = processor.passages(text)
    sizes = [len(piece.token_ids) for piece in pieces]
    ids = ids_of(processor, text)
    assert [token for piece in pieces for token in piece.token_ids] == ids
    assert len(pieces) == -(-len(ids) // LENGTH)
    assert max(sizes) <= LENGTH and max(sizes) - min(sizes) <= 1
    assert "".join(piece.text for piece in pieces) == text


def test_the_text_of_a_passage_is_what_its_tokens_say(processor: ClaraQwen3Processor) -> None:
    """But for the borders, where a character of several tokens may lie."""
    for piece in processor.passages(TEXTS["words"]):
        assert text_of(processor, piece.token_ids) == piece.text
    for piece in processor.passages(TEXTS["chinese"]):
        whole = text_of(processor, piece.token_ids).strip("\ufffd")
        assert whole in TEXTS["chinese"] and 0 <= len(piece.text) - len(whole) <= 1


def test_a_character_on_a_border_stands_behind_it(processor: ClaraQwen3Processor) -> None:
    """Two of an emoji's tokens close the first passage, two open the second."""
    text = "x" * (LENGTH - 2) + "\U0001f5fc" + "y" * (LENGTH - 2)
    assert len(ids_of(processor, text)) == 2 * LENGTH
    assert [piece.text for piece in processor.passages(text)] == [text[: LENGTH - 2], text[LENGTH - 2 :]]


def test_inputs_of_compressor_and_query_reasoner(processor: ClaraQwen3Processor) -> None:
    pieces = processor.passages(TEXTS["words"])
    batch = processor("Who?", [TEXTS["words"]], compression_rate=3)
    assert torch.equal(processor.compressor_inputs(pieces, 3), batch["document_input_ids"])
    rows = processor.query_inputs(["Who?", "Where is the lighthouse?"], 3).tolist()
    asked = [[*ids_of(processor, text), *MEMORY[3]] for text in ("Who?", "Where is the lighthouse?")]
    assert rows == [asked[0] + [PAD] * (len(asked[1]) - len(asked[0])), asked[1]]
    assert torch.equal(processor.query_inputs("Who?"), processor.query_inputs(["Who?"], 4))
    assert processor.query_inputs(TEXTS["words"]).shape[1] > 2 * LENGTH  # a question is not cut


# The processor's and the tokenizer's copies.


def same_batches(one: Any, other: Any) -> None:
    words = {"questions": ["Who?", SPECIAL_TEXT], "documents": [[TEXTS["chinese"], "x"], [TEXTS["emoji"]]]}
    words |= {"answers": ["Nobody.", SPECIAL_TEXT], "compression_rate": 3, "enable_thinking": True}
    first, second = one(**words), other(**words)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_saved_and_loaded(processor: ClaraQwen3Processor, tmp_path: Path) -> None:
    """As the package's class, and as the copy that travels with the folder, which saves itself again."""
    processor.save_pretrained(tmp_path / "own")
    loaded = AutoProcessor.from_pretrained(tmp_path / "own")
    assert type(loaded) is ClaraQwen3Processor
    same_batches(loaded, processor)
    remote = ClaraQwen3Processor.from_pretrained(tmp_path / "own")
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = "processing_clara_qwen3.ClaraQwen3Processor"
    remote_class = get_class_from_dynamic_module(reference, tmp_path / "own")
    assert remote_class is not ClaraQwen3Processor
    remote_class.register_for_auto_class("AutoProcessor")
    remote = remote_class.from_pretrained(tmp_path / "own")
    remote.save_pretrained(tmp_path / "again")
    again = get_class_from_dynamic_module(reference, tmp_path / "again").from_pretrained(tmp_path / "again")
    for copy in (remote, again):
        assert type(copy).__module__.startswith("transformers_modules.")
        assert copy.compression_rates == [4, 3] and copy.doc_max_length == LENGTH
        same_batches(copy, processor)
    # Memory tokens are the tokenizer's own, whoever loads it.
    assert first_new_id(AutoTokenizer.from_pretrained(tmp_path / "again"), LENGTH, RATES) == DOCUMENT


def test_a_pickled_processor_knows_its_memory_tokens(processor: ClaraQwen3Processor) -> None:
    copy = pickle.loads(pickle.dumps(processor))
    same_batches(copy, processor)
    assert copy.tokenizer.convert_tokens_to_ids(memory_token_names(LENGTH, 4)) == MEMORY[4]


class Collate:
    def __init__(self, processor: ClaraQwen3Processor) -> None:
        self.processor = processor

    def __call__(self, rows: list[str]) -> dict[str, torch.Tensor]:
        return dict(self.processor(rows, [[text] for text in rows]))


@pytest.mark.slow
def test_workers_of_a_data_loader_write_memory_tokens(processor: ClaraQwen3Processor) -> None:
    """Worker processes that begin anew, as on macOS and Windows, get the processor pickled."""
    rows = ["lens", TEXTS["words"], TEXTS["chinese"], "cape"]
    settings = {"batch_size": 2, "collate_fn": Collate(processor)}
    spawned = DataLoader(rows, num_workers=1, multiprocessing_context="spawn", **settings)
    for found, expected in zip(spawned, DataLoader(rows, **settings), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


# Memory tokens.


def test_new_tokens_stand_where_the_configuration_looks_for_them() -> None:
    config = ClaraQwen3Config(
        text_config={"vocab_size": 460}, doc_max_length=LENGTH, compression_rates=RATES, document_token_id=DOCUMENT
    )
    names = new_token_names(LENGTH, RATES)
    assert len(names) == 1 + config.num_new_embeddings
    vocabulary = add_memory_tokens(tokenizer(), LENGTH, RATES).get_vocab()
    assert [vocabulary[name] for name in names] == list(range(DOCUMENT, DOCUMENT + len(names)))
    assert vocabulary["<|document_sep|>"] == config.separator_token_id == SEPARATOR
    for rate in RATES:
        assert [vocabulary[name] for name in memory_token_names(LENGTH, rate)] == list(config.memory_token_ids(rate))


def test_adding_memory_tokens_twice_changes_nothing() -> None:
    once = add_memory_tokens(tokenizer(), LENGTH, RATES)
    size = len(once)
    assert len(add_memory_tokens(once, LENGTH, RATES)) == size


def test_memory_tokens_of_other_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has memory tokens already, and of these 11 it lacks 6\. Start from"):
        add_memory_tokens(add_memory_tokens(tokenizer(), LENGTH, (4,)), LENGTH, (4, 2))
    # The same tokens in another order are other tokens of the model.
    with pytest.raises(ValueError, match=r"The 9 memory tokens have ids from 446 to 454 that do not follow each other"):
        add_memory_tokens(add_memory_tokens(tokenizer(), LENGTH, (4, 3)), LENGTH, (3, 4))


def test_a_tokenizer_with_gaps_is_refused() -> None:
    """Loaded again, it would have the new tokens elsewhere."""
    with pytest.raises(ValueError, match="has 282 tokens and ids up to 445: new tokens would move into the gaps"):
        add_memory_tokens(build_qwen_tokenizer(FIRST), LENGTH, RATES)


@pytest.mark.parametrize("rates", [(), (4, 4), (13,), (0,)])
def test_rates_that_a_passage_cannot_have(rates: tuple[int, ...]) -> None:
    built = tokenizer()
    with pytest.raises(ValueError, match="ompression"):
        add_memory_tokens(built, LENGTH, rates)
    assert "<|document_pad|>" not in built.get_vocab()


# Refusals.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": [["lens", ""], []]}, r"A document is empty \(0 tokens\)\. Leave it out"),
        ({"documents": [[" \n "], []]}, "A document is empty"),
        ({"documents": [["lens"]]}, "There are 2 questions and 1 items of `documents`: one a question"),
        ({"documents": ["lens", ["lens"]]}, "1 of 2 questions have a text in place of a list of documents"),
        ({"documents": "le"}, "`documents` is one text, and there are 2 questions: give a list"),
        ({"questions": "Who?", "documents": "lens"}, "1 of 1 questions have a text in place of a list of documents"),
        ({"answers": ["one"]}, "There are 2 questions and 1 items of `answers`"),
        ({"answers": "no"}, "`answers` is one text, and there are 2 questions: give a list"),
        ({"answers": ["one", " "]}, "1 of 2 answers are empty; nothing can be learned from them"),
        ({"placeholders": [[3], []]}, "Give `documents`, or `placeholders` for latents at hand, and not both"),
        ({"documents": None, "placeholders": [[3]]}, "There are 2 questions and 1 items of `placeholders`"),
        ({"questions": ["Who?", " "]}, "A prompt has neither a question nor a document; nothing can be answered"),
        ({"compression_rate": 2}, r"`compression_rate` is 2; this checkpoint knows 2: 4, 3\."),
    ],
)
def test_bad_input(processor: ClaraQwen3Processor, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**({"questions": ["Who?", "Where?"], "documents": [["lens"], []]} | change))


def test_bad_questions_and_passages(processor: ClaraQwen3Processor) -> None:
    with pytest.raises(ValueError, match="2 of 3 questions are empty; nothing can be retrieved for them"):
        processor.query_inputs(["Who?", "", "\n"])
    for ask in (lambda: processor.query_inputs("Who?", 8), lambda: processor.compressor_inputs([], 8)):
        with pytest.raises(ValueError, match="`compression_rate` is 8; this checkpoint knows 2"):
            ask()


def test_a_tokenizer_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"lacks 9 of 9 tokens of `doc_max_length` 12 at compression rates \[4, 3\]: "):
        ClaraQwen3Processor(tokenizer(), LENGTH, RATES)
    other = add_memory_tokens(tokenizer(), LENGTH, RATES)
    with pytest.raises(ValueError, match=r"lacks 1 of 7 tokens .*: <\|mem_3_4\|>\. Use the one that was saved"):
        ClaraQwen3Processor(other, 15, (3,))


@pytest.mark.parametrize("template", ["<|im_start|>user\nHello", "{{ messages[0].content }}{{ messages[0].content }}"])
def test_a_template_that_drops_or_doubles_what_is_asked(processor: ClaraQwen3Processor, template: str) -> None:
    with pytest.raises(ValueError, match="The chat template does not leave a user's text as it is"):
        ClaraQwen3Processor(processor.tokenizer, LENGTH, RATES, chat_template=template)("Who?")
