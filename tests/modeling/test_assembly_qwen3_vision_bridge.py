"""Surgery: the tower out of a Qwen2.5-VL and nothing else of it, onto a Qwen3; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from base_checkpoints import (
    LAYOUTS,
    language_checkpoint,
    qwen2_5_vl_checkpoint,
    saved,
    tower_shards,
    weight_map,
)
from contracts.model_contract import generator, rewrite_weights
from tiny_perceiver import END_ID, IMAGE_ID, START_ID, siglip_config
from tiny_vision_bridge import tower_config
from transformers import SiglipVisionModel

from qwen_grafts.modeling import Qwen3VisionBridgeForCausalLM, vision_language
from qwen_grafts.modeling.checkpoint_tensors import load_part

GRIDS = torch.tensor([[1, 4, 6], [1, 2, 2]])
PIXELS = torch.randn(28, 96, generator=generator(4))
IDS = torch.tensor([[5, START_ID, *[IMAGE_ID] * 6, END_ID, 7, START_ID, IMAGE_ID, END_ID, 9]])


def assemble(folder: Path, **options: Any) -> Qwen3VisionBridgeForCausalLM:
    token_ids = {"image_token_id": IMAGE_ID, "vision_start_token_id": START_ID, "vision_end_token_id": END_ID}
    return Qwen3VisionBridgeForCausalLM.from_vision_language_pretrained(
        vision=str(folder / "vision"), language=str(folder / "language"), **(token_ids | options)
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 5], ids=["single", "sharded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_keep_their_weights(layout: str, shards: int, tied: bool, tmp_path: Path) -> None:
    visual = qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config(), layout, shards).model.visual
    lm = language_checkpoint(tmp_path / "language", tie_word_embeddings=tied)
    model = assemble(tmp_path)
    assert not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings == tied
    text = torch.randint(2, 140, (2, 9), generator=generator(1))
    with torch.no_grad():
        assert torch.equal(model(text).logits, lm(text).logits)
        seen = model.get_image_features(PIXELS, GRIDS).last_hidden_state
        assert torch.equal(seen, visual(PIXELS, GRIDS).pooler_output)
        logits = model(IDS, pixel_values=PIXELS, image_grid_thw=GRIDS).logits
        model.save_pretrained(tmp_path / "assembled")
        loaded = Qwen3VisionBridgeForCausalLM.from_pretrained(tmp_path / "assembled")
        assert torch.equal(loaded(IDS, pixel_values=PIXELS, image_grid_thw=GRIDS).logits, logits)
    assert model.config.base_models is None  # a folder's name means nothing to others
    assert model.config is model.model.config
    assert model.config.text_config is model.model.language_model.config
    assert model.config.vision_config is model.model.vision_tower.config


def test_shards_of_its_language_model_are_never_opened(tmp_path: Path) -> None:
    visual = qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config()).model.visual
    language_checkpoint(tmp_path / "language")
    others = sorted(set(weight_map(tmp_path / "vision").values()) - set(tower_shards(tmp_path / "vision")))
    assert len(others) >= 2
    (tmp_path / "vision" / others[0]).write_bytes(b"\x13" * 5000)
    for other in others[1:]:
        (tmp_path / "vision" / other).unlink()
    model = assemble(tmp_path)
    for name, tensor in visual.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name


def test_a_stored_copy_of_a_tied_head_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some small Qwen3 store one: with a wide vocabulary it would be a third of all that is read."""
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    lm = language_checkpoint(tmp_path / "language", tie_word_embeddings=True)
    rewrite_weights(tmp_path / "language", lambda tensors: tensors.update({"lm_head.weight": lm.lm_head.weight.data}))
    read = []
    monkeypatch.setattr(
        vision_language, "load_part", lambda *args, **named: read.append(set(args[2])) or load_part(*args, **named)
    )
    model = assemble(tmp_path)
    assert read and "lm_head.weight" not in read[0]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(model(IDS[:, :1]).logits, lm(IDS[:, :1]).logits)


def test_one_dtype_for_all_parts(tmp_path: Path) -> None:
    """The language model's, or the one that is asked for."""
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    language_checkpoint(tmp_path / "language", dtype=torch.bfloat16)
    for asked, dtype in (("auto", torch.bfloat16), ("float32", torch.float32), (torch.float16, torch.float16)):
        model = assemble(tmp_path, dtype=asked)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model.dtype == model.config.dtype == dtype
        with torch.no_grad():
            assert model(IDS, pixel_values=PIXELS, image_grid_thw=GRIDS).logits.dtype == dtype


def test_adapter_is_new_and_trains(tmp_path: Path) -> None:
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    language_checkpoint(tmp_path / "language")
    model = assemble(tmp_path, adapter_type="mlp")
    adapter = model.model.adapter
    assert 0.8 < adapter.linear_1.weight.std() * 40**0.5 < 1.2
    assert not adapter.linear_1.bias.any() and not adapter.linear_2.bias.any()
    model.requires_grad_(False)
    adapter.requires_grad_(True)
    model.train()
    model(IDS, labels=IDS, pixel_values=PIXELS, image_grid_thw=GRIDS).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


def test_generation_settings_come_along(tmp_path: Path) -> None:
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    lm = language_checkpoint(tmp_path / "language")
    lm.generation_config.update(temperature=0.3, do_sample=True)
    lm.generation_config.save_pretrained(tmp_path / "language")
    assert assemble(tmp_path).generation_config.temperature == 0.3
    (tmp_path / "language" / "generation_config.json").unlink()
    assert assemble(tmp_path).generation_config.eos_token_id == lm.config.eos_token_id


def tower_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def without_merger(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".merger." in name])


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_tower(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("visual.")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (tower_width, r"vision checkpoint .* does not fit .*Vision.*: it has 35 of another shape: .*\(the model has"),
        (without_merger, r"vision checkpoint .* it lacks 5 of the model's tensors: merger\.ln_q\.weight, merger\.mlp"),
        (without_tower, r"holds no tensor whose name starts with 'model\.visual\.' or 'visual\.', but "),
        (cut_short, r"model\.safetensors of the vision checkpoint .* cannot be read"),
    ],
    ids=["another width", "no merger", "no tower", "cut short"],
)
def test_damaged_vision_checkpoints_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config(), shards=1)
    language_checkpoint(tmp_path / "language")
    damage(tmp_path / "vision")
    with pytest.raises(ValueError, match=f"(?s){message}.*Nothing was assembled"):
        assemble(tmp_path)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_missing_shards_are_named(part: str, tmp_path: Path) -> None:
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    lm = language_checkpoint(tmp_path / "language")
    (tmp_path / "language" / "model.safetensors").unlink()
    lm.save_pretrained(tmp_path / "language", max_shard_size="100KB")
    shard = weight_map(tmp_path / part)["visual.merger.mlp.0.weight" if part == "vision" else "model.norm.weight"]
    (tmp_path / part / shard).unlink()
    with pytest.raises(ValueError, match=f"{shard}, with .*, of the {part} checkpoint .* Nothing was assembled"):
        assemble(tmp_path)


def test_wrong_kinds_are_refused(tmp_path: Path) -> None:
    qwen2_5_vl_checkpoint(tmp_path / "vision", tower_config())
    language_checkpoint(tmp_path / "language")
    saved(SiglipVisionModel(siglip_config()), tmp_path / "siglip")
    build = Qwen3VisionBridgeForCausalLM.from_vision_language_pretrained
    for folder, kind in (("siglip", "siglip_vision_model"), ("language", "qwen3")):
        with pytest.raises(ValueError, match=f"'{kind}' model; the vision tower must be a Qwen2.5-VL's"):
            build(str(tmp_path / folder), str(tmp_path / "language"))
    with pytest.raises(ValueError, match=r"'qwen2_5_vl' model; the language model must be a dense Qwen3"):
        build(str(tmp_path / "vision"), str(tmp_path / "vision"))
    config = json.loads((tmp_path / "language" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (tmp_path / "language" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is quantised \(fp8\); a graft starts from full weights"):
        assemble(tmp_path)
