"""Vision towers behind one call: pixels in, patch features with their grid out.

Three families load through transformers' own classes, none is copied: `SiglipVisionModel` (SigLIP and the
fixed-resolution SigLIP2 checkpoints), `Siglip2VisionModel` (SigLIP2-NaFlex: any aspect ratio, padded patches) and any
timm network through `TimmWrapperModel`.

Shapes: I images, P patches (padded to the longest image), C vision width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
    TimmWrapperModel,
)


@dataclass
class PatchFeatures:
    """What a tower saw.

    Attributes:
        hidden_states: (I, P, C).
        grid: (height, width) in patches where all images share one grid, else an (I, 2) tensor.
        mask: (I, P) bool, False on padding; None when every patch is real.
    """

    hidden_states: torch.Tensor
    grid: tuple[int, int] | torch.Tensor
    mask: torch.Tensor | None = None


def build_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """The tower that `config.model_type` names, with random weights and without its pooling head.

    The pooling head of SigLIP is never used here, and its `nn.MultiheadAttention` cannot be served by vLLM.
    """
    if config.model_type != "timm_wrapper":
        config.vision_use_head = False
    return AutoModel.from_config(config)


def load_vision_tower(name: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained tower, without pooling head and text half.

    Args:
        name: repository id or folder of a SigLIP, SigLIP2 or timm checkpoint (whole model or tower alone).

    Raises:
        ValueError: another kind of checkpoint, or tensors of the tower missing from it.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    config = getattr(config, "vision_config", config)
    classes = {
        "siglip_vision_model": SiglipVisionModel,
        "siglip2_vision_model": Siglip2VisionModel,
        "timm_wrapper": TimmWrapperModel,
    }
    if config.model_type not in classes:
        raise ValueError(
            f"{name!r} holds a {config.model_type!r} model; supported vision towers are {', '.join(classes)}."
        )
    if config.model_type != "timm_wrapper":
        config.vision_use_head = False
    tower, info = classes[config.model_type].from_pretrained(
        name, config=config, revision=revision, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The vision checkpoint {name!r} lacks {len(missing)} of the tower's tensors: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}. Nothing was assembled; download it again or choose another."
        )
    return tower


def vision_hidden_size(tower: nn.Module, config: PreTrainedConfig) -> int:
    """Width C of the tower's features."""
    return tower.timm_model.num_features if config.model_type == "timm_wrapper" else config.hidden_size


def encode_patches(
    tower: PreTrainedModel,
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None = None,
    spatial_shapes: torch.Tensor | None = None,
) -> PatchFeatures:
    """Run the tower.

    Args:
        tower: a model from `build_vision_tower`.
        pixel_values: (I, 3, H, W); for NaFlex (I, P, 3 * patch * patch).
        pixel_attention_mask: NaFlex only, (I, P), 1 on real patches.
        spatial_shapes: NaFlex only, (I, 2) grid of every image in patches.

    Raises:
        ValueError: a NaFlex tower without mask or shapes, or an image of another size than the tower was built for.
    """
    model_type = tower.config.model_type
    pixel_values = pixel_values.to(_dtype(tower))
    if model_type == "siglip2_vision_model":
        if pixel_attention_mask is None or spatial_shapes is None:
            raise ValueError(
                "A SigLIP2-NaFlex tower needs `pixel_attention_mask` and `spatial_shapes` beside `pixel_values`; "
                "all three come out of the processor."
            )
        outputs = tower(pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes)
        return PatchFeatures(outputs.last_hidden_state, spatial_shapes, pixel_attention_mask.bool())
    if model_type == "timm_wrapper":
        return _encode_timm(tower, pixel_values)
    height, width = pixel_values.shape[-2:]
    size, patch_size = tower.config.image_size, tower.config.patch_size
    if (height, width) != (size, size):  # the tower itself only notices another number of patches
        raise ValueError(
            f"The vision tower reads images of {size} x {size} pixels, got {height} x {width}. Let the processor of "
            "the same checkpoint resize them."
        )
    return PatchFeatures(tower(pixel_values).last_hidden_state, (height // patch_size, width // patch_size))


def _encode_timm(tower: PreTrainedModel, pixel_values: torch.Tensor) -> PatchFeatures:
    """timm returns (I, C, h, w) from convolutional networks and (I, prefix + P, C) from transformers."""
    hidden_states = tower(pixel_values, do_pooling=False).last_hidden_state
    if hidden_states.ndim == 4:
        if hidden_states.shape[1] != tower.timm_model.num_features:  # channels last, as Swin gives them
            hidden_states = hidden_states.permute(0, 3, 1, 2)
        return PatchFeatures(hidden_states.flatten(2).transpose(1, 2), tuple(hidden_states.shape[-2:]))
    hidden_states = hidden_states[:, getattr(tower.timm_model, "num_prefix_tokens", 0) :]
    patches = tower.timm_model.patch_embed.patch_size
    return PatchFeatures(hidden_states, (pixel_values.shape[-2] // patches[0], pixel_values.shape[-1] // patches[1]))


def _dtype(tower: PreTrainedModel) -> torch.dtype:
    """The tower's floating type; pixels arrive in float32."""
    return next(parameter.dtype for parameter in tower.parameters() if parameter.is_floating_point())


__all__ = ["PatchFeatures", "build_vision_tower", "encode_patches", "load_vision_tower", "vision_hidden_size"]
