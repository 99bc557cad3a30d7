"""Perceiver VLM: the shared contracts for every family of towers, then what is its own."""

import torch
from contracts.full_model_contract import FullModelContract
from contracts.model_contract import Inputs, generator
from contracts.soft_token_contract import SoftTokenContract
from tiny_perceiver import (
    END_ID,
    EVERYTHING,
    IMAGE_ID,
    START_ID,
    naflex_config,
    perceiver_config,
    siglip_config,
    timm_convnet_config,
    timm_vit_config,
)
from transformers import PreTrainedModel

from qwen_grafts.configuration import Qwen3PerceiverConfig
from qwen_grafts.modeling import Qwen3PerceiverModel, Qwen3PerceiverVLM


class PerceiverContract(SoftTokenContract):
    """How a tiny Perceiver VLM is built and fed."""

    model_class = Qwen3PerceiverVLM
    base_model_class = Qwen3PerceiverModel
    trained_part = "connector"
    gradient_free = ("k_proj.bias",)  # adds the same to every score of a softmax
    image_shape = (3, 16, 16)

    def images(self, count: int, seed: int) -> Inputs:
        return {"pixel_values": torch.randn(count, *self.image_shape, generator=generator(seed))}

    def row(self, model: PreTrainedModel, items: int = 1, seed: int = 0) -> Inputs:
        source = generator(seed)
        ids: list[int] = []
        for _ in range(items):
            ids += torch.randint(2, IMAGE_ID, (3,), generator=source).tolist()
            ids += [START_ID, *[IMAGE_ID] * model.config.num_image_tokens, END_ID]
        ids += torch.randint(2, IMAGE_ID, (14 + seed,), generator=source).tolist()
        row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return row | self.images(items, seed) if items else row


class TestSiglip(PerceiverContract, FullModelContract):
    """All of the connector's options on."""

    def build_config(self) -> Qwen3PerceiverConfig:
        return perceiver_config(siglip_config(), position_encoding="sincos2d", **EVERYTHING)


class TestSiglipAsSpecified(PerceiverContract):
    """All of them off, as in the 8B preset, with a head of its own."""

    def build_config(self) -> Qwen3PerceiverConfig:
        return perceiver_config(siglip_config(), {"tie_word_embeddings": False}, position_encoding="none")


class TestNaflex(PerceiverContract):
    """Every image has a size of its own; patches are padded to the longest."""

    item_inputs = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def build_config(self) -> Qwen3PerceiverConfig:
        return perceiver_config(naflex_config(), position_encoding="sincos2d", **EVERYTHING)

    def images(self, count: int, seed: int) -> Inputs:
        grids = torch.tensor([[3, 4], [2, 5], [5, 3]])[[(seed + index) % 3 for index in range(count)]]
        patches = grids.prod(-1)
        length = int(patches.max()) + seed % 2
        return {
            "pixel_values": torch.randn(count, length, 48, generator=generator(seed)),
            "pixel_attention_mask": (torch.arange(length) < patches[:, None]).long(),
            "spatial_shapes": grids,
        }

    def collate_items(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
        if name != "spatial_shapes":
            length = max(tensor.shape[1] for tensor in tensors)
            pads = [(0, 0) * (tensor.ndim - 2) + (0, length - tensor.shape[1]) for tensor in tensors]
            tensors = [torch.nn.functional.pad(t, pad, value=0) for t, pad in zip(tensors, pads, strict=True)]
        return torch.cat(tensors)


class TestTimmTransformer(PerceiverContract):
    """Has a class token, which is no patch."""

    def build_config(self) -> Qwen3PerceiverConfig:
        return perceiver_config(timm_vit_config(), position_encoding="sincos2d")


class TestTimmConvnet(PerceiverContract):
    """Has a feature map in place of patches, batch statistics, and takes images that are not square."""

    image_shape = (3, 64, 96)

    def build_config(self) -> Qwen3PerceiverConfig:
        return perceiver_config(timm_convnet_config(), position_encoding="sincos2d")


def test_attention_implementation_of_each_part() -> None:
    config = perceiver_config(siglip_config())
    model = Qwen3PerceiverVLM._from_config(
        config, attn_implementation={"text_config": "eager", "connector_config": "sdpa", "vision_config": "eager"}
    )
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.connector.config._attn_implementation == "sdpa"
    assert model.model.vision_tower.config._attn_implementation == "eager"


def test_full_batch_of_images_in_reading_order() -> None:
    """Three images in one row, two in the next: each soft token stands where its image's placeholder stands."""
    contract = TestSiglip()
    model = contract.build_model()
    rows = [contract.row(model, 3, seed=4), contract.row(model, 2, seed=5)]
    inputs = contract.batch(model, rows)
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        expected = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    placeholders = inputs["input_ids"] == IMAGE_ID
    assert torch.equal(seen[0][placeholders], expected)
    words = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(seen[0][~placeholders], words[~placeholders])
