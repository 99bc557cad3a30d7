"""The vocabulary's embeddings with trained rows for a few new tokens, which are stored apart.

A checkpoint of a model that learned eight tokens need not hold 151,936 rows: the table stays the base's, and what was
learned is a parameter of its own. Whoever asks for the input embeddings gets both.
"""

import torch
from torch import nn
from torch.nn import functional


class MemoryEmbedding(nn.Embedding):
    """`nn.Embedding` in which the rows from an id on are those of `memory`.

    Args:
        stock: of the language model.
        first: id of the first new token.
        count: number of new tokens.

    Attributes:
        memory: (count, D), trained; the rows of `weight` at these ids are never read.
    """

    def __init__(self, stock: nn.Embedding, first: int, count: int) -> None:
        super().__init__(stock.num_embeddings, stock.embedding_dim, stock.padding_idx)
        self.memory = nn.Parameter(torch.empty(count, stock.embedding_dim))
        self.first, self.count = first, count

    def reset_memory(self, std: float) -> None:
        """New rows as those of a new vocabulary are."""
        nn.init.normal_(self.memory, std=std)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(…) ids to (…, D)."""
        rows = ids - self.first
        new = (rows >= 0) & (rows < self.count)
        memory = functional.embedding(rows.clamp(0, self.count - 1), self.memory)
        return torch.where(new.unsqueeze(-1), memory.to(self.weight.dtype), super().forward(ids))


__all__ = ["MemoryEmbedding"]
