"""The connector alone: against its written-out reference, as a function of a set, and its specified size."""

import pytest
import torch
from contracts.model_contract import assert_close, generator, randomize
from reference.naive_perceiver import naive_connector, naive_positions
from tiny_perceiver import EVERYTHING
from torch import nn

from qwen_grafts.configuration import Qwen3PerceiverConnectorConfig, preset_config
from qwen_grafts.modeling import Qwen3PerceiverVLM
from qwen_grafts.modeling.perceiver_connector import PerceiverConnector, sincos_2d_positions
from qwen_grafts.modeling.vision_towers import PatchFeatures

VISION, LANGUAGE = 20, 48
NOTHING = dict.fromkeys(EVERYTHING, False)
GRIDS = torch.tensor([[3, 4], [2, 5], [1, 3]])


def build_connector(attention: str = "sdpa", **options: object) -> PerceiverConnector:
    config = Qwen3PerceiverConnectorConfig(
        num_latents=5, num_heads=3, head_dim=8, depth=2, mlp_ratio=3, projector_mlp_ratio=1.5, **options
    )
    connector = PerceiverConnector._from_config(
        config, vision_size=VISION, language_size=LANGUAGE, attn_implementation=attention
    )
    randomize(connector)
    return connector.eval()


def padded_patches(length: int = 13) -> PatchFeatures:
    """Images of three sizes; what lies past an image's own patches is large and must not matter."""
    mask = torch.arange(length) < GRIDS.prod(-1, keepdim=True)
    hidden_states = torch.randn(3, length, VISION, generator=generator(3))
    return PatchFeatures(torch.where(mask.unsqueeze(-1), hidden_states, 50.0), GRIDS, mask)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [NOTHING, EVERYTHING], ids=["plain", "all_norms"])
@pytest.mark.parametrize("position_encoding", ["none", "sincos2d"])
def test_equals_the_naive_reference(position_encoding: str, options: dict[str, bool], attention: str) -> None:
    connector = build_connector(attention, position_encoding=position_encoding, **options)
    config, weights = connector.config.to_dict(), connector.state_dict()
    patches = padded_patches()
    real = [states[keep] for states, keep in zip(patches.hidden_states, patches.mask, strict=True)]
    with torch.no_grad():
        masked = connector(patches)
        unmasked = connector(PatchFeatures(patches.hidden_states[:, :12], (3, 4)))
    assert_close(masked, torch.stack(naive_connector(weights, config, real, GRIDS.tolist())), 1e-5)
    expected = naive_connector(weights, config, list(patches.hidden_states[:, :12]), [(3, 4)] * 3)
    assert_close(unmasked, torch.stack(expected), 1e-5)
    assert (masked[1] - unmasked[1]).abs().max() > 0.1  # the mask was needed


@pytest.mark.parametrize("position_encoding", ["none", "sincos2d"])
def test_order_of_patches_matters_only_with_positions(position_encoding: str) -> None:
    connector = build_connector(position_encoding=position_encoding)
    hidden_states = torch.randn(2, 12, VISION, generator=generator(1))
    permuted = hidden_states[:, torch.randperm(12, generator=generator(2))]
    with torch.no_grad():
        before, after = (connector(PatchFeatures(states, (3, 4))) for states in (hidden_states, permuted))
    if position_encoding == "none":
        assert_close(after, before, 1e-5)
    else:
        assert (after - before).abs().max() > 0.1


def test_positions() -> None:
    codes = sincos_2d_positions((3, 5), 15, 16)
    assert_close(codes[0], naive_positions(3, 5, 16), 1e-6)
    assert torch.equal(sincos_2d_positions(torch.tensor([[3, 5]]), 15, 16), codes)
    grids = sincos_2d_positions(GRIDS, 13, 16)
    for own, (height, width) in zip(grids, GRIDS.tolist(), strict=True):
        assert_close(own[: height * width], naive_positions(height, width, 16), 1e-6)
    distances = torch.cdist(codes[0], codes[0]) + 10 * torch.eye(15)
    assert distances.min() > 0.1, "two patches share a code"


def test_any_number_of_patches() -> None:
    connector = build_connector(position_encoding="sincos2d")
    for height, width in ((1, 1), (7, 9)):
        patches = PatchFeatures(torch.randn(2, height * width, VISION), (height, width))
        assert connector(patches).shape == (2, 5, LANGUAGE)


@pytest.mark.parametrize("initializer_range", [None, 0.03])
def test_start_values(initializer_range: float | None) -> None:
    config = Qwen3PerceiverConnectorConfig(
        latent_init_std=0.5, kv_layer_norm=True, final_layer_norm=True, initializer_range=initializer_range
    )
    connector = PerceiverConnector._from_config(config, vision_size=VISION, language_size=LANGUAGE)
    assert 0.45 < connector.resampler.latents.std().item() < 0.55
    for module in connector.modules():
        if isinstance(module, nn.Linear):
            expected = initializer_range or module.in_features**-0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_specified_sizes() -> None:
    """The 8B preset, at full size, without memory."""
    with torch.device("meta"):
        model = Qwen3PerceiverVLM(preset_config("perceiver-vlm-8b")).eval()
        features = model.get_image_features(torch.empty(2, 3, 384, 384, device="meta"))
    connector = model.model.connector
    layer = connector.resampler.layers[1]
    assert connector.config.position_encoding == "none"
    assert {
        "proj_in": count(connector.resampler.proj_in),
        "latents": connector.resampler.latents.numel(),
        "ln1": count(layer.ln1),
        "attention": count(layer.cross_attn),
        "ln2": count(layer.ln2),
        "mlp": count(layer.mlp),
        "layer": count(layer),
        "resampler": count(connector.resampler),
        "fc1": count(connector.projector.fc1),
        "fc2": count(connector.projector.fc2),
        "projector": count(connector.projector),
        "connector": count(connector),
    } == {
        "proj_in": 590_336,
        "latents": 32_768,
        "ln1": 1_024,
        "attention": 1_050_624,
        "ln2": 1_024,
        "mlp": 2_099_712,
        "layer": 3_152_384,
        "resampler": 6_927_872,
        "fc1": 8_404_992,
        "fc2": 67_112_960,
        "projector": 75_517_952,
        "connector": 82_445_824,
    }
    assert features.last_hidden_state.shape == (2, 729, 1152)
    assert [tuple(soft.shape) for soft in features.pooler_output] == [(64, 4096)] * 2
    assert count(model.model.language_model) + count(model.lm_head) == 8_190_735_360  # Qwen3-8B


def test_size_of_the_options() -> None:
    recommended = preset_config("perceiver-vlm-8b-recommended").connector_config
    plain = preset_config("perceiver-vlm-8b").connector_config
    with torch.device("meta"):
        slim = PerceiverConnector(recommended, vision_size=1152, language_size=4096)
        plain.vision_layer_norm = True
        normed = PerceiverConnector(plain, vision_size=1152, language_size=4096)
    assert count(slim.projector) == 18_882_560
    assert count(normed.vision_ln) == 2_304
    assert count(normed) == 82_445_824 + 2_304
