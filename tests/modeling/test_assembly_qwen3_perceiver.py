"""`from_vision_language_pretrained`: base checkpoints as the stock classes write them, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from base_checkpoints import language_checkpoint, saved
from contracts.model_contract import generator, rewrite_weights
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub, environment
from tiny_perceiver import (
    END_ID,
    IMAGE_ID,
    START_ID,
    naflex_config,
    siglip_config,
    timm_convnet_config,
    timm_vit_config,
)
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from qwen_grafts.modeling import Qwen3PerceiverVLM

TEXT_HALF = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}
CONNECTOR = {"num_latents": 5, "depth": 1, "num_heads": 2, "head_dim": 16, "position_encoding": "sincos2d"}
IDS = torch.tensor([[5, 6, START_ID, *[IMAGE_ID] * 5, END_ID, 7, 8, 9]])


def vision(kind: str, folder: Path) -> PreTrainedModel:
    siglip, naflex = siglip_config().to_dict(), naflex_config().to_dict()
    if kind == "siglip":
        return saved(SiglipModel(SiglipConfig(text_config=TEXT_HALF, vision_config=siglip)), folder)
    if kind == "siglip_vision":
        return saved(SiglipVisionModel(siglip_config()), folder)
    if kind == "siglip2":
        return saved(Siglip2Model(Siglip2Config(text_config=TEXT_HALF, vision_config=naflex)), folder)
    if kind == "siglip2_vision":
        return saved(Siglip2VisionModel(naflex_config()), folder)
    return saved(TimmWrapperModel(timm_vit_config() if kind == "timm_vit" else timm_convnet_config()), folder)


def images(kind: str) -> dict[str, torch.Tensor]:
    if kind.startswith("siglip2"):
        return {
            "pixel_values": torch.randn(1, 12, 48, generator=generator(2)),
            "pixel_attention_mask": (torch.arange(12) < 10)[None].long(),
            "spatial_shapes": torch.tensor([[2, 5]]),
        }
    return {"pixel_values": torch.randn(1, 3, 16 if kind != "timm_convnet" else 64, 16, generator=generator(2))}


def assemble(folder: Path, **options: Any) -> Qwen3PerceiverVLM:
    token_ids = {"image_token_id": IMAGE_ID, "vision_start_token_id": START_ID, "vision_end_token_id": END_ID}
    return Qwen3PerceiverVLM.from_vision_language_pretrained(
        str(folder / "vision"), str(folder / "language"), **({"connector_config": CONNECTOR} | token_ids | options)
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["siglip", "siglip_vision", "siglip2", "siglip2_vision", "timm_vit", "timm_convnet"])
def test_parts_keep_their_weights(kind: str, tied: bool, tmp_path: Path) -> None:
    tower, lm = vision(kind, tmp_path / "vision"), language_checkpoint(tmp_path / "language", tie_word_embeddings=tied)
    model = assemble(tmp_path)
    assert not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.config.tie_word_embeddings == tied
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    text, pictures = torch.randint(2, 140, (2, 9), generator=generator(1)), images(kind)
    with torch.no_grad():
        assert torch.equal(model(text).logits, lm(text).logits)
        source = getattr(tower, "vision_model", tower)
        expected = source(**({"pixel_values": None} | pictures), **({"do_pooling": False} if "timm" in kind else {}))
        expected = expected.last_hidden_state
        if kind == "timm_vit":
            expected = expected[:, 1:]
        elif kind == "timm_convnet":
            expected = expected.flatten(2).transpose(1, 2)
        assert torch.equal(model.get_image_features(**pictures).last_hidden_state, expected)
        logits = model(IDS, **pictures).logits
        # One configuration: it builds the same model again, and what is changed on it reaches every part.
        model.save_pretrained(tmp_path / "assembled")
        loaded = Qwen3PerceiverVLM.from_pretrained(tmp_path / "assembled")
        assert torch.equal(loaded(IDS, **pictures).logits, logits)
    assert model.config.base_models is None  # a folder's name means nothing to others
    assert model.config is model.model.config
    assert model.config.text_config is model.model.language_model.config
    assert model.config.vision_config is model.model.vision_tower.config
    assert model.config.connector_config is model.model.connector.config


def test_connector_is_new_and_the_rest_comes_along(tmp_path: Path) -> None:
    vision("siglip_vision", tmp_path / "vision")
    lm = language_checkpoint(tmp_path / "language", dtype=torch.bfloat16)
    lm.generation_config.temperature = 0.3
    lm.generation_config.do_sample = True
    lm.generation_config.save_pretrained(tmp_path / "language")
    model = assemble(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.generation_config.temperature == 0.3
    connector = model.model.connector
    assert connector.config.depth == 1
    assert 0.01 < connector.resampler.latents.float().std().item() < 0.03
    assert all(parameter.isfinite().all() for parameter in connector.parameters())
    assert assemble(tmp_path, dtype=torch.float32).dtype == torch.float32
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "connector" in name]
    assert trained


def test_assembled_model_trains_and_generates(tmp_path: Path) -> None:
    vision("siglip", tmp_path / "vision")
    language_checkpoint(tmp_path / "language")
    model = assemble(tmp_path)
    pictures = images("siglip")
    model.model.vision_tower.requires_grad_(False)
    model.train()
    model(IDS, labels=IDS, **pictures).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.connector.parameters())
    model.resize_token_embeddings(170)
    model.set_attn_implementation("eager")
    assert model.eval().generate(IDS, **pictures, max_new_tokens=3, do_sample=False).shape[1] <= IDS.shape[1] + 3


@pytest.mark.parametrize("where", ["language", "vision"])
def test_a_missing_tensor_is_refused(where: str, tmp_path: Path) -> None:
    vision("siglip", tmp_path / "vision")
    language_checkpoint(tmp_path / "language")
    part = {"language": "layers.1.mlp.up_proj.weight", "vision": "encoder.layers.1.mlp.fc1.weight"}[where]

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(next(name for name in tensors if name.endswith(part)))

    rewrite_weights(tmp_path / where, remove)
    with pytest.raises(ValueError, match=rf"{where} checkpoint .* lacks 1 .*{part}.*Nothing was assembled"):
        assemble(tmp_path)


def test_wrong_kinds_are_refused(tmp_path: Path) -> None:
    vision("siglip_vision", tmp_path / "vision")
    language_checkpoint(tmp_path / "language")
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    saved(GPT2LMHeadModel(GPT2Config(**small)), tmp_path / "gpt2")
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    saved(BertModel(BertConfig(**bert, vocab_size=20)), tmp_path / "bert")
    build = Qwen3PerceiverVLM.from_vision_language_pretrained
    with pytest.raises(ValueError, match="'gpt2' model; the language model must be a dense Qwen3"):
        build(str(tmp_path / "vision"), str(tmp_path / "gpt2"))
    for folder, kind in (("bert", "bert"), ("language", "qwen3")):
        with pytest.raises(ValueError, match=f"'{kind}' model; supported vision towers are siglip_vision_model"):
            build(str(tmp_path / folder), str(tmp_path / "language"))


def test_token_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """Qwen3's own ids are the default; a language model with fewer rows needs its own."""
    vision("siglip_vision", tmp_path / "vision")
    language_checkpoint(tmp_path / "language")
    with pytest.raises(ValueError, match="=151655 is outside the language model's vocabulary"):
        assemble(tmp_path, image_token_id=151655)


def test_timm_labels_survive(tmp_path: Path) -> None:
    """timm keeps its labels in a form that only `from_dict` reads."""
    labels = {"num_classes": 3, "label_names": ["a", "b", "c"]}
    config = TimmWrapperConfig.from_dict(timm_vit_config().to_dict() | labels)
    saved(TimmWrapperModel(config), tmp_path / "vision")
    language_checkpoint(tmp_path / "language")
    assemble(tmp_path).save_pretrained(tmp_path / "assembled")
    loaded = Qwen3PerceiverVLM.from_pretrained(tmp_path / "assembled")
    assert loaded.config.vision_config.id2label == {0: "a", 1: "b", 2: "c"}


CHILD = """
import json, sys
from qwen_grafts.modeling import Qwen3PerceiverVLM
model = Qwen3PerceiverVLM.from_vision_language_pretrained(
    "owner/vision", "owner/language", language_revision=sys.argv[1], **json.loads(sys.argv[2])
)
print(json.dumps([model.config.base_models, model.lm_head.weight.double().sum().item()]))
"""


def test_commits_of_hub_repositories_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a Hub, in a process of its own: the client reads the address of the Hub when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    vision("siglip", tmp_path / "vision")
    lm = language_checkpoint(tmp_path / "language")
    commits = {}
    options = {"connector_config": CONNECTOR, "image_token_id": IMAGE_ID}
    options |= {"vision_start_token_id": START_ID, "vision_end_token_id": END_ID}
    with LoopbackHub(tmp_path / "hub", token="hf_loopback") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for part in ("vision", "language"):
            api.create_repo(f"owner/{part}")
            commits[part] = api.upload_folder(repo_id=f"owner/{part}", folder_path=tmp_path / part).oid
        api.upload_file(repo_id="owner/language", path_or_fileobj=b"{}", path_in_repo="config.json")  # main moves on
        child = subprocess.run(
            [sys.executable, "-c", CHILD, commits["language"], json.dumps(options)],
            env=os.environ | environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert child.returncode == 0, child.stderr[-3000:]
    bases, head = json.loads(child.stdout.splitlines()[-1])
    assert bases == {part: {"repo_id": f"owner/{part}", "revision": commit} for part, commit in commits.items()}
    assert head == lm.lm_head.weight.double().sum().item()
