"""The trainer's own head, its accumulation and its parameter groups, against TRL's."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig, SFTTrainer

from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer


def build(graft: Path, rows: Dataset, output_dir: Path, trainer_class: type = GraftSFTTrainer, **arguments):
    set_seed(0)
    kwargs = {"learning_rates": arguments.pop("learning_rates")} if "learning_rates" in arguments else {}
    model = AutoModelForImageTextToText.from_pretrained(graft)
    values = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "max_length": None,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "shuffle_dataset": False,
    } | arguments
    return trainer_class(
        model=model,
        args=SFTConfig(output_dir=str(output_dir), **values),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(graft),
        **kwargs,
    )


def with_answers(rows: Dataset, answers: list[str]) -> Dataset:
    """The rows with answers of our choosing, to make them differ in length."""
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    return rows.select(range(len(answers))).remove_columns("completion").add_column("completion", completions)


def losses(trainer: SFTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_loss_gradients_and_metrics_equal_trl(graft, rows, tmp_path):
    ragged = with_answers(rows, ["red", "a much longer answer than the others", "top left", "no"])
    results = {}
    for trainer_class in (SFTTrainer, GraftSFTTrainer):
        trainer = build(graft, ragged, tmp_path, trainer_class)
        batch = trainer.data_collator([dict(row) for row in ragged])
        for count in (None, 37):
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        trainer.model.zero_grad()
        loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        results[trainer_class] = loss, gradients, {k: v[-1] for k, v in trainer._metrics["train"].items()}
    theirs, ours = results[SFTTrainer], results[GraftSFTTrainer]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6, msg=name)
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


@pytest.mark.parametrize("trainer_class", [GraftSFTTrainer, SFTTrainer])
def test_accumulation_is_exact(graft, rows, tmp_path, trainer_class):
    """Two rows of 2 and 12 answer tokens: one batch of 2 and two accumulated batches of 1 give the same step."""
    pair = with_answers(rows, ["x", "abcdefghijk"])
    steps = []
    for batch_size, accumulation in ((2, 1), (1, 2)):
        trainer = build(
            graft,
            pair,
            tmp_path,
            trainer_class,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            optim="sgd",
            lr_scheduler_type="constant",
        )
        trainer.train()
        steps.append((losses(trainer), dict(trainer.model.named_parameters())))
    (loss_together, together), (loss_apart, apart) = steps
    assert loss_apart == pytest.approx(loss_together, rel=1e-5)
    for name, parameter in together.items():
        torch.testing.assert_close(apart[name], parameter, rtol=1e-5, atol=1e-6, msg=name)


def test_learning_rates_by_part(graft, rows, tmp_path):
    trainer = build(graft, rows, tmp_path, learning_rates={r"\bconnector\b": 1e-4, "projector": 9.0})
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-4 if "connector" in name else 1e-2), name
            assert (group["weight_decay"] == 0.0) or "norm" not in name
            seen.append(name)
    assert sorted(seen) == sorted(names.values())


def test_card_of_the_starting_repository_goes_along(graft, rows, tmp_path):
    trainer = build(graft, rows, tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        card = (folder / "README.md").read_text()
        assert "license: apache-2.0" in card
        assert "trust_remote_code=True" in card
        assert "- sft" in card
