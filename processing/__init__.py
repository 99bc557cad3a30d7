"""Text, images and documents to tensors. Imports `configuration/` only."""

from transformers import AutoProcessor

from ..configuration import ClaraQwen3Config, Qwen3PerceiverConfig, Qwen3VisionBridgeConfig
from ..configuration.code_files import carry_code
from .chat_template import load_chat_template
from .memory_tokens import add_memory_tokens
from .processing_clara_qwen3 import ClaraQwen3Processor
from .processing_qwen3_perceiver import Qwen3PerceiverProcessor
from .processing_qwen3_vision_bridge import Qwen3VisionBridgeProcessor
from .qwen_tokenizer import build_qwen_tokenizer
from .thinking import set_response_template, split_thought
from .thinking_budget import ThinkingBudget

for _config_class, _processor_class in (
    (ClaraQwen3Config, ClaraQwen3Processor),
    (Qwen3PerceiverConfig, Qwen3PerceiverProcessor),
    (Qwen3VisionBridgeConfig, Qwen3VisionBridgeProcessor),
):
    carry_code(_processor_class)
    AutoProcessor.register(_config_class, _processor_class, exist_ok=True)

__all__ = [
    "ClaraQwen3Processor",
    "Qwen3PerceiverProcessor",
    "Qwen3VisionBridgeProcessor",
    "ThinkingBudget",
    "add_memory_tokens",
    "build_qwen_tokenizer",
    "load_chat_template",
    "set_response_template",
    "split_thought",
]
