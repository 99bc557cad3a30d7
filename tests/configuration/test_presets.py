"""Presets of every graft: complete, saved and loaded, never shared."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from qwen_grafts.configuration import PRESETS, preset_config


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, tmp_path: Path) -> None:
    config = preset_config(name)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == preset_config(name).to_diff_dict() | {
        key: value for key, value in config.to_diff_dict().items() if key == "auto_map"
    }
    assert config is not preset_config(name)
    assert config.text_config.head_dim in (32, 64, 128)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"no preset 'perceiver-vlm-9b'\. Presets: perceiver-vlm-tiny, "):
        preset_config("perceiver-vlm-9b")
