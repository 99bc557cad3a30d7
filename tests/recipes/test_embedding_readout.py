"""The nearest-token read-out against one dot product at a time."""

import pytest
import torch
from torch import nn

from qwen_grafts.recipes.embedding_readout import nearest_tokens


def test_nearest_tokens_in_batches():
    torch.manual_seed(0)
    embeddings = nn.Embedding(40, 8)
    embeddings.weight.data *= torch.linspace(0.1, 5.0, 40)[:, None]  # length does not count
    states = torch.randn(3, 5, 8)
    ids, similarities = nearest_tokens(states, embeddings, top=3, batch_size=4)
    assert ids.shape == similarities.shape == (3, 5, 3)
    for row in range(3):
        for position in range(5):
            state = states[row, position]
            cosines = [(state @ vector / state.norm() / vector.norm()).item() for vector in embeddings.weight]
            wanted = sorted(range(40), key=cosines.__getitem__, reverse=True)[:3]
            assert ids[row, position].tolist() == wanted
            assert similarities[row, position].tolist() == pytest.approx([cosines[token] for token in wanted], abs=1e-6)
    assert not similarities.requires_grad


def test_an_embedding_is_its_own_nearest_token():
    embeddings = nn.Embedding(40, 8, dtype=torch.bfloat16)
    ids, similarities = nearest_tokens(3.0 * embeddings.weight.detach(), embeddings)
    assert ids[:, 0].tolist() == list(range(40))
    torch.testing.assert_close(similarities, torch.ones(40, 1), atol=1e-3, rtol=0)


def test_what_cannot_be_read_out():
    with pytest.raises(ValueError, match="width 7 and embeddings of width 8"):
        nearest_tokens(torch.zeros(2, 7), nn.Embedding(40, 8))
    with pytest.raises(ValueError, match="the vocabulary has 40 tokens"):
        nearest_tokens(torch.zeros(2, 8), nn.Embedding(40, 8), top=41)
