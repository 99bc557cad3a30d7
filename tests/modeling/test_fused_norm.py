"""Fused norms: the stock layer's numbers, bit for bit, and no stock norm left."""

import copy

import pytest
import torch
from contracts.model_contract import generator, randomize
from tiny_recursive import SIZES
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from qwen_grafts.modeling.fused_norm import FusedRMSNorm, fuse_norms

KINDS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM, 2 * 5 + 1), "qwen3": (Qwen3Config, Qwen3ForCausalLM, 4 * 5 + 1)}


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "variance_epsilon")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_norms_are_the_stock_ones(kind: str, dtype: torch.dtype) -> None:
    config_class, model_class, count = KINDS[kind]
    stock = model_class._from_config(config_class(**SIZES), dtype=dtype).eval()
    randomize(stock)
    fused = fuse_norms(copy.deepcopy(stock))
    assert [type(norm) for norm in norms(fused)] == [FusedRMSNorm] * count
    assert FusedRMSNorm not in map(type, norms(stock))
    weights = fused.state_dict()
    assert list(weights) == list(stock.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in stock.state_dict().items())
    ids = torch.randint(2, 160, (2, 9), generator=generator(1))
    with torch.no_grad():
        assert torch.equal(fused(ids).logits, stock(ids).logits)
