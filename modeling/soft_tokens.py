"""The one idea that the vision and memory grafts share: soft tokens spliced into Qwen3's embedding stream.

A soft token is a vector of the language model's width that did not come from the vocabulary: an image latent, a
document latent. The prompt holds one placeholder id for each, so `input_ids`, `labels` and the attention mask stay
aligned one to one with the hidden states and every trainer, cache and mask of stock Qwen3 works unchanged.

Shapes: B batch, S sequence, N placeholders in the whole batch, D language width.
"""

from collections.abc import Callable

import torch
from transformers.utils import torch_compilable_check


def splice_soft_tokens(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    soft_tokens: list[torch.Tensor],
    placeholder_id: int,
    embed: Callable[[torch.Tensor], torch.Tensor],
    name: str = "Image",
) -> torch.Tensor:
    """Put `soft_tokens` where the placeholders stand, in reading order.

    Args:
        input_ids: (B, S), or None when the caller gives embeddings only.
        inputs_embeds: (B, S, D).
        soft_tokens: one (tokens, D) tensor an item (image, document), in the order of the prompt.
        placeholder_id: the id that marks a soft token.
        embed: the embedding module; tells the placeholders apart when `input_ids` is None.
        name: what the soft tokens are, for the error.

    Returns:
        (B, S, D) embeddings; gradients reach `soft_tokens` and the text embeddings.

    Raises:
        ValueError: the number of placeholders differs from the number of soft tokens.
    """
    if input_ids is None:
        placeholder = embed(torch.tensor(placeholder_id, dtype=torch.long, device=inputs_embeds.device))
        mask_BS = (inputs_embeds == placeholder).all(-1)
    else:
        mask_BS = input_ids == placeholder_id
    soft_ND = torch.cat(soft_tokens, dim=0).to(inputs_embeds.device, inputs_embeds.dtype)
    torch_compilable_check(
        mask_BS.sum() * inputs_embeds.shape[-1] == soft_ND.numel(),
        lambda: (
            f"{name} features and {name.lower()} tokens do not match, tokens: {int(mask_BS.sum())}, features: "
            f"{len(soft_ND)} ({len(soft_tokens)} items; placeholders by row: {mask_BS.sum(-1).tolist()}). Let the "
            "processor write the placeholders, and do not truncate its output."
        ),
    )
    return inputs_embeds.masked_scatter(mask_BS.unsqueeze(-1), soft_ND)


__all__ = ["splice_soft_tokens"]
