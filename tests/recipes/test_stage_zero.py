"""What stands in for downloaded checkpoints: rows in words, rows as captions, and a Qwen2.5-VL that can be grafted."""

import json

import pytest
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3ForCausalLM,
)

from qwen_grafts.configuration import preset_config
from qwen_grafts.hub_cards import graft_vision_bridge
from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template
from qwen_grafts.recipes.language_pretraining import described, described_for_thinking
from qwen_grafts.recipes.qwen3_vl_pretraining import pretrain_qwen3_vl
from qwen_grafts.recipes.vision_language_pretraining import captioned, pretrain_vision_language_model
from qwen_grafts.recipes.visual_tasks import visual_task


@pytest.fixture(scope="module")
def rows():
    return visual_task("shapes+captions+sizes+thoughts", "train", shapes=48)


def rendered(row):
    tokenizer = build_qwen_tokenizer(486)
    tokenizer.chat_template = load_chat_template()
    return tokenizer.apply_chat_template(
        row["prompt"] + row["completion"], tokenize=False, **row.get("chat_template_kwargs", {})
    )


def test_half_of_the_rows_think(rows):
    described_rows = described_for_thinking(rows, 0)
    counts = {True: 0, False: 0}
    for row, source in zip(described_rows, rows, strict=True):
        thinks = row["chat_template_kwargs"]["enable_thinking"]
        answer = rendered(row).partition("<|im_start|>assistant\n")[2]
        final = source["completion"][0]["content"].partition("</think>\n\n")[2]
        thought = f"{source['description']}. I am asked for the {source['kind']}." if thinks else ""
        assert answer == f"<think>\n{thought}\n</think>\n\n{final}<|im_end|>\n"
        counts[thinks] += 1
    assert min(counts.values()) > len(rows) / 3
    # Each kind of question with thinking on and off.
    pairs = zip(rows["kind"], described_rows["chat_template_kwargs"], strict=True)
    assert len({(kind, switch["enable_thinking"]) for kind, switch in pairs}) == 8


def test_words_of_a_description_stand_in_any_order(rows):
    words = [row["prompt"][0]["content"] for row in described_for_thinking(rows, 0)]
    plain = [row["prompt"][0]["content"] for row in described(rows)]
    assert words != plain
    assert words == [row["prompt"][0]["content"] for row in described_for_thinking(rows, 0)]
    for shuffled, text in zip(words, plain, strict=True):
        (scene, question), (in_order, same) = (
            content.removeprefix("<|vision_start|>").split("<|vision_end|>") for content in (shuffled, text)
        )
        assert question == same
        assert set(scene.split()) == set(in_order.split())
        assert 0 <= len(scene.split()) - len(in_order.split()) <= 6


def test_captions(rows):
    captions = captioned(rows)
    assert captions[0]["prompt"][0]["content"] == "What does the image show?"
    assert captions[5]["completion"][0]["content"] == rows[5]["description"]
    assert captions[5]["images"][0].tobytes() == rows[5]["images"][0].tobytes()


def test_pretrained_vision_language_model_gives_its_tower(rows, tmp_path):
    config = preset_config("vision-bridge-tiny")
    tokenizer = build_qwen_tokenizer(486)
    model = pretrain_vision_language_model(
        captioned(rows), tokenizer, config.vision_config, tmp_path / "vision", max_steps=1, batch_size=4
    )
    index = json.loads((tmp_path / "vision" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    language = Qwen3ForCausalLM(config.text_config)
    language.save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    grafted = graft_vision_bridge(str(tmp_path / "vision"), str(tmp_path / "language"), tmp_path / "grafted")
    assert (grafted / "model.safetensors").is_file()


def test_pretrained_qwen3_vl_is_a_stock_one(tmp_path):
    """Deep stack, the processor's image tokens and the end of a turn, as they come out of the saved folder."""
    rows = visual_task("letters", "train", letters=4)
    pretrain_qwen3_vl(rows, build_qwen_tokenizer(486), tmp_path, max_steps=1, batch_size=4)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert len(model.model.visual.deepstack_merger_list) == 2
    message = [{"role": "user", "content": [{"type": "image", "image": rows[0]["images"][0]}]}]
    inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
