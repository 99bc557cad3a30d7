"""Low-rank terms of their own for every cycle, on layers whose weights all cycles share.

The core of a recursive model computes the same function each time. `W x + U_c D_c x` with small U and D lets cycle c do
something of its own (relaxed recursive transformers, arXiv 2410.20672). U starts at zero: a new model is its source.

The layers are `CallBoundLayer`s, which are told the cycle with every call.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .call_bound_layers import CallBoundLayer


class LoopLinear(nn.Linear):
    """A linear layer with a low-rank term for each of `cycles` cycles; later cycles use the last one's."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, cycles: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.loop_down = nn.Parameter(torch.empty(cycles, rank, linear.in_features))
        self.loop_up = nn.Parameter(torch.zeros(cycles, linear.out_features, rank))
        self.scaling = alpha / rank
        self.cycle = 0

    def reset_loop_parameters(self) -> None:
        """The term starts at nothing, and not at a point where it would stay nothing."""
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.loop_down, a=math.sqrt(5))
            nn.init.zeros_(self.loop_up)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        cycle = min(self.cycle, self.loop_down.shape[0] - 1)
        low = functional.linear(hidden_states, self.loop_down[cycle])
        return super().forward(hidden_states) + self.scaling * functional.linear(low, self.loop_up[cycle])


class _LoopLayer(CallBoundLayer):
    linear_class, argument, default = LoopLinear, "cycle", 0


class LoopQwen2DecoderLayer(_LoopLayer, Qwen2DecoderLayer):
    """Qwen2's layer with terms for each cycle."""


class LoopQwen3DecoderLayer(_LoopLayer, Qwen3DecoderLayer):
    """Qwen3's layer with terms for each cycle."""


__all__ = ["LoopLinear", "LoopQwen2DecoderLayer", "LoopQwen3DecoderLayer"]
