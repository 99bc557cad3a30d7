"""Configuration of the vision bridge: Qwen2.5-VL's vision tower, one adapter and a Qwen3 language model.

    Qwen3VisionBridgeConfig
      vision_config   Qwen2_5_VLVisionConfig, any size: 3B, 7B, 32B and 72B share the tower up to its output width
      adapter_*       linear or MLP, from the tower's merged output to the language model's width
      text_config     Qwen3Config, any size

An image keeps its proportions: every `spatial_merge_size` x `spatial_merge_size` patches become one soft token, so the
number of soft tokens follows the image's size. Sources: Qwen2.5-VL (arXiv 2502.13923), Qwen3 (arXiv 2505.09388).
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import Qwen2_5_VLVisionConfig, Qwen3Config

from .vision_language_config import VisionLanguageConfig

VISION_MODEL_TYPE = "qwen2_5_vl_vision"


@strict
class Qwen3VisionBridgeConfig(VisionLanguageConfig):
    """Configuration of `Qwen3VisionBridgeModel` and `Qwen3VisionBridgeForCausalLM`.

    Args:
        vision_config: `Qwen2_5_VLVisionConfig` (or its dict) of the tower; default that of Qwen2.5-VL-7B.
        adapter_type: `"linear"`, one linear layer with a bias, or `"mlp"`, two with an activation between them.
        adapter_hidden_act: that activation.
        (the rest): see `VisionLanguageConfig`.

    Raises:
        ValueError: another tower or language model, a tower whose sizes do not fit each other, or a special token
            outside the vocabulary.
    """

    model_type = "qwen3_vision_bridge"
    sub_configs = {"vision_config": Qwen2_5_VLVisionConfig, "text_config": Qwen3Config}

    adapter_type: Literal["linear", "mlp"] = "linear"
    adapter_hidden_act: str = "gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = qwen2_5_vl_7b_vision()
        elif isinstance(self.vision_config, dict):
            values = dict(self.vision_config)
            model_type = values.pop("model_type", VISION_MODEL_TYPE)
            # Checkpoints of the first Qwen2.5-VL release name the whole model's type in their `vision_config`.
            _check_tower(VISION_MODEL_TYPE if model_type == "qwen2_5_vl" and "depth" in values else model_type)
            self.vision_config = Qwen2_5_VLVisionConfig(**values)
        super().__post_init__(**kwargs)
        _check_tower(self.vision_config.model_type)
        _check_tower_sizes(self.vision_config)

    @property
    def image_token_pixels(self) -> int:
        """Side in pixels of the square of an image that one soft token stands for."""
        return self.vision_config.patch_size * self.vision_config.spatial_merge_size


def qwen2_5_vl_7b_vision() -> Qwen2_5_VLVisionConfig:
    """The tower of `Qwen/Qwen2.5-VL-7B-Instruct`; the class's own defaults are those of another, wider one."""
    return Qwen2_5_VLVisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=3584,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    )


def _check_tower(model_type: str | None) -> None:
    if model_type != VISION_MODEL_TYPE:
        raise ValueError(
            f"`vision_config.model_type` is {model_type!r}; the vision bridge takes the tower of a Qwen2.5-VL "
            "(`qwen2_5_vl_vision`). Of a whole Qwen2.5-VL configuration pass its `vision_config`."
        )


def _check_tower_sizes(vision: Qwen2_5_VLVisionConfig) -> None:
    """Refuse what the tower would fail on, or worse, round, in the middle of an image."""
    if vision.hidden_size % vision.num_heads:
        raise ValueError(
            f"`vision_config.hidden_size`={vision.hidden_size} is not divisible by `num_heads`={vision.num_heads}."
        )
    token_pixels = vision.patch_size * vision.spatial_merge_size
    if vision.window_size % token_pixels:
        raise ValueError(
            f"`vision_config.window_size`={vision.window_size} pixels is not a multiple of the {token_pixels} pixels "
            f"(patch_size {vision.patch_size} x spatial_merge_size {vision.spatial_merge_size}) of one merged patch."
        )
    if outside := [layer for layer in vision.fullatt_block_indexes if not 0 <= layer < vision.depth]:
        raise ValueError(
            f"`vision_config.fullatt_block_indexes` names layers {outside}, but the tower has {vision.depth} "
            f"(0 to {vision.depth - 1})."
        )


__all__ = ["Qwen3VisionBridgeConfig"]
