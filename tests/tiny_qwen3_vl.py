"""A tiny stock Qwen3-VL with its real processor, saved as a checkpoint: sizes that differ wherever they may."""

from pathlib import Path

import torch
from contracts.model_contract import randomize
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageDraw
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template

FIRST_SPECIAL_ID = 300
PATCH, MERGE = 4, 2
LABELS = ("yes", "no")
QUERY = "Is it sarcastic?"


def qwen3_vl_processor(min_pixels: int = 256, max_pixels: int = 1024) -> Qwen3VLProcessor:
    """Patches of 4 pixels, merged 2 x 2: an image token for every 8 x 8 pixels."""
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    images = Qwen2VLImageProcessor(size={"shortest_edge": min_pixels, "longest_edge": max_pixels}, **sizes)
    texts = [f'{{"label": "{label}", "conf": 1}}' for label in LABELS] + [QUERY, "user", "assistant", "CAPTION: "]
    return Qwen3VLProcessor(
        images,
        build_qwen_tokenizer(FIRST_SPECIAL_ID, texts),
        Qwen3VLVideoProcessor(**sizes),
        chat_template=load_chat_template(),
    )


def qwen3_vl_config(processor: Qwen3VLProcessor) -> Qwen3VLConfig:
    """Language width 64 in heads of 32, tower width 24, one deepstack layer."""
    ids = processor.tokenizer.get_vocab()
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 330,
            "hidden_size": 64,
            "intermediate_size": 128,  # bitsandbytes on a CPU wants multiples of 64
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def qwen3_vl_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write model and processor as they would be published."""
    torch.manual_seed(seed)
    processor = qwen3_vl_processor()
    model = Qwen3VLForConditionalGeneration(qwen3_vl_config(processor))
    randomize(model)
    ids = model.config.get_text_config()
    model.generation_config.update(eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(number: int, label: str) -> PILImage.Image:
    """A drawing whose colour tells the label; sizes differ."""
    image = PILImage.new("RGB", (24 + 8 * (number % 3), 16 + 8 * (number % 2)), (20, 20, 60))
    colour = (230, 200, 40) if label == "yes" else (40, 160, 90)
    ImageDraw.Draw(image).ellipse((4 + number % 5, 3, 18 + number % 5, 14), fill=colour)
    return image


def query_rows(count: int = 16) -> Dataset:
    """Rows of `image`, `query`, `caption` (every other row has one) and `target_json`."""
    labels = [LABELS[number % 3 == 0] for number in range(count)]
    rows = {
        "image": [picture(number, label) for number, label in enumerate(labels)],
        "query": [f"  {QUERY}" for _ in labels],
        "caption": [f"drawing {number}" if number % 2 else None for number in range(count)],
        "target_json": [f'{{"label": "{label}", "conf": {number % 2}}}' for number, label in enumerate(labels)],
    }
    text = Value("string")
    return Dataset.from_dict(rows, Features({"image": Image(), "query": text, "caption": text, "target_json": text}))
