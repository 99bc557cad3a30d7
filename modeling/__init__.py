"""The architectures. Imports `configuration/` only."""

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from ..configuration import Qwen3PerceiverConfig, Qwen3VisionBridgeConfig, RecursiveQwenConfig
from .modeling_qwen3_perceiver import Qwen3PerceiverModel, Qwen3PerceiverVLM
from .modeling_qwen3_vision_bridge import Qwen3VisionBridgeForCausalLM, Qwen3VisionBridgeModel
from .modeling_recursive_qwen import RecursiveQwenForCausalLM, RecursiveQwenModel
from .recursive_cache import RecursiveCache

for _config_class, _backbone_class, _model_class in (
    (Qwen3PerceiverConfig, Qwen3PerceiverModel, Qwen3PerceiverVLM),
    (Qwen3VisionBridgeConfig, Qwen3VisionBridgeModel, Qwen3VisionBridgeForCausalLM),
):
    AutoModel.register(_config_class, _backbone_class, exist_ok=True)
    for _auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        _auto_class.register(_config_class, _model_class, exist_ok=True)

AutoModel.register(RecursiveQwenConfig, RecursiveQwenModel, exist_ok=True)
AutoModelForCausalLM.register(RecursiveQwenConfig, RecursiveQwenForCausalLM, exist_ok=True)

__all__ = [
    "Qwen3PerceiverModel",
    "Qwen3PerceiverVLM",
    "Qwen3VisionBridgeForCausalLM",
    "Qwen3VisionBridgeModel",
    "RecursiveCache",
    "RecursiveQwenForCausalLM",
    "RecursiveQwenModel",
]
