"""Configurations, presets and the table of grafts. Imports nothing else of this package."""

from transformers import AutoConfig

from .code_files import carry_code
from .configuration_clara_qwen3 import ClaraQwen3Config
from .configuration_qwen3_perceiver import Qwen3PerceiverConfig, Qwen3PerceiverConnectorConfig
from .configuration_qwen3_vision_bridge import Qwen3VisionBridgeConfig
from .configuration_recursive_qwen import RecursiveQwenConfig
from .grafts import GRAFTS, Graft
from .presets import PRESETS, preset_config

for _config_class in (ClaraQwen3Config, Qwen3PerceiverConfig, Qwen3VisionBridgeConfig, RecursiveQwenConfig):
    carry_code(_config_class)
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)

__all__ = [
    "GRAFTS",
    "PRESETS",
    "ClaraQwen3Config",
    "Graft",
    "Qwen3PerceiverConfig",
    "Qwen3PerceiverConnectorConfig",
    "Qwen3VisionBridgeConfig",
    "RecursiveQwenConfig",
    "preset_config",
]
