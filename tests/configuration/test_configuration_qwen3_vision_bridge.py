"""The vision bridge's configuration: what it fills in and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from tiny_vision_bridge import tower_config, vision_bridge_config
from transformers import AutoConfig, LlamaConfig, Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig, Qwen3Config

from qwen_grafts.configuration import Qwen3VisionBridgeConfig, preset_config


def test_default_tower_is_that_of_qwen2_5_vl_7b() -> None:
    """The defaults of `Qwen2_5_VLVisionConfig` describe another tower, 3584 wide."""
    config, preset = Qwen3VisionBridgeConfig(), preset_config("vision-bridge-4b")
    assert config.vision_config.to_dict() == preset.vision_config.to_dict()
    vision = config.vision_config
    assert (vision.hidden_size, vision.out_hidden_size, vision.depth, vision.window_size) == (1280, 3584, 32, 112)
    assert (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id) == (151655, 151652, 151653)
    assert (config.adapter_type, config.image_token_pixels) == ("linear", 28)
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize("adapter_type", ["linear", "mlp"])
def test_saved_and_loaded(adapter_type: str, tmp_path: Path) -> None:
    config = vision_bridge_config(adapter_type=adapter_type)
    config.save_pretrained(tmp_path)
    for loaded in (Qwen3VisionBridgeConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is Qwen3VisionBridgeConfig
        assert type(loaded.vision_config) is Qwen2_5_VLVisionConfig
        assert type(loaded.text_config) is Qwen3Config
        assert loaded.adapter_type == adapter_type
        assert loaded.vision_config.to_dict() == config.vision_config.to_dict()


def test_vision_config_of_an_old_checkpoint() -> None:
    """The first Qwen2.5-VL release names the whole model's type, and says `in_chans`."""
    old = {"model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 32, "num_heads": 2, "in_chans": 3}
    old |= {"fullatt_block_indexes": [0], "out_hidden_size": 24}
    assert Qwen3VisionBridgeConfig(vision_config=old).vision_config.out_hidden_size == 24


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model'; .* tower of a Qwen2.5-VL"),
        ({"vision_config": Qwen2_5_VLConfig()}, "pass its `vision_config`"),
        ({"vision_config": tower_config(hidden_size=33)}, "`vision_config.hidden_size`=33 is not divisible by .*=2"),
        ({"vision_config": tower_config(window_size=20)}, r"window_size`=20 pixels is not a multiple of the 8 pixels"),
        ({"vision_config": tower_config(fullatt_block_indexes=[1, 3])}, r"names layers \[3\], but the tower has 3"),
        ({"text_config": LlamaConfig()}, "'llama'; the language model must be a dense Qwen3"),
        ({"text_config": {"vocab_size": 1000}}, "`image_token_id`=151655 is outside .* vocabulary of 1000 rows"),
        ({"graft_only": True}, "`graft_only` needs `base_models`"),
        ({"adapter_type": "resampler"}, "adapter_type"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=f"(?s){message}"):
        Qwen3VisionBridgeConfig(**values)
