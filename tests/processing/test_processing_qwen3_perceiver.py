"""Perceiver processor: placeholders, chat template, what is refused, and life without torchvision."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin, Qwen2Tokenizer, Siglip2ImageProcessor, SiglipImageProcessor

from qwen_grafts.processing import Qwen3PerceiverProcessor, build_qwen_tokenizer, load_chat_template

PAD, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
FIRST_SPECIAL_ID = 300
TOKENS = 5
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
SWITCHES = [{}, {"enable_thinking": True}, {"enable_thinking": False}]

Messages = list[dict[str, Any]]


def picture(seed: int = 0, height: int = 20, width: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def processor() -> Qwen3PerceiverProcessor:
    return Qwen3PerceiverProcessor(
        image_processor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        tokenizer=build_qwen_tokenizer(FIRST_SPECIAL_ID),
        num_image_tokens=TOKENS,
        chat_template=load_chat_template(),
    )


def placeholders(processor: Qwen3PerceiverProcessor, ids: torch.Tensor) -> list[int]:
    return (ids == processor.image_token_id).sum(-1).tolist()


def user(*content: Any) -> dict[str, Any]:
    """Strings become text blocks, images image blocks."""
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": "user", "content": blocks}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}], **more}


def tokenized(processor: Qwen3PerceiverProcessor, messages: Any, mask: bool = False, **options: Any) -> Any:
    return processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=mask,
        processor_kwargs={"padding": True},
        **options,
    )


# Text and images to tensors.


def test_own_call_is_not_needed() -> None:
    assert Qwen3PerceiverProcessor.__call__ is ProcessorMixin.__call__


def test_one_placeholder_becomes_as_many_as_soft_tokens(processor: Qwen3PerceiverProcessor) -> None:
    inputs = processor(text=f"a{START}{PAD}{END}b", images=picture(), return_tensors="pt")
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == f"a{START}{PAD * TOKENS}{END}b"
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}


@pytest.mark.parametrize("nested", [True, False])
def test_batch_of_rows_with_0_1_and_2_images(processor: Qwen3PerceiverProcessor, nested: bool) -> None:
    pictures = [picture(seed, 10 + 7 * seed) for seed in range(3)]
    images = [[], pictures[:1], pictures[1:]] if nested else pictures
    text = ["a", f"{PAD}b", f"{PAD}c{PAD}"]
    inputs = processor(text=text, images=images, padding=True, padding_side="left", return_tensors="pt")
    assert placeholders(processor, inputs["input_ids"]) == [0, TOKENS, 2 * TOKENS]
    assert inputs["attention_mask"].sum(-1).tolist() == [1, TOKENS + 1, 2 * TOKENS + 1]
    assert inputs["attention_mask"][0, 0] == 0
    alone = [processor(images=one, return_tensors="pt")["pixel_values"] for one in pictures]
    assert torch.equal(inputs["pixel_values"], torch.cat(alone))


def test_text_only(processor: Qwen3PerceiverProcessor) -> None:
    assert set(processor(text=["a", "b"], return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(tokenized(processor, [user("a")])) == {"input_ids", "attention_mask"}


def test_token_types_mark_the_placeholders(processor: Qwen3PerceiverProcessor) -> None:
    inputs = processor(text=f"a{PAD}", images=picture(), return_mm_token_type_ids=True)
    assert inputs["mm_token_type_ids"] == [[0] + [1] * TOKENS]


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        (PAD, 2, "Found total 1 .* tokens and 2 images"),
        (PAD * 2, 1, "Found total 2 .* tokens and 1 images"),
        ("no image", 1, "Found total 0 .* tokens and 1 images"),
        (PAD, 0, "Found 1 .* tokens in the text but no images were passed"),
    ],
)
def test_images_and_placeholders_must_agree(
    processor: Qwen3PerceiverProcessor, text: str, images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=[picture(seed) for seed in range(images)] or None)


def test_truncation_inside_an_image_is_refused(processor: Qwen3PerceiverProcessor) -> None:
    with pytest.raises(ValueError, match=r"Mismatch in `image` token count .* ids=\[3\] and text=\[5\]"):
        processor(text=f"a{PAD}", images=picture(), truncation=True, max_length=4)


@pytest.mark.parametrize("images", [(), (picture(),)], ids=["alone", "beside_an_image"])
def test_a_placeholder_in_user_text_is_refused(
    processor: Qwen3PerceiverProcessor, images: tuple[Image.Image, ...]
) -> None:
    """It would take an image's place, or a part of it."""
    with pytest.raises(ValueError, match=r"Found (total 2|1) <\|image_pad\|> tokens"):
        tokenized(processor, [user(*images, f"look: {PAD}")])


def test_a_tokenizer_without_the_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks 3 of 3 vision tokens: <\|image_pad\|>, <\|vision_start\|>"):
        Qwen3PerceiverProcessor(SiglipImageProcessor(), Qwen2Tokenizer())


def test_counts_before_any_pixel(processor: Qwen3PerceiverProcessor) -> None:
    counts = processor._get_num_multimodal_tokens(image_sizes=[[10, 20], [3000, 4000]])
    assert counts.num_image_tokens == [TOKENS, TOKENS]
    assert counts["num_image_patches"] == [1, 1]
    assert "num_video_tokens" not in counts
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()
    text = processor.replace_image_token({}, image_idx=0)
    assert processor.tokenizer(text)["input_ids"] == [processor.image_token_id] * TOKENS


@pytest.mark.parametrize("auto", [False, True])
def test_save_and_load(processor: Qwen3PerceiverProcessor, auto: bool, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = (AutoProcessor if auto else Qwen3PerceiverProcessor).from_pretrained(tmp_path)
    assert type(loaded) is Qwen3PerceiverProcessor
    assert (loaded.num_image_tokens, loaded.image_token_id) == (TOKENS, processor.image_token_id)
    assert loaded.chat_template == load_chat_template()
    text = [f"Grüße, 你好{PAD}", "<think>x</think>"]
    ours, theirs = (p(text=text, images=picture(), padding=True, return_tensors="pt") for p in (processor, loaded))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_qwen3_perceiver.Qwen3PerceiverProcessor"}
    assert (tmp_path / "processing_qwen3_perceiver.py").exists()


def test_assembled_from_base_checkpoints(processor: Qwen3PerceiverProcessor, tmp_path: Path) -> None:
    processor.image_processor.save_pretrained(tmp_path / "vision")
    processor.tokenizer.save_pretrained(tmp_path / "language")
    assembled = Qwen3PerceiverProcessor.from_vision_language_pretrained(
        str(tmp_path / "vision"),
        str(tmp_path / "language"),
        num_image_tokens=TOKENS,
        chat_template=load_chat_template(),
    )
    message = [user(picture(), "Q")]
    assert torch.equal(tokenized(assembled, message)["pixel_values"], tokenized(processor, message)["pixel_values"])
    assert torch.equal(tokenized(assembled, message)["input_ids"], tokenized(processor, message)["input_ids"])


def test_naflex_inputs(processor: Qwen3PerceiverProcessor) -> None:
    naflex = Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    naflex = Qwen3PerceiverProcessor(naflex, processor.tokenizer, TOKENS, chat_template=load_chat_template())
    images = [picture(0, 20, 60), picture(1, 40, 40)]
    inputs = tokenized(naflex, [[user(images[0], "a")], [user("b")], [user(images[1])]])
    assert placeholders(naflex, inputs["input_ids"]) == [TOKENS, 0, TOKENS]
    assert inputs["pixel_values"].shape == (2, 16, 48)
    assert inputs["spatial_shapes"].prod(-1).tolist() == inputs["pixel_attention_mask"].sum(-1).tolist()


# The chat template.


def render(processor: Qwen3PerceiverProcessor, messages: Messages, **options: Any) -> str:
    return processor.apply_chat_template(messages, **options)


def test_blocks_and_strings(processor: Qwen3PerceiverProcessor) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user(picture(), "What?", picture()),
        assistant("A cat."),
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    assert render(processor, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{START}{PAD}{END}What?{START}{PAD}{END}<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )


def test_image_url_blocks_and_empty_content(processor: Qwen3PerceiverProcessor) -> None:
    url = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    empty = {"role": "assistant", "content": None}
    assert render(processor, [url, empty]) == (
        f"<|im_start|>user\n{START}{PAD}{END}<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("thinking", "opening", "closing"),
    [
        ({}, "", ""),
        ({"enable_thinking": None}, "", ""),
        ({"enable_thinking": True}, "<think>\n", "</think>\n\n"),
        ({"enable_thinking": False}, EMPTY_THOUGHT, ""),
    ],
    ids=str,
)
def test_thinking_switch(
    processor: Qwen3PerceiverProcessor, thinking: dict[str, bool | None], opening: str, closing: str
) -> None:
    """True opens the block, as phase 2 of the vision bridge asks; stock Qwen3 leaves that to the model."""
    prompt = "<|im_start|>user\nQ<|im_end|>\n"
    start = f"<|im_start|>assistant\n{opening}"
    assert render(processor, [user("Q")], add_generation_prompt=True, **thinking) == prompt + start
    assert render(processor, [user("Q")], **thinking) == prompt
    assert render(processor, [user("Q"), assistant("A")], **thinking) == f"{prompt}{start}{closing}A<|im_end|>\n"


def test_thoughts_of_earlier_turns_are_dropped(processor: Qwen3PerceiverProcessor) -> None:
    """Of the last turn too where thinking is off: the prompt has an empty thought, and a turn has one thought."""
    messages = [
        user("Q"),
        assistant("A", reasoning_content="first"),
        user("R"),
        assistant("B", reasoning_content="second"),
    ]
    for thinking, thought in zip(SWITCHES, ["second\n", "second\n", "\n"], strict=True):
        text = render(processor, messages, **thinking)
        assert "first" not in text
        assert text.endswith(f"<|im_start|>assistant\n<think>\n{thought}</think>\n\nB<|im_end|>\n")
        assert text.count("<think>") == 1


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [{"type": "video", "video": "x"}]}, "`text` and `image`, not `video`"),
        ({"role": "user", "content": [{"text": "no type"}]}, "`text` and `image`, not"),
        ({"role": "tool", "content": "x"}, "system, user and assistant, not `tool`"),
    ],
)
def test_unknown_blocks_and_roles_are_refused(
    processor: Qwen3PerceiverProcessor, message: dict[str, Any], named: str
) -> None:
    with pytest.raises(Exception, match=named):
        render(processor, [message])


def supervised(processor: Qwen3PerceiverProcessor, inputs: Any, row: int = 0) -> str:
    return processor.tokenizer.decode(inputs["input_ids"][row][inputs["assistant_masks"][row].bool()])


def test_supervised_tokens(processor: Qwen3PerceiverProcessor) -> None:
    """Every answer with its `<|im_end|>`, nothing else: no image token, no header, no empty thought."""
    messages = [user(picture(), "Q"), assistant("A b"), user("R", picture(1)), assistant("C")]
    for thinking in SWITCHES:
        inputs = tokenized(processor, messages, mask=True, **thinking)
        # A prompt that opens the block leaves closing it to the answer.
        closing = "</think>\n\n" if thinking.get("enable_thinking") else ""
        assert supervised(processor, inputs) == f"A b<|im_end|>{closing}C<|im_end|>"
        assert not (inputs["input_ids"][inputs["assistant_masks"].bool()] == processor.image_token_id).any()


def test_supervised_tokens_of_a_batch(processor: Qwen3PerceiverProcessor) -> None:
    batch = [
        [user("a long question without an image"), assistant("one")],
        [user(picture(0), picture(1), "?"), assistant("two", reasoning_content="why")],
    ]
    inputs = tokenized(processor, batch, mask=True)
    assert supervised(processor, inputs, 0) == "one<|im_end|>"
    assert supervised(processor, inputs, 1) == "<think>\nwhy\n</think>\n\ntwo<|im_end|>"
    assert not inputs["assistant_masks"][inputs["attention_mask"] == 0].any()


@pytest.mark.parametrize("thinking", SWITCHES, ids=str)
@pytest.mark.parametrize("earlier", [False, True], ids=["one_turn", "two_turns"])
@pytest.mark.parametrize(
    "answer",
    [assistant("A"), assistant("A", reasoning_content="why"), assistant("<think>\nwhy\n</think>\n\nA")],
    ids=["no_thought", "thought", "thought_in_the_content"],
)
def test_prompt_is_a_prefix_of_prompt_and_completion(
    processor: Qwen3PerceiverProcessor, answer: dict[str, Any], earlier: bool, thinking: dict[str, bool]
) -> None:
    """TRL renders both and supervises the difference: as text and as tokens."""
    prompt = [user("P"), assistant("O", reasoning_content="hm")] if earlier else []
    prompt = [*prompt, user(picture(), "Q")]
    whole = [*prompt, answer]
    prompt_text = render(processor, prompt, add_generation_prompt=True, **thinking)
    text = render(processor, whole, **thinking)
    thought = "" if answer == assistant("A") else "why\n"
    learned = {
        None: f"<think>\n{thought}</think>\n\n" if thought else "",
        True: f"{thought}</think>\n\n",
        False: "",
    }[thinking.get("enable_thinking")]
    assert text == f"{prompt_text}{learned}A<|im_end|>\n"
    prompt_ids = tokenized(processor, prompt, add_generation_prompt=True, **thinking)["input_ids"][0]
    ids = tokenized(processor, whole, **thinking)["input_ids"][0]
    assert torch.equal(ids[: len(prompt_ids)], prompt_ids)
    assert processor.tokenizer.decode(ids[len(prompt_ids) :]) == f"{learned}A<|im_end|>\n"


# Without torchvision.

CHILD = """
import sys

class Without:
    '''A finder that does not find two packages.'''

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if name.split(".")[0] in ("torchvision", "timm") else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
folder = sys.argv[1]
import numpy as np
from PIL import Image
from qwen_grafts.processing import Qwen3PerceiverProcessor
processor = Qwen3PerceiverProcessor.from_pretrained(folder)
image = Image.open(f"{folder}/image.png")
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Q"}]}]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
np.savez(f"{folder}/inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
from qwen_grafts.modeling import Qwen3PerceiverVLM
assert "torchvision" not in sys.modules and "timm" not in sys.modules
print(type(processor.image_processor).__name__, Qwen3PerceiverVLM.__name__)
"""


def test_without_torchvision(processor: Qwen3PerceiverProcessor, tmp_path: Path) -> None:
    """The same inputs, from PIL; and the model can still be imported."""
    processor.save_pretrained(tmp_path)
    image = picture(3, 50, 70)
    image.save(tmp_path / "image.png")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.split()[-2:] == ["SiglipImageProcessorPil", "Qwen3PerceiverVLM"]
    expected = tokenized(processor, [user(image, "Q")])
    with np.load(tmp_path / "inputs.npz") as inputs:
        assert set(inputs) == set(expected)
        assert np.array_equal(inputs["input_ids"], expected["input_ids"])
        # PIL and torchvision round the resized bytes differently: two grey levels of 255, here on a scale from -1 to 1.
        assert np.abs(inputs["pixel_values"] - expected["pixel_values"].numpy()).max() < 4.1 / 255
