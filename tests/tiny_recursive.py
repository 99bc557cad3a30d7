"""Tiny recursive Qwens: sizes that differ wherever they may, a prelude of one layer and a coda of two."""

from typing import Any

from qwen_grafts.configuration import RecursiveQwenConfig

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def recursive_config(**settings: Any) -> RecursiveQwenConfig:
    """Three cycles of two steps over layers 1 and 2: 9 runs of the core, 21 layers in all."""
    defaults = {"core_range": [1, 3], "H_cycles": 3, "L_cycles": 2}
    return RecursiveQwenConfig(**(SIZES | defaults | settings))
