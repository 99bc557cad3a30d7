"""Qwen's attention with fewer kernels where one token is decoded, and no bit changed.

A recursive model evaluates many layers a token, and for one token the launch of a kernel costs more than its work.
Queries and keys are normalised and rotated alike, head by head: laid side by side they go through both at once, where
stock attention does everything twice. Longer inputs take the stock way, and so do layers whose weights are elsewhere
until they run.

Shapes: B batch, D width, C width of a head.
"""

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, eager_attention_forward

from .fused_norm import FusedRMSNorm


class _FusedAttention:
    """Put before a stock attention; `_norm_weights` are those of its queries and keys."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the stock attention: (B, 1, D) to (B, 1, D) and the attention weights, if there are any."""
        batch, length = hidden_states.shape[:2]
        norms = None if length != 1 or self.training else self._norm_weights()
        if norms is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        width = self.head_dim
        projected = torch.cat((self.q_proj(hidden_states), self.k_proj(hidden_states)), dim=-1).view(batch, -1, width)
        values = self.v_proj(hidden_states).view(batch, -1, 1, width)
        key_heads = values.shape[1]
        heads = projected.shape[1] - key_heads
        if norms:
            weights = torch.cat([norms[0]] * heads + [norms[1]] * key_heads).view(-1, width)
            projected = weights * torch.rms_norm(projected, (width,), None, self.q_norm.variance_epsilon)
        cos, sin = position_embeddings
        first, second = projected.chunk(2, dim=-1)
        rotated = (projected * cos + torch.cat((-second, first), dim=-1) * sin).unsqueeze(2)
        keys = rotated[:, heads:]
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            rotated[:, :heads],
            keys,
            values,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(attended.reshape(batch, 1, -1)), weights


class FusedQwen2Attention(_FusedAttention, Qwen2Attention):
    """Qwen2's attention; queries and keys have no norms."""

    def _norm_weights(self) -> tuple[torch.Tensor, ...]:
        return ()


class FusedQwen3Attention(_FusedAttention, Qwen3Attention):
    """Qwen3's attention."""

    def _norm_weights(self) -> tuple[torch.Tensor, ...] | None:
        """(C) of the queries and of the keys; None where they can't be used without calling the norms."""
        norm, weights = self.q_norm, (self.q_norm.weight, self.k_norm.weight)
        # Another class is a wrapper, and what is on `meta` was offloaded until its own module is called.
        away = type(norm) is not FusedRMSNorm or weights[0].is_meta or weights[1].is_meta
        return None if away else weights


__all__ = ["FusedQwen2Attention", "FusedQwen3Attention"]
