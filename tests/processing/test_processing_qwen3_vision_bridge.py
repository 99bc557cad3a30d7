"""Vision bridge's processor: as many placeholders as merged patches, pixels as stock Qwen2.5-VL has them, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from transformers import AutoProcessor, Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from qwen_grafts.processing import Qwen3VisionBridgeProcessor, build_qwen_tokenizer, load_chat_template

PAD, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 64 * 28 * 28}
# (width, height): larger than the budget, smaller than one merged patch, long and thin, 1 x 1, a plain photograph.
SIZES = [(900, 700), (20, 13), (1400, 10), (1, 1), (300, 200)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor() -> Qwen3VisionBridgeProcessor:
    return Qwen3VisionBridgeProcessor(
        Qwen2VLImageProcessor(size=SIZE), build_qwen_tokenizer(300), chat_template=load_chat_template()
    )


def placeholders(processor: Qwen3VisionBridgeProcessor, inputs: Any) -> list[int]:
    return (inputs["input_ids"] == processor.image_token_id).sum(-1).tolist()


def test_pixels_and_counts_are_those_of_stock_qwen2_5_vl(processor: Qwen3VisionBridgeProcessor) -> None:
    stock = Qwen2_5_VLProcessor(
        processor.image_processor, processor.tokenizer, Qwen2VLVideoProcessor(), chat_template=load_chat_template()
    )
    text, pictures = [PAD * 2, f"a{PAD}", f"{PAD}b{PAD}"], [picture(*size) for size in SIZES]
    options = {"text": text, "images": pictures, "padding": True, "return_tensors": "pt"}
    ours, theirs = processor(**options), stock(**options)
    assert set(ours) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_one_placeholder_a_merged_patch(processor: Qwen3VisionBridgeProcessor) -> None:
    for size in SIZES:
        inputs = processor(text=f"{START}{PAD}{END}", images=picture(*size), return_tensors="pt")
        frames, height, width = inputs["image_grid_thw"][0].tolist()
        assert frames == 1 and height % 2 == width % 2 == 0
        assert len(inputs["pixel_values"]) == height * width
        assert placeholders(processor, inputs) == [height * width // 4]
        assert 4 <= height * width // 4 <= 64


def test_counts_before_any_pixel(processor: Qwen3VisionBridgeProcessor) -> None:
    """vLLM plans with them; with a budget of the call's own, too."""
    sizes = [[height, width] for width, height in SIZES]
    for options in ({}, {"size": {"shortest_edge": 28 * 28, "longest_edge": 9 * 28 * 28}}):
        counts = processor._get_num_multimodal_tokens(image_sizes=sizes, **options)
        inputs = [processor(text=PAD, images=picture(*size), return_tensors="pt", **options) for size in SIZES]
        assert counts.num_image_tokens == [placeholders(processor, one)[0] for one in inputs]
        assert counts.num_image_patches == [len(one["pixel_values"]) for one in inputs]
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_proportions_are_kept(processor: Qwen3VisionBridgeProcessor) -> None:
    grid = processor(text=PAD, images=picture(448, 112), return_tensors="pt")["image_grid_thw"][0]
    assert grid.tolist() == [1, 8, 32]


def test_frames_of_a_video_are_images(processor: Qwen3VisionBridgeProcessor, tmp_path: Path) -> None:
    drawn = [picture(56, 84, seed) for seed in range(4)]
    drawn[0].save(tmp_path / "clip.webp", save_all=True, append_images=drawn[1:], lossless=True, duration=100)
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(tmp_path / "clip.webp"))]
    content = [{"type": "image", "image": frame} for frame in frames]
    content.append({"type": "text", "text": "What happens in these frames?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 4]] * 4
    assert placeholders(processor, inputs) == [4 * 6]
    assert torch.equal(inputs["pixel_values"][:24], processor(text=PAD, images=drawn[0])["pixel_values"])


def test_pixel_budget_at_load_and_at_call(processor: Qwen3VisionBridgeProcessor, tmp_path: Path) -> None:
    """As with stock Qwen2.5-VL: `min_pixels` and `max_pixels` when loading, `size` when calling."""
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, min_pixels=28 * 28, max_pixels=9 * 28 * 28)
    assert type(loaded) is Qwen3VisionBridgeProcessor
    assert placeholders(loaded, loaded(text=PAD, images=picture(300, 300), return_tensors="pt")) == [9]
    same = AutoProcessor.from_pretrained(tmp_path)
    assert dict(same.image_processor.size) == SIZE
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    assert placeholders(same, same(text=PAD, images=picture(280, 280), size=size, return_tensors="pt")) == [4]


def test_without_torchvision_the_same_grids() -> None:
    slow = Qwen3VisionBridgeProcessor(Qwen2VLImageProcessorPil(size=SIZE), build_qwen_tokenizer(300))
    fast = Qwen3VisionBridgeProcessor(Qwen2VLImageProcessor(size=SIZE), build_qwen_tokenizer(300))
    pictures = [picture(*size) for size in SIZES]
    ours, theirs = (one(text=PAD * 5, images=pictures, return_tensors="pt") for one in (slow, fast))
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["input_ids"], theirs["input_ids"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 7)), r"Image 1 of 2 has no pixels \(0 x 7\)"),
        (np.zeros((7, 0, 3), dtype=np.uint8), r"Image 1 of 2 has no pixels \(7 x 0 x 3\)"),
        (picture(5, 1200), "Image 1 of 2 is 5 x 1200 pixels; .* up to 200 to 1"),
    ],
    ids=["no width", "no height", "a line"],
)
def test_images_that_cannot_be_read(processor: Qwen3VisionBridgeProcessor, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text=PAD * 2, images=[picture(30, 30), image])


@pytest.mark.parametrize("size", [{"shortest_edge": 5000, "longest_edge": 4000}, {"shortest_edge": 0}])
def test_a_budget_that_contradicts_itself(processor: Qwen3VisionBridgeProcessor, size: dict[str, int]) -> None:
    size = SIZE | size
    message = f"at least {size['shortest_edge']} and at most {size['longest_edge']} pixels"
    with pytest.raises(ValueError, match=message):
        Qwen3VisionBridgeProcessor(Qwen2VLImageProcessor(size=size), build_qwen_tokenizer(300))
    with pytest.raises(ValueError, match=message):
        processor(text=PAD, images=picture(30, 30), size=size)
    with pytest.raises(ValueError, match=message):
        processor._get_num_multimodal_tokens(image_sizes=[[30, 30]], size=size)


def test_a_tokenizer_without_vision_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks 3 of 3 vision tokens: <\|image_pad\|>, <\|vision_start\|>"):
        Qwen3VisionBridgeProcessor(Qwen2VLImageProcessor(), Qwen2Tokenizer())
    tokenizer = Qwen2Tokenizer()
    tokenizer.add_tokens([PAD, END], special_tokens=True)
    with pytest.raises(ValueError, match=r"lacks 1 of 3 vision tokens: <\|vision_start\|>"):
        Qwen3VisionBridgeProcessor(Qwen2VLImageProcessor(), tokenizer)
