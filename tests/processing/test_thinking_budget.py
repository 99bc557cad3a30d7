"""The thinking budget against a machine with a memory, and in `generate` with a tiny model that sees."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from distinct_export import export_distinct
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, ProcessorMixin, Qwen2Tokenizer

from qwen_grafts.processing import ThinkingBudget, build_qwen_tokenizer

TURN, OPEN, CLOSE, BREAK, A, B = range(6)
PAD, VOCAB = 6, 8


def budget(tokens: int, blank_ids: tuple[int, ...] = (BREAK, BREAK)) -> ThinkingBudget:
    return ThinkingBudget(tokens, turn_id=TURN, open_id=OPEN, close_id=CLOSE, break_id=BREAK, blank_ids=list(blank_ids))


class Machine:
    """The rule as a reader would carry it out: token by token, with a memory."""

    def __init__(self, tokens: int, blank_ids: tuple[int, ...]) -> None:
        self.tokens, self.blank_ids = tokens, blank_ids
        self.read: list[int] = []
        self.length: int | None = None  # of the open thought
        self.to_write: list[int] = []

    def push(self, token: int) -> None:
        """Take up a token that was written, by the prompt, the model or this machine."""
        if self.to_write and token == self.to_write[0]:
            self.to_write.pop(0)
        else:
            self.to_write = []
        if token == CLOSE and self.length is not None and self.length >= self.tokens and self.read[-1] == BREAK:
            self.to_write = list(self.blank_ids)
        if token in (TURN, CLOSE):
            self.length = None
        elif self.length is not None:
            self.length += 1
        elif token == OPEN:
            self.length = 0
        self.read.append(token)

    def next(self, proposed: int) -> int:
        """The token to write where the model would write `proposed`."""
        if self.to_write:
            return self.to_write[0]
        if self.length is None or self.length < self.tokens:
            return proposed
        return CLOSE if proposed == CLOSE or self.read[-1] == BREAK else BREAK


def scores(proposed: list[int]) -> torch.Tensor:
    """Scores under which greedy search takes the proposed tokens, one a row."""
    table = torch.randn(len(proposed), VOCAB, generator=torch.Generator().manual_seed(sum(proposed)))
    return table.scatter(1, torch.tensor(proposed)[:, None], 9.0)


def greedy(prompts: list[list[int]], proposals: list[list[int]], limit: ThinkingBudget) -> list[list[int]]:
    """What is written behind prompts of one length."""
    ids = torch.tensor(prompts)
    for proposed in zip(*proposals, strict=True):
        before = scores(list(proposed))
        after = limit(ids, before.clone())
        assert after.shape == before.shape and after.dtype == before.dtype
        for row in range(len(ids)):
            forced = torch.isinf(after[row]).sum() == VOCAB - 1 and after[row].max() == 0
            assert forced or torch.equal(after[row], before[row]), "one token is left, or nothing is touched"
        ids = torch.cat([ids, after.argmax(-1, keepdim=True)], dim=1)
    return ids[:, len(prompts[0]) :].tolist()


def by_machine(prompt: list[int], proposed: list[int], tokens: int, blank_ids: tuple[int, ...]) -> list[int]:
    machine = Machine(tokens, blank_ids)
    for token in prompt:
        machine.push(token)
    written = []
    for token in proposed:
        written.append(machine.next(token))
        machine.push(written[-1])
    return written


@pytest.mark.parametrize("tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("blank_ids", [(), (B,), (BREAK, BREAK)], ids=str)
def test_equals_a_machine_with_a_memory(tokens: int, blank_ids: tuple[int, ...]) -> None:
    """Rows of every kind in one batch: tags anywhere, nested, again, and left padding."""
    generator = torch.Generator().manual_seed(tokens)
    weights = torch.tensor([0.05, 0.2, 0.15, 0.2, 0.3, 0.1])
    prompts = torch.multinomial(weights.expand(200, -1), 8, replacement=True, generator=generator)
    lengths = torch.randint(1, 9, (200, 1), generator=generator)
    prompts = torch.where(torch.arange(8) < 8 - lengths, PAD, prompts).tolist()
    proposals = torch.multinomial(weights.expand(200, -1), 14, replacement=True, generator=generator).tolist()
    written = greedy(prompts, proposals, budget(tokens, blank_ids))
    expected = [by_machine(*row, tokens, blank_ids) for row in zip(prompts, proposals, strict=True)]
    assert written == expected
    changed = sum(found != proposed for found, proposed in zip(written, proposals, strict=True))
    assert 50 < changed < 200


def thoughts(ids: list[int]) -> Iterator[int]:
    """Length of each thought."""
    length = None
    for token in ids:
        if token in (TURN, CLOSE):
            if length is not None:
                yield length
            length = None
        elif length is not None:
            length += 1
        elif token == OPEN:
            length = 0
    if length is not None:
        yield length


def test_no_thought_is_longer_than_its_budget_and_a_line_break() -> None:
    for tokens, seed in itertools.product((0, 1, 3), range(30)):
        generator = torch.Generator().manual_seed(seed)
        proposed = torch.randint(1, 6, (25,), generator=generator).tolist()
        (written,) = greedy([[TURN, A]], [proposed], budget(tokens))
        assert max(thoughts(written), default=0) <= tokens + 1


def test_a_thought_that_ends_in_time_is_left_alone() -> None:
    answer = [BREAK, BREAK, A, B, A, TURN, OPEN]
    for length in range(5):
        proposed = [OPEN, *[A] * length, CLOSE, *answer]
        for tokens in range(length, 7):
            assert greedy([[TURN]], [proposed], budget(tokens)) == [proposed]


def test_the_closing_sequence() -> None:
    """A line break, the tag, a blank line; what ends in a line break already needs no other."""
    assert greedy([[TURN, OPEN]], [[A] * 9], budget(3)) == [[A, A, A, BREAK, CLOSE, BREAK, BREAK, A, A]]
    assert greedy([[TURN, OPEN, BREAK]], [[A] * 6], budget(0)) == [[CLOSE, BREAK, BREAK, A, A, A]]
    assert greedy([[TURN, OPEN]], [[A, BREAK, *[A] * 6]], budget(2)) == [[A, BREAK, CLOSE, BREAK, BREAK, A, A, A]]


@pytest.mark.parametrize(
    "prompt",
    [
        [OPEN, A, A, A, TURN, A],  # a user who writes the tag
        [TURN, OPEN, A, A, A, A, TURN, A],  # a thought of an earlier turn that was cut off
        [TURN, OPEN, BREAK, CLOSE, BREAK, BREAK],  # the empty thought of a prompt with thinking off
        [TURN, OPEN, BREAK, CLOSE],
        [TURN, A],
        [A],
    ],
)
def test_nothing_is_forced_outside_a_thought(prompt: list[int]) -> None:
    proposed = [B, A, B, A]
    allowed = 1 if prompt[-1] == CLOSE else 0
    assert greedy([prompt], [proposed], budget(allowed + 1)) == [proposed]


def test_a_tag_inside_a_thought_gives_no_new_budget() -> None:
    assert greedy([[TURN, OPEN]], [[OPEN] * 5], budget(2)) == [[OPEN, OPEN, BREAK, CLOSE, BREAK]]


def test_before_the_first_token() -> None:
    """`generate` from embeddings starts without any id."""
    start = scores([A, B])
    assert torch.equal(budget(0)(torch.empty(2, 0, dtype=torch.long), start), start)


def test_a_scripted_half_precision_batch() -> None:
    ids = torch.tensor([[TURN, OPEN, A], [TURN, A, A]])
    after = budget(1)(ids, scores([A, A]).bfloat16())
    assert after.dtype == torch.bfloat16
    assert after.argmax(-1).tolist() == [BREAK, A]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        budget(-1)
    with pytest.raises(ValueError, match="at least 0, got -5"):
        ThinkingBudget.from_tokenizer(build_qwen_tokenizer(300), -5)
    plain = Qwen2Tokenizer()
    plain.add_tokens(["<|im_start|>"], special_tokens=True)
    with pytest.raises(ValueError, match=r"splits '<think>' into \d+ tokens.*Qwen3"):
        ThinkingBudget.from_tokenizer(plain, 5)


# With a model.


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ProcessorMixin, Image.Image]:
    folder = tmp_path_factory.mktemp("budget")
    export = export_distinct(folder, "perceiver-vlm-tiny")
    model = AutoModelForImageTextToText.from_pretrained(export).eval()
    model.generation_config.eos_token_id = None  # as many tokens as are asked for
    return model, AutoProcessor.from_pretrained(export), Image.open(folder / "image.png").convert("RGB")


def ask(
    parts: tuple, which: list[int], limit: int | None, thinking: bool | None = True, **settings: Any
) -> list[list[int]]:
    """The ids written after some of three prompts, in one batch padded on the left."""
    model, processor, image = parts
    block = {"type": "image"}
    questions = [
        [block, {"type": "text", "text": "What is it?"}],
        [{"type": "text", "text": "Why is `<think>` a tag? A question longer than the others."}],
        [block, block, {"type": "text", "text": "Alike?"}],
    ]
    messages = [[{"role": "user", "content": questions[index]}] for index in which]
    texts = [processor.apply_chat_template(m, add_generation_prompt=True, enable_thinking=thinking) for m in messages]
    images = [image] * sum(question.count(block) for question in (questions[index] for index in which))
    inputs = processor(text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt")
    limits = [] if limit is None else [ThinkingBudget.from_tokenizer(processor.tokenizer, limit)]
    settings = {"max_new_tokens": 14, "do_sample": False, "logits_processor": limits} | settings
    # By itself the random model writes none of the tokens that begin or end a thought.
    settings["suppress_tokens"] = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<think>", "</think>"])
    with torch.no_grad():
        generated = model.generate(**inputs, **settings)
    return generated[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_batches_equal_single_rows(parts: tuple, limit: int) -> None:
    together = ask(parts, [0, 1, 2], limit)
    assert together == [ask(parts, [index], limit)[0] for index in range(3)]
    assert together == ask(parts, [0, 1, 2], limit, use_cache=False)
    free = ask(parts, [0, 1, 2], None)
    assert len(set(map(tuple, free))) == 3
    line_break, close, *blank = parts[1].tokenizer.encode("\n</think>\n\n")
    for written, without in zip(together, free, strict=True):
        own = without[: max(limit - 1, 0)]  # the prompt's line break counts
        closing = [*([line_break] if own and own[-1] != line_break else []), close, *blank]
        assert written[: len(own) + len(closing)] == own + closing
        assert close not in written[len(own) + len(closing) :]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 0, "temperature": 2.0},
    ],
    ids=str,
)
def test_beams_and_samples(parts: tuple, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    line_break, close, *blank = parts[1].tokenizer.encode("\n</think>\n\n")
    for written in ask(parts, [0, 1, 2], 4, **settings):
        end = written.index(close)
        assert end <= 4 and written[end + 1 : end + 1 + len(blank)] == blank
        assert end == 0 or written[end - 1] == line_break


@pytest.mark.parametrize("thinking", [None, False])
def test_without_a_thought_nothing_changes(parts: tuple, thinking: bool | None) -> None:
    free = ask(parts, [0, 1, 2], None, thinking)
    assert ask(parts, [0, 1, 2], 0, thinking) == free


class Script(LogitsProcessor):
    """Makes a model write a text."""

    def __init__(self, ids: list[int], prompt_length: int) -> None:
        self.ids, self.prompt_length = ids, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.ids[input_ids.shape[1] - self.prompt_length]
        return scores.index_fill(1, torch.tensor([token]), float(scores.max()) + 5)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, "abc\n</think>\n\nred<|im_end|>"),
        (9, "abc\n</think>\n\nred<|im_end|>"),
        (5, "abc\n</think>\n\nred<|im_end|>"),  # line break of the prompt, three letters, line break
        (4, "abc\n</think>\n\nred<|im_end|>"),
        (3, "ab\n</think>\n\n\nred<|im_end|>"),
        (0, "</think>\n\n"),
    ],
)
def test_a_model_that_closes_by_itself(parts: tuple, limit: int | None, expected: str) -> None:
    model, processor, _ = parts
    tokenizer = build_qwen_tokenizer(486)  # a token a byte, so that the expected texts can be counted
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, enable_thinking=True
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    script = tokenizer.encode("abc\n</think>\n\nred<|im_end|>")
    limits = [] if limit is None else [ThinkingBudget.from_tokenizer(tokenizer, limit)]
    with torch.no_grad():
        generated = model.generate(
            **inputs,
            max_new_tokens=len(script),
            do_sample=False,
            logits_processor=[Script(script, inputs["input_ids"].shape[1]), *limits],
        )
    written = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :])
    assert written == expected if limit != 0 else written.startswith(expected)
