"""What a model and a run of a recipe will take, from the meta device, before anyone pays for a GPU.

Counts weights, gradients and optimizer state exactly; activations depend on batch and length and are not in it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig, SFTConfig

from .graft_sft import GraftArguments
from .model_loading import NOT_QUANTIZED, auto_model_class
from .preflight import count_parameters
from .recursive_trainer import frozen_parts
from .trained_parts import freeze, lora

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
# Bytes of optimizer state for each trained parameter.
OPTIMIZER_STATE = {"adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "adamw_8bit": 2, "adafactor": 0, "sgd": 0}
ADAM_STATE = 8


@dataclass
class MemoryEstimate:
    """Bytes, without activations."""

    weights: int
    gradients: int
    optimizer: int
    total: int


def describe(
    config: PreTrainedConfig,
    graft_args: GraftArguments | None = None,
    training_args: SFTConfig | None = None,
    model_args: ModelConfig | None = None,
) -> dict[str, Any]:
    """Parameters by part, what an image, a passage or a token takes, and memory of a run.

    Args:
        config: of a graft or of a stock vision-language model.
        graft_args, training_args, model_args: a parsed recipe; without one, training of what is grafted on alone (of
            all of a graft that has no new part to train alone), in bfloat16 with AdamW.
    """
    graft_args = graft_args or GraftArguments()
    model_args = model_args or ModelConfig(dtype="bfloat16")
    with torch.device("meta"):
        model = auto_model_class(config).from_config(config, trust_remote_code=True)
        quantized = _quantized(model) if model_args.load_in_4bit or model_args.load_in_8bit else 0
        if model_args.use_peft:
            model = get_peft_model(model, lora(model_args, model))
            for module in frozen_parts(model, graft_args):
                module.requires_grad_(False)
        else:
            freeze(model, graft_args.trainable, frozen_parts(model, graft_args))
    parts = count_parameters(model)
    trained = sum(counts["trained"] for counts in parts.values())
    total = sum(counts["total"] for counts in parts.values())
    frozen = total - trained
    idle = sum(p.numel() for name, p in model.named_parameters() if ".original_module." in name)
    optimizer = training_args.optim if training_args is not None else "adamw_torch"
    state = OPTIMIZER_STATE.get(getattr(optimizer, "value", optimizer), ADAM_STATE)
    whole = frozen + idle - quantized
    weights = int(quantized * (0.5 if model_args.load_in_4bit else 1)) + whole * BYTES[model_args.dtype] + trained * 4
    return {
        "model_type": config.model_type,
        "parameters": {"total": total, "trained": trained, "frozen": frozen, "parts": parts},
        "tokens_per_image": getattr(config, "num_image_tokens", None),
        "pixels_per_image_token": getattr(config, "image_token_pixels", 0) ** 2 or None,
        "passage": _passage(config, BYTES[model_args.dtype]),
        "depth": _depth(config, BYTES[model_args.dtype]),
        "memory_bytes": asdict(
            MemoryEstimate(weights, trained * 4, trained * state, weights + trained * 4 + trained * state)
        ),
    }


def _passage(config: PreTrainedConfig, bytes_each: int) -> dict[str, Any] | None:
    """What a full passage costs a CLaRa model as text and, at each rate, as latents; None for other models."""
    if not hasattr(config, "compression_rates"):
        return None
    text = config.text_config
    slots = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * bytes_each
    counts = {rate: config.num_memory_tokens(rate) for rate in config.compression_rates}
    return {
        "tokens": config.doc_max_length,
        "cache_bytes": config.doc_max_length * slots,
        "compressed": [
            {
                "rate": rate,
                "latents": count,
                "latent_bytes": count * text.hidden_size * bytes_each,
                "cache_bytes": count * slots,
            }
            for rate, count in counts.items()
        ],
    }


def _depth(config: PreTrainedConfig, bytes_each: int) -> dict[str, dict[str, int]] | None:
    """What a token costs a recursive model at its configured depth, and the stock model; None for other models."""
    if not hasattr(config, "cache_slots"):
        return None
    slot = 2 * config.num_key_value_heads * config.head_dim * bytes_each
    layers = config.num_hidden_layers
    return {
        "configured": {
            "layer_evaluations": config.layer_evaluations(),
            "cache_bytes_per_token": config.cache_slots() * slot,
        },
        "stock": {"layer_evaluations": layers, "cache_bytes_per_token": layers * slot},
    }


def _quantized(model: nn.Module) -> int:
    """Weights of the layers that a quantised model holds in fewer bits."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and should_convert_module(name, NOT_QUANTIZED)
    )
