"""Each silent failure that preflight is for, made on purpose."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from qwen_grafts.recipes.preflight import count_parameters, preflight
from qwen_grafts.recipes.trained_parts import freeze

TEXT_ONLY_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.content is string else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def parts(graft, rows):
    model = AutoModelForImageTextToText.from_pretrained(graft)
    processor = AutoProcessor.from_pretrained(graft)

    def collate(**settings):
        collator = DataCollatorForVisionLanguageModeling(processor, **({"completion_only_loss": True} | settings))
        return collator([dict(rows[index]) for index in range(4)])

    return model, processor, collate


def test_good_batch(parts):
    model, processor, collate = parts
    freeze(model, [r"\bconnector\b"])
    report = preflight(model, processor, collate())
    assert report.rows == 4
    assert report.image_tokens == 4 * 8
    assert report.supervised.endswith("<|im_end|>\n")
    assert "<|image_pad|> x 8" in report.text
    assert report.parameters["connector"]["trained"] == report.parameters["connector"]["total"] > 0
    assert report.parameters["language_model"]["trained"] == report.parameters["vision_tower"]["trained"] == 0
    assert sum(part["total"] for part in count_parameters(model).values()) == model.num_parameters()


def test_prompt_under_supervision(parts):
    model, processor, collate = parts
    with pytest.raises(ValueError, match="32 image placeholders are supervised"):
        preflight(model, processor, collate(completion_only_loss=False))


def test_text_template_drops_blocks(parts):
    model, processor, collate = parts
    processor.chat_template = TEXT_ONLY_TEMPLATE
    with pytest.raises(ValueError, match=r"4 of 4 answers render empty|image_pad"):
        preflight(model, processor, collate())


def test_truncation_loses_the_stop_token(parts):
    model, processor, collate = parts
    batch = collate()
    batch["labels"][batch["labels"] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")] = -100
    with pytest.raises(ValueError, match="not supervised in 4 of 4 rows"):
        preflight(model, processor, batch)


def test_nothing_supervised(parts):
    model, processor, collate = parts
    batch = collate()
    batch["labels"][2] = -100
    with pytest.raises(ValueError, match=r"1 of 4 rows of the first batch supervise no token \(rows \[2\]\)"):
        preflight(model, processor, batch)


def test_processor_of_another_model(parts):
    model, processor, collate = parts
    processor.num_image_tokens = 7
    with pytest.raises(ValueError, match="28 image placeholders and 32 image features"):
        preflight(model, processor, collate())


def test_everything_frozen(parts):
    model, processor, collate = parts
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing is trained"):
        preflight(model, processor, collate())


def test_too_long(parts):
    model, processor, collate = parts
    model.config.text_config.max_position_embeddings = 20
    with pytest.raises(ValueError, match="exceeds the language model's 20 positions"):
        preflight(model, processor, collate())


def test_freeze_names_an_expression_without_a_match(parts):
    model, _, _ = parts
    with pytest.raises(ValueError, match="'conector' matches none of 104"):
        freeze(model, ["conector"])


def test_freeze_trains_in_float32(parts):
    model, _, _ = parts
    freeze(model.to(torch.bfloat16), [r"\bconnector\b"])
    assert {p.dtype for p in model.model.connector.parameters()} == {torch.float32}
    assert {p.dtype for p in model.model.language_model.parameters()} == {torch.bfloat16}
