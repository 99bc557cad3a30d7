"""What has to be known of a published Qwen before its weights are read."""

from collections.abc import Sequence

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig


def read_language_config(name: str, revision: str | None, kinds: Sequence[str]) -> PreTrainedConfig:
    """The configuration of a dense language model that can be grafted onto.

    Args:
        name: repository id or folder.
        revision: branch, tag or commit of a repository.
        kinds: `model_type`s that will do.

    Raises:
        ValueError: another kind of model, or a quantised one.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    if config.model_type not in kinds:
        wanted = " or ".join(f"{kind.capitalize()} (`{kind}`)" for kind in kinds)
        raise ValueError(f"{name!r} holds a {config.model_type!r} model; the language model must be a dense {wanted}.")
    if quantization := getattr(config, "quantization_config", None):
        method = dict(quantization).get("quant_method", "some")
        raise ValueError(
            f"{name!r} is quantised ({method}); a graft starts from full weights. Choose the checkpoint it was made "
            "from, and quantise the assembled model when loading it."
        )
    return config


def read_generation_config(name: str, revision: str | None, config: PreTrainedConfig) -> GenerationConfig:
    """A checkpoint's generation settings; not every checkpoint has them."""
    try:
        return GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(config)


__all__ = ["read_generation_config", "read_language_config"]
