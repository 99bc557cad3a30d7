"""Processor of the Perceiver VLM: one tokenizer, one image processor, a fixed number of placeholders an image."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.processing_utils import MultiModalData

from .portable_images import portable_image_processor
from .vision_language_processing import VisionLanguageProcessor


class Qwen3PerceiverProcessor(VisionLanguageProcessor):
    """Text with one `<|image_pad|>` an image, and images, to model inputs.

    Args:
        image_processor: the vision tower's own (SigLIP, SigLIP2-NaFlex or timm).
        tokenizer: Qwen3's.
        num_image_tokens: placeholders an image, `Qwen3PerceiverConfig.num_image_tokens`.
        chat_template: defaults to the tokenizer's, which for Qwen3 does not render images; give ours.

    Raises:
        ValueError: the tokenizer lacks a vision token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_image_tokens: int = 64,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def adapt_image_processor(cls, image_processor: Any) -> Any:
        """timm's cannot be saved inside a processor; a stock one that does the same takes its place."""
        return portable_image_processor(image_processor)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for one image."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """Placeholders for images of the given (height, width); vLLM asks before it sees any pixel."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


__all__ = ["Qwen3PerceiverProcessor"]
