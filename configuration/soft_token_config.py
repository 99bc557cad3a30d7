"""What the configurations share of all grafts that splice soft tokens into a Qwen3: images, documents.

A graft's own configuration adds what its soft tokens are made from.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config


@strict
class SoftTokenConfig(PreTrainedConfig):
    """Base of the configuration of a graft with a stock Qwen3 inside.

    Args:
        text_config: `Qwen3Config` (or its dict) of the language model.
        tie_word_embeddings: whether the head is the embedding; follows `text_config` when left out.
        base_models: where frozen parts came from: part -> {"repo_id", "revision"}.
        graft_only: the repository holds the new parts alone; loading fetches `base_models` and assembles.

    Attributes:
        base_parts: the parts that `base_models` names.
        token_ids: names of values that are ids of the tokenizer.

    Raises:
        ValueError: an unsupported language model, a special token outside the vocabulary, or `graft_only` without the
            bases.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    base_parts = ("language",)
    token_ids = ()

    text_config: dict[str, Any] | PreTrainedConfig | None = None
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
        if self.graft_only and set(self.base_models or {}) != set(self.base_parts):
            raise ValueError(
                f"`graft_only` needs `base_models` with a {' and a '.join(self.base_parts)} repository of the Hub."
            )
        vocab_size = self.text_config.vocab_size
        for name in self.token_ids:
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


__all__ = ["SoftTokenConfig"]
