"""The architectures. Imports `configuration/` only."""

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from ..configuration import Qwen3PerceiverConfig
from .modeling_qwen3_perceiver import Qwen3PerceiverModel, Qwen3PerceiverVLM

for _auto_class, _config_class, _model_class in (
    (AutoModel, Qwen3PerceiverConfig, Qwen3PerceiverModel),
    (AutoModelForCausalLM, Qwen3PerceiverConfig, Qwen3PerceiverVLM),
    (AutoModelForImageTextToText, Qwen3PerceiverConfig, Qwen3PerceiverVLM),
):
    _auto_class.register(_config_class, _model_class, exist_ok=True)

__all__ = ["Qwen3PerceiverModel", "Qwen3PerceiverVLM"]
