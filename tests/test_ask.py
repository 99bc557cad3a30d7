"""`qwen-grafts ask`: what is printed is what `generate` wrote, thought and answer apart."""

import io
from pathlib import Path

import pytest
import torch
from distinct_export import export_distinct
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwen_grafts.ask import ask

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    export_distinct(folder, "vision-bridge-tiny")
    return folder


def asked(folder: Path, **options: object) -> tuple[dict, str]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system="truecolor", width=200)
    settings = {"enable_thinking": None, "max_thinking_tokens": None, "max_new_tokens": 24} | options
    message = ask(str(folder / "export"), QUESTION, [folder / "image.png"], console=console, **settings)
    return message, output.getvalue()


def written(folder: Path, **switch: bool) -> tuple[str, str]:
    """Prompt and continuation, by `generate` alone."""
    processor = AutoProcessor.from_pretrained(folder / "export")
    model = AutoModelForImageTextToText.from_pretrained(folder / "export")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, **switch)
    inputs = processor(text=prompt, images=Image.open(folder / "image.png").convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return prompt, processor.decode(output[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_message_is_that_of_generate(folder: Path, thinking: bool | None) -> None:
    prompt, text = written(folder, **({} if thinking is None else {"enable_thinking": thinking}))
    expected = AutoProcessor.from_pretrained(folder / "export").parse_response(text, prefix=prompt)
    message, printed = asked(folder, enable_thinking=thinking)
    assert message == expected
    assert bool(message.get("reasoning_content")) == (thinking is True)
    assert ("\x1b[2;3m" in printed) == (thinking is True)  # dim and italic


def test_a_budget_ends_the_thought_and_the_answer_begins(folder: Path) -> None:
    message, printed = asked(folder, enable_thinking=True, max_thinking_tokens=4)
    assert message["reasoning_content"] and message["content"]
    assert "</think>" not in printed
    assert printed.rindex("\x1b[2;3m") < printed.index(message["content"].split()[0])


def test_what_cannot_be_asked(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least 0, got -2"):
        asked(folder, max_thinking_tokens=-2)
    console = Console(file=io.StringIO())
    options = {"enable_thinking": None, "max_thinking_tokens": None, "max_new_tokens": 4, "console": console}
    with pytest.raises(ValueError, match=r"Image 'none\.png' is missing"):
        ask(str(folder / "export"), QUESTION, [folder / "none.png"], **options)
