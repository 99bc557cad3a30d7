"""timm's preprocessing as a stock image processor: the same pixels, and it survives saving."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor, SiglipImageProcessor, TimmWrapperConfig, TimmWrapperModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from qwen_grafts.processing import Qwen3PerceiverProcessor, build_qwen_tokenizer, load_chat_template
from qwen_grafts.processing.portable_images import portable_image_processor

CONFIGURATIONS = {
    "centre": {"input_size": (3, 64, 64), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
    "squash": {"input_size": (3, 48, 48), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
    "whole": {"input_size": (3, 56, 56), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
}


def timm_processor(name: str) -> TimmWrapperImageProcessor:
    values = CONFIGURATIONS[name] | {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    return TimmWrapperImageProcessor(pretrained_cfg=values, architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_pixels_as_timm(name, tmp_path):
    theirs = timm_processor(name)
    ours = portable_image_processor(theirs)
    ours.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    for array in load_sample_images().images:
        image = Image.fromarray(array)
        wanted = theirs(image, return_tensors="pt")["pixel_values"]
        for processor in (ours, loaded):
            found = processor(image, return_tensors="pt")["pixel_values"]
            assert found.shape == wanted.shape
            # An odd margin of the centre crop lies one pixel to the other side in one of the two.
            shifted = (found[..., :-1] - wanted[..., 1:], found[..., 1:] - wanted[..., :-1])
            assert min(difference.abs().mean() for difference in (found - wanted, *shifted)) < 1e-3


def test_other_processors_pass_through():
    processor = SiglipImageProcessor(size={"height": 16, "width": 16})
    assert portable_image_processor(processor) is processor


def test_unknown_crop_mode():
    processor = timm_processor("centre")
    processor.data_config["crop_mode"] = "border"
    with pytest.raises(ValueError, match="crop mode 'border'"):
        portable_image_processor(processor)


def test_processor_of_a_timm_graft_saves_and_loads(tmp_path):
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 1})
    config.pretrained_cfg = CONFIGURATIONS["centre"] | {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    TimmWrapperModel(config).save_pretrained(tmp_path / "tower")
    build_qwen_tokenizer(300).save_pretrained(tmp_path / "language")
    processor = Qwen3PerceiverProcessor.from_vision_language_pretrained(
        str(tmp_path / "tower"), str(tmp_path / "language"), num_image_tokens=5, chat_template=load_chat_template()
    )
    processor.save_pretrained(tmp_path / "saved")
    again = Qwen3PerceiverProcessor.from_pretrained(tmp_path / "saved")
    image = Image.fromarray(load_sample_images().images[0])
    texts = ["<|image_pad|>?"]
    first, second = (p(text=texts, images=[image], return_tensors="pt") for p in (processor, again))
    assert first["pixel_values"].shape == (1, 3, 64, 64)
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert torch.equal(first["input_ids"], second["input_ids"])
