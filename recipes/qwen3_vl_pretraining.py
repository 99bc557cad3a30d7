"""A small Qwen3-VL that has learned to say in words what an image shows, from drawn shapes and printed letters.

It replaces the pretrained Qwen3-VL checkpoint where none can be downloaded: transformers' own model and processor, deep
stack included, all of it trained. What it is taught here is not what a run teaches it afterwards.
"""

from pathlib import Path

from datasets import Dataset
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    set_seed,
)

from ..processing import load_chat_template
from .vision_language_pretraining import special_ids, train_on_images

PATCH_SIZE, MERGE_SIZE = 4, 2
TOWER_WIDTH, TEXT_WIDTH, HEAD_DIM = 64, 128, 32
IMAGE_PIXELS = 32 * 32
GRID = 8  # positions of the tower to a side; other grids are interpolated


def tiny_qwen3_vl_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Qwen3-VL's processor for patches of 4 pixels, merged 2 x 2: 16 tokens for an image of 32 x 32 pixels."""
    sizes = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": 2}
    pixels = {"shortest_edge": IMAGE_PIXELS, "longest_edge": IMAGE_PIXELS}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=pixels, **sizes),
        tokenizer,
        Qwen3VLVideoProcessor(**sizes),
        chat_template=load_chat_template(),
    )


def tiny_qwen3_vl_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """A tower of three layers, two of which also feed the language model's first two of three (deepstack).

    Weights start with a variance of 1 / width: 0.02 is for wide models.
    """
    ids = special_ids(tokenizer)
    return Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 4 * TOWER_WIDTH,
            "num_heads": TOWER_WIDTH // HEAD_DIM,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "out_hidden_size": TEXT_WIDTH,
            "num_position_embeddings": GRID**2,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": TOWER_WIDTH**-0.5,
        },
        text_config={
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 3 * TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": TEXT_WIDTH // HEAD_DIM,
            "num_key_value_heads": 2,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 4, 4]},
            "initializer_range": TEXT_WIDTH**-0.5,
            "eos_token_id": ids.pop("eos_token_id"),
            "pad_token_id": ids.pop("pad_token_id"),
        },
        **ids,
        tie_word_embeddings=True,
    )


def pretrain_qwen3_vl(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    output_dir: Path,
    *,
    max_steps: int,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> Qwen3VLForConditionalGeneration:
    """Train a Qwen3-VL from nothing on questions about images; saves it, with its processor, to `output_dir`.

    Args:
        dataset: rows of `recipes.visual_tasks`.
        tokenizer: with Qwen's special tokens.
    """
    set_seed(seed)
    model = Qwen3VLForConditionalGeneration(tiny_qwen3_vl_config(tokenizer))
    text = model.config.get_text_config()
    model.generation_config.update(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)
    processor = tiny_qwen3_vl_processor(tokenizer)
    return train_on_images(
        model,
        processor,
        dataset,
        output_dir,
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )


__all__ = ["pretrain_qwen3_vl", "tiny_qwen3_vl_config", "tiny_qwen3_vl_processor"]
