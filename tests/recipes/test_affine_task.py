"""The task that depth is measured with: its rows, its curriculum, what is counted."""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen_grafts.recipes.affine_task import (
    IDS,
    MODULUS,
    SIZES,
    affine_accuracy,
    affine_batches,
    affine_model,
    affine_rows,
    affine_tokenizer,
    collate_batches,
    curriculum,
    measure_depth,
)
from qwen_grafts.recipes.affine_training import affine_trainer, train_affine
from qwen_grafts.recipes.recursive_trainer import RecursionArguments, check_recursion
from qwen_grafts.recipes.run_metadata import read_metadata


def values(tokens: list[str]) -> list[str]:
    """The running values, computed as one would by hand."""
    value, found = 0, []
    for token in tokens:
        number = int(token[1:])
        value = (value + number if token[0] == "+" else value * number) % MODULUS
        found.append(str(value))
    return found


def test_labels_are_the_running_values():
    """A row opens with the value it starts from; each label stands behind its operation, as the next token would."""
    tokenizer = affine_tokenizer()
    rows = affine_rows([1, 5, 24, 3], seed=3)
    for row, length in zip(rows, (1, 5, 24, 3), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert len(tokens) == len(row["labels"]) == length + 2
        assert tokens[0] == "0" and row["labels"][:2] == [-100, -100]
        assert tokenizer.convert_ids_to_tokens(row["labels"][2:]) == values(tokens[1:-1])
        assert row["input_ids"][-1] == row["labels"][-1]
    operations = {token for row in affine_rows([24] * 64, seed=0) for token in row["input_ids"][1:-1]}
    assert operations == set(range(IDS["+0"], IDS["*6"] + 1))


def test_rows_follow_their_seed():
    first, again, other = (affine_rows([16] * 8, seed)["input_ids"] for seed in (0, 0, 1))
    assert first == again != other


def test_words_of_the_task_are_tokens():
    tokenizer = affine_tokenizer()
    ids = tokenizer("+3 *2 why")["input_ids"]
    assert ids == [IDS["+3"], IDS["*2"], IDS["<unk>"]]
    chat = [{"role": "user", "content": "+3 *2"}]
    assert tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] == ids[:2]


def test_steps_read_as_much_while_rows_grow():
    lengths = curriculum(steps=20, longest=8, share=0.5)
    assert lengths == sorted(lengths)
    assert (len(lengths), lengths[0], lengths[9], lengths[10]) == (20, 1, 7, 8)
    batches = affine_batches(lengths, tokens=64, seed=0)
    for length, batch in zip(lengths, batches, strict=True):
        inputs = collate_batches([batch])
        assert inputs["input_ids"].shape == inputs["labels"].shape == (64 // length, length + 2)
        assert inputs["attention_mask"].all()


def test_trainer_grows_depth_and_ends_with_the_average(tmp_path):
    """The real trainer: cycles follow the rows, the loss falls, and the stock control learns by the same loop."""
    model = affine_model(seed=0)
    train_affine(model, tmp_path / "run", seed=0, command="test", steps=24)
    metadata = read_metadata(tmp_path / "run")
    losses = [loss for _, loss in metadata["loss_curve"]]
    assert len(losses) == metadata["steps"] == 24
    assert metadata["settings"]["train_cycles"] == [16]
    assert str(tmp_path) not in json.dumps(metadata)
    trainer = affine_trainer(affine_model(seed=0), tmp_path, seed=0, steps=24)
    trainer.state.max_steps = 24
    assert [trainer.cycles_of_step(step) for step in (0, 6, 12, 23)] == [1, 8, 16, 16]
    loaded = type(model).from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    dense = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=1, **SIZES))
    before = dense.lm_head.weight.detach().clone()
    affine_trainer(dense, tmp_path / "dense", seed=0, steps=3).train()
    assert not torch.equal(before, dense.lm_head.weight)


def test_accuracy_counts_right_values():
    """A model that always says 2 is right where the value is 2, at any depth."""
    model = affine_model(seed=0, H_cycles=2)
    rows = affine_rows([6] * 32, seed=1)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head.weight.zero_()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + torch.eye(logits.shape[-1])[IDS["2"]])
    labels = torch.tensor(rows["labels"])[:, 2:]
    measured = affine_accuracy(model, rows)
    assert measured["accuracy"] == pytest.approx((labels == IDS["2"]).float().mean().item())
    assert measured["accuracy_last"] == pytest.approx((labels[:, -1] == IDS["2"]).float().mean().item())
    assert "cycles" not in measured
    with torch.no_grad():
        model.model.q_head.bias.fill_(5.0)
    found = measure_depth(model, 1, lengths=(6,), depths=(1, 8), thresholds=(0.9, 0.999), rows=32)
    assert found["depth"]["6"]["8"] == pytest.approx(measured["accuracy"])
    assert found["halting"]["6"]["0.9"]["cycles"] == model.config.halt_patience
    assert found["halting"]["6"]["0.999"]["cycles"] == 8


def test_stock_model_is_measured_too():
    dense = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=1, **SIZES))
    assert set(affine_accuracy(dense, affine_rows([4] * 4, seed=0))) == {"accuracy", "accuracy_last"}


def test_generation_ends_with_the_value():
    model, tokenizer = affine_model(seed=0, H_cycles=2), affine_tokenizer()
    ids = tokenizer("0 +3 *2 +6", return_tensors="pt")["input_ids"]
    written = model.generate(ids, do_sample=False)
    assert written.shape == (1, 5)
    assert written[0, -1] == model(ids).logits[0, -1].argmax()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_warmup_is_a_share(share):
    with pytest.raises(ValueError, match="`cycles_warmup` is"):
        check_recursion(RecursionArguments(cycles_warmup=share), affine_model(seed=0).config)
