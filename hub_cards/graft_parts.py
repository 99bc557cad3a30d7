"""What publishing has to know of a model beyond the table of grafts: its classes at hand, its processor from a config.

A new graft with a processor adds one function to `PROCESSORS`; everything else here follows from `GRAFTS`. What a model
of text alone has in the place of a processor is its tokenizer.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
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
    ClaraQwen3Processor,
    Qwen3PerceiverProcessor,
    Qwen3VisionBridgeProcessor,
    add_memory_tokens,
    build_qwen_tokenizer,
    load_chat_template,
)
from ..processing.memory_tokens import new_token_names
from ..processing.qwen_tokenizer import QWEN3_SPECIAL_TOKENS
from ..processing.vision_language_processing import vision_token_ids
from .clean_room_child import count_parameters

Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase


def graft_class(graft: Graft, auto_class: str) -> type:
    """The package's own class that stands under `auto_class` in the graft's `auto_map`."""
    module, name = graft.auto_classes[auto_class].rsplit(".", 1)
    return getattr(import_module(f"{PACKAGE}.{module}"), name)


def whole_model_class(config: PreTrainedConfig) -> type:
    """The Auto class that loads the whole model, head included, of a graft or of a stock image-text model.

    Raises:
        ValueError: a configuration of neither.
    """
    if config.model_type in GRAFTS:
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    raise ValueError(
        f"`model_type` {config.model_type!r} is not a graft ({', '.join(GRAFTS)}) and not an image-text model of "
        "transformers; there is no card and no export for it here."
    )


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with its head on the meta device: every shape, no memory.

    Args:
        config: configuration of a graft, of this package's class or of the same class loaded as remote code; or of a
            stock image-text model.

    Raises:
        ValueError: a configuration of neither.
    """
    graft, auto_class = GRAFTS.get(config.model_type), whole_model_class(config)
    if graft is None:
        with torch.device("meta"):
            return auto_class.from_config(config)
    own_config = graft_class(graft, "AutoConfig").from_dict(config.to_dict())
    with torch.device("meta"):
        return graft_class(graft, "AutoModelForCausalLM")(own_config)


def parameter_table(config: PreTrainedConfig) -> dict[str, int]:
    """Part -> number of parameters of the whole model, counted on the meta device.

    Raises:
        ValueError: a configuration of neither a graft nor a stock image-text model.
    """
    return count_parameters(meta_model(config))


def check_graft_only(config: PreTrainedConfig) -> None:
    """Whether a model has new parts that can be stored alone.

    Raises:
        ValueError: a stock model, or a graft that changes all of its weights.
    """
    graft = GRAFTS.get(config.model_type)
    if graft is None:
        raise ValueError(f"This is a stock {config.model_type!r}, which has no graft-only form.")
    if not hasattr(graft_class(graft, "AutoModelForCausalLM"), "graft_modules"):
        raise ValueError(
            f"A {config.model_type!r} has no graft-only form: training changes all of its weights. Export the whole "
            "model."
        )


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """A processor's tokenizer, or the tokenizer that stands in its place."""
    return getattr(processor, "tokenizer", processor)


def load_processor(graft: Graft, directory: Path) -> Processor:
    """What a folder of a graft turns text into tensors with, by the package's own class."""
    if graft.has_processor:
        return graft_class(graft, "AutoProcessor").from_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def build_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Processor:
    """The processor that fits a graft's configuration; of a graft without images, the tokenizer.

    Args:
        config: configuration of a graft.
        tokenizer: the language model's; without one, a byte-level tokenizer with Qwen3's special tokens at the
            ids the configuration names.

    Raises:
        ValueError: a graft or tower without a known processor, or a tokenizer whose ids the configuration does not
            share.
    """
    graft = GRAFTS.get(config.model_type)
    if graft is not None and not graft.has_processor:
        tokenizer = tokenizer or build_qwen_tokenizer(config.pad_token_id)
        _check_fit(tokenizer, {"pad_token_id": tokenizer.pad_token_id}, config)
        tokenizer.chat_template = load_chat_template()
        return tokenizer
    if config.model_type not in PROCESSORS:
        raise ValueError(
            f"No processor is known for `model_type` {config.model_type!r} (known: {', '.join(PROCESSORS)}). Build it "
            "by hand and give it to `export_repository`."
        )
    if graft.reads_images:
        if tokenizer is None:
            tokenizer = build_qwen_tokenizer(config.image_token_id - list(QWEN3_SPECIAL_TOKENS).index("<|image_pad|>"))
        _check_fit(tokenizer, vision_token_ids(tokenizer), config)
    return PROCESSORS[config.model_type](config, tokenizer)


def _check_fit(tokenizer: PreTrainedTokenizerBase, found: dict[str, int | None], config: PreTrainedConfig) -> None:
    wanted = {name: getattr(config, name) for name in found}
    highest, vocab_size = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if found != wanted or highest >= vocab_size:
        raise ValueError(
            f"The tokenizer does not fit the configuration: it has {found} and ids up to {highest}, the configuration "
            f"{wanted} and {vocab_size} rows. Use the tokenizer of the language model that the configuration describes."
        )


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


def _clara_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> ProcessorMixin:
    names = new_token_names(config.doc_max_length, config.compression_rates)
    if tokenizer is None:
        tokenizer = build_qwen_tokenizer(config.document_token_id - len(QWEN3_SPECIAL_TOKENS), (), names)
    tokenizer.chat_template = tokenizer.chat_template or load_chat_template()
    add_memory_tokens(tokenizer, config.doc_max_length, config.compression_rates)
    _check_fit(tokenizer, {"document_token_id": tokenizer.convert_tokens_to_ids(names[0])}, config)
    return ClaraQwen3Processor(tokenizer, config.doc_max_length, config.compression_rates)


PROCESSORS: dict[str, Callable[[PreTrainedConfig, PreTrainedTokenizerBase | None], ProcessorMixin]] = {
    "clara_qwen3": _clara_processor,
    "qwen3_perceiver": _perceiver_processor,
    "qwen3_vision_bridge": _vision_bridge_processor,
}
