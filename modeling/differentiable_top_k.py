"""Choosing k of N documents so that a loss behind the choice trains the scores.

    Z_hard[j] = one-hot of the document at place j               what is used
    Z_soft[j] = softmax(scores, documents at places before j left out)   what the gradient sees
    Z         = Z_hard + Z_soft - stop_gradient(Z_soft)

The straight-through estimator (arXiv 1308.3432) over CLaRa's iterated softmax (arXiv 2511.18659). A document that is
taken has no mass left at later places: its score is minus infinity there, and not merely small.

Shapes: B queries, N documents, K places.
"""

import torch


def differentiable_top_k(
    scores_BN: torch.Tensor, k: int, candidates_BN: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best documents of each query, in order of their score.

    Args:
        scores_BN: already divided by the temperature.
        k: places.
        candidates_BN: True where a document may be chosen for a query; all, where left out.

    Returns:
        Z (B, K, N), in the forward pass one-hot rows, in the backward pass those of the softmax; and the chosen
        documents (B, K). Of a query with fewer than k candidates the last places are empty: rows of zeros, -1.

    Raises:
        ValueError: more places than documents, or none.
    """
    if not 1 <= k <= scores_BN.shape[1]:
        raise ValueError(f"`top_k` is {k}, and there are {scores_BN.shape[1]} documents; choose 1 to that many.")
    open_BN = torch.ones_like(scores_BN, dtype=torch.bool) if candidates_BN is None else candidates_BN
    places, chosen = [], []
    for _ in range(k):
        left_B1 = open_BN.any(dim=-1, keepdim=True)
        # A row without a candidate would be a softmax over nothing; it is computed over all and thrown away.
        masked_BN = scores_BN.masked_fill(~(open_BN | ~left_B1), float("-inf"))
        soft_BN = masked_BN.softmax(dim=-1)
        best_B1 = masked_BN.argmax(dim=-1, keepdim=True)
        hard_BN = torch.zeros_like(soft_BN).scatter(1, best_B1, 1.0)
        places.append(torch.where(left_B1, hard_BN + (soft_BN - soft_BN.detach()), 0.0))
        chosen.append(torch.where(left_B1, best_B1, -1))
        open_BN = open_BN & (hard_BN == 0)
    return torch.stack(places, dim=1), torch.cat(chosen, dim=1)


__all__ = ["differentiable_top_k"]
