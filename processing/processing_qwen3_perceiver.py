"""Processor of the Perceiver VLM: one tokenizer, one image processor, a fixed number of placeholders an image.

transformers' `ProcessorMixin.__call__` does the work; what is ours is how many placeholders an image gets.
"""

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData

from .portable_images import portable_image_processor


class Qwen3PerceiverProcessor(ProcessorMixin):
    """Text with one `<|image_pad|>` an image, and images, to model inputs.

    Args:
        image_processor: the vision tower's own (SigLIP, SigLIP2-NaFlex or timm).
        tokenizer: Qwen3's.
        num_image_tokens: placeholders an image, `Qwen3PerceiverConfig.num_image_tokens`.
        image_token: the placeholder.
        chat_template: defaults to the tokenizer's, which for Qwen3 does not render images; give ours.

    Raises:
        ValueError: the tokenizer does not know the placeholder as one token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_image_tokens: int = 64,
        image_token: str = "<|image_pad|>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        ids = tokenizer.encode(image_token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"The tokenizer splits the image placeholder {image_token!r} into {len(ids)} tokens; it must be one. "
                "Use a Qwen3 tokenizer, or add the placeholder to this one as a special token."
            )
        self.image_token_id = ids[0]
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_vision_language_pretrained(
        cls,
        vision: str,
        language: str,
        num_image_tokens: int,
        chat_template: str,
        vision_revision: str | None = None,
        language_revision: str | None = None,
    ) -> "Qwen3PerceiverProcessor":
        """Assemble from the two base checkpoints, as `Qwen3PerceiverVLM.from_vision_language_pretrained` does."""
        return cls(
            image_processor=portable_image_processor(
                AutoImageProcessor.from_pretrained(vision, revision=vision_revision or "main")
            ),
            tokenizer=AutoTokenizer.from_pretrained(language, revision=language_revision or "main"),
            num_image_tokens=num_image_tokens,
            chat_template=chat_template,
        )

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
