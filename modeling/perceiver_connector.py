"""Perceiver connector: a fixed number of learned queries reads any number of patches, an MLP maps them to Qwen3.

Differs from Flamingo's resampler (arXiv 2204.14198) where the specified parameter counts demand it: latents attend to
the patches alone (not to themselves as well), patches share one input projection, and the linear layers have biases.
Added, each off by default: 2-D sine-cosine positions on the keys (without them the latents see a *set* of patches and
"where?" has no answer), LayerNorm on the patches, and a final LayerNorm.

Shapes: I images, P patches, L latents, C vision width, W latent width = H heads x K head width, D language width.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import eager_attention_forward

from ..configuration.configuration_qwen3_perceiver import Qwen3PerceiverConnectorConfig
from .vision_towers import PatchFeatures


class PerceiverAttention(nn.Module):
    """Cross-attention of the latents to the patches, through transformers' attention interface.

    Separate q, k, v and o projections: LoRA and 4-bit quantisation reach each of them.
    """

    is_causal = False

    def __init__(self, config: Qwen3PerceiverConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        width = config.latent_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self,
        latents_ILW: torch.Tensor,
        patches_IPW: torch.Tensor,
        positions_IPW: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(I, L, W), (I, P, W) -> (I, L, W). Positions are added to what the keys are made of, not to the values."""
        keyed_IPW = patches_IPW if positions_IPW is None else patches_IPW + positions_IPW
        query_IHLK = self._split_heads(self.q_proj(latents_ILW))
        key_IHPK = self._split_heads(self.k_proj(keyed_IPW))
        value_IHPK = self._split_heads(self.v_proj(patches_IPW))
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed_ILHK, _ = attention(
            self,
            query_IHLK,
            key_IHPK,
            value_IHPK,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            is_causal=False,
            **kwargs,
        )
        return self.o_proj(mixed_ILHK.flatten(2))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class PerceiverMLP(nn.Module):
    """Linear, activation, linear; the resampler's inner MLP and the projector are both one."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int, hidden_act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_size, hidden_size)
        self.act = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(hidden_size, out_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., in_size) -> (..., out_size)."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class PerceiverLayer(nn.Module):
    """Pre-norm cross-attention and MLP on the latents, each with a residual."""

    def __init__(self, config: Qwen3PerceiverConnectorConfig) -> None:
        super().__init__()
        width = config.latent_size
        self.ln1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.cross_attn = PerceiverAttention(config)
        self.ln2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = PerceiverMLP(width, int(width * config.mlp_ratio), width, config.hidden_act)

    def forward(
        self,
        latents_ILW: torch.Tensor,
        patches_IPW: torch.Tensor,
        positions_IPW: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(I, L, W) -> (I, L, W)."""
        attended = self.cross_attn(self.ln1(latents_ILW), patches_IPW, positions_IPW, attention_mask, **kwargs)
        latents_ILW = latents_ILW + attended
        return latents_ILW + self.mlp(self.ln2(latents_ILW))


class PerceiverResampler(nn.Module):
    """(I, P, C) patches -> (I, L, W) latents, whatever P is."""

    def __init__(self, config: Qwen3PerceiverConnectorConfig, vision_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.latent_size
        self.proj_in = nn.Linear(vision_size, width)
        self.latents = nn.Parameter(torch.empty(config.num_latents, width))
        self.kv_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.kv_layer_norm else nn.Identity()
        self.layers = nn.ModuleList([PerceiverLayer(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.final_layer_norm else nn.Identity()

    def forward(self, patches: PatchFeatures, **kwargs: Any) -> torch.Tensor:
        """Read the patches; padded ones (NaFlex) are masked out."""
        patches_IPW = self.kv_norm(self.proj_in(patches.hidden_states))
        positions_IPW = None
        if self.config.position_encoding == "sincos2d":
            positions_IPW = sincos_2d_positions(patches.grid, patches_IPW.shape[1], patches_IPW.shape[-1])
            positions_IPW = positions_IPW.to(patches_IPW)
        latents_ILW = self.latents.expand(patches_IPW.shape[0], -1, -1)
        attention_mask = None
        if patches.mask is not None:
            attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=latents_ILW,
                attention_mask=patches.mask,
                encoder_hidden_states=patches_IPW,
            )
        for layer in self.layers:
            latents_ILW = layer(latents_ILW, patches_IPW, positions_IPW, attention_mask, **kwargs)
        return self.norm(latents_ILW)


class PerceiverConnector(PreTrainedModel):
    """Everything stage 1 trains: optional LayerNorm on the tower's output, resampler, projector.

    A `PreTrainedModel` of its own, so that its attention implementation is chosen and changed like that of the tower
    and of the language model.
    """

    config: Qwen3PerceiverConnectorConfig
    config_class = Qwen3PerceiverConnectorConfig
    base_model_prefix = "connector"
    main_input_name = "patches"
    _no_split_modules = ["PerceiverLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Qwen3PerceiverConnectorConfig, vision_size: int, language_size: int) -> None:
        super().__init__(config)
        self.vision_ln = (
            nn.LayerNorm(vision_size, eps=config.layer_norm_eps) if config.vision_layer_norm else nn.Identity()
        )
        self.resampler = PerceiverResampler(config, vision_size)
        self.projector = PerceiverMLP(
            config.latent_size, int(language_size * config.projector_mlp_ratio), language_size, config.hidden_act
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers by their fan-in, LayerNorm as everywhere in transformers, latents apart from each other.

        With transformers' usual 0.02 the attention logits of a narrow resampler start at zero, all latents read the
        same mean patch, and training spends its first thousand steps telling them apart.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and self.config.initializer_range is None:
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents, mean=0.0, std=self.config.latent_init_std)

    def forward(self, patches: PatchFeatures, **kwargs: Any) -> torch.Tensor:
        """(I, P, C) -> (I, L, D)."""
        hidden_states = self.vision_ln(patches.hidden_states.to(self.projector.fc1.weight.dtype))
        latents = self.resampler(PatchFeatures(hidden_states, patches.grid, patches.mask), **kwargs)
        return self.projector(latents)


def sincos_2d_positions(grid: tuple[int, int] | torch.Tensor, num_patches: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine codes in raster order: the first half of the width tells the row, the second the column.

    Args:
        grid: (height, width) in patches for all images, or an (I, 2) tensor of one grid an image.
        num_patches: length to write; positions past an image's own grid are padding and hold meaningless codes.
        width: code width, divisible by 4.

    Returns:
        (1, P, width) or (I, P, width) in float32.

    Source: MAE's `get_2d_sincos_pos_embed` (arXiv 2111.06377), temperature 10,000.
    """
    quarter = width // 4
    if isinstance(grid, torch.Tensor):
        columns_I1, device = grid[:, 1:].to(torch.float32), grid.device
    else:
        columns_I1, device = torch.tensor([[float(grid[1])]]), None
    index_P = torch.arange(num_patches, dtype=torch.float32, device=device)
    row_IP = torch.div(index_P, columns_I1, rounding_mode="floor")
    column_IP = index_P - row_IP * columns_I1
    frequencies = 10_000 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    row, column = row_IP.unsqueeze(-1) * frequencies, column_IP.unsqueeze(-1) * frequencies
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)


__all__ = ["PerceiverConnector", "sincos_2d_positions"]
