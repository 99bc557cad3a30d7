"""A tiny export whose weights vary enough that tokens, rows and images differ in what is generated."""

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image

from qwen_grafts.configuration import GRAFTS, preset_config
from qwen_grafts.configuration.presets import NUM_SPECIAL_TOKENS, TINY_VOCAB_SIZE
from qwen_grafts.hub_cards import export_repository
from qwen_grafts.hub_cards.graft_parts import build_processor, generation_config, graft_class, tokenizer_of
from qwen_grafts.processing import build_qwen_tokenizer

VISION_PRESETS = ("perceiver-vlm-tiny", "vision-bridge-tiny")
TEXT_PRESETS = ("recursive-tiny",)
DOCUMENT_PRESETS = ("clara-tiny",)


def export_distinct(folder: Path, preset: str, seed: int = 0) -> Path:
    """Export a tiny preset with every matrix drawn anew, and a noise image `image.png` beside the folder."""
    torch.manual_seed(seed)
    config = preset_config(preset)
    model = graft_class(GRAFTS[config.model_type], "AutoModelForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
        for name, parameter in model.named_parameters():
            # As large as the layers', a role's terms would drown what it reads.
            if "role_" in name:
                parameter.mul_(0.5)
        if hasattr(model.model, "recurrence"):
            # Closed gates would hide what the cycles do.
            for parameter in model.model.recurrence.parameters():
                parameter.uniform_(0.2, 0.8)
    # Merges fill the vocabulary: every id that is generated has a text.
    words = [str(topic) for topic in topics.values()][:20]
    end = getattr(config, "document_token_id", TINY_VOCAB_SIZE)
    processor = build_processor(config, build_qwen_tokenizer(end - NUM_SPECIAL_TOKENS, words))
    model.generation_config = generation_config(tokenizer_of(processor))
    # Whole merged patches: without torchvision, as beside vLLM, another resampling would give other pixels.
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return export_repository(model.eval(), processor, folder / "export")
