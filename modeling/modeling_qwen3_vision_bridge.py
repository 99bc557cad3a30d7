"""Vision bridge: Qwen2.5-VL's frozen vision tower, one adapter and stock Qwen3.

    pixels -> vision tower with its merger -> adapter -> soft tokens -> spliced at placeholders -> Qwen3

The tower is transformers' own `Qwen2_5_VisionTransformerPretrainedModel`, the whole of what Qwen2.5-VL sees with.
It reads images at their own resolution, so an image becomes as many soft tokens as it has merged patches. Qwen3 keeps
its one-dimensional rotary positions: soft tokens follow each other in raster order, and where a patch lies was said by
the tower. What is every vision graft's is in `vision_language.py`.

Shapes: N patches of all images, M merged patches (N / merge size squared), C patch values, D language width.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.utils import can_return_tuple

from ..configuration.configuration_qwen3_vision_bridge import Qwen3VisionBridgeConfig
from .checkpoint_tensors import load_part, read_tensors
from .vision_adapter import FanInLinear, VisionAdapter
from .vision_language import VisionLanguageForCausalLM, VisionLanguageModel, VisionLanguagePreTrainedModel


class Qwen3VisionBridgePreTrainedModel(VisionLanguagePreTrainedModel):
    """What transformers has to know of both classes."""

    config: Qwen3VisionBridgeConfig
    config_class = Qwen3VisionBridgeConfig
    _no_split_modules = ["Qwen2_5_VLVisionBlock", "Qwen3DecoderLayer"]
    graft_modules = ("adapter",)
    graft_settings = (*VisionLanguagePreTrainedModel.graft_settings, "adapter_type", "adapter_hidden_act")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FanInLinear):
            module.reset_parameters()

    @classmethod
    def assemble_bases(
        cls, config: Qwen3VisionBridgeConfig, dtype: str | torch.dtype
    ) -> "Qwen3VisionBridgeForCausalLM":
        return Qwen3VisionBridgeForCausalLM.from_base_models(config, dtype)


class Qwen3VisionBridgeModel(Qwen3VisionBridgePreTrainedModel, VisionLanguageModel):
    """The backbone: tower, adapter and Qwen3 without its head (`AutoModel`)."""

    def __init__(self, config: Qwen3VisionBridgeConfig) -> None:
        super().__init__(config)
        self.vision_tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.build_graft()
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.post_init()

    def build_graft(self, dtype: torch.dtype | None = None) -> None:
        """A new adapter."""
        config = self.config
        self.adapter = VisionAdapter(
            config.vision_config.out_hidden_size,
            config.text_config.hidden_size,
            config.adapter_type,
            config.adapter_hidden_act,
        ).to(dtype or torch.get_default_dtype())

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images, each at its own size.

        Args:
            pixel_values: (N, C), the patches of all images as Qwen2.5-VL's image processor lays them out.
            image_grid_thw: (I, 3), frames, height and width of every image in patches.

        Returns:
            `last_hidden_state` (M, vision size): the tower's merged patches in raster order, image after image;
            `pooler_output`: a list of (tokens, D) soft tokens an image.

        Raises:
            ValueError: the grids do not account for the patches, or an image is no whole number of merged patches.
        """
        tower = self.vision_tower
        counts = _merged_patches(image_grid_thw, len(pixel_values), tower.spatial_merge_size)
        with self.tower_grad(pixel_values):
            merged = tower(pixel_values.to(tower.dtype), grid_thw=image_grid_thw).pooler_output
        soft_tokens = self.adapter(merged.to(self.adapter.linear_1.weight.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=merged, pooler_output=list(soft_tokens.split(counts)))


class Qwen3VisionBridgeForCausalLM(Qwen3VisionBridgePreTrainedModel, VisionLanguageForCausalLM):
    """The backbone with Qwen3's language-model head (`AutoModelForCausalLM`, `AutoModelForImageTextToText`).

    `from_vision_language_pretrained(vision="Qwen/Qwen2.5-VL-7B-Instruct", language="Qwen/Qwen3-4B")` takes the tower
    out of a Qwen2.5-VL of any size and grafts it onto a dense Qwen3 of any size.
    """

    backbone_class = Qwen3VisionBridgeModel

    @classmethod
    def load_vision_tower(cls, name: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
        """The tower out of a Qwen2.5-VL checkpoint, old or new in its names, of which nothing else is read.

        Raises:
            ValueError: another kind of checkpoint, or files or tensors of the tower missing or damaged.
        """
        config = AutoConfig.from_pretrained(name, revision=revision)
        layouts = ("model.visual.", "visual.") if config.model_type == "qwen2_5_vl" else ("",)
        config = getattr(config, "vision_config", config)
        if config.model_type != "qwen2_5_vl_vision":
            raise ValueError(f"{name!r} holds a {config.model_type!r} model; the vision tower must be a Qwen2.5-VL's.")
        tensors = read_tensors(name, part="vision", prefixes=layouts, revision=revision, dtype=dtype)
        return load_part(Qwen2_5_VisionTransformerPretrainedModel, config, tensors, part="vision", name=name)


def _merged_patches(grid_thw: torch.Tensor, num_patches: int, merge_size: int) -> list[int]:
    """Merged patches, and so soft tokens, of every image."""
    grids = grid_thw.tolist()
    if sum(t * h * w for t, h, w in grids) != num_patches:
        raise ValueError(
            f"`image_grid_thw` speaks of {sum(t * h * w for t, h, w in grids)} patches in {len(grids)} images, "
            f"`pixel_values` holds {num_patches}. Both come out of the processor; pass them on together."
        )
    if uneven := [grid for grid in grids if grid[1] % merge_size or grid[2] % merge_size]:
        raise ValueError(
            f"{len(uneven)} of {len(grids)} images are no whole number of {merge_size} x {merge_size} merged patches, "
            f"the first {uneven[0][1]} x {uneven[0][2]} patches. Let the model's own processor resize them."
        )
    return [t * h * w // merge_size**2 for t, h, w in grids]


__all__ = ["Qwen3VisionBridgeForCausalLM", "Qwen3VisionBridgeModel", "Qwen3VisionBridgePreTrainedModel"]
