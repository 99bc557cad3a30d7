"""Evaluation: ragged batches equal one by one, and a model that looks is told from one that guesses."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwen_grafts.recipes.generative_evaluation import _control_images, answer, evaluate, normalise


@pytest.fixture
def parts(graft):
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_pretrained(graft)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model, AutoProcessor.from_pretrained(graft)


def test_ragged_batch_equals_one_by_one(parts, rows):
    model, processor = parts
    conversations = [(rows[i]["prompt"], rows[i]["images"]) for i in (0, 1, 5)]
    conversations.append(([{"role": "user", "content": "A question of text alone, longer than the others are."}], []))
    two = rows[2]["images"] + rows[9]["images"]
    blocks = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "?"}]
    conversations.append(([{"role": "user", "content": blocks}], two))
    together = answer(model, processor, conversations, batch_size=5, max_new_tokens=6)
    alone = [answer(model, processor, [one], max_new_tokens=6)[0] for one in conversations]
    assert together == alone
    assert len(set(together)) > 1


def test_controls_tell_looking_from_guessing(parts, rows):
    """The model's own answers as targets: exact on the images themselves, not on blank or shuffled ones."""
    model, processor = parts
    written = answer(model, processor, [(row["prompt"], row["images"]) for row in rows], max_new_tokens=6)
    completions = [[{"role": "assistant", "content": text}] for text in written]
    own = rows.remove_columns("completion").add_column("completion", completions)
    result = evaluate(model, processor, own, max_new_tokens=6)
    assert set(result) == {"shape", "colour", "position"}
    for kind in result.values():
        assert kind["exact_match"] == 1.0
        assert kind["blank_image"] < 1.0
        assert kind["shuffled_image"] < 1.0
        assert kind["rows"] == 16


def test_shuffled_images_are_of_the_same_kind():
    """Each row borrows from another row of its kind, where there is one."""
    kinds = ["shape"] * 4 + ["digit"] * 3 + ["alone"]
    images = [Image.new("L", (1, 1), index) for index in range(len(kinds))]
    rows = [{"kind": kind, "images": [image]} for kind, image in zip(kinds, images, strict=True)]
    borrowed = [images.index(one) for (one,) in _control_images(rows, "shuffled_image")]
    assert all(other != own for own, other in enumerate(borrowed))
    assert [kinds[other] for other in borrowed[:-1]] == kinds[:-1]
    assert sorted(borrowed[:7]) == list(range(7))


def test_two_rows_at_least(parts, rows):
    with pytest.raises(ValueError, match="at least 2 rows"):
        evaluate(*parts, rows.select([0]))


def test_normalise():
    assert normalise("  Top   LEFT. ") == "top left"
    assert normalise("3.5") == "3.5"


def test_training_mode_is_restored(parts, rows):
    model, processor = parts
    model.train()
    answer(model, processor, [([{"role": "user", "content": "x"}], [Image.new("RGB", (9, 9))])], max_new_tokens=1)
    assert model.training
