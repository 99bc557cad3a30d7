"""Tiny vision bridges: sizes that differ wherever they may, so that a mix-up shows."""

from typing import Any

from tiny_perceiver import END_ID, IMAGE_ID, START_ID
from transformers import Qwen2_5_VLVisionConfig

from qwen_grafts.configuration import Qwen3VisionBridgeConfig
from qwen_grafts.configuration.presets import tiny_qwen3_text_config

TEXT = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "pad_token_id": 0, "eos_token_id": 1}


def tower_config(**overrides: Any) -> Qwen2_5_VLVisionConfig:
    """Patches of 4 pixels, merged 2 x 2; windows of 2 x 2 merged patches; full attention in the middle layer."""
    values = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "out_hidden_size": 40,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLVisionConfig(**(values | overrides))


def vision_bridge_config(text: dict[str, Any] | None = None, **settings: Any) -> Qwen3VisionBridgeConfig:
    """Language width 64, tower width 32, merged width 40."""
    return Qwen3VisionBridgeConfig(
        vision_config=tower_config(),
        text_config=tiny_qwen3_text_config(**(TEXT | (text or {}))),
        image_token_id=IMAGE_ID,
        vision_start_token_id=START_ID,
        vision_end_token_id=END_ID,
        **settings,
    )
