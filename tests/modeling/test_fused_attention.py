"""Fused attention: the stock layer's numbers, bit for bit, for one token and for many."""

from collections.abc import Callable

import pytest
import torch
from contracts.model_contract import generator, randomize
from tiny_recursive import SIZES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import RopeParameters

from qwen_grafts.modeling.fused_attention import FusedQwen2Attention, FusedQwen3Attention
from qwen_grafts.modeling.fused_norm import fuse_norms

KINDS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, FusedQwen2Attention),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, FusedQwen3Attention),
}
YARN: RopeParameters = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}


def stock_and_fused(kind: str, dtype: torch.dtype, **settings: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two models with the same weights."""
    config_class, model_class, attention_class = KINDS[kind]
    config = config_class(**(SIZES | settings))
    stock, fused = (model_class._from_config(config, dtype=dtype).eval() for _ in range(2))
    for index, layer in enumerate(fused.model.layers):
        layer.self_attn = attention_class(fused.config, index).to(dtype)
    fuse_norms(fused.eval())
    randomize(stock)
    fused.load_state_dict(stock.state_dict())
    return stock, fused


class Operations(TorchDispatchMode):
    """Counts what runs."""

    count = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"num_key_value_heads": 4}, {"rope_parameters": YARN}], ids=str)
def test_decoding_is_the_stock_models(kind: str, dtype: torch.dtype, attention: str, settings: dict) -> None:
    models = stock_and_fused(kind, dtype, **settings, attn_implementation=attention)
    ids = torch.randint(2, 160, (3, 9), generator=generator(1))
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :4] = 0  # left padding: a mask that the kernels must see
    caches = [DynamicCache(config=model.config) for model in models]
    with torch.no_grad():
        for step in range(4):
            tokens = ids if step == 0 else ids[:, step : step + 1]
            stock, fused = (
                model(tokens, attention_mask=mask[:, : 9 + step], past_key_values=cache, output_attentions=True)
                for model, cache in zip(models, caches, strict=True)
            )
            assert torch.equal(fused.logits, stock.logits), step
            for ours, theirs in zip(fused.attentions or (), stock.attentions or (), strict=True):
                assert torch.equal(ours, theirs) if ours is not None else theirs is None


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_fewer_kernels(kind: str) -> None:
    counts = []
    for model in stock_and_fused(kind, torch.bfloat16):
        with torch.no_grad(), Operations() as operations:
            model(torch.tensor([[5]]), use_cache=False)
        counts.append(operations.count)
    saved = (counts[0] - counts[1]) / SIZES["num_hidden_layers"]
    assert saved >= {"qwen2": 3, "qwen3": 9}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_has_the_stock_models_gradients(kind: str) -> None:
    models = stock_and_fused(kind, torch.float32, attention_dropout=0.5)
    for train in (False, True):  # with dropout, and so not at all the same as without
        grads = []
        for model in models:
            torch.manual_seed(0)
            model.train(train).zero_grad()
            model(torch.tensor([[5], [7]])).logits.square().sum().backward()
            grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6, msg=name)
