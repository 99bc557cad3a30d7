"""Recursive models made of published Qwens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from base_checkpoints import saved
from contracts.model_contract import rewrite_weights
from safetensors.torch import load_file
from tiny_recursive import SIZES
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from qwen_grafts.configuration.layer_selection import select_layers
from qwen_grafts.modeling import RecursiveQwenForCausalLM

IDS = torch.tensor([[5, 9, 120, 33, 7, 64], [4, 88, 2, 91, 3, 17]])
KINDS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def source(folder: Path, kind: str = "qwen3", dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    config_class, model_class = KINDS[kind]
    sizes = SIZES | {"num_hidden_layers": 8} | overrides
    if kind == "qwen2":  # its configuration has no such value
        del sizes["head_dim"]
    return saved(model_class._from_config(config_class(**sizes), dtype=dtype), folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_conversion_is_the_source_at_any_depth(kind: str, dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    stock = source(tmp_path / "source", kind, dtype, tie_word_embeddings=tied)
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path / "source"), H_cycles=4, L_cycles=2)
    assert model.dtype == dtype and not model.training
    assert (model.config.layer_family, model.config.core_range) == (kind, [2, 6])
    assert model.config.base_models is None  # a folder means nothing to others
    model.save_pretrained(tmp_path / "saved")
    again = RecursiveQwenForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        expected = stock(IDS).logits
        for depth in (1, 3, 8):
            assert torch.equal(model(IDS, num_cycles=depth).logits, expected)
            assert torch.equal(again(IDS, num_cycles=depth, L_cycles=1).logits, expected)


def test_biases_of_qwen3_come_along(tmp_path: Path) -> None:
    stock = source(tmp_path, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 123.0})
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)


def test_settings_of_the_source_come_along_and_may_be_changed(tmp_path: Path) -> None:
    stock = source(tmp_path)
    GenerationConfig(max_new_tokens=7).save_pretrained(tmp_path)
    settings = {"max_position_embeddings": 77, "rms_norm_eps": 1e-2}
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path), **settings)
    assert (model.config.max_position_embeddings, model.generation_config.max_new_tokens) == (77, 7)
    for module in stock.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-2
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)


def test_kept_layers_are_the_chosen_ones(tmp_path: Path) -> None:
    stock = source(tmp_path)
    for settings, kept, core in (
        ({"layer_selection": "even", "L_layers": 4}, [0, 2, 5, 7], [0, 4]),
        ({"layer_selection": "sandwich", "L_layers": 2}, [0, 1, 2, 5, 6, 7], [2, 4]),
        ({"layer_selection": "sandwich", "core_range": (1, 8), "L_layers": 1}, [0, 1], [1, 2]),
        ({"core_range": (0, 8)}, list(range(8)), [0, 8]),
    ):
        model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path), **settings)
        assert (model.config.num_hidden_layers, model.config.core_range) == (len(kept), core)
        for new, old in enumerate(kept):
            ours, theirs = model.model.layers[new].state_dict(), stock.model.layers[old].state_dict()
            assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        with torch.no_grad():
            assert model(IDS).logits.isfinite().all()


def test_only_the_needed_shards_are_read(tmp_path: Path) -> None:
    """A shard of dropped layers alone may be missing."""
    source(tmp_path).save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "model.safetensors").unlink()
    dropped = []
    for path in tmp_path.glob("model-*.safetensors"):
        if all(".layers.1." in name or ".layers.3." in name for name in load_file(path)):
            dropped.append(path)
    assert dropped
    for path in dropped:
        path.unlink()
    settings = {"layer_selection": "even", "L_layers": 4}
    assert RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path), **settings)(IDS).logits.isfinite().all()
    with pytest.raises(ValueError, match="cannot be read"):
        RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path))


def test_a_stored_copy_of_a_tied_head_is_left_aside(tmp_path: Path) -> None:
    """Some tied checkpoints store one; what it holds does not count."""
    stock = source(tmp_path)
    rewrite_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(160, 64)}))
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)


def test_loop_terms_are_new(tmp_path: Path) -> None:
    stock = source(tmp_path)
    model = RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path), loop_lora_rank=2, loop_lora_cycles=3)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)
    down = model.model.layers[3].mlp.up_proj.loop_down
    assert down.shape == (3, 2, 64) and down.std() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"core_range": (3, 9)}, "The core 3:9 is not within the source's 8 layers"),
        ({"core_range": (5, 5)}, "The core 5:5 is not within"),
        ({"core_range": (-1, 4)}, "The core -1:4 is not within"),
        ({"layer_selection": "even", "L_layers": 9}, "`L_layers` is 9; of the layers 0 to 7, 1 to 8 can be kept"),
        ({"layer_selection": "even", "core_range": (1, 3)}, "leave `core_range` out"),
        ({"layer_selection": "middle"}, "'middle' is none of all, sandwich and even"),
        ({"L_layers": 3}, "give `core_range` in place of `L_layers`"),
        ({"H_cycles": 0}, "`num_cycles` is 0"),
        ({"halt_threshold": 1.5}, "`halt_threshold` is 1.5"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    source(tmp_path)
    with pytest.raises(ValueError, match=message):
        RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path), **settings)


def test_other_models_are_refused(tmp_path: Path) -> None:
    Qwen3MoeConfig().save_pretrained(tmp_path / "moe")
    with pytest.raises(ValueError, match=r"holds a 'qwen3_moe' model; the language model must be a dense Qwen2"):
        RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path / "moe"))
    source(tmp_path / "window", use_sliding_window=True, sliding_window=4, max_window_layers=5)
    with pytest.raises(ValueError, match="3 of 8 layers attend within a sliding window"):
        RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path / "window"))
    with pytest.raises(ValueError, match="2 of 4 layers attend within a sliding window"):  # of 0, 2, 5 and 7
        RecursiveQwenForCausalLM.from_qwen_pretrained(str(tmp_path / "window"), layer_selection="even", L_layers=4)


@pytest.mark.parametrize("layers", [1, 2, 3, 28])
def test_default_core_is_the_middle(layers: int) -> None:
    kept, (first, last) = select_layers(layers)
    assert kept == list(range(layers)) and 0 <= first < last <= layers
    assert layers < 28 or (first, last) == (7, 21)
