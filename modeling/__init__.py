"""The architectures. Imports `configuration/` only."""

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from ..configuration import ClaraQwen3Config, Qwen3PerceiverConfig, Qwen3VisionBridgeConfig, RecursiveQwenConfig
from .clara_api import Answer, Retrieval, UsedDocument
from .modeling_clara_qwen3 import ClaraQwen3ForCausalLM, ClaraQwen3Model
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

for _config_class, _backbone_class, _model_class in (
    (ClaraQwen3Config, ClaraQwen3Model, ClaraQwen3ForCausalLM),
    (RecursiveQwenConfig, RecursiveQwenModel, RecursiveQwenForCausalLM),
):
    AutoModel.register(_config_class, _backbone_class, exist_ok=True)
    AutoModelForCausalLM.register(_config_class, _model_class, exist_ok=True)

__all__ = [
    "Answer",
    "ClaraQwen3ForCausalLM",
    "ClaraQwen3Model",
    "Qwen3PerceiverModel",
    "Qwen3PerceiverVLM",
    "Qwen3VisionBridgeForCausalLM",
    "Qwen3VisionBridgeModel",
    "RecursiveCache",
    "RecursiveQwenForCausalLM",
    "RecursiveQwenModel",
    "Retrieval",
    "UsedDocument",
]
