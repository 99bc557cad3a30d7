"""The clean room lets whole folders through and refuses broken ones, each for its own reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qwen_grafts import Qwen3PerceiverVLM
from qwen_grafts.hub_cards import CleanRoomError, export_preset, export_repository, verify
from qwen_grafts.hub_cards.code_rules import code_findings
from qwen_grafts.processing import Qwen3PerceiverProcessor

Edit = Callable[[Path, str, str], None]

ROUNDS = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoProcessor
folder, room = sys.argv[1], Path(sys.argv[2])
for number in range(3):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    folder = str(room / f"round{number}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
assert "qwen_grafts" not in sys.modules
"""


def refusal(folder: Path) -> str:
    with pytest.raises(CleanRoomError) as error:
        verify(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("preset", "part", "parameters"),
    [
        ("perceiver-vlm-tiny", "connector", 158_528),
        ("vision-bridge-tiny", "adapter", 24_704),
        ("recursive-tiny", "core", 295_552),
    ],
)
def test_a_tiny_export_passes(preset: str, part: str, parameters: int, tmp_path: Path) -> None:
    report = verify(export_preset(preset, tmp_path / "tiny"))
    checks = dict(report.checks)
    assert list(checks) == [
        "files",
        "leaks",
        "code",
        "weights",
        "classes",
        "parameters",
        "logits",
        "generation",
        "snippet",
    ]
    sees = preset != "recursive-tiny"
    for auto in ("AutoModel ", "AutoModelForCausalLM", "AutoProcessor" if sees else "AutoTokenizer"):
        assert auto in checks["classes"]
    assert ("AutoModelForImageTextToText" in checks["classes"]) == sees
    assert report.parameters[part] == parameters
    assert "fit to publish" in str(report)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("perceiver-vlm-8b", {"connector": 82_445_824}),
        (
            "vision-bridge-4b",
            {"vision_tower": 676_550_144, "adapter": 9_177_600, "language_model": 4_022_468_096, "lm_head": 0},
        ),
        ("recursive-4b", {"recurrence": 15_360, "q_head": 2_561, "norm": 2_560, "lm_head": 0}),
    ],
)
def test_a_configuration_only_export_builds_at_full_size(
    preset: str, parameters: dict[str, int], tmp_path: Path
) -> None:
    out = export_preset(preset, tmp_path / "big", config_only=True)
    assert not list(out.glob("*.safetensors"))
    report = verify(out)
    assert parameters.items() <= report.parameters.items()
    assert sum(report.parameters.values()) > 4_000_000_000
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["perceiver-vlm-tiny", "vision-bridge-tiny", "recursive-tiny"])
def test_three_rounds_of_remote_loading_and_saving(preset: str, tmp_path: Path) -> None:
    tiny = export_preset(preset, tmp_path / "tiny")
    command = [sys.executable, "-c", ROUNDS, str(tiny), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for number in range(3):
        report = verify(tmp_path / f"round{number}", reference=model)
        assert "no card" in dict(report.checks)["snippet"]


# ---------------------------------------------------------------------------------- refused by running it


def test_code_that_computes_something_else(copy: Path, edit: Edit) -> None:
    edit(copy / "vision_language.py", "[:, kept, :])", "[:, kept, :] * 1.001)")
    message = refusal(copy)
    assert "the logits through AutoModelForCausalLM differ from the exported model's" in message
    assert "AutoModel " not in message  # the backbone is as it was


def test_a_snippet_that_fails(copy: Path, edit: Edit) -> None:
    edit(copy / "README.md", "AutoModelForImageTextToText.from_pretrained(repo_id", "AutoModelForCausalLM.load(repo_id")
    message = refusal(copy)
    assert "running the card's snippet failed (exit code 1)" in message
    assert "NameError: name 'AutoModelForCausalLM' is not defined" in message


# ---------------------------------------------------------------------------------- refused by reading it


def test_every_finding_is_told_at_once(copy: Path, edit: Edit) -> None:
    (copy / "soft_tokens.py").unlink()
    (copy / "weights.bin").write_bytes(b"\x80\x04")
    edit(copy / "README.md", "## Limits", "Log in with hf_abcdefghijklmnopqrstuvwxyz012345\n\n## Limits")
    with pytest.raises(CleanRoomError, match="3 findings") as error:
        verify(copy)
    assert len(error.value.findings) == 3
    message = str(error.value)
    assert "soft_tokens.py is missing" in message
    assert "weights.bin can hold pickled code" in message
    assert "a Hugging Face token (`hf_abc…`)" in message and "wxyz0123" not in message


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("config.json", '"_name_or_path": ""', '"_name_or_path": "../towers/siglip"', "a place on this machine"),
        ("config.json", '"_name_or_path": ""', '"_name_or_path": "/data/siglip"', "a place on this machine"),
        ("README.md", "## Limits", "Trained on /home/somebody/data.", "a local path (`/home/somebody/data.`)"),
        ("README.md", "## Limits", r"C:\Users\somebody\data", "a local path"),
        ("README.md", "## Limits", f"{Path.home()}/data", "a local path"),
        ("README.md", "## Limits", 'api_key = "0123456789abcdef"', "a credential"),
        ("README.md", "## Limits", "![loss](loss.png)", "README.md shows loss.png, which is missing"),
        ("README.md", 'repo_id = "', 'name = "', "the snippet does not say `repo_id"),
        ("README.md", "license: apache-2.0", "license: [", "the metadata at its head cannot be read"),
        ("config.json", '"AutoModel": ', '"AutoModelForNothing": ', "`auto_map` lacks AutoModel"),
        ("config.json", '"modeling_qwen3_perceiver.Qwen3PerceiverModel"', '"o/n--a.B"', "must be `module.Class`"),
        ("config.json", ".Qwen3PerceiverModel", ".Qwen3PerceiverMadel", "does not define Qwen3PerceiverMadel"),
        ("processor_config.json", '"AutoProcessor"', '"AutoNothing"', "gives AutoProcessor as None"),
        ("config.json", "{", "", "config.json is not JSON"),
        ("soft_tokens.py", "import torch", "import torch\nimport socket", "soft_tokens.py:13: imports `socket`"),
        ("soft_tokens.py", "import torch", "import torch\nimport qwen_grafts", "imports `qwen_grafts`"),
        ("soft_tokens.py", "import torch", "import (torch", "soft_tokens.py is not Python"),
    ],
)
def test_a_folder_with_one_thing_wrong(copy: Path, edit: Edit, name: str, old: str, new: str, expected: str) -> None:
    edit(copy / name, old, new)
    assert expected in refusal(copy)


def test_code_that_nothing_leads_to(copy: Path) -> None:
    (copy / "helper.py").write_text("VALUE = 1\n")
    assert "helper.py is code that `auto_map` does not lead to" in refusal(copy)


def test_vocabularies_and_addresses_are_no_leaks(copy: Path, edit: Edit) -> None:
    edit(copy / "tokenizer.json", '"!"', '"/home/x"')
    (copy / "merges.txt").write_text("/root/ x\n")
    edit(
        copy / "README.md",
        "## Limits",
        "See https://example.org/root/home/tmp/x and the models/tmp/ folder.\n\n## Limits",
    )
    (copy / "config.json").unlink()  # stops before anything is run
    with pytest.raises(CleanRoomError, match="one finding") as error:
        verify(copy)
    assert "config.json is missing" in str(error.value)


def test_truncated_weights_name_the_shard_and_the_tensor(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "model.safetensors is cut short" in refusal(copy) and "1 of 104 tensors" in refusal(copy)
    weights.write_bytes(whole[:50])
    assert "its header of 50 bytes cannot be read" in refusal(copy)
    weights.write_bytes(whole + b"more")
    assert "model.safetensors cannot be read" in refusal(copy)

    weights.write_bytes(whole)
    model, processor = Qwen3PerceiverVLM.from_pretrained(copy), Qwen3PerceiverProcessor.from_pretrained(copy)
    sharded = export_repository(model, processor, tmp_path / "sharded", max_shard_size="1MB")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    first = min(index.values())
    held = [tensor for tensor, shard in index.items() if shard == first]
    cut = sharded / first
    cut.write_bytes(cut.read_bytes()[:-4])
    message = refusal(sharded)
    assert f"{first} is cut short" in message and any(f"the first of them {tensor};" in message for tensor in held)
    cut.unlink()
    assert f"{first} is missing" in refusal(sharded)


def test_an_adapter_is_checked_by_its_files(tiny: Path, tmp_path: Path) -> None:
    model = Qwen3PerceiverVLM.from_pretrained(tiny)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapter = get_peft_model(model, lora)
    adapter.peft_config["default"].base_model_name_or_path = "owner/base"
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    (tmp_path / "adapter" / "README.md").unlink()
    assert verify(tmp_path / "adapter").parameters == {}
    adapter.peft_config["default"].base_model_name_or_path = str(tiny)
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert "adapter_config.json: `base_model_name_or_path`" in refusal(tmp_path / "adapter")


def test_a_trainers_own_files_do_not_count(copy: Path) -> None:
    (copy / "checkpoint-5").mkdir()
    for name in ("training_args.bin", "trainer_state.json", "rng_state_0.pth", "checkpoint-5/optimizer.pt"):
        (copy / name).write_text("/home/somebody/run")
    (copy / "config.json").unlink()
    with pytest.raises(CleanRoomError, match="one finding"):
        verify(copy)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import math, torch.nn\nfrom transformers import x\nfrom .name import y", None),
        ("try:\n    import timm\nexcept ImportError:\n    timm = None", None),
        ("if is_flash_attn_2_available():\n    from flash_attn import f", None),
        ("model.eval()\ntorch.compile(f)\nre.compile('x')", None),
        ("import timm", "unguarded"),
        ("try:\n    import requests\nexcept ImportError:\n    pass", "`requests`"),
        ("try:\n    pass\nexcept ImportError:\n    import numpy", "unguarded"),
        ("from os import path", "`os`"),
        ("def f():\n    import subprocess", "f.py:2: imports `subprocess`"),
        ("read = open", "`open`"),
        ("exec('1')", "`exec`"),
        ("Path('x').write_text('y')", "`.write_text`"),
        ("torch.load('x')", "`.load`"),
        ("from torch import hub", "`torch.hub`"),
        ("from ..name import x", "only `from .name import x`"),
        ("from . import x", "only `from .name import x`"),
    ],
)
def test_code_rules(tmp_path: Path, source: str, expected: str | None) -> None:
    (tmp_path / "f.py").write_text(source)
    findings = code_findings(tmp_path / "f.py")
    assert (findings == []) if expected is None else (len(findings) == 1 and expected in findings[0])
