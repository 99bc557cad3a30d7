"""Vision bridge: the shared contracts for both adapters, then what is its own."""

import pytest
import torch
from contracts.full_model_contract import FullModelContract
from contracts.model_contract import Inputs, assert_close, generator, randomize
from contracts.soft_token_contract import SoftTokenContract
from tiny_vision_bridge import END_ID, IMAGE_ID, START_ID, tower_config, vision_bridge_config
from torch import nn
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3ForCausalLM,
)

from qwen_grafts.configuration import Qwen3VisionBridgeConfig, preset_config
from qwen_grafts.configuration.presets import qwen3_text_config
from qwen_grafts.modeling import Qwen3VisionBridgeForCausalLM, Qwen3VisionBridgeModel

PATCH_VALUES = 3 * 2 * 4 * 4
GRIDS = torch.tensor([[1, 4, 6], [1, 6, 2], [1, 2, 10], [1, 8, 8]])


def images(grids: torch.Tensor, seed: int = 0) -> Inputs:
    pixels = torch.randn(int(grids.prod(-1).sum()), PATCH_VALUES, generator=generator(seed))
    return {"pixel_values": pixels, "image_grid_thw": grids}


class VisionBridgeContract(SoftTokenContract):
    """How a tiny vision bridge is built and fed; every image has a size of its own."""

    model_class = Qwen3VisionBridgeForCausalLM
    base_model_class = Qwen3VisionBridgeModel
    trained_part = "adapter"
    item_inputs = ("pixel_values", "image_grid_thw")

    def row(self, model: PreTrainedModel, items: int = 1, seed: int = 0) -> Inputs:
        source = generator(seed)
        grids = GRIDS[[(seed + index) % len(GRIDS) for index in range(items)]]
        ids: list[int] = []
        for grid in grids:
            ids += torch.randint(2, IMAGE_ID, (3,), generator=source).tolist()
            ids += [START_ID, *[IMAGE_ID] * (int(grid.prod()) // 4), END_ID]
        ids += torch.randint(2, IMAGE_ID, (14 + seed,), generator=source).tolist()
        row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return row | images(grids, seed) if items else row

    def graph_inputs(self, model: PreTrainedModel, inputs: Inputs) -> Inputs:
        """The tower cuts its windows by the images' sizes, which no graph can hold: it begins at the soft tokens."""
        return self.encoded_inputs(model, inputs)


class TestLinearAdapter(VisionBridgeContract, FullModelContract):
    """As specified, with tied embeddings."""

    def build_config(self) -> Qwen3VisionBridgeConfig:
        return vision_bridge_config()

    def test_compile_with_pixels_breaks_the_graph_and_nothing_else(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager")
        with torch.no_grad():
            assert_close(compiled(**inputs, use_cache=False).logits, model(**inputs).logits, 1e-5)
        torch.compiler.reset()


class TestMlpAdapter(VisionBridgeContract):
    """Two layers, and a head of its own."""

    def build_config(self) -> Qwen3VisionBridgeConfig:
        return vision_bridge_config({"tie_word_embeddings": False}, adapter_type="mlp")


@pytest.fixture
def stock_vision_model() -> Qwen2_5_VLForConditionalGeneration:
    text = {"vocab_size": 160, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 3, 3], "rope_theta": 1e4}}
    config = Qwen2_5_VLConfig(vision_config=tower_config().to_dict(), text_config=text)
    stock = Qwen2_5_VLForConditionalGeneration(config).eval()
    randomize(stock, seed=3)
    return stock


def test_tower_equals_stock_qwen2_5_vl(stock_vision_model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Images of four sizes in one batch: merged output, raster order, each where it would be alone."""
    model = TestLinearAdapter().build_model()
    visual = stock_vision_model.model.visual
    model.model.vision_tower.load_state_dict(visual.state_dict())
    inputs = images(GRIDS)
    with torch.no_grad():
        ours = model.get_image_features(**inputs)
        theirs = visual(inputs["pixel_values"], grid_thw=GRIDS).pooler_output
        assert_close(ours.last_hidden_state, theirs, 1e-6)
        assert [len(item) for item in ours.pooler_output] == (GRIDS.prod(-1) // 4).tolist()
        assert_close(torch.cat(ours.pooler_output), model.model.adapter(theirs), 1e-6)
        patches = inputs["pixel_values"].split(GRIDS.prod(-1).tolist())
        for index, (pixels, grid) in enumerate(zip(patches, GRIDS, strict=True)):
            alone = model.get_image_features(pixels, grid[None]).pooler_output
            assert_close(ours.pooler_output[index], alone[0], 1e-5)


def test_adapter_is_linear_or_two_layers() -> None:
    features = torch.randn(7, 40, generator=generator(1))
    linear, mlp = TestLinearAdapter().build_model().model.adapter, TestMlpAdapter().build_model().model.adapter
    assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {
        "linear_1.weight": (64, 40),
        "linear_1.bias": (64,),
    }
    with torch.no_grad():
        assert_close(linear(features), features @ linear.linear_1.weight.T + linear.linear_1.bias, 1e-6)
        hidden = nn.functional.gelu(features @ mlp.linear_1.weight.T + mlp.linear_1.bias)
        assert_close(mlp(features), hidden @ mlp.linear_2.weight.T + mlp.linear_2.bias, 1e-6)


def test_new_adapter_keeps_the_size_of_its_features() -> None:
    """By fan-in: with transformers' usual 0.02 the soft tokens of a wide tower and of a narrow one would differ."""
    adapter = Qwen3VisionBridgeForCausalLM(vision_bridge_config(adapter_type="linear")).model.adapter
    soft_tokens = adapter(torch.randn(4000, 40, generator=generator(2)))
    assert 0.9 < soft_tokens.std() < 1.1
    assert not adapter.linear_1.bias.any()


def test_published_sizes() -> None:
    """Every parameter of the full-size model, on the meta device."""
    with torch.device("meta"):
        model = Qwen3VisionBridgeForCausalLM(preset_config("vision-bridge-4b"))
        eight = Qwen3ForCausalLM(qwen3_text_config("8b"))
    backbone, tower = model.model, model.model.vision_tower
    assert backbone.adapter.linear_1.weight.shape == (2560, 3584)
    assert sum(p.numel() for p in backbone.adapter.parameters()) == 9_177_600
    assert sum(p.numel() for p in tower.parameters()) == 676_550_144
    assert sum(p.numel() for p in tower.merger.parameters()) == 44_574_464
    assert len(tower.state_dict()) == 390
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert backbone.language_model.num_parameters() == 4_022_468_096
    assert eight.num_parameters() == 8_190_735_360


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([[1, 4, 6], [1, 6, 4]], r"speaks of 48 patches in 2 images, `pixel_values` holds 36"),
        ([[1, 3, 12]], "1 of 1 images are no whole number of 2 x 2 merged patches, the first 3 x 12"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grids: list[list[int]], message: str) -> None:
    model = TestLinearAdapter().build_model()
    with pytest.raises(ValueError, match=message):
        model.get_image_features(torch.zeros(36, PATCH_VALUES), torch.tensor(grids))


def test_pixels_without_grids_are_refused() -> None:
    contract = TestLinearAdapter()
    model = contract.build_model()
    row = contract.row(model)
    row.pop("image_grid_thw")
    with pytest.raises(TypeError, match="image_grid_thw"):
        model(**row)
