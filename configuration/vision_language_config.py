"""What the configurations of all vision grafts share: Qwen3's vision tokens.

A graft's own configuration adds the settings of its new part.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .soft_token_config import SoftTokenConfig


@strict
class VisionLanguageConfig(SoftTokenConfig):
    """Base of a vision graft's configuration.

    Args:
        vision_config: of the tower.
        image_token_id: placeholder in `input_ids` that a soft token replaces; Qwen3's `<|image_pad|>`.
        vision_start_token_id: `<|vision_start|>`, written before an image by the chat template.
        vision_end_token_id: `<|vision_end|>`, written after it.
        (the rest): see `SoftTokenConfig`.

    Raises:
        ValueError: an unsupported language model, or a special token outside the vocabulary.
    """

    base_parts = ("vision", "language")
    token_ids = ("image_token_id", "vision_start_token_id", "vision_end_token_id")

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653


__all__ = ["VisionLanguageConfig"]
