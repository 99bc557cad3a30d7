"""The trainer's own head, its accumulation and its parameter groups, against TRL's."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from distinct_export import VISION_PRESETS
from peft import LoraConfig
from tiny_qwen3_vl import qwen3_vl_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig, SFTTrainer

from qwen_grafts.hub_cards import export_preset
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.packed_rows import SDPA_BY_DOCUMENT


def build(graft: Path, rows: Dataset, output_dir: Path, trainer_class: type = GraftSFTTrainer, **arguments):
    set_seed(0)
    beside = ("learning_rates", "pack_rows", "eval_dataset", "peft_config")
    kwargs = {name: arguments.pop(name) for name in beside if name in arguments}
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


def test_head_sees_supervised_positions_alone(graft, rows, tmp_path):
    """Not the columns in which some row has a label, and only while the loss is taken."""
    ragged = with_answers(rows, ["red", "a much longer answer than the others", "top left", "no"])
    trainer = build(graft, ragged, tmp_path)
    batch = dict(trainer.data_collator([dict(row) for row in ragged]))
    seen: list[tuple[int, ...]] = []
    trainer.model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[:2])))
    trainer.compute_loss(trainer.model, dict(batch))
    assert seen == [(1, int((batch["labels"][:, 1:] != -100).sum()))]
    whole = {name: value for name, value in batch.items() if name != "labels"}
    assert trainer.model(**whole).logits.shape[:2] == batch["input_ids"].shape
    loss = trainer.compute_loss(trainer.model, batch | {"labels": torch.full_like(batch["labels"], -100)})
    assert loss == 0 and loss.requires_grad


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


@pytest.fixture(scope="module", params=(*VISION_PRESETS, "qwen3-vl"))
def vision_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of every kind of model whose rows can be packed."""
    folder = tmp_path_factory.mktemp("vision_model") / "tiny"
    return qwen3_vl_checkpoint(folder) if request.param == "qwen3-vl" else export_preset(request.param, folder)


@pytest.fixture(scope="module")
def ragged(rows: Dataset) -> Dataset:
    """Twelve rows with answers of 1 to 60 characters; rows 3, 4 and 5, a whole batch, and row 8 have no image."""
    answered = with_answers(rows, ["top left, " * (number * 5 % 7) + "no" for number in range(12)])
    bare = (3, 4, 5, 8)
    return answered.map(
        lambda row, number: {"images": [] if number in bare else row["images"]}, with_indices=True, keep_in_memory=True
    )


@pytest.mark.parametrize("lora", [False, True], ids=["everything", "lora, checkpointing, TRL's own head"])
def test_packed_run_equals_padded_run(vision_model, ragged, tmp_path, lora):
    """Three steps of two batches of three, an evaluation after each: the same log, the same weights."""
    logs, weights, shapes = [], [], []
    for pack_rows in (False, True):
        trainer = build(
            vision_model,
            ragged,
            tmp_path / str(pack_rows),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            max_steps=3,
            optim="sgd",
            learning_rate=0.5,
            eval_dataset=ragged.select(range(5)),
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=3,
            save_strategy="steps",
            save_steps=1,
            gradient_checkpointing=lora,
            label_smoothing_factor=0.1 if lora else 0.0,
            pack_rows=pack_rows,
            peft_config=LoraConfig(target_modules=r".*language_model.*_proj") if lora else None,
        )
        start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        seen = []
        language_model = trainer.model.get_decoder()
        language_model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append((module.training, len(kwargs["inputs_embeds"]))),
            with_kwargs=True,
        )
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "step" in entry])
        weights.append(dict(trainer.model.named_parameters()))
        shapes.append(seen)
        assert language_model.config._attn_implementation == "sdpa"
        for file in (tmp_path / str(pack_rows)).rglob("*.json"):
            assert SDPA_BY_DOCUMENT not in file.read_text()
    assert [set(seen) for seen in shapes] == [{(True, 3), (False, 3), (False, 2)}, {(True, 1), (False, 3), (False, 2)}]
    for padded, packed in zip(*logs, strict=True):
        timeless = [name for name in padded if not name.endswith(("runtime", "per_second"))]
        assert {name: packed[name] for name in timeless} == pytest.approx({n: padded[n] for n in timeless}, rel=1e-5)
    assert {"loss", "grad_norm", "num_tokens", "mean_token_accuracy", "entropy"} <= logs[1][0].keys()
    assert {"eval_loss", "eval_num_tokens", "eval_mean_token_accuracy"} <= logs[1][1].keys()
    assert max(float((weights[0][name] - value).abs().max()) for name, value in start.items()) > 0.01, "nothing learned"
    for name, parameter in weights[0].items():
        torch.testing.assert_close(weights[1][name], parameter, rtol=1e-5, atol=1e-5, msg=name)


def test_packed_rows_are_cut_as_padded_ones(graft, ragged, tmp_path):
    """`max_length` counts the tokens of a row, not of the sequence it is packed into."""
    curves = {}
    for max_length in (None, 90):
        for pack_rows in (False, True):
            trainer = build(graft, ragged, tmp_path, max_length=max_length, pack_rows=pack_rows)
            trainer.train()
            curves[max_length, pack_rows] = losses(trainer)
    for max_length in (None, 90):
        assert curves[max_length, True] == pytest.approx(curves[max_length, False], rel=1e-5)
    assert curves[None, True] != pytest.approx(curves[90, True], rel=1e-3)


def test_packing_in_vain_is_refused(graft, rows, tmp_path):
    """Before the first step, not in it."""
    text = Dataset.from_dict({"text": ["a text without pictures"] * 4})
    with pytest.raises(ValueError, match="Choose one"):
        build(graft, text, tmp_path, pack_rows=True, padding_free=True)
