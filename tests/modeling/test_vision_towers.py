"""The three families of towers: which features come out, in which order, and what padding may not do."""

import pytest
import torch
from contracts.model_contract import assert_close, generator, randomize
from tiny_perceiver import naflex_config, perceiver_config, siglip_config, timm_convnet_config, timm_vit_config
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TimmWrapperConfig

from qwen_grafts.modeling import Qwen3PerceiverModel
from qwen_grafts.modeling.vision_towers import PatchFeatures, build_vision_tower, encode_patches, vision_hidden_size


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    tower = build_vision_tower(config)
    randomize(tower)
    return tower.eval()


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(5))


def assert_raster_order(features: PatchFeatures, feature_map: torch.Tensor) -> None:
    """`feature_map`: (I, C, h, w)."""
    height, width = feature_map.shape[-2:]
    assert features.grid == (height, width)
    assert features.mask is None
    for row in range(height):
        for column in range(width):
            assert torch.equal(features.hidden_states[:, row * width + column], feature_map[:, :, row, column])


@pytest.mark.parametrize("config", [siglip_config(), naflex_config()], ids=["siglip", "naflex"])
def test_no_pooling_head(config: PreTrainedConfig) -> None:
    config.vision_use_head = True
    tower = build_vision_tower(config)
    assert config.vision_use_head is False
    assert not any(isinstance(module, nn.MultiheadAttention) for module in tower.modules())
    assert not any("head" in name for name, _ in tower.named_parameters())


def test_siglip() -> None:
    tower = build_tower(siglip_config())
    images = pixels(2, 3, 16, 16)
    with torch.no_grad():
        features = encode_patches(tower, images)
        expected = tower(images).last_hidden_state
        changed = images.clone()
        changed[:, :, 4:8, 8:12] += 3  # second row, third column
        first_layer = tower.get_input_embeddings()
        moved = (first_layer(changed) - first_layer(images)).abs().amax((0, 1)) > 0
    assert torch.equal(features.hidden_states, expected)
    assert features.grid == (4, 4) and features.mask is None
    assert moved.flatten().nonzero().flatten().tolist() == [1 * 4 + 2]
    for height, width in ((12, 16), (8, 32)):  # the second has as many patches as it should
        with pytest.raises(ValueError, match=f"reads images of 16 x 16 pixels, got {height} x {width}"):
            encode_patches(tower, pixels(2, 3, height, width))


def test_naflex_needs_mask_and_shapes() -> None:
    with pytest.raises(ValueError, match="`pixel_attention_mask` and `spatial_shapes`"):
        encode_patches(build_tower(naflex_config()), pixels(1, 12, 48))


@pytest.mark.parametrize("padding", [0.0, 30.0])
@pytest.mark.parametrize("position_encoding", ["none", "sincos2d"])
def test_padding_patches_have_no_influence(position_encoding: str, padding: float) -> None:
    """A small image gives the same soft tokens alone and beside a larger one, whatever fills its padding."""
    model = Qwen3PerceiverModel(perceiver_config(naflex_config(), position_encoding=position_encoding)).eval()
    randomize(model)
    grids = torch.tensor([[2, 3], [5, 4]])
    patches = pixels(2, 20, 48)
    mask = torch.arange(20) < grids.prod(-1, keepdim=True)
    patches[0, 6:] = padding
    with torch.no_grad():
        together = model.get_image_features(patches, mask.long(), grids)
        for index, length in enumerate((6, 20)):
            one = slice(index, index + 1)
            alone = model.get_image_features(patches[one, :length], mask[one, :length].long(), grids[one])
            assert_close(together.last_hidden_state[index, :length], alone.last_hidden_state[0], 1e-5)
            assert_close(together.pooler_output[index], alone.pooler_output[0], 1e-5)


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [("vit_tiny_patch16_224", 1), ("vit_small_patch14_reg4_dinov2", 5), ("vit_base_patch16_siglip_224", 0)],
)
def test_timm_transformer_without_its_prefix_tokens(architecture: str, prefix: int) -> None:
    config = TimmWrapperConfig(architecture=architecture, model_args=timm_vit_config().model_args)
    tower = build_tower(config)
    images = pixels(2, 3, 16, 16)
    with torch.no_grad():
        features = encode_patches(tower, images)
        tokens = tower.timm_model.forward_features(images)
    assert tokens.shape == (2, 16 + prefix, 32)
    assert torch.equal(features.hidden_states, tokens[:, prefix:])
    assert features.grid == (4, 4) and features.mask is None
    assert vision_hidden_size(tower, config) == 32


def test_timm_convnet() -> None:
    config = timm_convnet_config()
    tower = build_tower(config)
    images = pixels(2, 3, 64, 96)
    with torch.no_grad():
        features = encode_patches(tower, images)
        feature_map = tower.timm_model.forward_features(images)
    assert feature_map.shape == (2, 32, 2, 3)
    assert vision_hidden_size(tower, config) == 32
    assert_raster_order(features, feature_map)


def test_timm_with_channels_last() -> None:
    size = {"img_size": (32, 64), "patch_size": 4, "window_size": 4}
    width = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    config = TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=size | width)
    tower = build_tower(config)
    images = pixels(2, 3, 32, 64)
    with torch.no_grad():
        features = encode_patches(tower, images)
        feature_map = tower.timm_model.forward_features(images)
    assert feature_map.shape == (2, 4, 8, 16)
    assert vision_hidden_size(tower, config) == 16
    assert_raster_order(features, feature_map.permute(0, 3, 1, 2))
