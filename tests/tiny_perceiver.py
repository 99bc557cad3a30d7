"""Tiny Perceiver VLMs with every family of tower: sizes that differ wherever they may, so that a mix-up shows."""

from typing import Any

from transformers import PreTrainedConfig, Siglip2VisionConfig, SiglipVisionConfig, TimmWrapperConfig

from qwen_grafts.configuration import Qwen3PerceiverConfig, Qwen3PerceiverConnectorConfig
from qwen_grafts.configuration.presets import tiny_qwen3_text_config

IMAGE_ID, START_ID, END_ID = 150, 151, 152
EVERYTHING = {"kv_layer_norm": True, "final_layer_norm": True, "vision_layer_norm": True}


def siglip_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )


def naflex_config() -> Siglip2VisionConfig:
    return Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_patches=16, patch_size=4
    )


def timm_vit_config() -> TimmWrapperConfig:
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=size)


def timm_convnet_config() -> TimmWrapperConfig:
    return TimmWrapperConfig(architecture="resnet10t", model_args={"channels": [8, 16, 24, 32], "stem_width": 8})


def perceiver_config(
    vision_config: PreTrainedConfig, text: dict[str, Any] | None = None, **connector: Any
) -> Qwen3PerceiverConfig:
    """Widths that differ wherever they may: language 64, latents 32, heads of 16, vision 32, five soft tokens."""
    shape = {"num_latents": 5, "depth": 2, "num_heads": 2, "head_dim": 16, "mlp_ratio": 3, "projector_mlp_ratio": 1.5}
    text_values = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "pad_token_id": 0, "eos_token_id": 1}
    return Qwen3PerceiverConfig(
        vision_config=vision_config,
        connector_config=Qwen3PerceiverConnectorConfig(**(shape | connector)),
        text_config=tiny_qwen3_text_config(**(text_values | (text or {}))),
        image_token_id=IMAGE_ID,
        vision_start_token_id=START_ID,
        vision_end_token_id=END_ID,
    )
