"""What lands in an exported folder, and what is left when exporting fails."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from qwen_grafts import Qwen3PerceiverProcessor, Qwen3PerceiverVLM
from qwen_grafts.configuration import GRAFTS
from qwen_grafts.configuration.code_files import code_set
from qwen_grafts.hub_cards import export_preset, export_repository, verify
from qwen_grafts.hub_cards.clean_room_child import check_batch, logits_of
from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template

GRAFT = GRAFTS["qwen3_perceiver"]
CODE = set(code_set(GRAFT))
OTHER_FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def parts(folder: Path) -> tuple[Qwen3PerceiverVLM, Qwen3PerceiverProcessor]:
    return Qwen3PerceiverVLM.from_pretrained(folder), Qwen3PerceiverProcessor.from_pretrained(folder)


def test_a_preset_is_a_whole_repository(tiny: Path) -> None:
    assert names(tiny) == CODE | OTHER_FILES | {"model.safetensors"}
    config = json.loads((tiny / "config.json").read_text())
    assert config["auto_map"] == GRAFT.auto_map
    assert config["architectures"] == ["Qwen3PerceiverVLM"] and config["dtype"] == "float32"
    generation = json.loads((tiny / "generation_config.json").read_text())
    tokenizer = parts(tiny)[1].tokenizer
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == ["<|im_end|>", "<|endoftext|>"]
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    assert (tiny / "model.safetensors").stat().st_mode & 0o777 == (tiny / "config.json").stat().st_mode & 0o777


def test_a_preset_of_text_has_a_tokenizer_in_place_of_a_processor(tiny: Path, tmp_path: Path) -> None:
    out = export_preset("recursive-tiny", tmp_path / "out")
    code = set(code_set(GRAFTS["recursive_qwen"]))
    assert names(out) == code | OTHER_FILES - {"processor_config.json"} | {"model.safetensors"}
    assert "modeling_recursive_qwen.py" in code and not {"vision_language.py", "soft_tokens.py"} & code
    assert json.loads((out / "config.json").read_text())["auto_map"] == GRAFTS["recursive_qwen"].auto_map
    for auto_class in (AutoTokenizer, AutoProcessor):
        tokenizer = auto_class.from_pretrained(out)
        assert tokenizer.chat_template == load_chat_template() and tokenizer.pad_token_id == 486
    generation = json.loads((out / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == ["<|im_end|>", "<|endoftext|>"]
    build_qwen_tokenizer(300).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"The tokenizer does not fit.*'pad_token_id': 300.*'pad_token_id': 486"):
        export_preset("recursive-tiny", tmp_path / "other", tokenizer=tmp_path / "small")


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone(tiny: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = export_preset("perceiver-vlm-tiny", tmp_path / "again")
    other = export_preset("perceiver-vlm-tiny", tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = (tiny / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (other / "model.safetensors").read_bytes() != weights


def test_the_tokenizer_is_chosen_or_refused(tiny: Path, tmp_path: Path) -> None:
    out = export_preset("perceiver-vlm-tiny", tmp_path / "out", tokenizer=tiny)
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match=r"The tokenizer does not fit.*498.*151655"):
        export_preset("perceiver-vlm-8b", tmp_path / "big", tokenizer=tiny, config_only=True)
    assert names(tmp_path) == {"out"}


def test_weights_are_sharded(tiny: Path, tmp_path: Path) -> None:
    model, processor = parts(tiny)
    out = export_repository(model, processor, tmp_path / "out", max_shard_size="1MB")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert json.loads((out / "config.json").read_text())["auto_map"] == GRAFT.auto_map


def test_a_merged_adapter_is_an_ordinary_model(tiny: Path, tmp_path: Path) -> None:
    model, processor = parts(tiny)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="merge_and_unload"):
        export_repository(peft_model, processor, tmp_path / "out")
    merged = peft_model.merge_and_unload()
    out = export_repository(merged, processor, tmp_path / "out")
    inputs = check_batch(processor)
    assert names(out) == CODE | OTHER_FILES | {"model.safetensors"}
    assert torch.equal(logits_of(parts(out)[0], inputs), logits_of(merged.eval(), inputs))
    assert not torch.equal(logits_of(merged, inputs), logits_of(parts(tiny)[0], inputs))


@pytest.fixture
def remote(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The graft's classes, loaded as remote code from the export."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # another cache's packages do not hold this one's modules
    return {auto: get_class_from_dynamic_module(reference, str(tiny)) for auto, reference in GRAFT.auto_map.items()}


def test_remote_classes_export_their_own_code(tiny: Path, tmp_path: Path, remote: dict[str, type]) -> None:
    model = remote["AutoModelForCausalLM"].from_pretrained(tiny)
    processor = remote["AutoProcessor"].from_pretrained(tiny)
    assert type(model.config).__module__.startswith("transformers_modules.")
    # As if it came from the Hub, and its parts from folders of this machine.
    model.config.auto_map = {auto: f"owner/name--{ref}" for auto, ref in GRAFT.auto_map.items()}
    model.config.text_config._name_or_path = str(tmp_path / "language")
    out = export_repository(model, processor, tmp_path / "out")
    assert names(out) == names(tiny)
    for name in CODE:
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["auto_map"] == GRAFT.auto_map
    assert not [
        path.name for path in out.glob("*.json") if str(tmp_path) in path.read_text() or "--" in path.read_text()
    ]
    verify(out, reference=(model, processor))


def test_code_that_does_not_fit_together_is_refused(copy: Path, tmp_path: Path, remote: dict[str, type]) -> None:
    model = remote["AutoModelForCausalLM"].from_pretrained(copy)
    tokenizer = parts(copy)[1].tokenizer
    with pytest.raises(ValueError, match=r"processing_qwen3_perceiver\.py.*same repository"):
        export_repository(model, tokenizer, tmp_path / "out")
    with (copy / "processing_qwen3_perceiver.py").open("a") as file:
        file.write("# another version\n")
    changed = get_class_from_dynamic_module(GRAFT.auto_map["AutoProcessor"], str(copy))
    ours = Qwen3PerceiverVLM.from_pretrained(copy)
    with pytest.raises(ValueError, match=r"another version of processing_qwen3_perceiver\.py"):
        export_repository(ours, changed.from_pretrained(copy), tmp_path / "out")
    assert names(tmp_path) == {"copy", "modules"}


# ---------------------------------------------------------------------------------- nothing half-written


def test_a_folder_in_use_is_not_overwritten_unasked(copy: Path, tmp_path: Path) -> None:
    model, processor = parts(copy)
    with pytest.raises(ValueError, match=r"already holds \d+ files.*`overwrite`"):
        export_repository(model, processor, copy)
    (copy / "stale.txt").write_text("left over")
    assert export_repository(model, processor, copy, overwrite=True) == copy
    assert names(copy) == CODE | OTHER_FILES | {"model.safetensors"}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"irreplaceable")
    with pytest.raises(ValueError, match="no model repository"):
        export_repository(model, processor, tmp_path / "photos", overwrite=True)
    assert names(tmp_path) == {"copy", "photos"}


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A disk of one megabyte at `folder`; where that cannot be mounted, no file may outgrow one megabyte."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_export(tiny: Path, tmp_path: Path) -> None:
    model, processor = parts(tiny)
    disk = tmp_path / "disk"
    with full_disk(disk):
        out = disk / "model"
        out.mkdir()
        (out / "config.json").write_text("the old one")
        with pytest.raises(OSError, match=r"untouched.*GB were free"):
            export_repository(model, processor, out, overwrite=True)
        assert names(disk) == {"model"} and names(out) == {"config.json"}
        assert (out / "config.json").read_text() == "the old one"
        with pytest.raises(OSError, match="was not written"):
            export_repository(model, processor, disk / "new")
        assert names(disk) == {"model"}


def test_a_failing_swap_brings_the_old_export_back(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = parts(copy)
    before = (copy / "config.json").stat().st_ino
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise PermissionError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="refused"):
        export_repository(model, processor, copy, overwrite=True)
    assert (copy / "config.json").stat().st_ino == before
    assert names(tmp_path) == {"copy"}
