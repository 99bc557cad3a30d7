"""What the processors of all vision grafts share: Qwen3's vision tokens, and assembly from base checkpoints.

transformers' `ProcessorMixin.__call__` does the work. A graft's own processor says what stands in the text for one
image (`replace_image_token`) and how many tokens that is before any pixel is seen (`_get_num_multimodal_tokens`).
"""

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from .thinking import ThinkingMixin, set_response_template

# Name in a vision graft's configuration -> the token of Qwen3's tokenizer that it is the id of.
VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def vision_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Configuration name -> id of Qwen3's vision tokens.

    Raises:
        ValueError: the tokenizer splits one of them, or has no such token.
    """
    ids = {name: tokenizer.encode(token, add_special_tokens=False) for name, token in VISION_TOKENS.items()}
    if split := [VISION_TOKENS[name] for name, found in ids.items() if len(found) != 1]:
        raise ValueError(
            f"The tokenizer lacks {len(split)} of {len(VISION_TOKENS)} vision tokens: {', '.join(split)}. Use the "
            "tokenizer of a Qwen3, or add them to this one as special tokens."
        )
    return {name: found[0] for name, found in ids.items()}


class VisionLanguageProcessor(ThinkingMixin, ProcessorMixin):
    """Base of a vision graft's processor. `parse_response` of what it inherits tells a thought from the answer.

    Args:
        image_processor: the vision tower's own.
        tokenizer: Qwen3's.
        chat_template: defaults to the tokenizer's, which for Qwen3 does not render images; give ours.

    Raises:
        ValueError: the tokenizer lacks a vision token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = VISION_TOKENS["image_token_id"]
        self.image_token_id = vision_token_ids(tokenizer)["image_token_id"]
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_vision_language_pretrained(
        cls,
        vision: str,
        language: str,
        *,
        chat_template: str,
        vision_revision: str | None = None,
        language_revision: str | None = None,
        **settings: Any,
    ) -> "VisionLanguageProcessor":
        """Assemble from the two base checkpoints, as the model's method of this name does.

        Args:
            settings: further arguments of the processor.
        """
        image_processor = AutoImageProcessor.from_pretrained(vision, revision=vision_revision or "main")
        tokenizer = AutoTokenizer.from_pretrained(language, revision=language_revision or "main")
        return cls(
            cls.adapt_image_processor(image_processor),
            set_response_template(tokenizer),
            chat_template=chat_template,
            **settings,
        )

    @classmethod
    def adapt_image_processor(cls, image_processor: Any) -> Any:
        """The image processor as the graft's processor keeps it."""
        return image_processor


__all__ = ["VISION_TOKENS", "VisionLanguageProcessor", "vision_token_ids"]
