"""Packed rows against the padded batch that they were, for every vision model of the house.

Rows are as awkward as they may be: images of several sizes, none, two, one at the very end of a row and one at the very
beginning of the next, and the first token of every row supervised.
"""

from typing import Any

import pytest
import torch
from contracts.model_contract import assert_close, generator, randomize
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_perceiver import perceiver_config, siglip_config
from tiny_qwen3_vl import qwen3_vl_config, qwen3_vl_processor
from tiny_vision_bridge import vision_bridge_config
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qwen_grafts.modeling import Qwen3PerceiverVLM, Qwen3VisionBridgeForCausalLM
from qwen_grafts.recipes.packed_rows import (
    SDPA_BY_DOCUMENT,
    attend_by_document,
    check_packable,
    documents_apart,
    pack_rows,
)

Batch = dict[str, torch.Tensor]
MODELS = ("qwen3_perceiver", "qwen3_vision_bridge", "qwen3_vl")
IMAGE = object()
# What the rows of a batch are made of: numbers of text tokens, and images.
ROWS = ((3, IMAGE, 9), (31,), (2, IMAGE, 4, IMAGE), (IMAGE, 6))
GRIDS = ((1, 4, 6), (1, 2, 10), (1, 8, 8), (1, 6, 4))
LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)


def build(model_type: str, **text: Any) -> PreTrainedModel:
    """A random model in training mode."""
    torch.manual_seed(0)
    if model_type == "qwen3_perceiver":
        model = Qwen3PerceiverVLM(perceiver_config(siglip_config(), text))
    elif model_type == "qwen3_vision_bridge":
        model = Qwen3VisionBridgeForCausalLM(vision_bridge_config(text))
    else:
        config = qwen3_vl_config(qwen3_vl_processor())
        for name, value in text.items():
            setattr(config.text_config, name, value)
        model = Qwen3VLForConditionalGeneration(config)
    randomize(model)
    return model.train()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def make_row(model: PreTrainedModel, content: tuple, seed: int) -> Batch:
    """One row without a batch dimension; all of its text is supervised."""
    config, source = model.config, generator(seed)
    ids: list[int] = []
    pixels, grids = [], []
    for part in content:
        if part is not IMAGE:
            ids += torch.randint(2, 140, (part,), generator=source).tolist()
        elif config.model_type == "qwen3_perceiver":
            ids += [config.image_token_id] * config.num_image_tokens
            pixels.append(torch.randn(1, 3, 16, 16, generator=source))
        else:
            grid = torch.tensor(GRIDS[(seed + len(grids)) % len(GRIDS)])
            ids += [config.image_token_id] * (int(grid.prod()) // 4)
            pixels.append(torch.randn(int(grid.prod()), 3 * 2 * 4 * 4, generator=source))
            grids.append(grid)
    input_ids = torch.tensor(ids)
    types = (input_ids == config.image_token_id).long()
    row = {"input_ids": input_ids, "labels": input_ids.masked_fill(types.bool(), -100), "mm_token_type_ids": types}
    return row | {name: value for name, value in (("pixel_values", pixels), ("image_grid_thw", grids)) if value}


def collate(rows: list[Batch], side: str = "right") -> Batch:
    """Rows padded to one batch, as a collator does."""
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        surplus = width - len(row["input_ids"])
        around = (surplus, 0) if side == "left" else (0, surplus)
        padding = {"input_ids": 0, "labels": -100, "mm_token_type_ids": 0, "attention_mask": 0}
        for name, value in (row | {"attention_mask": torch.ones_like(row["input_ids"])}).items():
            if name in padding:
                batch.setdefault(name, []).append(nn.functional.pad(value, around, value=padding[name]))
            else:
                batch.setdefault(name, []).extend(value)
    return {name: (torch.cat if name == "pixel_values" else torch.stack)(values) for name, values in batch.items()}


def make_rows(model: PreTrainedModel, contents: tuple = ROWS) -> list[Batch]:
    return [make_row(model, content, seed) for seed, content in enumerate(contents)]


def loss_and_gradients(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Batch]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed_loss_and_gradients(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Batch]:
    with documents_apart(model):
        return loss_and_gradients(model, pack_rows(model, batch))


def packed_logits(model: nn.Module, rows: list[Batch]) -> list[torch.Tensor]:
    """Logits of every row, from one packed forward pass."""
    with torch.no_grad(), documents_apart(model):
        packed = pack_rows(model, collate(rows))
        return list(model(**packed).logits[0].split([len(row["input_ids"]) for row in rows]))


def assert_equal_training(packed: tuple[torch.Tensor, Batch], padded: tuple[torch.Tensor, Batch]) -> None:
    assert_close(packed[0], padded[0])
    assert packed[1].keys() == padded[1].keys()
    for name, gradient in padded[1].items():
        assert_close(packed[1][name], gradient)


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_all_gradients_equal_unpacked(model, side):
    rows = make_rows(model)
    if side == "left":  # where padding would have to predict it
        rows = [row | {"labels": row["labels"].index_fill(0, torch.tensor([0]), -100)} for row in rows]
    batch = collate(rows, side)
    packed = packed_loss_and_gradients(model, batch)
    assert_equal_training(packed, loss_and_gradients(model, batch))
    assert len(packed[1]) == sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_and_labels_begin_anew(model, side):
    rows = make_rows(model)
    packed = pack_rows(model, collate(rows, side))
    lengths = [len(row["input_ids"]) for row in rows]
    assert packed["document_lengths"] == tuple(lengths)
    assert packed["attention_mask"].sum() == packed["attention_mask"].numel() == sum(lengths)
    labels = torch.cat([row["labels"].index_fill(0, torch.tensor([0]), -100) for row in rows])
    assert torch.equal(packed["input_ids"], torch.cat([row["input_ids"] for row in rows])[None])
    assert torch.equal(packed["labels"], labels[None])
    expected = [torch.arange(length) for length in lengths]
    if model.config.model_type == "qwen3_vl":
        spatial = [model.model.get_rope_index(**_rope_inputs(row))[0][:, 0] for row in rows]
        expected = [torch.cat([text[None], others]) for text, others in zip(expected, spatial, strict=True)]
        assert any((others[0] != text[0]).any() for text, others in zip(expected, spatial, strict=True))
    positions = packed["position_ids"].squeeze(-2)
    assert positions.shape[-1] == sum(lengths)
    assert torch.equal(positions, torch.cat(expected, dim=-1))


def _rope_inputs(row: Batch) -> Batch:
    grids = {"image_grid_thw": torch.stack(row["image_grid_thw"])} if "image_grid_thw" in row else {}
    return {name: row[name][None] for name in ("input_ids", "mm_token_type_ids")} | grids


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model, reentrant):
    """The layers run a second time in the backward pass, and must keep rows apart then too."""
    batch = collate(make_rows(model))
    padded = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_equal_training(packed_loss_and_gradients(model, batch), padded)
    assert len(calls) == 2, "nothing was recomputed"


def test_lora(model):
    adapted = get_peft_model(model, LORA)
    check_packable(adapted)
    batch = collate(make_rows(model))
    packed = packed_loss_and_gradients(adapted, batch)
    assert_equal_training(packed, loss_and_gradients(adapted, batch))
    assert packed[1] and all("lora_" in name for name in packed[1])


def test_rows_do_not_see_each_other(model):
    """Other words and pixels in one row leave the logits of all others as they were, bit for bit."""
    rows = make_rows(model)
    before = packed_logits(model, rows)
    for changed, row in enumerate(rows):
        other = row | {"input_ids": row["input_ids"] + (row["mm_token_type_ids"] == 0)}
        other |= {"pixel_values": [-pixels for pixels in row["pixel_values"]]} if "pixel_values" in row else {}
        after = packed_logits(model, [*rows[:changed], other, *rows[changed + 1 :]])
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(old, new) == (index != changed), f"row {index} after a change in row {changed}"


def test_each_row_is_as_if_alone_in_any_order(model):
    rows = make_rows(model)
    with torch.no_grad():
        alone = [model(**collate([row])).logits[0] for row in rows]
    for order in ((0, 1, 2, 3), (2, 3, 1, 0), (3, 1)):
        for index, logits in zip(order, packed_logits(model, [rows[index] for index in order]), strict=True):
            assert_close(logits, alone[index])


@pytest.mark.parametrize("contents", [((5, IMAGE, 4),), ((7,), (20,), (3,)), ((IMAGE, 1), (IMAGE, 1))])
def test_one_row_rows_without_images_and_shortest_rows(model, contents):
    batch = collate(make_rows(model, contents))
    assert_equal_training(packed_loss_and_gradients(model, batch), loss_and_gradients(model, batch))


def test_equals_the_mask_that_transformers_makes_of_the_positions(model):
    """Stock sdpa, told nothing but positions that begin anew: a slow reference for the attention alone."""
    packed = pack_rows(model, collate(make_rows(model)))
    with torch.no_grad():
        with documents_apart(model):
            ours = model(**packed).logits
        stock = {name: value for name, value in packed.items() if name not in ("attention_mask", "document_lengths")}
        assert_close(ours, model(**stock, use_cache=False).logits)  # with a cache it makes no such mask


def test_flash_attention_gets_the_lengths(model, monkeypatch):
    """A stand-in with flash attention's arguments, in tower and language model: each gets its own lengths."""
    seen = []

    def flash(module, query, key, value, attention_mask, *, cu_seq_lens_q=None, max_length_q=None, **kwargs):
        assert attention_mask is None
        if cu_seq_lens_q is None:
            return sdpa_attention_forward(module, query, key, value, None, **kwargs)
        lengths = tuple(cu_seq_lens_q.diff().tolist())
        if hasattr(module, "layer_idx"):
            assert (max_length_q, kwargs["max_length_k"]) == (max(lengths),) * 2
            assert kwargs["cu_seq_lens_k"] is cu_seq_lens_q and cu_seq_lens_q.dtype == torch.int32
            seen.append(lengths)
        return attend_by_document(module, query, key, value, None, document_lengths=lengths, **kwargs)

    rows = make_rows(model)
    ours = packed_logits(model, rows)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation = "flash_attention_2"  # and of all parts
    check_packable(model)
    for flashed, logits in zip(packed_logits(model, rows), ours, strict=True):
        assert_close(flashed, logits)
    lengths = tuple(len(row["input_ids"]) for row in rows)
    assert seen == [lengths] * model.config.get_text_config().num_hidden_layers


def test_the_usual_attention_comes_back(model, tmp_path):
    config = model.model.language_model.config
    with pytest.raises(RuntimeError), documents_apart(model):
        assert config._attn_implementation == SDPA_BY_DOCUMENT
        model.save_pretrained(tmp_path)
        raise RuntimeError
    assert config._attn_implementation == "sdpa"
    assert SDPA_BY_DOCUMENT not in (tmp_path / "config.json").read_text()


def test_padded_rows_are_refused_where_packed_ones_are_due(model):
    with documents_apart(model), pytest.raises(TypeError, match="document_lengths"):
        model(**collate(make_rows(model)))


def test_too_long_row_is_refused(model):
    limit = model.config.get_text_config().max_position_embeddings
    rows = make_rows(model, ((limit,), (3, IMAGE), (limit + 1,)))
    with pytest.raises(ValueError, match=f"Row 2 of a batch of 3 has {limit + 1} tokens.* {limit} positions"):
        pack_rows(model, collate(rows))
    assert pack_rows(model, collate(rows[:2]))["input_ids"].shape[1] > limit  # only together


def test_what_cannot_keep_rows_apart_is_refused(model):
    names = "Qwen3PerceiverVLM, Qwen3VisionBridgeForCausalLM, Qwen3VLForConditionalGeneration"
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
    with pytest.raises(ValueError, match=f"'qwen3' model, only for {names}"):
        check_packable(Qwen3ForCausalLM(Qwen3Config(**text)))
    prompt_tuning = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        check_packable(get_peft_model(model, prompt_tuning))
    for attention in ("eager", "flex_attention"):
        model.model.language_model.config._attn_implementation = attention
        with pytest.raises(ValueError, match=f"sdpa or by a flash attention; the language model has '{attention}'"):
            check_packable(model)


def test_sliding_window_is_refused_with_sdpa():
    model = build("qwen3_vision_bridge", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding window"):
        check_packable(model)
    model.config._attn_implementation = "flash_attention_2"
    check_packable(model)
