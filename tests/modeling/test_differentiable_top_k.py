"""The differentiable choice: hard forward, the definition's gradient, nothing on what was taken."""

import pytest
import torch

from qwen_grafts.modeling.differentiable_top_k import differentiable_top_k


def naive(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, list[int]]:
    """One query, straight from the definition: the softmax over what is left, document by document."""
    taken: list[int] = []
    soft = []
    for _ in range(k):
        left = [index for index in range(len(scores)) if index not in taken]
        exponentials = torch.stack([torch.exp(scores[index] - scores[left].max().detach()) for index in left])
        row = torch.zeros(len(scores))
        row[left] = exponentials / exponentials.sum()
        soft.append(row)
        taken.append(max(left, key=lambda index: float(scores[index])))
    return torch.stack(soft), taken


def scores(rows: int = 3, documents: int = 7, seed: int = 0) -> torch.Tensor:
    """Cosines at temperature 0.02, as they are in use."""
    return torch.rand(rows, documents, generator=torch.Generator().manual_seed(seed)) / 0.02


@pytest.mark.parametrize("k", [1, 3, 7])
def test_forward_is_the_hard_choice(k: int) -> None:
    places, chosen = differentiable_top_k(scores(), k)
    assert torch.equal(chosen, scores().topk(k).indices)
    assert torch.equal(places, torch.nn.functional.one_hot(chosen, 7).float())


@pytest.mark.parametrize("temperature", [0.02, 1.0])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_gradient_is_the_definitions(k: int, temperature: float) -> None:
    raw = (scores() * 0.02 / temperature).requires_grad_(True)
    weights = torch.randn(3, k, 7, generator=torch.Generator().manual_seed(1))
    places, _ = differentiable_top_k(raw, k)
    (places * weights).sum().backward()
    again = raw.detach().clone().requires_grad_(True)
    sum((naive(row, k)[0] * weight).sum() for row, weight in zip(again, weights, strict=True)).backward()
    assert torch.allclose(raw.grad, again.grad, atol=1e-6)
    assert k == 7 or raw.grad.any()


def test_no_mass_on_documents_already_taken() -> None:
    """At a cosine gap of 0.45, log(1e-8) in place of minus infinity would leave 98 % of it there."""
    raw = (torch.tensor([[0.95, 0.5, 0.48]]) / 0.02).requires_grad_(True)
    places, _ = differentiable_top_k(raw, 2)
    places[0, 1, 0].backward(retain_graph=True)
    assert not raw.grad.any()
    raw.grad = None
    places[0, 1, 1].backward()
    assert raw.grad[0, 0] == 0 and raw.grad[0, 1] > 0 and raw.grad[0, 2] < 0


def test_candidates_and_empty_places() -> None:
    raw = scores(2, 4).requires_grad_(True)
    open_documents = torch.tensor([[True, False, True, False], [False, False, False, False]])
    places, chosen = differentiable_top_k(raw, 3, open_documents)
    best = [0, 2] if raw[0, 0] > raw[0, 2] else [2, 0]
    assert chosen.tolist() == [[*best, -1], [-1, -1, -1]]
    assert places.sum(-1).tolist() == [[1, 1, 0], [0, 0, 0]]
    (places * torch.randn(places.shape)).sum().backward()
    assert raw.grad.isfinite().all()
    assert not raw.grad[1].any() and raw.grad[0, 1] == raw.grad[0, 3] == 0


@pytest.mark.parametrize("k", [0, 8])
def test_places_are_as_many_as_there_are_documents_at_most(k: int) -> None:
    with pytest.raises(ValueError, match=f"`top_k` is {k}, and there are 7 documents"):
        differentiable_top_k(scores(), k)
