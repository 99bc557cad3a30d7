"""Loading the model and the processor of a run: grafts, and stock Qwen-VL of any size."""

from dataclasses import replace

from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl import ModelConfig, get_quantization_config

from ..configuration import GRAFTS
from ..modeling.checkpoint_tensors import commit_of

# What stays as it is when the rest is quantised: towers, what connects them, and the head. transformers compares from
# the start of a module's name, so the bare "visual" would leave `model.visual.blocks` in and quantise the tower.
NOT_QUANTIZED = [r"(.*\.)?(visual|vision_tower|connector|adapter|lm_head)"]
_FLASH_ATTENTION = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
}


def pin_revision(model_args: ModelConfig) -> ModelConfig:
    """The same arguments with the commit of the repository in place of its branch or tag; a folder has none.

    A branch may move between the loading of processor and weights, and transformers 5.23 does not tell which commit it
    loaded, so that nobody could name it afterwards.
    """
    commit = commit_of(model_args.model_name_or_path, model_args.model_revision)
    return replace(model_args, model_revision=commit or model_args.model_revision)


def load_config(model_args: ModelConfig) -> PreTrainedConfig:
    """The model's configuration, before its weights are read."""
    return AutoConfig.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=True
    )


def load_processor(
    model_args: ModelConfig, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """The model's processor, of a model of text alone its tokenizer.

    Args:
        min_pixels, max_pixels: of an image, for towers of dynamic resolution.

    Raises:
        ValueError: a pixel budget for a model without images, or for a tower that reads images of one size.
    """
    budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    budget = {name: pixels for name, pixels in budget.items() if pixels is not None}
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=True, **budget
    )
    if budget and isinstance(processor, PreTrainedTokenizerBase):
        raise ValueError(f"This model reads no images; leave out {', '.join(f'image_{n}' for n in budget)}.")
    if budget and "longest_edge" not in processor.image_processor.size:
        raise ValueError(f"This tower reads images of one size; leave out {', '.join(f'image_{n}' for n in budget)}.")
    return processor


def load_model(model_args: ModelConfig, console: Console) -> PreTrainedModel:
    """The model, quantised if asked for, with exact gradient accumulation.

    Qwen-VL's classes say `accepts_loss_kwargs = False`, though their loss divides by `num_items_in_batch` like any
    other: the trainer then averages the means of the accumulated batches, and a token of a short answer weighs more
    than one of a long answer. Set here, and nowhere else.
    """
    model = auto_model_class(load_config(model_args)).from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=attention_implementation(model_args.attn_implementation, console),
        quantization_config=quantization(model_args),
        trust_remote_code=True,
    )
    model.accepts_loss_kwargs = True
    for module in model.modules():
        # On some CPUs bitsandbytes repacks a layer at its first inference, for a kernel without a backward pass: the
        # evaluation before training would leave adapters below it without gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def auto_model_class(config: PreTrainedConfig) -> type:
    """The Auto class of a run's model: one that reads images, or a graft of text alone."""
    graft = GRAFTS.get(config.model_type)
    return AutoModelForImageTextToText if graft is None or graft.reads_images else AutoModelForCausalLM


def attention_implementation(wanted: str | None, console: Console) -> str | None:
    """What the recipe asks for, or sdpa where that needs a package or a GPU that is not there."""
    if wanted in _FLASH_ATTENTION and not _FLASH_ATTENTION[wanted]():
        console.print(f"{wanted} is not available here (flash-attn and a GPU); using sdpa.", highlight=False)
        return "sdpa"
    return wanted


def quantization(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """TRL's configuration; the tower, the connection and the head keep their precision."""
    config = get_quantization_config(model_args)
    if config is not None:
        config.llm_int8_skip_modules = NOT_QUANTIZED
    return config


__all__ = [
    "NOT_QUANTIZED",
    "attention_implementation",
    "auto_model_class",
    "load_config",
    "load_model",
    "load_processor",
    "pin_revision",
    "quantization",
]
