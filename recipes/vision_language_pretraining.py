"""Stage 0 of the vision bridge: a small Qwen2.5-VL that learns to say in words what an image shows.

It replaces the pretrained Qwen2.5-VL checkpoint where none can be downloaded: transformers' own model, all of it
trained, on the training images alone. Only its vision tower goes on.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2_5_VLVisionConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    set_seed,
)

from ..processing import load_chat_template
from .graft_trainer import GraftSFTTrainer
from .language_pretraining import pretraining_config
from .visual_tasks import QUESTIONS

HEAD_DIM = 32


def captioned(dataset: Dataset) -> Dataset:
    """The rows with one question for all, and the description as its answer."""
    captions = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": QUESTIONS["caption"]}]] * len(dataset),
            "completion": [[{"role": "assistant", "content": text}] for text in dataset["description"]],
        }
    )
    return captions.add_column("images", dataset.data.column("images"), feature=dataset.features["images"])


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of the tokens that end a turn, pad, and stand for images, by their names in a Qwen-VL configuration."""
    tokens = {
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def train_on_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    output_dir: Path,
    *,
    max_shard_size: str = "5GB",
    **settings: Any,
) -> PreTrainedModel:
    """Train all of a model on rows of images, prompt and completion, and save it with its processor.

    Args:
        max_shard_size: of a weights file.
        settings: steps, learning rate, batch size and seed, as `SFTConfig` takes them.

    Returns:
        The model, in evaluation mode.
    """
    GraftSFTTrainer(
        model=model,
        args=pretraining_config(output_dir, warmup_steps=50, max_length=None, **settings),
        train_dataset=dataset,
        processing_class=processor,
    ).train()
    model.save_pretrained(output_dir, max_shard_size=max_shard_size)
    processor.save_pretrained(output_dir)
    return model.eval()


def tiny_qwen2_5_vl_config(
    vision_config: Qwen2_5_VLVisionConfig, tokenizer: PreTrainedTokenizerFast
) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL around a tower: two layers as wide as the tower's merged output.

    Two things differ from the published one. Weights start with a variance of 1 / width: with 0.02, made for wide
    models, attention in a narrow tower starts out uniform and takes long to look anywhere. And rotary positions count
    time alone, so all patches of an image have one: where a patch lies has to come out of the tower, as it has to in a
    vision bridge, whose Qwen3 knows nothing of height and width.
    """
    width = vision_config.out_hidden_size
    ids = special_ids(tokenizer)
    return Qwen2_5_VLConfig(
        vision_config=vision_config.to_dict() | {"initializer_range": vision_config.hidden_size**-0.5},
        text_config={
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "hidden_size": width,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": width // HEAD_DIM,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [HEAD_DIM // 2, 0, 0],
            },
            "initializer_range": width**-0.5,
            "bos_token_id": None,
            "eos_token_id": ids.pop("eos_token_id"),
            "pad_token_id": ids.pop("pad_token_id"),
        },
        **ids,
        tie_word_embeddings=True,
    )


def pretrain_vision_language_model(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    vision_config: Qwen2_5_VLVisionConfig,
    output_dir: Path,
    *,
    max_steps: int = 500,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    max_pixels: int = 64 * 64,
    seed: int = 0,
) -> Qwen2_5_VLForConditionalGeneration:
    """Train a Qwen2.5-VL from nothing on captioned images; saves it in shards, with its processor, to `output_dir`.

    Args:
        dataset: captioned rows of `recipes.visual_tasks`.
        tokenizer: with Qwen's special tokens.
        vision_config: of the tower.
        max_pixels: larger images are reduced to this area; the smallest is one window of the tower.
    """
    set_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(tiny_qwen2_5_vl_config(vision_config, tokenizer))
    shared = {
        "patch_size": vision_config.patch_size,
        "merge_size": vision_config.spatial_merge_size,
        "size": {"shortest_edge": vision_config.window_size**2, "longest_edge": max_pixels},
    }
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**shared),
        tokenizer,
        Qwen2VLVideoProcessor(**shared),
        chat_template=load_chat_template(),
    )
    return train_on_images(
        model,
        processor,
        dataset,
        output_dir,
        max_shard_size="1MB",
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
