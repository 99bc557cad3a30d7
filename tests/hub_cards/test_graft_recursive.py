"""`graft recursive`: a published Qwen, with its tokenizer, becomes a repository that answers as it did."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from base_checkpoints import chat_checkpoint
from distinct_export import export_distinct
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_grafts.hub_cards import CleanRoomError, export_folder, export_repository, graft_recursive, verify
from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_the_repository_is_the_source_at_any_depth(kind: str, tmp_path: Path) -> None:
    stock = chat_checkpoint(tmp_path / "source", kind)
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out", core="1:3", H_cycles=2, L_cycles=1)
    report = verify(out)
    assert dict(report.checks)["classes"].startswith("AutoConfig (RecursiveQwenConfig), AutoTokenizer (Qwen2Tokenizer)")
    assert list(report.parameters)[:4] == ["embed_tokens", "prelude", "core", "coda"]
    assert (report.parameters["recurrence"], report.parameters["q_head"]) == (6 * 64, 65)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (model.config.layer_family, model.config.core_range) == (kind, [1, 3])
    assert (model.config.H_cycles, model.config.L_cycles) == (2, 1)
    assert tokenizer.chat_template == load_chat_template()
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]
    inputs = tokenizer(["Who runs?", "A longer line"], padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        wanted = stock(**inputs).logits
        for depth in (1, 2, 5):
            assert torch.equal(model(**inputs, num_cycles=depth).logits, wanted)
    card = (out / "README.md").read_text()
    assert kind in ModelCard(card).data.tags and ModelCard(card).data.license is None  # the source names none
    assert f"A recursive {kind.capitalize()} (4 layers, width 64): layers 1 to 2" in card
    assert "pipeline_tag: text-generation" in card


def test_the_licence_is_that_of_the_source(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\n# Source\n")
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out")
    assert ModelCard.load(out / "README.md").data.license == "mit"


def test_a_template_of_the_source_stays(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(tmp_path / "source")
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0].content }}!"


def test_kept_layers_and_dtype(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source", layers=6)
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out", select="even", layers=3, dtype="bfloat16")
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["core_range"], config["dtype"]) == (3, [0, 3], "bfloat16")
    assert dict(verify(out).checks)["weights"] != "none: configuration only"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"core": "7-9"}, "`--core` is FIRST:END"),
        ({"core": "2:9"}, "The core 2:9 is not within the source's 4 layers"),
        ({"select": "middle"}, "none of all, sandwich and even"),
        ({"layers": 2}, "give `core_range` in place of `L_layers`"),
        ({"H_cycles": 0}, "`num_cycles` is 0"),
    ],
)
def test_bad_values_write_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source")
    with pytest.raises(ValueError, match=message) as error:
        graft_recursive(str(tmp_path / "source"), tmp_path / "out", **settings)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source")
    build_qwen_tokenizer(600).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="has ids up to 625, the model 512 rows"):
        graft_recursive(str(tmp_path / "source"), tmp_path / "out")


def test_there_is_no_graft_only_form(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source")
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out")
    message = "A 'recursive_qwen' has no graft-only form: training changes all of its weights"
    with pytest.raises(ValueError, match=message):
        export_folder(out, tmp_path / "small", graft_only=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with pytest.raises(ValueError, match=message):
        export_repository(model, tokenizer, tmp_path / "small", graft_only=True)
    assert not (tmp_path / "small").exists()
    again = export_folder(out, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_halting_is_checked_in_the_clean_room(tmp_path: Path) -> None:
    """Left-padded, cached and not, with tokens that stop at depths of their own."""
    out = export_distinct(tmp_path, "recursive-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    model.config.halt_threshold, model.config.halt_patience, model.config.H_cycles = 0.5, 1, 5
    model.model.q_head.bias.data.zero_()
    export_repository(model, tokenizer, out, overwrite=True)
    assert "the same with and without a cache" in dict(verify(out).checks)["generation"]
    used = model(**tokenizer("What is it?", return_tensors="pt")).cycles_used
    assert len(used.unique()) > 1
    again = AutoModelForCausalLM.from_pretrained(out)
    assert (again.config.halt_threshold, again.config.halt_patience) == (0.5, 1)


def test_code_that_recurs_otherwise_is_found(tmp_path: Path) -> None:
    """The clean room computes with the folder's code, recursion included."""
    chat_checkpoint(tmp_path / "source")
    out = graft_recursive(str(tmp_path / "source"), tmp_path / "out")
    path = out / "modeling_recursive_qwen.py"
    text = path.read_text()
    assert "high, low = new_high, new_low" in text
    path.write_text(text.replace("high, low = new_high, new_low", "high, low = 1.01 * new_high, new_low"))
    with pytest.raises(CleanRoomError, match="the logits through AutoModelForCausalLM differ"):
        verify(out)
