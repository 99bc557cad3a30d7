"""timm's preprocessing as a stock image processor that can be saved.

transformers' own wrapper for timm checkpoints refuses to save and cannot be loaded from a processor's folder. What it
does is a resize, a centre crop and a normalisation, all of which `CLIPImageProcessor` does too, without timm.
"""

import math
from typing import Any

from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling


def portable_image_processor(image_processor: Any) -> Any:
    """The same preprocessing in a form that survives `save_pretrained`; anything but timm's wrapper is returned as is.

    Where the centre crop leaves an odd margin, the crop may lie one pixel to the other side of timm's.

    Raises:
        ValueError: a timm crop mode that no stock image processor has.
    """
    data = getattr(image_processor, "data_config", None)
    if data is None:
        return image_processor
    height, width = data["input_size"][1:]
    scaled = {"height": math.floor(height / data["crop_pct"]), "width": math.floor(width / data["crop_pct"])}
    if data["crop_mode"] not in ("center", "squash"):
        raise ValueError(
            f"timm's crop mode {data['crop_mode']!r} has no counterpart among stock image processors; give the "
            "processor an image processor of your own."
        )
    return CLIPImageProcessor(
        size=scaled if data["crop_mode"] == "squash" else {"shortest_edge": min(scaled.values())},
        crop_size={"height": height, "width": width},
        resample=PILImageResampling[data["interpolation"].upper()],
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )


__all__ = ["portable_image_processor"]
