"""Presets of every graft: complete, saved and loaded, never shared."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from qwen_grafts.configuration import PRESETS, preset_config
from qwen_grafts.modeling import ClaraQwen3ForCausalLM, RecursiveQwenForCausalLM


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, tmp_path: Path) -> None:
    config = preset_config(name)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == preset_config(name).to_diff_dict() | {
        key: value for key, value in config.to_diff_dict().items() if key == "auto_map"
    }
    assert config is not preset_config(name)
    assert config.get_text_config().head_dim in (32, 64, 128)


@pytest.mark.parametrize(
    ("name", "stock_count", "core"),
    [
        ("recursive-tiny", 656_768, [1, 3]),
        ("recursive-0.6b", 596_049_920, [7, 21]),
        ("recursive-1.7b", 1_720_574_976, [7, 21]),
        ("recursive-4b", 4_022_468_096, [9, 27]),
    ],
)
def test_a_recursive_preset_is_the_published_model_and_little_more(name: str, stock_count: int, core: list) -> None:
    config = preset_config(name)
    shared = {key: value for key, value in config.to_dict().items() if hasattr(Qwen3Config(), key)}
    with torch.device("meta"):
        model, stock = RecursiveQwenForCausalLM(config), Qwen3ForCausalLM(Qwen3Config(**shared))
    assert stock.num_parameters() == stock_count
    assert model.num_parameters() == stock_count + 6 * config.hidden_size + config.hidden_size + 1
    assert (config.core_range, config.H_cycles, config.L_cycles) == (core, 3, 3)
    layers = config.num_hidden_layers
    assert config.layer_evaluations() == config.cache_slots() == layers + 11 * (core[1] - core[0])
    config.kv_sharing = "last"
    assert config.cache_slots() == layers
    parts = [config.parameter_part(f"layers.{index}.mlp") for index in range(layers)]
    assert parts == ["prelude"] * core[0] + ["core"] * (core[1] - core[0]) + ["coda"] * (layers - core[1])


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"no preset 'perceiver-vlm-9b'\. Presets: perceiver-vlm-tiny, "):
        preset_config("perceiver-vlm-9b")


@pytest.mark.parametrize(
    ("name", "stock_count", "role_count", "latents"),
    [
        ("clara-tiny", 361_216, 32_768, {8: 8, 16: 4}),
        ("clara-0.6b", 596_049_920, 10_092_544, {32: 8, 4: 64, 16: 16, 128: 2}),
        ("clara-4b", 4_022_468_096, 33_030_144, {32: 8, 4: 64, 16: 16, 128: 2}),
    ],
)
def test_a_clara_preset_is_the_published_model_and_three_roles(
    name: str, stock_count: int, role_count: int, latents: dict[int, int]
) -> None:
    """At the rates of the paper; the new tokens stand in rows that the published model has left."""
    config = preset_config(name)
    assert {rate: config.num_memory_tokens(rate) for rate in config.compression_rates} == latents
    with torch.device("meta"):
        model, stock = ClaraQwen3ForCausalLM(config), Qwen3ForCausalLM(config.text_config)
    memory = (1 + sum(latents.values())) * config.text_config.hidden_size
    assert stock.num_parameters() == stock_count
    assert model.num_parameters() == stock_count + 3 * role_count + memory
    assert config.document_token_id > config.text_config.eos_token_id
    assert config.separator_token_id + config.num_new_embeddings <= config.text_config.vocab_size
