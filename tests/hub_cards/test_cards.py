"""What a model card says: the truth about training, numbers beside their controls, and how to load the model."""

from __future__ import annotations

import copy as copying
import re
from pathlib import Path
from typing import Any

import pytest
from distinct_export import VISION_PRESETS, export_distinct
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image

from qwen_grafts.configuration import preset_config
from qwen_grafts.hub_cards import build_adapter_card, build_card, loss_curve_figure, write_card
from qwen_grafts.hub_cards.cards import card_snippet, name_repository
from qwen_grafts.recipes.run_metadata import write_metadata

TRAINING: dict[str, Any] = {
    "command": "qwen-grafts train recipes/perceiver_vlm/shapes.yaml",
    "seed": 7,
    "steps": 2000,
    "epochs": 3.0,
    "duration_seconds": 240.0,
    "versions": {"torch": "2.15.0", "transformers": "5.23.0"},
    "base_models": {
        "vision": {"repo_id": "google/siglip2-so400m-patch14-384", "revision": "abc123"},
        "language": {"repo_id": "Qwen/Qwen3-8B-Base", "revision": "def456"},
    },
    "dataset": {"name": "owner/shapes", "fingerprint": "f00d", "train_rows": 4900, "eval_rows": 100},
    "parameters": {
        "vision_tower": {"total": 412_987_248, "trained": 0},
        "connector": {"total": 82_445_824, "trained": 82_445_824},
    },
    "metrics": {
        "before": {"colour": {"exact_match": 0.25}},
        "after": {
            "colour": {"exact_match": 0.98, "blank_image": 0.27, "shuffled_image": 0.25, "rows": 100},
            "place": {"exact_match": 0.9, "blank_image": 0.24, "shuffled_image": 0.26, "rows": 1200},
        },
    },
    "loss_curve": [[1, 6.2], [10, 3.1], [100, 0.4]],
}


@pytest.fixture(scope="module")
def card() -> ModelCard:
    figures = {"loss_curve.png": "Training loss"}
    return build_card(preset_config("perceiver-vlm-8b"), repo_id="owner/graft", training=TRAINING, figures=figures)


def test_metadata(card: ModelCard) -> None:
    data = ModelCard(str(card)).data  # as the Hub reads it
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.base_model == ["google/siglip2-so400m-patch14-384", "Qwen/Qwen3-8B-Base"]
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["owner/shapes"]
    assert {"custom_code", "qwen3", "perceiver"} <= set(data.tags)
    assert data.model_name == "owner/graft"
    assert [(r.dataset_name, r.dataset_config, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("owner/shapes", "colour", "exact_match", 0.98),
        ("owner/shapes", "place", "exact_match", 0.9),
    ]


def test_text(card: ModelCard) -> None:
    text = str(card)
    assert "64 learned queries" in text and "36 layers" in text
    assert "| `connector` | 82,445,824 | 82,445,824 |" in text
    assert "| `vision_tower` | 412,987,248 | 0 |" in text
    assert "| `lm_head` | 622,329,856 | - |" in text
    assert "| questions | exact match before | exact match | blank image | shuffled images | rows |" in text
    assert "| colour | 0.250 | 0.980 | 0.270 | 0.250 | 100 |" in text
    assert "| place | - | 0.900 | 0.240 | 0.260 | 1,200 |" in text
    assert "![Training loss](loss_curve.png)" in text
    assert "```bash\nqwen-grafts train recipes/perceiver_vlm/shapes.yaml\n```" in text
    assert "| language | [Qwen/Qwen3-8B-Base](https://huggingface.co/Qwen/Qwen3-8B-Base) | def456 |" in text
    assert "enable_thinking=False" in text and "trust_remote_code=True" in text
    assert "without positions" in text  # a limit of this preset's connector
    assert "andomly initialised" not in text and "not trained" not in text


@pytest.mark.parametrize("preset", VISION_PRESETS)
def test_both_modes_of_thinking_are_shown_and_run(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first snippet, which is the clean room's, a second one that goes on from it."""
    export = export_distinct(tmp_path, preset)
    card = (export / "README.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    assert card_snippet(export / "README.md")[0] == first
    assert "enable_thinking=True" in card and "enable_thinking=False" in card
    monkeypatch.chdir(tmp_path)
    own = first.replace(card_snippet(export / "README.md")[1], str(export))
    names: dict[str, Any] = {}
    exec(compile(own + second.replace("(256)", "(8)").replace("=300", "=24"), "the card", "exec"), names)
    assert names["message"]["content"] and "reasoning_content" not in names["message"]  # thinking was off at the end
    config_only = build_card(preset_config(preset), repo_id="owner/graft", config_only=True)
    assert "enable_thinking" not in str(config_only)


def test_a_recursive_model_says_how_deep_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its second snippet, which goes on from the clean room's, runs at two depths."""
    export = export_distinct(tmp_path, "recursive-tiny")
    card = (export / "README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.pipeline_tag == "text-generation"
    assert "3 cycles of 3 low steps and a high one: 26 layer evaluations, where the stock model makes 4" in card
    assert "26 layers' worth of keys and values a token, where the stock model keeps 4" in card
    assert "While the update gates are closed" in card and "Every token takes all cycles" in card
    assert "| `prelude` | 147,776 | - |" in card and "| `core` | 295,552 | - |" in card and "| `q_head` | 129 |" in card
    assert not any(word in card for word in ("image", "picture", "PIL", "AutoProcessor", "enable_thinking"))
    first, second = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    own = first.replace(card_snippet(export / "README.md")[1], str(export))
    names: dict[str, Any] = {}
    exec(compile(own + second.replace("=32", "=4"), "the card", "exec"), names)
    read = names["inputs"]["input_ids"].shape[1] + len(names["output"].sequences[0]) - 1
    assert names["num_cycles"] == 6
    assert names["output"].past_key_values.cycles_used.shape[1] == read - names["inputs"]["input_ids"].shape[1]


def test_what_a_recursive_card_depends_on() -> None:
    config = preset_config("recursive-tiny")
    config.halt_threshold, config.kv_sharing = 0.9, "last"
    bases = {"language": {"repo_id": "Qwen/Qwen3-0.6B", "revision": "abc"}}
    text = str(build_card(config, repo_id="owner/deep", base_models=bases))
    assert "surer than 0.9, 3 cycles in a row" in text and "`kv_sharing: last`, an approximation" in text
    assert "4 layers' worth of keys and values" in text
    assert "this is its source at any depth where all layers were kept" in text
    config.update_gate_init = 1.0
    assert "The update gates start open" in str(build_card(config, repo_id="owner/deep", base_models=bases))
    config_only = str(build_card(config, repo_id="owner/deep", config_only=True, random_weights=True))
    assert "tokenizer = AutoTokenizer.from_pretrained" in config_only and "the code and the tokenizer" in config_only


def test_the_state_of_the_weights_is_told_plainly() -> None:
    config = preset_config("perceiver-vlm-tiny")
    random = str(build_card(config, repo_id="owner/graft", random_weights=True))
    assert "**Randomly initialised, not trained.**" in random and "float32" in random
    assert "## Results" not in random and "## Training" not in random and "model-index" not in random
    assembled = str(build_card(config, repo_id="owner/graft", base_models=TRAINING["base_models"]))
    assert "**No training is on record" in assembled and "starts from random numbers" in assembled
    assert "| language | [Qwen/Qwen3-8B-Base](https://huggingface.co/Qwen/Qwen3-8B-Base) | def456 |" in assembled
    assert "This card claims nothing" in str(build_card(config, repo_id="owner/graft"))


@pytest.mark.parametrize("missing", sorted(TRAINING))
def test_a_record_with_gaps_still_makes_a_card(missing: str) -> None:
    training = {key: value for key, value in TRAINING.items() if key != missing}
    text = str(build_card(preset_config("perceiver-vlm-tiny"), repo_id="owner/graft", training=training))
    assert "## Use" in text and "Undefined" not in text and "None" not in text


def test_flat_metrics_and_local_names() -> None:
    training = copying.deepcopy(TRAINING)
    training["metrics"] = {"after": {"exact_match": 0.5, "rows": 8}, "command": "evaluate --rows 8"}
    training["base_models"]["vision"]["repo_id"] = "/data/siglip"
    training["dataset"]["name"] = "shapes"
    card = build_card(preset_config("perceiver-vlm-tiny"), repo_id="owner/graft", training=training)
    assert card.data.base_model == ["Qwen/Qwen3-8B-Base"] and card.data.datasets is None
    assert "| all | 0.500 | 8 |" in str(card) and "```bash\nevaluate --rows 8\n```" in str(card)
    assert "/data" not in str(card) and "| vision | a local checkpoint | abc123 |" in str(card)


def test_a_repository_is_named_everywhere(card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    card.save(path)
    assert card_snippet(path)[1] == "owner/graft"
    name_repository(path, "somebody/else-1.0")
    assert card_snippet(path)[1] == "somebody/else-1.0"
    assert "owner/graft" not in path.read_text() and "owner/shapes" in path.read_text()
    assert ModelCard.load(path).data.model_name == "somebody/else-1.0"
    with pytest.raises(ValueError, match="owner/name"):
        name_repository(path, "no-owner")
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="qwen-grafts card"):
        name_repository(path, "somebody/else")
    with pytest.raises(ValueError, match="qwen-grafts card"):
        name_repository(tmp_path / "missing.md", "somebody/else")


def test_adapter_card() -> None:
    adapter = LoraConfig(
        r=8, target_modules=r"language_model.*(q|v)_proj", base_model_name_or_path="owner/base", revision="abc123"
    )
    card = build_adapter_card(adapter, repo_id="owner/adapter", training=TRAINING)
    data = ModelCard(str(card)).data
    assert data.base_model == ["owner/base"] and data.base_model_relation == "adapter"
    assert data.library_name == "peft" and "custom_code" in data.tags
    text = str(card)
    assert "at revision `abc123`" in text and "AutoPeftModelForCausalLM" in text
    assert r"`language_model.*(q\|v)_proj`" in text and "| `r` | `8` |" in text
    of_text = str(build_adapter_card(adapter, repo_id="owner/adapter", pipeline_tag="text-generation"))
    assert "tokenizer = AutoTokenizer.from_pretrained(base_id" in of_text and "AutoProcessor" not in of_text
    adapter.base_model_name_or_path = "/data/base"
    with pytest.raises(ValueError, match="names a Hub repository"):
        build_adapter_card(adapter, repo_id="owner/adapter")


def test_an_adapter_of_a_graft_goes_through_its_processor(tmp_path: Path) -> None:
    """CLaRa writes text, and takes documents that no tokenizer knows."""
    LoraConfig(r=8, target_modules="q_proj", base_model_name_or_path="owner/base").save_pretrained(tmp_path)
    for model_type, auto_class in (("clara_qwen3", "AutoProcessor"), ("recursive_qwen", "AutoTokenizer")):
        write_metadata(TRAINING | {"model_type": model_type}, tmp_path)
        text = write_card(tmp_path, repo_id="owner/adapter").read_text(encoding="utf-8")
        assert f"= {auto_class}.from_pretrained(base_id, " in text
        assert "pipeline_tag: text-generation" in text


def test_loss_curve(tmp_path: Path) -> None:
    path = loss_curve_figure(TRAINING, tmp_path / "loss_curve.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    with pytest.raises(ValueError, match="loss_curve"):
        loss_curve_figure({}, path)


def test_no_card_for_what_is_not_a_graft() -> None:
    with pytest.raises(ValueError, match="not a graft"):
        build_card(preset_config("perceiver-vlm-tiny").text_config, repo_id="owner/name")
    with pytest.raises(ValueError, match="owner/name"):
        build_card(preset_config("perceiver-vlm-tiny"), repo_id="name")
