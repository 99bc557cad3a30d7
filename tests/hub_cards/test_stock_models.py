"""What comes after the SFT of a stock Qwen-VL: adapters that load by one name, export, card, clean room, the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3Config, Qwen3ForCausalLM, Qwen3VLConfig
from trl import ModelConfig

from qwen_grafts.hub_cards import CleanRoomError, build_card, export_folder, finish_run, verify, write_card
from qwen_grafts.recipes.graft_sft import main, parse
from qwen_grafts.recipes.trained_parts import lora

FULL = {"use_peft": False, "trainable": r"\blanguage_model\b"}


@pytest.fixture(scope="module")
def adapter(stock_words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the stock base; not to be changed."""
    out = tmp_path_factory.mktemp("adapter") / "run"
    main(*parse(stock_words(out)))
    return out


@pytest.fixture(scope="module")
def whole(stock_words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully trained stock model; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    main(*parse(stock_words(out, **FULL)))
    return out


def a_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(**a_batch()).logits


def test_adapter_loads_by_one_name(adapter: Path, stock_base: Path) -> None:
    """PEFT's Auto classes know the base's class from the adapter; merged it is the stock class again."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert config["auto_mapping"]["base_model_class"] == "Qwen3VLForConditionalGeneration"
    wanted = logits(AutoModelForImageTextToText.from_pretrained(adapter))
    assert not torch.allclose(logits(AutoModelForImageTextToText.from_pretrained(stock_base)), wanted, atol=1e-3)
    tokens = []
    for auto_class in (AutoPeftModelForCausalLM, AutoPeftModel):
        model = auto_class.from_pretrained(adapter).eval()
        torch.testing.assert_close(logits(model), wanted)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        tokens += [model.generate(**a_batch(), **settings)]
        merged = model.merge_and_unload()
        assert type(merged).__name__ == "Qwen3VLForConditionalGeneration"
        torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)
        tokens += [merged.generate(**a_batch(), **settings)]
    assert all(torch.equal(one, tokens[0]) for one in tokens)


def test_a_grafts_adapter_stays_a_causal_language_model(tiny: Path) -> None:
    model_args = ModelConfig(use_peft=True, model_name_or_path="no/where", model_revision="0" * 40)
    with torch.device("meta"):
        graft = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tiny))
        stock = AutoModelForImageTextToText.from_config(Qwen3VLConfig(text_config={"num_hidden_layers": 1}))
    assert lora(model_args, graft).task_type == "CAUSAL_LM"
    assert lora(model_args, stock).task_type is None
    assert lora(model_args, stock).revision == "0" * 40  # as it was asked for: nothing is looked up


def test_adapter_of_a_stock_model_is_merged(adapter: Path, stock_base: Path, tmp_path: Path) -> None:
    out = export_folder(adapter, tmp_path / "merged")
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "processor_config.json", "training_meta.json", "loss_curve.png"} <= names
    assert not list(out.glob("*.py")) and not list(out.glob("adapter*"))
    for path in out.glob("*config.json"):
        assert "auto_map" not in json.loads(path.read_text()), path.name
    wanted = logits(AutoModelForImageTextToText.from_pretrained(adapter))
    torch.testing.assert_close(logits(AutoModelForImageTextToText.from_pretrained(out)), wanted, atol=1e-4, rtol=0)
    assert (
        sum(verify(out).parameters.values()) == AutoModelForImageTextToText.from_pretrained(stock_base).num_parameters()
    )
    card = (out / "README.md").read_text()
    assert "merged into the weights" in card and "| `language_model` | 169,216 | 29,184 |" in card


def test_card_of_a_fully_trained_stock_model(whole: Path, stock_base: Path, tmp_path: Path) -> None:
    """Card and clean room where the run ends, then the export, whose weights are the run's."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert ("snippet", "the card's snippet ran") in finish_run(run, repo_id="someone/sarcasm").checks
    card = (run / "README.md").read_text()
    assert "| questions | valid JSON before | valid JSON |" in card and "blank image" in card
    assert "| `language_model` | 169,216 | 169,216 |" in card and "| `visual` | 42,952 | 0 |" in card
    assert "![Training loss by step.](loss_curve.png)" in card and "confusion_label.png" in card
    assert "trust_remote_code" not in card and "custom_code" not in card and "enable_thinking" not in card
    assert "license" not in ModelCard(card).data.to_dict()  # a local base says nothing of it, so nothing is claimed
    out = export_folder(run, tmp_path / "export")
    wanted = logits(AutoModelForImageTextToText.from_pretrained(whole))
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(out)), wanted)
    assert not list(out.glob("checkpoint-*")) and not (out / "training_args.bin").exists()


def test_the_record_names_base_and_licence(adapter: Path, tmp_path: Path) -> None:
    training = json.loads((adapter / "training_meta.json").read_text())
    training |= {"license": "other", "base_models": {"base": {"repo_id": "Qwen/Qwen3-VL", "revision": "a" * 40}}}
    out = export_folder(adapter, tmp_path / "merged")
    (out / "training_meta.json").write_text(json.dumps(training))
    data = ModelCard(write_card(out).read_text()).data
    assert (data.license, data.base_model, data.base_model_relation) == ("other", ["Qwen/Qwen3-VL"], "finetune")
    assert (
        f"| base | [Qwen/Qwen3-VL](https://huggingface.co/Qwen/Qwen3-VL) | {'a' * 40} |"
        in (out / "README.md").read_text()
    )


def test_what_cannot_be_exported(whole: Path, adapter: Path, tmp_path: Path) -> None:
    config = Qwen3Config(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "text")
    lora_config = LoraConfig(target_modules=["q_proj"])
    get_peft_model(Qwen3ForCausalLM.from_pretrained(tmp_path / "text"), lora_config).save_pretrained(tmp_path / "on")
    get_peft_model(Qwen3ForCausalLM(config), lora_config).save_pretrained(tmp_path / "unnamed")
    for folder in ("text", "on"):
        with pytest.raises(ValueError, match=r"`model_type` 'qwen3' is not a graft .* and not an image-text model"):
            export_folder(tmp_path / folder, tmp_path / "out")
    with pytest.raises(ValueError, match="names no base model"):
        export_folder(tmp_path / "unnamed", tmp_path / "out")
    with pytest.raises(ValueError, match="not an image-text model"):
        write_card(tmp_path / "text")
    with pytest.raises(ValueError, match="stock 'qwen3_vl', which has no graft-only form"):
        export_folder(whole, tmp_path / "out", graft_only=True)
    with pytest.raises(ValueError, match="it has no graft-only form"):
        export_folder(adapter, tmp_path / "out", graft_only=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="Choose another folder"):
        export_folder(adapter, tmp_path / "text")


def test_weights_that_are_not_the_models(whole: Path, tmp_path: Path) -> None:
    """transformers' own classes load what does not fit with a warning; the clean room does not."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (run / "config.json").write_text(json.dumps(config))
    write_card(run)
    with pytest.raises(CleanRoomError, match=r"11 tensors of the weights have no place, first .*layers\.2"):
        verify(run)


def test_a_stock_model_without_a_record(stock_base: Path) -> None:
    card = build_card(AutoConfig.from_pretrained(stock_base), repo_id="owner/name")
    assert "**No training is on record" in str(card) and "This card claims nothing" in str(card)
