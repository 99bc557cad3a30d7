"""Base checkpoints as others publish them: Qwen3, and Qwen2.5-VL in the layouts that are about."""

import json
from pathlib import Path
from typing import Any

import torch
from contracts.model_contract import randomize
from safetensors.torch import save_file
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLVisionConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qwen_grafts.configuration.presets import NUM_SPECIAL_TOKENS, TINY_VOCAB_SIZE, tiny_qwen3_text_config
from qwen_grafts.processing import build_qwen_tokenizer

INDEX = "model.safetensors.index.json"
# Key names of transformers' model -> those of a checkpoint: a new save, a published one, a tower alone.
LAYOUTS = {
    "new": {"": ""},
    "old": {"model.visual.": "visual.", "model.language_model.": "model."},
    "tower": {"model.visual.": "", "model.language_model.": None, "lm_head.": None},
}


def saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with random weights, saved by its own method."""
    randomize(model)
    model.eval().save_pretrained(folder)
    return model


def language_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> Qwen3ForCausalLM:
    config = tiny_qwen3_text_config(vocab_size=160, hidden_size=64, pad_token_id=0, eos_token_id=1, **overrides)
    return saved(Qwen3ForCausalLM._from_config(config, dtype=dtype), folder)


def chat_checkpoint(
    folder: Path, kind: str = "qwen3", layers: int = 4, first_special_id: int = TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS
) -> PreTrainedModel:
    """A Qwen2 or Qwen3 with a tokenizer that has no chat template, as base models are published.

    Special tokens close the vocabulary; at 256 they follow the bytes, and 230 rows are left unused behind them.
    """
    tokens = {"pad_token_id": first_special_id, "eos_token_id": first_special_id + 2}
    sizes = tiny_qwen3_text_config(hidden_size=64, num_hidden_layers=layers, **tokens).to_diff_dict()
    for name in ("model_type", "transformers_version", *(["head_dim"] if kind == "qwen2" else [])):
        sizes.pop(name)
    classes = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config_class, model_class = classes[kind]
    model = saved(model_class(config_class(**sizes)), folder)
    build_qwen_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return model


def qwen2_5_vl_config(vision: Qwen2_5_VLVisionConfig) -> Qwen2_5_VLConfig:
    """A whole Qwen2.5-VL around a tower; its language model is there to be left aside."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 4, 4]}
    text = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": 200, "tie_word_embeddings": False, "rope_parameters": rope}
    return Qwen2_5_VLConfig(vision_config=vision.to_dict(), text_config=text)


def qwen2_5_vl_checkpoint(
    folder: Path, vision: Qwen2_5_VLVisionConfig, layout: str = "old", shards: int = 5
) -> Qwen2_5_VLForConditionalGeneration:
    """Write a Qwen2.5-VL with its configuration in one file or in about as many shards."""
    model = Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_config(vision)).eval()
    randomize(model)
    tensors = {}
    for name, tensor in model.state_dict().items():
        before, after = next((pair for pair in LAYOUTS[layout].items() if name.startswith(pair[0])), ("", ""))
        if after is not None:
            tensors[after + name.removeprefix(before)] = tensor
    write_shards(folder, tensors, shards)
    (model.config.vision_config if layout == "tower" else model.config).save_pretrained(folder)
    return model


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Whole tensors in their order: one file, or about as many as `shards`, of which one holds both parts."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, per_shard = list(tensors), -(-len(tensors) // shards)
    groups = [names[start : start + per_shard] for start in range(0, len(names), per_shard)]
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in group}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard."""
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]


def tower_shards(folder: Path) -> list[str]:
    """Shards of the old layout that hold the tower, in order; the last one holds tensors of the language model, too."""
    return sorted({shard for name, shard in weight_map(folder).items() if name.startswith("visual.")})
