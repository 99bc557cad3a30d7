"""Documents through a CLaRa model into an index of latents, and into one that exists.

    index = index_documents(model, "index", documents)
    model.answer("Who built the lighthouse?", index=index)

The index knows nothing of models, and `latent_build` nothing of CLaRa: this is where they meet.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_clara_qwen3 import chosen_rate
from .latent_build import build_index
from .latent_index import ClaraIndex


def index_documents(
    model: PreTrainedModel,
    directory: str | os.PathLike,
    documents: Iterable[str | Mapping[str, Any]],
    *,
    compression_rate: int | None = None,
    **build: Any,
) -> ClaraIndex | None:
    """Compress documents into a new index; called again after it was stopped, it goes on.

    Args:
        model: a CLaRa model, with or without its head.
        documents: texts, or mappings with "text" and perhaps "id".
        compression_rate: default the checkpoint's first rate.
        build: `dtype`, `batch_size`, `shard_size`, `num_processes` and `process_index` of `build_index`.

    Returns:
        The index; None as long as other processes have shards to build.

    Raises:
        ValueError: what `build_index` refuses, or a rate that the checkpoint has not.
    """
    backbone, config = model.base_model, model.config
    rate = chosen_rate(compression_rate, config.compression_rates)
    return build_index(
        directory,
        documents,
        compress_passages(model, rate),
        fingerprint=backbone.fingerprint(rate),
        compression_rate=rate,
        num_memory_tokens=config.num_memory_tokens(rate),
        hidden_size=config.text_config.hidden_size,
        **build,
    )


def add_documents(model: PreTrainedModel, index: ClaraIndex, documents: Sequence[str | Mapping[str, Any]]) -> None:
    """Append documents to an index that the same compressor made.

    Raises:
        ValueError: another compressor, an id that is there already, or an empty document.
    """
    rate = index.settings.compression_rate
    index.check(model.base_model.fingerprint(rate))
    texts = [document if isinstance(document, str) else document["text"] for document in documents]
    compressed = compress_passages(model, rate)(texts)
    index.add(documents, [latents for _, latents in compressed], [passages for passages, _ in compressed])


def compress_passages(
    model: PreTrainedModel, compression_rate: int
) -> Callable[[list[str]], list[tuple[list[str], torch.Tensor]]]:
    """What makes of texts, for each, the texts of its passages and their latents (passages, M, D)."""
    backbone = model.base_model

    def compress(texts: list[str]) -> list[tuple[list[str], torch.Tensor]]:
        cut = [backbone.processor.passages(text) for text in texts]
        latents = backbone.compress_passages(cut, compression_rate=compression_rate)
        return [([piece.text for piece in pieces], part.cpu()) for pieces, part in zip(cut, latents, strict=True)]

    return compress


__all__ = ["add_documents", "compress_passages", "index_documents"]
