"""The Perceiver VLM's configuration: what it fills in, what it refuses, and the presets."""

from pathlib import Path
from typing import Any

import pytest
from tiny_perceiver import naflex_config, perceiver_config, siglip_config, timm_convnet_config, timm_vit_config
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig, Qwen3Config, SiglipConfig

from qwen_grafts.configuration import PRESETS, Qwen3PerceiverConfig, Qwen3PerceiverConnectorConfig, preset_config


def test_default_is_the_8b_preset_with_qwen3_defaults() -> None:
    config, preset = Qwen3PerceiverConfig(), preset_config("perceiver-vlm-8b")
    assert config.vision_config.to_dict() == preset.vision_config.to_dict()
    assert config.connector_config.to_dict() == preset.connector_config.to_dict()
    assert (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id) == (151655, 151652, 151653)
    assert config.num_image_tokens == config.connector_config.num_latents == 64
    assert config.connector_config.latent_size == 512
    assert config.get_text_config() is config.text_config
    assert config.vision_config.vision_use_head is False


@pytest.mark.parametrize(
    "vision", [siglip_config(), naflex_config(), timm_vit_config(), timm_convnet_config()], ids=lambda c: c.model_type
)
def test_saved_and_loaded(vision: PreTrainedConfig, tmp_path: Path) -> None:
    config = perceiver_config(vision, position_encoding="sincos2d", num_latents=7)
    config.save_pretrained(tmp_path)
    for loaded in (Qwen3PerceiverConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is Qwen3PerceiverConfig
        assert type(loaded.vision_config) is type(vision)
        assert type(loaded.connector_config) is Qwen3PerceiverConnectorConfig
        assert type(loaded.text_config) is Qwen3Config
        assert loaded.num_image_tokens == 7
        assert loaded.connector_config.to_dict() == config.connector_config.to_dict()
    parts = Qwen3PerceiverConnectorConfig.from_pretrained(tmp_path)
    assert parts.num_latents == 7


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_follow_the_language_model(tied: bool) -> None:
    config = perceiver_config(siglip_config(), {"tie_word_embeddings": tied})
    assert config.tie_word_embeddings is tied


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("perceiver-vlm-")])
def test_presets_have_the_recommended_connector_but_for_the_specified_one(name: str) -> None:
    connector, recommended = preset_config(name).connector_config, name != "perceiver-vlm-8b"
    assert (connector.position_encoding == "sincos2d") == recommended
    assert connector.kv_layer_norm == connector.final_layer_norm == recommended


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model'; supported vision towers are"),
        ({"vision_config": CLIPVisionConfig()}, "'clip_vision_model'; supported vision towers are"),
        ({"vision_config": SiglipConfig()}, "'siglip'; .* pass its `vision_config`"),
        ({"vision_config": {"hidden_size": 32}}, "None; supported vision towers are"),
        ({"text_config": {"model_type": "llama"}}, "'llama'; the language model must be a dense Qwen3"),
        ({"text_config": LlamaConfig()}, "'llama'; the language model must be a dense Qwen3"),
        ({"text_config": {"vocab_size": 1000}}, "`image_token_id`=151655 is outside .* vocabulary of 1000 rows"),
        ({"vision_start_token_id": -1}, "`vision_start_token_id`=-1 is outside"),
        ({"vision_end_token_id": 151_936}, "`vision_end_token_id`=151936 is outside .* 151936 rows"),
        ({"connector_config": {"num_latents": 0}}, r"`connector_config\.num_latents` must be at least 1, got 0"),
        ({"connector_config": {"depth": 0}}, r"`connector_config\.depth` must be at least 1, got 0"),
        ({"connector_config": {"num_heads": -2}}, r"`connector_config\.num_heads` must be at least 1, got -2"),
        ({"connector_config": {"head_dim": 0}}, r"`connector_config\.head_dim` must be at least 1, got 0"),
        ({"connector_config": {"mlp_ratio": 0}}, r"`connector_config\.mlp_ratio` must be positive, got 0"),
        (
            {"connector_config": {"projector_mlp_ratio": -1.5}},
            r"`connector_config\.projector_mlp_ratio` must be positive, got -1\.5",
        ),
        (
            {"connector_config": {"num_heads": 3, "head_dim": 6, "position_encoding": "sincos2d"}},
            r"latent width \(num_heads x head_dim = 18\) divisible by 4",
        ),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=f"(?s){message}") as refusal:
        Qwen3PerceiverConfig(**values)
    causes = (refusal.value, refusal.value.__cause__)
    assert any(isinstance(cause, ValueError) for cause in causes)


@pytest.mark.parametrize("wrong", [{"position_encoding": "rope"}, {"num_latents": "64"}, {"kv_layer_norm": 1.5}])
def test_wrong_types_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(wrong))):
        Qwen3PerceiverConnectorConfig(**wrong)
