"""Rows of a batch in one sequence without padding, each as if it were alone.

A batch is as wide as its longest row; with answers and images of all sizes most of it can be padding. TRL packs text
only and refuses data with images. Here a collated batch is packed just before its training step:

    a a a a a .          a a a a a b b c c c c     one sequence, no padding
    b b . . . .    ->    0 1 2 3 4 0 1 0 1 2 3     positions begin anew
    c c c c . .          attention runs over each document by itself, images stay in reading order

So a step sees the rows that it would see without packing, and gives the same loss and gradients; accumulation,
resuming, collators, evaluation and generation know nothing of it.

Documents are kept apart by what runs the attention. Flash attention takes the documents' lengths. Beside `sdpa` stands
a function that runs transformers' own once a document, in time of the sum of the lengths' squares. The mask which
transformers makes of positions that begin anew is exact too, but its time and memory are the square of their sum.

Shapes: B rows, S width of the padded batch, T tokens of all rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import is_flash_attention_requested

PACKABLE = {
    "qwen3_perceiver": "Qwen3PerceiverVLM",
    "qwen3_vision_bridge": "Qwen3VisionBridgeForCausalLM",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
SDPA_BY_DOCUMENT = "sdpa_by_document"
PADDED_INPUTS = ("input_ids", "attention_mask", "labels", "mm_token_type_ids")


def attend_by_document(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    document_lengths: tuple[int, ...],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa`, causal, once a document.

    Args:
        module: the attention layer.
        query, key, value: (1, heads, T, head size).
        attention_mask: none is made for an implementation without a mask function.
        document_lengths: their sum is T.

    Returns:
        (1, T, heads, head size), and no weights.
    """
    documents = zip(*(states.split(document_lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *document, None, **kwargs)[0] for document in documents]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(SDPA_BY_DOCUMENT, attend_by_document)


def check_packable(model: PreTrainedModel | PeftModel) -> None:
    """Refuse what packing would get wrong.

    Raises:
        ValueError: another kind of model, a language model whose attention cannot keep documents apart, or PEFT with
            virtual tokens, which has no place for positions.
    """
    if model.config.model_type not in PACKABLE:
        raise ValueError(
            f"Rows cannot be packed for a {model.config.model_type!r} model, only for {', '.join(PACKABLE.values())}. "
            "Leave out `pack_rows`."
        )
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"Packed rows have no place for the virtual tokens of {model.active_peft_config.peft_type.value}. Use LoRA "
            "or leave out `pack_rows`."
        )
    config = _language_model(model).config
    by_flash = is_flash_attention_requested(config)
    if not by_flash and config._attn_implementation != "sdpa":
        raise ValueError(
            "Packed rows are kept apart by sdpa or by a flash attention; the language model has "
            f"{config._attn_implementation!r}. Set `attn_implementation: sdpa` or leave out `pack_rows`."
        )
    if not by_flash and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(
            "The language model has layers with a sliding window, which sdpa on packed rows does not know. Use a flash "
            "attention (`attn_implementation: flash_attention_2`) or leave out `pack_rows`."
        )


def pack_rows(model: PreTrainedModel | PeftModel, batch: dict[str, Any]) -> dict[str, Any]:
    """Lay the rows of a collated batch side by side, for a forward pass within `documents_apart`.

    Args:
        model: one that `check_packable` lets pass.
        batch: `input_ids`, `attention_mask` and `labels` of shape (B, S), padded on either side; images of all rows in
            reading order; whatever else the model takes that has no padding.

    Returns:
        The same with (1, T) in place of (B, S), and what keeps the documents apart. The first label of every document
        is -100: no token of another document predicts it.

    Raises:
        ValueError: a row has more tokens than the language model has positions.
    """
    mask_BS = batch["attention_mask"].bool()
    lengths = tuple(mask_BS.sum(dim=1).tolist())
    limit = model.config.get_text_config().max_position_embeddings
    if max(lengths) > limit:
        raise ValueError(
            f"Row {lengths.index(max(lengths))} of a batch of {len(lengths)} has {max(lengths)} tokens, the language "
            f"model {limit} positions. Shorten the row or its images; packing does not cut it."
        )
    positions_BS = mask_BS.cumsum(dim=1) - 1
    ids_1T = batch["input_ids"][mask_BS][None]
    packed = {name: value for name, value in batch.items() if name not in PADDED_INPUTS}
    packed |= {
        "input_ids": ids_1T,
        "labels": batch["labels"].masked_fill(positions_BS == 0, -100)[mask_BS][None],
        "attention_mask": torch.ones_like(ids_1T),  # for those who count tokens
        "position_ids": _position_ids(model, batch, mask_BS, positions_BS),
    }
    if is_flash_attention_requested(_language_model(model).config):
        ends = torch.tensor((0, *lengths), dtype=torch.int32, device=ids_1T.device).cumsum(0, dtype=torch.int32)
        return packed | {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
    return packed | {"document_lengths": lengths}


def _position_ids(
    model: PreTrainedModel | PeftModel, batch: dict[str, Any], mask_BS: torch.Tensor, positions_BS: torch.Tensor
) -> torch.Tensor:
    """(1, T); for a Qwen3-VL with images (4, 1, T), first the positions of text, then time, height and width."""
    positions_1T = positions_BS[mask_BS][None]
    if model.config.model_type != "qwen3_vl":
        return positions_1T
    spatial_3BS = _head_model(model).model.compute_3d_position_ids(  # as the model itself does for padded rows
        input_ids=batch["input_ids"],
        inputs_embeds=None,
        image_grid_thw=batch.get("image_grid_thw"),
        video_grid_thw=batch.get("video_grid_thw"),
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=batch.get("mm_token_type_ids"),
    )
    if spatial_3BS is None:
        return positions_1T
    return torch.cat([positions_1T, spatial_3BS[:, mask_BS]])[:, None]


@contextmanager
def documents_apart(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within it the language model reads packed rows, its backward pass included.

    Only the configuration of the running language model changes and is put back, so nothing that is saved, evaluated
    or generated outside knows of it.
    """
    config = _language_model(model).config
    usual = config._attn_implementation
    if not is_flash_attention_requested(config):
        config._attn_implementation = SDPA_BY_DOCUMENT
    try:
        yield
    finally:
        config._attn_implementation = usual


def _head_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _language_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return _head_model(model).model.language_model


__all__ = ["attend_by_document", "check_packable", "documents_apart", "pack_rows"]
