"""Qwen3's backbone in several roles: stock but for the linear layers, which have roles, and a few new embeddings."""

import torch
from torch import nn
from transformers import Qwen3Model

from ..configuration.configuration_clara_qwen3 import ROLES, ClaraQwen3Config
from .memory_embedding import MemoryEmbedding
from .role_lora import RoleQwen3DecoderLayer, RoleTerms


class RoleQwen3Model(Qwen3Model):
    """`Qwen3Model` whose `forward` takes `role`, and without one is the stock model."""

    _no_split_modules = ["RoleQwen3DecoderLayer"]

    def __init__(self, config: ClaraQwen3Config) -> None:
        text = config.text_config
        super().__init__(text)
        self.embed_tokens = MemoryEmbedding(self.embed_tokens, config.separator_token_id, config.num_new_embeddings)
        self.layers = nn.ModuleList(RoleQwen3DecoderLayer(text, index) for index in range(text.num_hidden_layers))
        for layer in self.layers:
            layer.exchange_linears(ROLES, config.lora_rank, config.lora_alpha, config.lora_dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RoleTerms):
            module.reset(list(module))
        elif isinstance(module, MemoryEmbedding):
            module.reset_memory(self.config.initializer_range)


__all__ = ["RoleQwen3Model"]
