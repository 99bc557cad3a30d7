"""Thoughts as text: taken out of answers, parsed from what a model wrote, dropped from the history by the template."""

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Tokenizer, SiglipImageProcessor

from qwen_grafts.processing import (
    Qwen3PerceiverProcessor,
    ThinkingBudget,
    build_qwen_tokenizer,
    load_chat_template,
    set_response_template,
    split_thought,
)
from qwen_grafts.processing.thinking import (
    EMPTY_ANSWER,
    NESTED,
    RESPONSE_TEMPLATE,
    UNCLOSED,
    ThoughtProblem,
)

OLDEST = Path(__file__).parents[2] / ".venv-oldest"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
SWITCHES = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
USER = {"role": "user", "content": "Q"}
PROMPT = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processor() -> Qwen3PerceiverProcessor:
    return Qwen3PerceiverProcessor(
        SiglipImageProcessor(size={"height": 16, "width": 16}),
        build_qwen_tokenizer(300),
        num_image_tokens=5,
        chat_template=load_chat_template(),
    )


# Answers of a data set.


@pytest.mark.parametrize(
    "text",
    ["", " ", "red", " red\n", "think> a </thinking>", "< think>", "a < b", "<THINK>x</THINK>", "😀 你好", "<\nthink>"],
)
def test_a_text_without_tags_comes_back_as_it_is(text: str) -> None:
    assert split_thought(text) == (None, text)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nwhy\n</think>\n\nred", "why", "red"),
        ("<think>why</think>red", "why", "red"),
        ("<think></think>red", "", "red"),
        ("<think>\n\n</think>\n\nred", "", "red"),
        (" \n<think>a\n\nb\n</think>\n\n  red \n", "a\n\nb", "red"),
        ("<think>a</think><think>b</think>red", "a\n\nb", "red"),
        ("<think>a</think>\n<think>\n</think>\nred", "a", "red"),
        ("One. <think>a</think>Two.", "a", "One. Two."),
        ("red<think>a</think>", "a", "red"),
        ("<think>😀 为什么</think>\n\n红色 🟥", "😀 为什么", "红色 🟥"),
        ("```html\n<think>a</think>\n```\nred", "a", "```html\n\n```\nred"),
        ("<think>a < b && c > d, </thinking></think>red", "a < b && c > d, </thinking>", "red"),
        ("<think>\r\na\r\n</think>\r\n\r\nred", "a", "red"),
    ],
)
def test_thoughts_are_taken_out(text: str, thought: str, answer: str) -> None:
    assert split_thought(text) == (thought, answer)
    assert split_thought(answer) == (None, answer)


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("<think>cut off", UNCLOSED, "tag 1 opens is never closed"),
        ("<think>a</think>red<think>", UNCLOSED, "tag 3 opens is never closed"),
        ("Use `<think>` to think.", UNCLOSED, "tag 1 opens is never closed"),
        ("why</think>red", UNCLOSED, "tag 1 closes a thought that no tag opened"),
        ("<think>a</think>b</think>red", UNCLOSED, "tag 3 closes a thought that no tag opened"),
        ("</think><think>a</think>red", UNCLOSED, "tag 1 closes a thought that no tag opened"),
        ("<think>a<think>b</think>c</think>red", NESTED, "tag 2 opens a thought inside another one"),
        ("<think><think>red", NESTED, "tag 2 opens a thought inside another one"),
        ("<think>a</think>", EMPTY_ANSWER, "without 1 thoughts"),
        (" <think>a</think>\n<think></think>\n", EMPTY_ANSWER, "without 2 thoughts"),
    ],
)
def test_answers_that_cannot_be_told_from_thoughts(text: str, reason: str, detail: str) -> None:
    with pytest.raises(ThoughtProblem, match=detail) as caught:
        split_thought(text)
    assert caught.value.reason == reason
    copy = pickle.loads(pickle.dumps(caught.value))  # as worker processes send it
    assert (copy.reason, copy.detail, str(copy)) == (reason, caught.value.detail, str(caught.value))


def naive_split(pieces: tuple[str, ...]) -> tuple[str | None, str] | str:
    """The same by a count of open blocks over a list of tags and texts."""
    depth, thoughts, answer = 0, [], ""
    for piece in pieces:
        if piece == "<think>":
            depth += 1
            if depth > 1:
                return NESTED
            thoughts.append("")
        elif piece == "</think>":
            depth -= 1
            if depth < 0:
                return UNCLOSED
        elif depth:
            thoughts[-1] += piece
        else:
            answer += piece
    if depth:
        return UNCLOSED
    if not thoughts:
        return None, answer
    if not answer.strip():
        return EMPTY_ANSWER
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip()), answer.strip()


def test_every_arrangement_of_tags_and_texts() -> None:
    outcomes = set()
    for length in range(7):
        for pieces in itertools.product(("<think>", "</think>", "a ", "\n"), repeat=length):
            expected = naive_split(pieces)
            try:
                found = split_thought("".join(pieces))
            except ThoughtProblem as problem:
                found = problem.reason
            assert found == expected, pieces
            outcomes.add(expected if isinstance(expected, str) else expected[0] is None)
    assert outcomes == {NESTED, UNCLOSED, EMPTY_ANSWER, True, False}


# What a model wrote.

RESPONSES = [
    ("", "<think>\nwhy\n</think>\n\nred<|im_end|>", "why", "red"),
    ("<think>\n", "why\n</think>\n\nred<|im_end|>", "why", "red"),
    (EMPTY_THOUGHT, "red<|im_end|>", None, "red"),
    ("", "red<|im_end|>", None, "red"),
    ("", "red", None, "red"),
    ("", "<|im_end|>", None, ""),
    ("<think>\n", "</think>\n\nred", None, "red"),
    ("<think>\n", "cut off", "cut off", ""),
    ("", "<think>\ncut off", "cut off", ""),
    ("<think>\n", "ended<|im_end|><|endoftext|><|endoftext|>", "ended", ""),
    ("", "red<|im_end|><|endoftext|><|endoftext|>", None, "red"),  # a row of a batch, padded behind its end
    ("", "red<|endoftext|><|endoftext|>", None, "red"),
    ("<think>\n", "why\n</think>\n\nred<|im_end|>\n<|endoftext|>", "why", "red"),
    ("", "Write `<think>` and `</think>`.", None, "Write `<think>` and `</think>`."),
    (EMPTY_THOUGHT, "Write `<think>`.<|im_end|>", None, "Write `<think>`."),
    ("<think>\n", "Is it `<think>`?\n</think>\n\nYes, and </think> too.", "Is it `<think>`?", "Yes, and </think> too."),
    ("", "<think>a</think>\n\n<think>b</think>\n\nred", "a\n\nb", "red"),
    ("", "<think>\n😀 为什么\n\n因为\n</think>\n\n红色 🟥<|im_end|>", "😀 为什么\n\n因为", "红色 🟥"),
]


def parsed(thought: str | None, content: str) -> dict[str, str]:
    beside = {} if thought is None else {"reasoning_content": thought}
    return {"role": "assistant", "content": content} | beside


@pytest.mark.parametrize(("opening", "generated", "thought", "content"), RESPONSES)
def test_responses(
    processor: Qwen3PerceiverProcessor, opening: str, generated: str, thought: str | None, content: str
) -> None:
    prompt = PROMPT.replace("Q", "What is `<think>`?") + opening
    expected = parsed(thought, content)
    assert processor.parse_response(generated, prefix=prompt) == expected
    prompt_ids = processor.tokenizer.encode("<|endoftext|>" * 3 + prompt)  # padded on the left
    generated_ids = processor.tokenizer.encode(generated)
    assert processor.parse_response(torch.tensor(generated_ids), prefix=torch.tensor(prompt_ids)) == expected
    for size in (1, 2, 5):
        parser = processor.tokenizer.get_response_parser(prefix=prompt)
        events = [*parser.initial_events]
        for start in range(0, len(generated), size):
            events += parser.feed(generated[start : start + size])
        message, last = parser.finalize()
        assert message == expected
        streamed = "".join(
            event["text"]
            for event in [*events, *last]
            if event["type"] == "region_chunk" and event["field"] == "content"
        )
        assert streamed.strip() == content


def test_a_batch_of_responses(processor: Qwen3PerceiverProcessor) -> None:
    prompts = [PROMPT + opening for opening, *_ in RESPONSES]
    messages = processor.parse_response([generated for _, generated, *_ in RESPONSES], prefix=prompts)
    assert messages == [parsed(thought, content) for *_, thought, content in RESPONSES]


@pytest.mark.parametrize("thought", [None, "why", "one\n\ntwo", "about </thinking> and <b>"])
@pytest.mark.parametrize("content", ["red", "a\n\nb", "Write `</think>`."])
@pytest.mark.parametrize("thinking", SWITCHES, ids=str)
def test_a_parsed_message_renders_as_it_was_written(
    processor: Qwen3PerceiverProcessor, thinking: dict[str, bool], content: str, thought: str | None
) -> None:
    if thinking.get("enable_thinking") is False:
        thought = None
    prompt = processor.apply_chat_template([USER], add_generation_prompt=True, **thinking)
    whole = processor.apply_chat_template([USER, parsed(thought, content)], **thinking)
    message = processor.parse_response(whole.removeprefix(prompt), prefix=prompt)
    assert message == parsed(thought, content)
    assert processor.apply_chat_template([USER, message], **thinking) == whole
    history = processor.apply_chat_template([USER, message, USER], add_generation_prompt=True, **thinking)
    assert history.startswith(f"{PROMPT}{content}<|im_end|>\n<|im_start|>user\n")


def test_the_response_template_is_saved(processor: Qwen3PerceiverProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.response_template == RESPONSE_TEMPLATE
    loaded = Qwen3PerceiverProcessor.from_pretrained(tmp_path)
    assert loaded.parse_response("why\n</think>\n\nred", prefix=f"{PROMPT}<think>\n") == parsed("why", "red")


def test_a_loaded_tokenizer_is_given_the_response_template(processor: Qwen3PerceiverProcessor, tmp_path: Path) -> None:
    processor.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["response_template"]  # as published Qwen3
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="response_template"):
        tokenizer.parse_response("red", prefix=PROMPT)
    assert set_response_template(tokenizer) is tokenizer
    assert tokenizer.parse_response("red", prefix=PROMPT) == parsed(None, "red")
    tokenizer.response_template["fields"].clear()
    assert RESPONSE_TEMPLATE["fields"], "tokenizers do not share one dictionary"


CHILD = """
import json, sys
folder, overlay, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, overlay)
import transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tokenizer.chat_template = open(f"{folder}/chat_template.jinja").read()
parsed = [tokenizer.parse_response(text, prefix=prompt) for prompt, text in rows["responses"]]
rendered = [tokenizer.apply_chat_template(m, tokenize=False, **s) for m in rows["messages"] for s in rows["switches"]]
print(json.dumps([transformers.__version__, parsed, rendered]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not (OLDEST / "transformers").is_dir(), reason="test_supported_versions.py installs it")
def test_the_oldest_transformers_parses_and_renders_the_same(
    processor: Qwen3PerceiverProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    responses = [(PROMPT + opening, generated) for opening, generated, *_ in RESPONSES]
    messages = [[USER, turn, *more] for turn in TURNS for more in ([], [USER])]
    rows = {"responses": responses, "messages": messages, "switches": SWITCHES}
    child = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, tmp_path, OLDEST, json.dumps(rows)], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-3000:]
    version, found, rendered = json.loads(child.stdout.splitlines()[-1])
    assert version == "5.16.1"
    assert found == [parsed(thought, content) for *_, thought, content in RESPONSES]
    assert rendered == [processor.apply_chat_template(m, **switch) for m in messages for switch in SWITCHES]


# Thoughts in the content of a turn.


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def blocks(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


THOUGHT_TURNS = [
    assistant("red", reasoning_content="why"),
    assistant("red", reasoning_content="\nwhy\n"),
    assistant("red", thinking="why"),
    assistant("red", reasoning="why"),
    assistant("<think>\nwhy\n</think>\n\nred"),
    assistant("\n<think>why</think>red"),
    assistant("why\n</think>\n\nred"),  # as generated after a prompt that opened the block
    assistant(blocks("<think>\nwhy\n</think>\n\nred")),
    assistant(blocks("<think>", "why</think>", "\n\nred")),
    assistant("<think>\nwhy\n</think>\n\nred", reasoning_content="why"),
]
PLAIN_TURNS = [
    assistant("red"),
    assistant(" red"),
    assistant(blocks("red")),
    assistant("<think>\n\n</think>\n\nred"),
    assistant("</think>\n\nred"),
    assistant("red", reasoning_content=""),
    assistant("red", reasoning_content=None),
    assistant("Write `<think>` and `</think>`."),
    assistant("<think> is the tag."),
    assistant("It ends at </think>, they say."),
    assistant("```\n<think>\nx\n</think>\n```"),
    assistant("红色 🟥"),
    assistant(""),
    assistant(None),
    {"role": "assistant"},
]
TURNS = [*THOUGHT_TURNS, *PLAIN_TURNS]


def plain_text(turn: dict[str, Any]) -> str:
    content = turn.get("content") or ""
    text = content if isinstance(content, str) else "".join(block["text"] for block in content)
    return "red" if turn in THOUGHT_TURNS or text.endswith("</think>\n\nred") else text


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("thinking", SWITCHES, ids=str)
def test_turns(processor: Qwen3PerceiverProcessor, thinking: dict[str, bool], turn: dict[str, Any]) -> None:
    """As the last turn a thought is rendered once, in one form; as an earlier one it is gone."""
    thought, answer = "why\n" if turn in THOUGHT_TURNS else "", plain_text(turn)
    block = {None: f"<think>\n{thought}</think>\n\n" if thought else "", True: f"<think>\n{thought}</think>\n\n"}
    block[False] = EMPTY_THOUGHT
    last = processor.apply_chat_template([USER, turn], **thinking)
    assert last == f"{PROMPT}{block[thinking.get('enable_thinking')]}{answer}<|im_end|>\n"
    assert last.startswith(processor.apply_chat_template([USER], add_generation_prompt=True, **thinking))
    earlier = processor.apply_chat_template([USER, turn, USER, assistant("blue")], **thinking)
    assert earlier.startswith(f"{PROMPT}{answer}<|im_end|>\n<|im_start|>user\n")


def test_thoughts_of_users_stay(processor: Qwen3PerceiverProcessor) -> None:
    said = "<think>I am a user</think>Q"
    for thinking in SWITCHES:
        text = processor.apply_chat_template(
            [{"role": "system", "content": said}, {"role": "user", "content": said}], **thinking
        )
        assert text == f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n"


@pytest.mark.parametrize("content", ["red", "<think>\nwhy\n</think>\n\nred", "<think>\nwh"])
def test_a_last_turn_can_be_continued(processor: Qwen3PerceiverProcessor, content: str) -> None:
    text = processor.apply_chat_template([USER, assistant(content)], continue_final_message=True)
    assert text == PROMPT + content


@pytest.mark.parametrize(
    ("thinking", "learned"),
    [
        ({}, "<think>\nwhy\n</think>\n\nred<|im_end|>"),
        ({"enable_thinking": True}, "why\n</think>\n\nred<|im_end|>"),
        ({"enable_thinking": False}, "red<|im_end|>"),
    ],
    ids=str,
)
def test_what_the_prompt_writes_is_not_learned(
    processor: Qwen3PerceiverProcessor, thinking: dict[str, bool], learned: str
) -> None:
    for turn in THOUGHT_TURNS:
        inputs = processor.apply_chat_template(
            [USER, turn], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **thinking
        )
        mask = np.asarray(inputs["assistant_masks"]).reshape(-1).astype(bool)
        ids = np.asarray(inputs["input_ids"]).reshape(-1)
        assert processor.tokenizer.decode(ids[mask]) == learned


@pytest.mark.parametrize("thinking", SWITCHES, ids=str)
def test_the_tokens_of_the_prompt_are_those_of_the_whole(thinking: dict[str, bool]) -> None:
    """Qwen3's tokenizer makes two line breaks one token: a prompt that ends between them would not be what is learned.

    Its budget closes a thought with the very tokens of the template.
    """
    tokenizer = build_qwen_tokenizer(300, ["\n\n"] * 9)
    tokenizer.chat_template = load_chat_template()
    assert len(tokenizer.encode("\n\n")) == 1
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False, **thinking)
    for turn in TURNS:
        whole = tokenizer.apply_chat_template([USER, turn], return_dict=False, **thinking)
        assert whole[: len(prompt)] == prompt
    if thinking.get("enable_thinking"):
        answered = tokenizer.apply_chat_template([USER, assistant("red")], return_dict=False, **thinking)
        budget = ThinkingBudget.from_tokenizer(tokenizer, 0)
        for length in range(len(prompt), len(prompt) + 2):
            scores = budget(torch.tensor([answered[:length]]), torch.zeros(1, 400))
            assert scores.argmax(-1).tolist() == [answered[length]]


def test_a_processor_makes_budgets(processor: Qwen3PerceiverProcessor) -> None:
    budget = processor.thinking_budget(7)
    assert isinstance(budget, ThinkingBudget)
    assert vars(budget) == vars(ThinkingBudget.from_tokenizer(processor.tokenizer, 7))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        processor.thinking_budget(-1)
    with pytest.raises(ValueError, match=r"splits '<\|im_start\|>' into \d+ tokens"):
        ThinkingBudget.from_tokenizer(Qwen2Tokenizer(), 7)
