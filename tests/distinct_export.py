"""A tiny export whose weights vary enough that tokens, rows and images differ in what is generated."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qwen_grafts.configuration import preset_config
from qwen_grafts.hub_cards import export_repository
from qwen_grafts.hub_cards.graft_parts import build_processor, generation_config
from qwen_grafts.modeling import Qwen3PerceiverVLM


def export_distinct(folder: Path, seed: int = 0) -> Path:
    """Export `perceiver-vlm-tiny` with every matrix drawn anew, and a noise image `image.png` beside the folder."""
    torch.manual_seed(seed)
    config = preset_config("perceiver-vlm-tiny")
    model = Qwen3PerceiverVLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    processor = build_processor(config)
    model.generation_config = generation_config(processor.tokenizer)
    noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return export_repository(model.eval(), processor, folder / "export")
