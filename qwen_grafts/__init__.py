"""Qwen Grafts: custom Hugging Face architectures that graft new abilities onto Qwen3.

    from qwen_grafts import Qwen3PerceiverConfig, Qwen3PerceiverProcessor, Qwen3PerceiverVLM

Names are resolved on first use: importing a folder (`qwen_grafts.modeling`, …) costs what that folder needs.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ClaraIndex": "recipes.latent_index",
    "ClaraQwen3Config": "configuration",
    "ClaraQwen3ForCausalLM": "modeling",
    "ClaraQwen3Model": "modeling",
    "ClaraQwen3Processor": "processing",
    "Qwen3PerceiverConfig": "configuration",
    "Qwen3PerceiverConnectorConfig": "configuration",
    "Qwen3PerceiverModel": "modeling",
    "Qwen3PerceiverProcessor": "processing",
    "Qwen3PerceiverVLM": "modeling",
    "Qwen3VisionBridgeConfig": "configuration",
    "Qwen3VisionBridgeForCausalLM": "modeling",
    "Qwen3VisionBridgeModel": "modeling",
    "Qwen3VisionBridgeProcessor": "processing",
    "RecursiveCache": "modeling",
    "RecursiveQwenConfig": "configuration",
    "RecursiveQwenForCausalLM": "modeling",
    "RecursiveQwenModel": "modeling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
