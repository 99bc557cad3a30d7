"""Perceiver VLM: a frozen SigLIP (or timm) tower, a Perceiver connector and stock Qwen3.

    pixels -> vision tower -> Perceiver resampler -> MLP -> soft tokens -> spliced at placeholders -> Qwen3

Every image becomes the same number of soft tokens, whatever its size. What is its own is here: the tower, the
connector (`perceiver_connector.py`), and how pixels pass through both; the rest is every vision graft's
(`vision_language.py`).

Shapes: I images in the whole batch, P patches, C vision width, L soft tokens an image, D language width.
"""

from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..configuration.configuration_qwen3_perceiver import Qwen3PerceiverConfig
from .perceiver_connector import PerceiverConnector
from .vision_language import VisionLanguageForCausalLM, VisionLanguageModel, VisionLanguagePreTrainedModel
from .vision_towers import build_vision_tower, encode_patches, load_vision_tower, vision_hidden_size


class Qwen3PerceiverPreTrainedModel(VisionLanguagePreTrainedModel):
    """What transformers has to know of both classes."""

    config: Qwen3PerceiverConfig
    config_class = Qwen3PerceiverConfig
    _no_split_modules = ["PerceiverLayer", "Qwen3DecoderLayer", "SiglipEncoderLayer", "Siglip2EncoderLayer"]
    graft_modules = ("connector",)
    graft_settings = (*VisionLanguagePreTrainedModel.graft_settings, "connector_config")

    @classmethod
    def assemble_bases(cls, config: Qwen3PerceiverConfig, dtype: str | torch.dtype) -> "Qwen3PerceiverVLM":
        return Qwen3PerceiverVLM.from_base_models(config, dtype)


class Qwen3PerceiverModel(Qwen3PerceiverPreTrainedModel, VisionLanguageModel):
    """The backbone: tower, connector and Qwen3 without its head (`AutoModel`)."""

    def __init__(self, config: Qwen3PerceiverConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_vision_tower(config.vision_config)
        self.build_graft()
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.post_init()

    def build_graft(self, dtype: torch.dtype | None = None) -> None:
        """A new connector for the tower at hand."""
        self.connector = PerceiverConnector._from_config(
            self.config.connector_config,
            vision_size=vision_hidden_size(self.vision_tower, self.config.vision_config),
            language_size=self.config.text_config.hidden_size,
            dtype=dtype,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (I, 3, H, W), or (I, P, 3 * patch * patch) for a NaFlex tower.
            pixel_attention_mask: (I, P), NaFlex only.
            spatial_shapes: (I, 2), NaFlex only.

        Returns:
            `last_hidden_state` (I, P, C): the tower's patches; `pooler_output`: a list of (L, D) soft tokens an image.
        """
        with self.tower_grad(pixel_values):
            patches = encode_patches(self.vision_tower, pixel_values, pixel_attention_mask, spatial_shapes)
        soft_tokens = self.connector(patches)
        return BaseModelOutputWithPooling(
            last_hidden_state=patches.hidden_states, pooler_output=list(soft_tokens.unbind(0))
        )


class Qwen3PerceiverVLM(Qwen3PerceiverPreTrainedModel, VisionLanguageForCausalLM):
    """The backbone with Qwen3's language-model head (`AutoModelForCausalLM`, `AutoModelForImageTextToText`).

    `Qwen3PerceiverVLM.from_vision_language_pretrained(vision, language, connector_config=…)` grafts a SigLIP, SigLIP2
    or timm checkpoint onto a dense Qwen3; without `connector_config` the connector is the specified one.
    """

    backbone_class = Qwen3PerceiverModel

    @classmethod
    def load_vision_tower(cls, name: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
        """A SigLIP, SigLIP2 or timm checkpoint's tower; see `vision_towers.py`."""
        return load_vision_tower(name, revision, dtype)


__all__ = ["Qwen3PerceiverModel", "Qwen3PerceiverPreTrainedModel", "Qwen3PerceiverVLM"]
