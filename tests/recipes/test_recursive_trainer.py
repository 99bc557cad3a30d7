"""Depth, supervision, halting, the embedding objective and the moving average of a recursive model's training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from recursive_checkpoint import VOCABULARY, tiny_recursive, tiny_tokenizer, token_rows
from safetensors.torch import load_file
from tiny_recursive import SIZES
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, TrainerCallback, set_seed
from trl import SFTConfig

from qwen_grafts.configuration import preset_config
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.recursive_trainer import RecursionArguments, RecursiveSFTTrainer, check_recursion

RAGGED = (5, 19, 11, 3, 16, 8, 23, 13)
DEEP = {"train_cycles": [2, 4], "deep_supervision": True, "ema_decay": 0.7}


def build(
    output_dir: Path,
    recursion: dict[str, Any] | None,
    model: PreTrainedModel | None = None,
    rows: Dataset | None = None,
    eval_rows: Dataset | None = None,
    **settings: Any,
) -> GraftSFTTrainer:
    """A trainer of the tiny model, in the order of the rows; without recursion the base's."""
    set_seed(0)
    values = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_length": None,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "shuffle_dataset": False,
    } | settings
    more = {} if recursion is None else {"recursion": RecursionArguments(**recursion)}
    return (GraftSFTTrainer if recursion is None else RecursiveSFTTrainer)(
        model=tiny_recursive() if model is None else model,
        args=SFTConfig(output_dir=str(output_dir), **values),
        train_dataset=token_rows(*RAGGED) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tiny_tokenizer(),
        **more,
    )


def first_batch(trainer: GraftSFTTrainer, size: int = 4) -> dict[str, torch.Tensor]:
    return trainer.data_collator([trainer.train_dataset[row] for row in range(size)])


def gradients(trainer: GraftSFTTrainer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def weights(trainer: GraftSFTTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=10 * tolerance, atol=tolerance, msg=name)


def moved(before: dict[str, torch.Tensor], trainer: GraftSFTTrainer) -> set[str]:
    return {name for name, tensor in weights(trainer).items() if not torch.equal(before[name], tensor)}


def test_a_single_pass_equals_the_base_trainer_on_the_stock_model(tmp_path):
    """Loss, gradients and metrics of Qwen3 with the same weights, where nothing recursive is asked for."""
    model = tiny_recursive(H_cycles=1, L_cycles=1)
    for init in (model.model.recurrence.H_init, model.model.recurrence.L_init):
        init.data.zero_()
    sizes = SIZES | {"vocab_size": VOCABULARY}
    stock = Qwen3ForCausalLM(Qwen3Config(**sizes))
    stock.load_state_dict({n: t for n, t in model.state_dict().items() if n in stock.state_dict()})
    results = []
    for recursion, trained in (({"halt_loss_weight": 0.0}, model), (None, stock)):
        trainer = build(tmp_path, recursion, trained)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, first_batch(trainer), num_items_in_batch=37)
        metrics = {name: trainer._metrics["train"][name][-1] for name in ("entropy", "mean_token_accuracy")}
        results.append((loss.detach(), gradients(trainer, loss), metrics))
    (ours, our_gradients, our_metrics), (theirs, their_gradients, their_metrics) = results
    torch.testing.assert_close(ours, theirs)
    assert_same({n: g for n, g in our_gradients.items() if n in their_gradients}, their_gradients, 1e-5)
    assert our_metrics == pytest.approx(their_metrics, rel=1e-5)


@pytest.mark.parametrize("deep", [True, False], ids=["deep supervision", "last cycle"])
def test_loss_written_out(tmp_path, deep):
    """Cross-entropy and halting loss token by token and cycle by cycle, from full logits."""
    trainer = build(tmp_path, {"train_cycles": [3], "deep_supervision": deep, "halt_loss_weight": 0.3})
    trainer.model.train()
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=37)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = trainer.model(**inputs, num_cycles=3, supervised_cycles=(1, 2, 3) if deep else (3,))
    total, last_halting, count = 0.0, 0.0, 0
    for cycle, logits in enumerate(outputs.cycle_logits):
        for row in range(len(logits)):
            for position, label in enumerate(batch["labels"][row, 1:].tolist()):
                if label == -100:
                    continue
                scores = logits[row, position].double()
                certainty = 1 / (1 + math.exp(-outputs.halt_logits[row, position, cycle].item()))
                right = int(scores.argmax()) == label
                halting = -math.log(certainty if right else 1 - certainty)
                total += (scores.logsumexp(0) - scores[label]).item() + 0.3 * halting
                if cycle + 1 == len(outputs.cycle_logits):
                    last_halting, count = last_halting + halting, count + 1
    assert loss.item() == pytest.approx(total / len(outputs.cycle_logits) / 37, rel=1e-5)
    assert trainer._metrics["train"]["halting_loss"] == pytest.approx([last_halting / count], rel=1e-5)
    assert trainer._metrics["train"]["cycles"] == [3.0]
    gradient = gradients(trainer, loss)
    assert gradient["model.q_head.weight"].abs().max() > 0


def test_truncated_backpropagation_leaves_the_loss(tmp_path):
    found = {}
    for kept in (None, 1, 2, 9):
        trainer = build(tmp_path, {"train_cycles": [4], "gradient_cycles": kept})
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        found[kept] = loss.item(), gradients(trainer, loss)["model.layers.1.mlp.up_proj.weight"]
    assert len({round(loss, 5) for loss, _ in found.values()}) == 1
    torch.testing.assert_close(found[9][1], found[None][1])
    assert not torch.allclose(found[1][1], found[2][1])
    assert not torch.allclose(found[2][1], found[None][1])


OBJECTIVES = [{"train_cycles": [2], "deep_supervision": True}, {"train_cycles": [2], "objective": "embeddings"}]


@pytest.mark.parametrize("recursion", OBJECTIVES, ids=["tokens", "embeddings"])
def test_accumulation_is_exact(tmp_path, recursion):
    """Rows of 3 and 23 tokens, one batch of both or one of each: the same step."""
    results = []
    for size, accumulated in ((2, 1), (1, 2)):
        trainer = build(
            tmp_path,
            recursion,
            rows=token_rows(3, 23),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
        )
        trainer.train()
        results.append((trainer.state.log_history[0]["loss"], weights(trainer)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert_same(results[1][1], results[0][1])


@pytest.mark.parametrize("recursion", [DEEP, {"train_cycles": [3], "gradient_cycles": 2}], ids=["deep", "truncated"])
def test_gradient_checkpointing_changes_nothing(tmp_path, recursion):
    results = []
    for checkpointing in (False, True):
        trainer = build(tmp_path, recursion, gradient_checkpointing=checkpointing)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        results.append(weights(trainer))
    assert_same(*results)


def test_depth_of_a_step_is_drawn_from_seed_and_step(tmp_path):
    def drawn(recursion: dict[str, Any], seed: int = 0) -> list[int]:
        trainer = build(tmp_path, recursion, seed=seed)
        return [trainer.cycles_of_step(step) for step in range(60)]

    cycles = drawn({"train_cycles": [2, 5]})
    assert set(cycles) == {2, 3, 4, 5}
    assert cycles == drawn({"train_cycles": [2, 5]})
    assert cycles != drawn({"train_cycles": [2, 5]}, seed=1)
    assert set(drawn({"train_cycles": [4]})) == {4}
    assert set(drawn({})) == {3}  # the configuration's
    trainer = build(tmp_path, {"train_cycles": [2, 5]}, max_steps=4, seed=0)
    trainer.train()
    assert [entry["cycles"] for entry in trainer.state.log_history if "cycles" in entry] == cycles[:4]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = build(tmp_path / "whole", DEEP, **settings)
    whole.train()
    whole.save_model()
    resumed = build(tmp_path / "resumed", DEEP, tiny_recursive(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(weights(resumed), weights(whole), 0.0)
    for step in (2, 4):
        assert (tmp_path / "whole" / f"checkpoint-{step}" / "ema.safetensors").is_file()
    last = [load_file(tmp_path / run / "checkpoint-4" / "ema.safetensors") for run in ("whole", "resumed")]
    assert_same(*last, 0.0)
    assert not (tmp_path / "whole" / "ema.safetensors").exists()  # the model is the average there


class Recorder(TrainerCallback):
    """The weights after every step."""

    def __init__(self, trainer: GraftSFTTrainer) -> None:
        self.trainer, self.seen = trainer, []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(weights(self.trainer))


def test_the_average_is_that_of_the_steps_and_what_is_saved(tmp_path):
    trainer = build(tmp_path, {"ema_decay": 0.25}, max_steps=5)
    average = weights(trainer)
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    trainer.save_model()
    for step, seen in enumerate(recorder.seen, start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        average = {name: decay * tensor + (1 - decay) * seen[name] for name, tensor in average.items()}
    assert_same(weights(trainer), average)
    assert not torch.equal(average["model.norm.weight"], recorder.seen[-1]["model.norm.weight"])
    assert_same(load_file(tmp_path / "model.safetensors"), average)


def test_a_checkpoint_without_the_average_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    build(tmp_path / "plain", {}, **settings).train()
    with pytest.raises(ValueError, match=r"checkpoint-1 holds no ema\.safetensors"):
        build(tmp_path, DEEP).train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1"))
    build(tmp_path / "averaged", DEEP, **settings).train()
    with pytest.raises(ValueError, match=r"averages 65 weights and this run trains 62; 3 differ, as model\.norm"):
        other = build(tmp_path, DEEP | {"halt_loss_weight": 0.0})
        other.model.model.norm.requires_grad_(False)
        other.train(resume_from_checkpoint=str(tmp_path / "averaged" / "checkpoint-1"))


OUTER = ("model.layers.0.", "model.layers.3.", "model.layers.4.", "model.norm.")
HEADS = ("model.q_head.", "lm_head.")
FROZEN = {
    "nothing": ({}, ()),
    "embeddings": ({"freeze_embeddings": True}, ("model.embed_tokens.",)),
    "head": ({"freeze_head": True}, ("lm_head.",)),
    "outer": ({"freeze_outer_layers": True}, OUTER),
    "halting": ({"halt_loss_weight": 0.0}, ("model.q_head.",)),
    "hybrid": (
        {"freeze_embeddings": True, "freeze_head": True, "freeze_outer_layers": True},
        ("model.embed_tokens.", "lm_head.", *OUTER),
    ),
    "objective": ({"objective": "embeddings"}, ("model.embed_tokens.", *HEADS)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_flags_freeze_what_they_name_and_nothing_else(tmp_path, name):
    flags, prefixes = FROZEN[name]
    trainer = build(tmp_path, flags | {"deep_supervision": True}, tiny_recursive(tie_word_embeddings=False))
    before = weights(trainer)
    trainer.train()
    assert moved(before, trainer) == {name for name in before if not name.startswith(prefixes)}


def test_embedding_objective_written_out(tmp_path):
    """The distance of each state from the next token's embedding; no logits are made for it."""
    trainer = build(tmp_path, {"objective": "embeddings", "train_cycles": [2], "deep_supervision": True})
    trainer.model.train()
    batch = first_batch(trainer)
    widths = []
    trainer.model.lm_head.register_forward_hook(lambda *call: widths.append(call[2].shape[:2].numel()))
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=10)
    assert widths == [0, 0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = trainer.model.model(**inputs, num_cycles=2, supervised_cycles=(1, 2))
    table, total = trainer.model.model.embed_tokens.weight, 0.0
    for states in outputs.cycle_hidden_states:
        for row, labels in enumerate(batch["labels"][:, 1:].tolist()):
            for position, label in enumerate(labels):
                if label != -100:
                    state, target = states[row, position], table[label]
                    total += 1 - (state @ target / state.norm() / target.norm()).item()
    assert loss.item() == pytest.approx(total / 2 / 10, rel=1e-4)


def test_embedding_objective_learns(tmp_path):
    trainer = build(
        tmp_path,
        {"objective": "embeddings", "train_cycles": [1, 3]},
        max_steps=30,
        optim="adamw_torch",
        learning_rate=1e-2,
        eval_strategy="no",
    )
    before = weights(trainer)
    trainer.train()
    distances = [entry["cosine_distance"] for entry in trainer.state.log_history if "cosine_distance" in entry]
    assert sum(distances[-5:]) < 0.5 * sum(distances[:5])
    assert not {name for name in moved(before, trainer) if "embed_tokens" in name or "q_head" in name}
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert trainer._metrics["eval"]["cosine_distance"] == pytest.approx([loss.item()], rel=1e-5)


def test_token_loss_falls_and_evaluation_is_the_models_own(tmp_path):
    """Evaluated at the configuration's depth, whatever training drew, and without the halting loss."""
    trainer = build(tmp_path, DEEP, max_steps=30, optim="adamw_torch", learning_rate=3e-3)
    trainer.train()
    losses = [entry["token_loss"] for entry in trainer.state.log_history if "token_loss" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    batch = first_batch(trainer)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
        torch.testing.assert_close(loss, trainer.model(**batch, num_cycles=3).loss, rtol=1e-5, atol=1e-6)


UNUSABLE = {
    r"`train_cycles` is \[0\]": {"train_cycles": [0]},
    r"`train_cycles` is \[4, 2\]": {"train_cycles": [4, 2]},
    r"`train_cycles` is \[1, 2, 3\]": {"train_cycles": [1, 2, 3]},
    "`gradient_cycles` is 0": {"gradient_cycles": 0},
    "one cycle long": {"gradient_cycles": 2, "deep_supervision": True},
    "`halt_loss_weight` is -1": {"halt_loss_weight": -1},
    "neither tokens nor embeddings": {"objective": "words"},
    "`ema_decay` is 1": {"ema_decay": 1},
    "one tensor in this model": {"freeze_head": True},
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_unusable_settings(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, UNUSABLE[message])


def test_settings_of_other_models_and_losses(tmp_path):
    vision = preset_config("perceiver-vlm-tiny")
    check_recursion(RecursionArguments(), vision)
    with pytest.raises(ValueError, match=r"2 settings are for recursive models.*train_cycles, ema_decay"):
        check_recursion(RecursionArguments(train_cycles=[2], ema_decay=0.9), vision)
    for settings in ({"loss_type": "dft"}, {"label_smoothing_factor": 0.1}):
        with pytest.raises(ValueError, match="a loss of their own"):
            build(tmp_path, {}, **settings)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    with pytest.raises(ValueError, match="Choose one"):
        build(tmp_path, {"ema_decay": 0.9}, **best, eval_rows=token_rows(4))
