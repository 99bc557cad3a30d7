"""Which tokens a model's output embeddings mean: a look at what the embedding objective has taught."""

import torch
from torch import nn
from torch.nn import functional


@torch.no_grad()
def nearest_tokens(
    states: torch.Tensor, embeddings: nn.Embedding, top: int = 1, batch_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens whose embeddings point most nearly where each state does.

    Args:
        states: (…, D) output embeddings, as `model.model(input_ids).last_hidden_state`.
        embeddings: of the vocabulary, `model.get_input_embeddings()`.
        top: how many tokens for each state.
        batch_size: states compared at a time; with Qwen3's vocabulary 1,024 take 622 MB.

    Returns:
        Token ids and cosine similarities, nearest first, both (…, top).

    Raises:
        ValueError: states of another width than the embeddings, or more tokens asked for than there are.
    """
    count, width = embeddings.weight.shape
    if states.shape[-1] != width:
        raise ValueError(f"States of width {states.shape[-1]} and embeddings of width {width} cannot be compared.")
    if not 1 <= top <= count:
        raise ValueError(f"`top` is {top}; the vocabulary has {count} tokens.")
    directions_VD = functional.normalize(embeddings.weight.float(), dim=-1)
    found = [
        (functional.normalize(part.to(directions_VD), dim=-1) @ directions_VD.T).topk(top, dim=-1)
        for part in states.reshape(-1, width).split(batch_size)
    ]
    ids, similarities = (torch.cat([getattr(part, name) for part in found]) for name in ("indices", "values"))
    return ids.view(*states.shape[:-1], top), similarities.view(*states.shape[:-1], top)


__all__ = ["nearest_tokens"]
