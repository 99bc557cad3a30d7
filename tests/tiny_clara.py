"""Tiny CLaRa models: sizes that differ wherever they may, passages of up to 12 tokens at two rates."""

from typing import Any

from qwen_grafts.configuration import ClaraQwen3Config
from qwen_grafts.configuration.presets import tiny_qwen3_text_config

TEXT = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "pad_token_id": 0, "eos_token_id": 1}
DOCUMENT_ID = 140
LENGTH, RATES = 12, (4, 3)


def clara_config(text: dict[str, Any] | None = None, **settings: Any) -> ClaraQwen3Config:
    """Three memory tokens a passage at rate 4, four at rate 3; no dropout, so that losses repeat."""
    defaults = {
        "doc_max_length": LENGTH,
        "compression_rates": RATES,
        "lora_rank": 5,
        "lora_alpha": 7.0,
        "lora_dropout": 0.0,
        "document_token_id": DOCUMENT_ID,
    }
    return ClaraQwen3Config(text_config=tiny_qwen3_text_config(**(TEXT | (text or {}))), **(defaults | settings))
