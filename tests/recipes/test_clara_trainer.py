"""What CLaRa's stages learn: losses against the definition, which parts move, batches, checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clara_checkpoint import clara_checkpoint, stage_rows, tiny_clara, tiny_processor, write_rows
from datasets import concatenate_datasets
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, set_seed
from trl import SFTConfig

from qwen_grafts.configuration import preset_config
from qwen_grafts.recipes.clara_stages import TRAINED_PARTS, ClaraArguments, check_clara, start_roles, trained_names
from qwen_grafts.recipes.clara_trainer import ClaraSFTTrainer
from qwen_grafts.recipes.document_collator import DocumentCollator, document_collator
from qwen_grafts.recipes.document_data import load_document_rows
from qwen_grafts.recipes.document_evaluation import answer_loss, evaluate_documents
from qwen_grafts.recipes.trained_parts import freeze

STAGES = tuple(TRAINED_PARTS)


def rows(tmp_path: Path, stage: str) -> Any:
    return load_document_rows(str(write_rows(tmp_path / f"{stage}.jsonl", stage)), stage, eval_ratio=0.0).train


def collator(stage: str, rates: tuple[int, ...] = (4,), **settings: Any) -> DocumentCollator:
    return DocumentCollator(tiny_processor(), stage, rates=rates, **({"num_retrieved": 2} | settings))


def build(tmp_path: Path, stage: str, clara: dict[str, Any] | None = None, **settings: Any) -> ClaraSFTTrainer:
    """A trainer of the tiny model, in the order of the rows."""
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
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "shuffle_dataset": False,
        "train_sampling_strategy": "sequential",
    } | settings
    arguments = ClaraArguments(**({"num_retrieved": 2} | (clara or {})))
    model = tiny_clara()
    start_roles(model, arguments)
    freeze(model, trained_names(stage))
    return ClaraSFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path / "run"), **values),
        train_dataset=rows(tmp_path, stage),
        data_collator=collator(stage),
        processing_class=tiny_processor(),
        clara=arguments,
        stage=stage,
    )


@pytest.mark.parametrize("stage", ["compression", "instruction"])
def test_loss_is_the_answers_and_the_means(tmp_path: Path, stage: str) -> None:
    """Row by row from the definition: cross-entropy of a row's tokens, and its passages' distance as often."""
    trainer = build(tmp_path, stage, {"mse_weight": 0.3}, max_steps=1)
    model = trainer.model.eval()
    total = tokens = 0
    for row in list(trainer.train_dataset)[:4]:
        one = collator(stage)([row])
        with torch.no_grad():
            outputs = model(**one)
        count = int((one["labels"] != -100).sum())
        total += count * (outputs.loss + 0.3 * outputs.alignment_loss.mean())
        tokens += count
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(total / tokens), abs=1e-3)


@pytest.mark.parametrize("stage", ["compression", "instruction", "end_to_end"])
def test_accumulated_batches_equal_one_batch(tmp_path: Path, stage: str) -> None:
    one = build(tmp_path, stage, per_device_train_batch_size=4)
    one.train()
    two = build(tmp_path, stage, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    two.train()
    for (name, first), second in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_moves_its_parts_and_no_others(tmp_path: Path, stage: str) -> None:
    before = tiny_clara().state_dict()
    trainer = build(tmp_path, stage, max_steps=6, learning_rate=0.02)
    trainer.train()
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 1)[-1] for name in moved} == set(TRAINED_PARTS[stage])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and sum(losses[3:]) < sum(losses[:3])  # two epochs


def test_retrieval_loss_is_the_softmax_over_the_batchs_documents(tmp_path: Path) -> None:
    """A text that several rows share is there once, and is wrong only for those whose question it does not answer."""
    trainer = build(tmp_path, "retrieval", max_steps=1)
    given = list(trainer.train_dataset)[:4]
    model = trainer.model.eval()
    texts = sorted({text for row in given for text in row["documents"]})
    assert len(texts) < 12
    passages = [
        (text, part.flatten()) for text, parts in zip(texts, model.compress(texts), strict=True) for part in parts
    ]
    losses = []
    for row in given:
        query = model.encode_query(row["question"]).flatten()
        scores = torch.stack([functional.cosine_similarity(query, part, dim=0) for _, part in passages]) / 0.02
        right = torch.tensor([text == row["documents"][row["positives"][0]] for text, _ in passages])
        losses.append(-scores.softmax(0)[right].sum().log())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(sum(losses) / 4), abs=1e-3)


def test_recall_in_training_is_what_was_chosen(tmp_path: Path) -> None:
    for stage in ("end_to_end", "retrieval"):
        trainer = build(tmp_path, stage, max_steps=1)
        model, batch = trainer.model.eval(), collator(stage)(list(trainer.train_dataset)[:4])
        with torch.no_grad():
            scores = model(query_input_ids=batch["query_input_ids"], document_input_ids=batch["document_input_ids"])
        allowed = scores.retrieval_scores.masked_fill(~batch["candidates"], -2)
        best = allowed.topk(2).indices
        right = batch["positives"].gather(1, best).float()
        trainer.train()
        logged = trainer.state.log_history[0]
        assert logged["recall_at_1"] == pytest.approx(float(right[:, 0].mean()))
        assert logged["recall_at_2"] == pytest.approx(float(right.amax(1).mean()))
        assert trainer.model.config.num_retrieved == 2


def test_batches_of_rows_equal_each_row() -> None:
    """Prompts with room for as many passages as there are to choose from; right documents by their text."""
    examples = [
        {"question": "a?", "answer": "x", "documents": ["one", "two", "three"], "positives": [1]},
        {"question": "bb?", "answer": "yy", "documents": ["two"], "positives": [0]},
    ]
    batch = collator("end_to_end")(examples)
    assert batch["document_input_ids"].shape == (3, 5 + 3)
    assert batch["candidates"].tolist() == [[True, True, True], [False, True, False]]
    assert batch["positives"].tolist() == [[False, True, False], [False, True, False]]
    placeholders = (batch["input_ids"] == tiny_processor().document_token_id).sum(dim=1)
    assert placeholders.tolist() == [6, 3]
    whole = collator("retrieval")(examples)
    assert "input_ids" not in whole and whole["candidates"].all()
    long = collator("end_to_end")([examples[0] | {"documents": ["a document of two passages", "b"], "positives": [0]}])
    assert long["positives"].tolist() == [[True, True, True, False]]


def test_rates_are_drawn_by_the_rows() -> None:
    """Each batch has one rate, the same one whenever it is built."""
    examples = [{"question": "a?", "answer": "x", "documents": [f"text {n}"], "positives": [0]} for n in range(20)]
    both = collator("compression", rates=(4, 3))
    widths = [int((both([row])["input_ids"] == tiny_processor().document_token_id).sum()) for row in examples]
    assert set(widths) == {3, 4}
    assert widths == [int((both([r])["input_ids"] == tiny_processor().document_token_id).sum()) for r in examples]


def test_prompts_that_are_too_long_are_told() -> None:
    row = {"question": "a question", "answer": "x", "documents": ["text"], "positives": [0]}
    with pytest.raises(ValueError, match=r"A row has \d+ tokens with its documents' latents, and `max_length` is 9"):
        collator("compression", max_length=9)([row])


def test_roles_start_as_told() -> None:
    model = tiny_clara()
    start_roles(model, ClaraArguments(role_starts=["query_reasoner=compressor", "generator=new"]))
    linear = model.model.language_model.layers[0].mlp.up_proj
    assert torch.equal(linear.role_up["query_reasoner"], linear.role_up["compressor"])
    assert not linear.role_up["generator"].any() and linear.role_down["generator"].any()


@pytest.mark.parametrize(
    ("settings", "stage", "message"),
    [
        ({}, "pretraining", "`stage` is 'pretraining'"),
        ({}, None, "`stage` is None"),
        ({"mse_weight": -1}, "compression", "`mse_weight` is -1"),
        ({"compression_rates": [5]}, "compression", "`compression_rate` is 5; this checkpoint knows 2: 4, 3"),
        ({"num_retrieved": 0}, "end_to_end", "`num_retrieved` is 0"),
        ({"role_starts": ["generator=old"]}, "compression", "ROLE=new or ROLE=OTHER_ROLE, got 'generator=old'"),
        ({"role_starts": ["generator=generator"]}, "compression", "got 'generator=generator'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], stage: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_clara(ClaraArguments(**settings), stage, tiny_clara().config)


def test_settings_of_clara_are_for_clara() -> None:
    other = preset_config("recursive-tiny")
    check_clara(ClaraArguments(), None, other)
    with pytest.raises(ValueError, match=r"2 settings are for CLaRa models.*mse_weight, stage"):
        check_clara(ClaraArguments(mse_weight=0.2), "compression", other)


def test_checkpoints_hold_what_trains_and_load_alone(tmp_path: Path) -> None:
    """At most 1.1 times the bytes of what trains; the rest comes from where training started; resumed exactly."""
    base = clara_checkpoint(tmp_path / "base")
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}

    def run(name: str, **more: Any) -> ClaraSFTTrainer:
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = build(tmp_path / name, "instruction", **arguments)
        loaded = AutoModelForCausalLM.from_pretrained(base)
        freeze(loaded, trained_names("instruction"))
        trainer = ClaraSFTTrainer(
            model=loaded,
            args=trainer.args,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
            processing_class=tiny_processor(),
            clara=trainer.clara,
            stage="instruction",
        )
        trainer.train(**more)
        return trainer

    whole = run("whole")
    half = tmp_path / "whole" / "run" / "checkpoint-2"
    trained = sum(p.numel() for p in whole.model.parameters() if p.requires_grad)
    assert (half / "model.safetensors").stat().st_size <= 1.1 * 4 * trained
    stored = {name.rsplit(".", 1)[-1] for name in load_file(half / "model.safetensors")}
    assert stored == {"compressor", "generator", "memory"}
    config = json.loads((half / "config.json").read_text())
    assert config["graft_only"] and config["stored_roles"] == ["compressor", "generator"]
    assert not whole.model.config.graft_only and whole.model.config.stored_roles is None
    alone = AutoModelForCausalLM.from_pretrained(half.with_name("checkpoint-4"))
    assert all(torch.equal(t, alone.state_dict()[name]) for name, t in whole.model.state_dict().items())
    again = run("again", resume_from_checkpoint=str(half))
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in whole.model.state_dict().items())
    with pytest.raises(ValueError, match="does not belong to this run"):
        build(tmp_path, "end_to_end", **arguments)._load_from_checkpoint(str(half))


def test_held_out_questions_stand_beside_their_controls(tmp_path: Path) -> None:
    """Another row's documents and none; a model that repeats its documents' number answers from its own alone."""
    model = tiny_clara()
    model.config.num_retrieved = 2
    found = evaluate_documents(model, rows(tmp_path, "end_to_end"), "end_to_end", max_new_tokens=4, batch_size=4)
    assert found.keys() == {"qa"}
    wanted = {"hit_rate@1", "hit_rate@2", "recall@1", "recall@2", "exact_match", "cover_exact_match", "token_f1"}
    assert wanted | {"no_documents", "shuffled_documents", "rows"} <= found["qa"].keys()
    assert found["qa"]["rows"] == 12
    only = evaluate_documents(model, rows(tmp_path, "retrieval"), "retrieval", max_new_tokens=4, batch_size=4)
    assert "exact_match" not in only["qa"]


def test_paraphrases_are_evaluated_beside_questions(tmp_path: Path) -> None:
    """They ask nothing, so without documents there is nothing to say again."""
    model, given = tiny_clara(), rows(tmp_path, "compression")
    again = given.select(range(3)).map(lambda row: row | {"question": "", "data_type": "paraphrase"})
    both = concatenate_datasets([given.select(range(3, 6)), again])
    found = evaluate_documents(model, both, "compression", max_new_tokens=4, batch_size=2)
    assert found.keys() == {"qa", "paraphrase"} and found["paraphrase"]["rows"] == 3
    assert "shuffled_documents" in found["paraphrase"] and "no_documents" not in found["paraphrase"]


def test_loss_of_answers_against_one_by_one(tmp_path: Path) -> None:
    model, given = tiny_clara().eval(), rows(tmp_path, "compression").select(range(5))
    questions, documents, answers = given["question"][:], given["documents"][:], given["answer"][:]
    questions[1], documents[2] = "", []
    total = tokens = 0
    for question, texts, answer in zip(questions, documents, answers, strict=True):
        inputs = model.processor([question], [texts], answers=[answer], compression_rate=3)
        with torch.no_grad():
            logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        total += functional.cross_entropy(logits[0, :-1], inputs["labels"][0, 1:], reduction="sum").item()
        tokens += int((inputs["labels"] != -100).sum())
    found = answer_loss(model, questions, documents, answers, compression_rate=3, batch_size=2)
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_loss_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a loss of their own"):
        build(tmp_path, "compression", loss_type="dft")


def test_rows_of_each_stage_are_read(tmp_path: Path) -> None:
    assert len(rows(tmp_path, "compression")) == 2 * len(stage_rows("compression"))
    for stage in STAGES[1:]:
        assert len(rows(tmp_path, stage)) == len(stage_rows(stage))


@pytest.mark.parametrize("stage", ["retrieval", "end_to_end"])
def test_documents_compressed_once_are_the_same_as_in_every_step(tmp_path: Path, stage: str) -> None:
    """Latents made before the first step give the loss and the choice of documents read in it."""
    trainer = build(tmp_path, stage)
    model, given = trainer.model.eval(), list(trainer.train_dataset)[:4]
    arguments = ClaraArguments(num_retrieved=2, compression_rates=[4])
    latent = document_collator(model, tiny_processor(), stage, arguments, (trainer.train_dataset, None))
    batch, read = latent(given), collator(stage)(given)
    assert "document_input_ids" not in batch and "memory" in batch
    if stage == "retrieval":  # held against all documents of the data set, not the batch's alone
        texts = {text for row in trainer.train_dataset for text in row["documents"]}
        assert len(batch["memory"]) == len(model.compress(sorted(texts))) * 2 > len(read["document_input_ids"])
        assert batch["positives"].sum() == read["positives"].sum()
        return
    without = [{name: value for name, value in one.items() if name != "positives"} for one in (batch, read)]
    with torch.no_grad():
        first, second = (model(**one) for one in without)
    torch.testing.assert_close(first.loss, second.loss)
    assert torch.equal(first.retrieved, second.retrieved)


def test_a_compressor_that_trains_reads_in_every_step(tmp_path: Path) -> None:
    trainer = build(tmp_path, "retrieval")
    freeze(trainer.model, [r"\.(query_reasoner|compressor)$"])
    arguments = ClaraArguments(num_retrieved=2)
    assert document_collator(trainer.model, tiny_processor(), "retrieval", arguments, (None,)).latents is None
