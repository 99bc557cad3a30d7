"""A stock Qwen3-VL on the Hub is trained, published while and after training, and answers the same for a stranger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from loopback_hub import LoopbackHub, environment
from transformers import AutoModelForImageTextToText

from qwen_grafts.hub_cards.cards import card_snippet

TOKEN = "hf_loopback"
BASE, TRAINED, ADAPTER = "tester/qwen3-vl", "tester/trained", "tester/adapter"
FULL = {"use_peft": False, "trainable": r"\blanguage_model\b"}
NO_PACKAGE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "qwen_grafts":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""
ANSWER = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForImageTextToText
loader = AutoPeftModelForCausalLM if sys.argv[2] == "lora" else AutoModelForImageTextToText
model = loader.from_pretrained(sys.argv[1]).eval()
ids = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(0))
settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
print(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[:, 40:].tolist())
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
    assert hub.unknown_requests == []


def run(command: list[str | Path], hub: LoopbackHub, folder: Path, home: str = "home") -> str:
    """Run a command in a process whose Hub is `hub`; returns the last line that it prints."""
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment(hub, folder / home) | settings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def publish_base(hub: LoopbackHub, folder: Path, base: Path) -> str:
    """Put the base on the Hub with a card of its own; returns the commit."""
    copy = Path(shutil.copytree(base, folder / "published"))
    (copy / "README.md").write_text("---\nlicense: other\n---\n\n# Somebody's model\n")
    return HfApi(endpoint=hub.endpoint, token=TOKEN).upload_folder(repo_id=BASE, folder_path=copy).oid


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [("lora", {}), ("full", FULL)])
def test_train_and_publish_on_the_hub(
    kind: str,
    settings: dict[str, object],
    hub: LoopbackHub,
    stock_base: Path,
    stock_words: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """A base on the Hub, pushes while training and at the end, `push`; then a stranger's process answers the same."""
    HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo(BASE)
    commit = publish_base(hub, tmp_path, stock_base)
    pushes = {"push_to_hub": True, "hub_model_id": TRAINED, "hub_strategy": "every_save", "hub_always_push": True}
    _, recipe, *rest = stock_words(tmp_path / "out", model_name_or_path=BASE, **settings, **pushes)
    run(["-m", "qwen_grafts.cli", "train", recipe, *rest], hub, tmp_path)
    out = tmp_path / "out"
    training = json.loads((out / "training_meta.json").read_text())
    assert training["base_models"] == {"base": {"repo_id": BASE, "revision": commit}}
    if kind == "lora":
        assert json.loads((out / "adapter_config.json").read_text())["revision"] == commit

    commits = hub.commits(TRAINED)
    assert commits[0]["title"] == "End of training"
    cards = [hub.read(TRAINED, "README.md", entry["id"]).decode() for entry in commits[:-1]]
    assert len(cards) >= 2
    relation = "adapter" if kind == "lora" else "finetune"
    for text in cards:
        data = ModelCard(text).data
        assert (data.license, data.base_model_relation) == ("other", relation)
        assert data.base_model in (BASE, [BASE])
        assert "Somebody" not in text and "More Information Needed" not in text and "TRL" not in text
    assert all(commit in text and "saved while the training run went on" in text for text in cards[1:])
    assert f'repo_id = "{TRAINED}"' in cards[0] and "| questions | valid JSON before" in cards[0]
    assert {"loss_curve.png", "training_meta.json", "tokenizer.json"} <= set(hub.files(TRAINED))

    wanted = run(["-c", ANSWER, out, kind], hub, tmp_path)
    moved = AutoModelForImageTextToText.from_pretrained(stock_base)
    moved.model.language_model.norm.weight.data.mul_(-1)
    moved.save_pretrained(tmp_path / "published")
    HfApi(endpoint=hub.endpoint, token=TOKEN).upload_folder(repo_id=BASE, folder_path=tmp_path / "published")
    run(["-m", "qwen_grafts.cli", "push", out, ADAPTER], hub, tmp_path)
    assert f'repo_id = "{ADAPTER}"' in hub.read(ADAPTER, "README.md").decode()
    assert not [name for name in hub.files(ADAPTER) if name.startswith("checkpoint-") or name.endswith(".bin")]
    for repository in (TRAINED, ADAPTER):
        assert run(["-c", NO_PACKAGE + ANSWER, repository, kind], hub, tmp_path, home="stranger") == wanted
    if kind == "lora":
        snippet = card_snippet(out / "README.md")[0]
        printed = "\nprint(type(model).__name__, type(processor).__name__)"
        classes = run(["-c", NO_PACKAGE + snippet + printed], hub, tmp_path, home="stranger")
        assert classes == "Qwen3VLForConditionalGeneration Qwen3VLProcessor"
        run(["-m", "qwen_grafts.cli", "export", "--model", out, tmp_path / "merged"], hub, tmp_path)
        run(["-m", "qwen_grafts.cli", "push", tmp_path / "merged", "tester/merged"], hub, tmp_path)
        assert run(["-c", NO_PACKAGE + ANSWER, "tester/merged", "full"], hub, tmp_path, home="stranger") == wanted
        assert ModelCard(hub.read("tester/merged", "README.md").decode()).data.license == "other"
