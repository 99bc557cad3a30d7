"""What publishing has to know of a graft beyond the table of grafts: its classes at hand, its processor from a config.

A new graft adds one function to `PROCESSORS`; everything else here follows from `GRAFTS`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
)

from ..configuration import GRAFTS, Graft
from ..configuration.code_files import PACKAGE
from ..processing import (
    Qwen3PerceiverProcessor,
    Qwen3VisionBridgeProcessor,
    build_qwen_tokenizer,
    load_chat_template,
)
from ..processing.qwen_tokenizer import QWEN3_SPECIAL_TOKENS
from ..processing.vision_language_processing import vision_token_ids
from .clean_room_child import count_parameters


def graft_class(graft: Graft, auto_class: str) -> type:
    """The package's own class that stands under `auto_class` in the graft's `auto_map`."""
    module, name = graft.auto_classes[auto_class].rsplit(".", 1)
    return getattr(import_module(f"{PACKAGE}.{module}"), name)


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The graft's model with its head on the meta device: every shape, no memory.

    Args:
        config: configuration of a graft, of this package's class or of the same class loaded as remote code.

    Raises:
        ValueError: not a graft's configuration.
    """
    graft = GRAFTS.get(config.model_type)
    if graft is None:
        raise ValueError(f"`model_type` {config.model_type!r} is not a graft; grafts are {', '.join(GRAFTS)}.")
    own_config = graft_class(graft, "AutoConfig").from_dict(config.to_dict())
    with torch.device("meta"):
        return graft_class(graft, "AutoModelForCausalLM")(own_config)


def parameter_table(config: PreTrainedConfig) -> dict[str, int]:
    """Part -> number of parameters of a graft's whole model, counted on the meta device.

    Raises:
        ValueError: not a graft's configuration.
    """
    return count_parameters(meta_model(config))


def build_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> ProcessorMixin:
    """The processor that fits a graft's configuration.

    Args:
        config: configuration of a graft.
        tokenizer: the language model's; without one, a byte-level tokenizer with Qwen3's special tokens at the
            ids the configuration names.

    Raises:
        ValueError: a graft or tower without a known processor, or a tokenizer whose ids the configuration does not
            share.
    """
    if config.model_type not in PROCESSORS:
        raise ValueError(
            f"No processor is known for `model_type` {config.model_type!r} (known: {', '.join(PROCESSORS)}). Build it "
            "by hand and give it to `export_repository`."
        )
    if tokenizer is None:
        tokenizer = build_qwen_tokenizer(config.image_token_id - list(QWEN3_SPECIAL_TOKENS).index("<|image_pad|>"))
    found = vision_token_ids(tokenizer)
    wanted = {name: getattr(config, name) for name in found}
    highest, vocab_size = max(tokenizer.get_vocab().values()), config.text_config.vocab_size
    if found != wanted or highest >= vocab_size:
        raise ValueError(
            f"The tokenizer does not fit the configuration: it has {found} and ids up to {highest}, the configuration "
            f"{wanted} and {vocab_size} rows. Use the tokenizer of the language model that the configuration describes."
        )
    return PROCESSORS[config.model_type](config, tokenizer)


def generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Qwen3's stop and padding tokens at the tokenizer's ids."""
    end_of_turn, end_of_text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return GenerationConfig(eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text)


def _perceiver_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    return Qwen3PerceiverProcessor(
        _siglip_image_processor(config.vision_config),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        chat_template=load_chat_template(),
    )


def _siglip_image_processor(config: PreTrainedConfig) -> Any:
    if config.model_type == "siglip_vision_model":
        return SiglipImageProcessor(size={"height": config.image_size, "width": config.image_size})
    if config.model_type == "siglip2_vision_model":
        return Siglip2ImageProcessor(patch_size=config.patch_size, max_num_patches=config.num_patches)
    raise ValueError(
        f"No image processor is known for a {config.model_type!r} tower. Load it from the tower's checkpoint with "
        "`AutoImageProcessor` and give the whole processor to `export_repository`."
    )


def _vision_bridge_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    vision, token_area = config.vision_config, config.image_token_pixels**2
    # As Qwen2.5-VL: at least 4 soft tokens an image, at most 16,384, and never more than half of the context.
    most = min(16_384, config.text_config.max_position_embeddings // 2)
    image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": 4 * token_area, "longest_edge": most * token_area},
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    return Qwen3VisionBridgeProcessor(image_processor, tokenizer, chat_template=load_chat_template())


PROCESSORS: dict[str, Callable[[PreTrainedConfig, PreTrainedTokenizerBase], ProcessorMixin]] = {
    "qwen3_perceiver": _perceiver_processor,
    "qwen3_vision_bridge": _vision_bridge_processor,
}
