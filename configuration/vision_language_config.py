"""What the configurations of all vision grafts share: the language model, Qwen3's vision tokens, where bases came from.

A graft's own configuration adds `vision_config` and the settings of its new part.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config


@strict
class VisionLanguageConfig(PreTrainedConfig):
    """Base of a vision graft's configuration.

    Args:
        text_config: `Qwen3Config` (or its dict) of the language model.
        image_token_id: placeholder in `input_ids` that a soft token replaces; Qwen3's `<|image_pad|>`.
        vision_start_token_id: `<|vision_start|>`, written before an image by the chat template.
        vision_end_token_id: `<|vision_end|>`, written after it.
        tie_word_embeddings: whether the head is the embedding; follows `text_config` when left out.
        base_models: where frozen parts came from: "vision" and "language" -> {"repo_id", "revision"}.
        graft_only: the repository holds the new part alone; loading fetches `base_models` and assembles.

    Raises:
        ValueError: an unsupported language model, or a special token outside the vocabulary.
    """

    keys_to_ignore_at_inference = ["past_key_values"]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool | None = None
    base_models: dict[str, dict[str, str]] | None = None
    graft_only: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = Qwen3Config()
        elif isinstance(self.text_config, dict):
            _check_language_model(self.text_config.get("model_type", "qwen3"))
            self.text_config = Qwen3Config(**self.text_config)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)
        # Not in transformers' `validate_*`, whose errors are no ValueErrors.
        _check_language_model(self.text_config.model_type)
        if self.graft_only and set(self.base_models or {}) != {"vision", "language"}:
            raise ValueError("`graft_only` needs `base_models` with a vision and a language repository of the Hub.")
        vocab_size = self.text_config.vocab_size
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(
                    f"`{name}`={getattr(self, name)} is outside the language model's vocabulary of {vocab_size} rows. "
                    "Give the id that the tokenizer uses."
                )


def _check_language_model(model_type: str | None) -> None:
    if model_type != "qwen3":
        raise ValueError(
            f"`text_config.model_type` is {model_type!r}; the language model must be a dense Qwen3 (`qwen3`)."
        )


__all__ = ["VisionLanguageConfig"]
