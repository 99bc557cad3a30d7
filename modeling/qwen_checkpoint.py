"""A published Qwen: what has to be known before its weights are read, and the reading of them."""

from collections.abc import Sequence

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from .checkpoint_tensors import read_tensors


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


def read_language_tensors(
    name: str,
    config: PreTrainedConfig,
    *,
    revision: str | None,
    dtype: str | torch.dtype,
    leave: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """All tensors of a language model that are wanted, by name; see `read_tensors`.

    Args:
        config: of the checkpoint.
        dtype: of the result; "auto" leaves every tensor as it is stored.
        leave: beginnings of the names of tensors that are not wanted.

    Raises:
        ValueError: no safetensors checkpoint, or one of its files is missing or damaged.
    """
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    if config.tie_word_embeddings:
        # Some tied checkpoints store the head all the same: a second copy of the embeddings.
        leave = (*leave, "lm_head.")
    return read_tensors(name, part="language", revision=revision, dtype=dtype, leave=leave)


def read_generation_config(name: str, revision: str | None, config: PreTrainedConfig) -> GenerationConfig:
    """A checkpoint's generation settings; not every checkpoint has them."""
    try:
        return GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(config)


__all__ = ["read_generation_config", "read_language_config", "read_language_tensors"]
