"""Named configurations: `perceiver-vlm-tiny`, `vision-bridge-4b`, `recursive-0.6b` and the like.

A preset is a whole model configuration; full-size ones can be built on the meta device in seconds. The sizes of Qwen3
are those of the published `config.json` files.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, Qwen2_5_VLVisionConfig, Qwen3Config, SiglipVisionConfig

from .configuration_clara_qwen3 import ClaraQwen3Config
from .configuration_qwen3_perceiver import (
    Qwen3PerceiverConfig,
    Qwen3PerceiverConnectorConfig,
    siglip2_so400m_384,
)
from .configuration_qwen3_vision_bridge import Qwen3VisionBridgeConfig, qwen2_5_vl_7b_vision
from .configuration_recursive_qwen import RecursiveQwenConfig

QWEN3_VOCAB_SIZE = 151_936
TINY_VOCAB_SIZE = 512
NUM_SPECIAL_TOKENS = 26

QWEN3_SIZES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


def qwen3_text_config(size: str) -> Qwen3Config:
    """Qwen3 of a published size; `<|im_end|>` and `<|endoftext|>` end a turn."""
    return Qwen3Config(
        vocab_size=QWEN3_VOCAB_SIZE,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
        eos_token_id=151645,
        pad_token_id=151643,
        **QWEN3_SIZES[size],
    )


def tiny_qwen3_text_config(**overrides: Any) -> Qwen3Config:
    """A Qwen3 of four hundred thousand parameters: grouped queries, tied embeddings, head width 32."""
    values = {
        "vocab_size": TINY_VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS + 2,
        "pad_token_id": TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS,
    }
    return Qwen3Config(**(values | overrides))


def _tiny_vision_token_ids() -> dict[str, int]:
    """Where `build_qwen_tokenizer` puts Qwen3's vision tokens in the tiny vocabulary."""
    first_special_id = TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS
    return {
        "image_token_id": first_special_id + 12,
        "vision_start_token_id": first_special_id + 9,
        "vision_end_token_id": first_special_id + 10,
    }


def _perceiver_vlm_tiny() -> Qwen3PerceiverConfig:
    return Qwen3PerceiverConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            vision_use_head=False,
        ),
        connector_config=Qwen3PerceiverConnectorConfig(
            num_latents=8,
            depth=2,
            num_heads=2,
            head_dim=32,
            projector_mlp_ratio=2,
            position_encoding="sincos2d",
            kv_layer_norm=True,
            final_layer_norm=True,
        ),
        text_config=tiny_qwen3_text_config(),
        **_tiny_vision_token_ids(),
    )


def _perceiver_vlm(size: str, **connector: Any) -> Callable[[], Qwen3PerceiverConfig]:
    def build() -> Qwen3PerceiverConfig:
        return Qwen3PerceiverConfig(
            vision_config=siglip2_so400m_384(),
            connector_config=Qwen3PerceiverConnectorConfig(**connector),
            text_config=qwen3_text_config(size),
        )

    return build


def _vision_bridge_tiny() -> Qwen3VisionBridgeConfig:
    return Qwen3VisionBridgeConfig(
        vision_config=Qwen2_5_VLVisionConfig(
            depth=3,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=192,
            patch_size=8,
            window_size=32,
            fullatt_block_indexes=[1, 2],
        ),
        text_config=tiny_qwen3_text_config(),
        **_tiny_vision_token_ids(),
    )


def _vision_bridge(size: str) -> Callable[[], Qwen3VisionBridgeConfig]:
    return lambda: Qwen3VisionBridgeConfig(vision_config=qwen2_5_vl_7b_vision(), text_config=qwen3_text_config(size))


def _recursive(text: Qwen3Config) -> RecursiveQwenConfig:
    """A dense Qwen3 whose middle half is the core; three cycles of three steps."""
    values = text.to_diff_dict()
    for name in ("model_type", "transformers_version"):
        values.pop(name, None)
    return RecursiveQwenConfig(**values)


def _clara_tiny() -> ClaraQwen3Config:
    """Passages of up to 64 tokens, at two rates; the new tokens close the tiny vocabulary."""
    settings: dict[str, Any] = {"doc_max_length": 64, "compression_rates": [8, 16], "lora_rank": 8, "lora_alpha": 16.0}
    new = 2 + sum(64 // rate for rate in settings["compression_rates"])
    first_special_id = TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS - new
    text = tiny_qwen3_text_config(eos_token_id=first_special_id + 2, pad_token_id=first_special_id)
    return ClaraQwen3Config(text_config=text, document_token_id=TINY_VOCAB_SIZE - new, **settings)


def _clara(size: str) -> Callable[[], ClaraQwen3Config]:
    return lambda: ClaraQwen3Config(text_config=qwen3_text_config(size), compression_rates=[32, 4, 16, 128])


# What was found by training: positions on the keys, both LayerNorms, and a projector a quarter as wide.
RECOMMENDED_CONNECTOR: dict[str, Any] = {
    "position_encoding": "sincos2d",
    "kv_layer_norm": True,
    "final_layer_norm": True,
    "projector_mlp_ratio": 1,
}

PRESETS: dict[str, Callable[[], PreTrainedConfig]] = {
    "perceiver-vlm-tiny": _perceiver_vlm_tiny,
    "perceiver-vlm-0.6b": _perceiver_vlm("0.6b", **RECOMMENDED_CONNECTOR),
    "perceiver-vlm-4b": _perceiver_vlm("4b", **RECOMMENDED_CONNECTOR),
    "perceiver-vlm-8b": _perceiver_vlm("8b"),
    "perceiver-vlm-8b-recommended": _perceiver_vlm("8b", **RECOMMENDED_CONNECTOR),
    "vision-bridge-tiny": _vision_bridge_tiny,
    "vision-bridge-4b": _vision_bridge("4b"),
    "recursive-tiny": lambda: _recursive(tiny_qwen3_text_config(num_hidden_layers=4)),
    "recursive-0.6b": lambda: _recursive(qwen3_text_config("0.6b")),
    "recursive-1.7b": lambda: _recursive(qwen3_text_config("1.7b")),
    "recursive-4b": lambda: _recursive(qwen3_text_config("4b")),
    "clara-tiny": _clara_tiny,
    "clara-0.6b": _clara("0.6b"),
    "clara-4b": _clara("4b"),
}


def preset_config(name: str) -> PreTrainedConfig:
    """The configuration of a preset.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}. Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]()
