"""The recipe script on a CLaRa model: whole runs of every stage, kill and resume, several processes, bad input."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clara_checkpoint import clara_checkpoint, tiny_processor, write_rows
from finished_runs import assert_same_run, difference, kill_behind_checkpoint, weights
from transformers import AutoModelForCausalLM

from qwen_grafts.recipes.clara_stages import TRAINED_PARTS
from qwen_grafts.recipes.graft_sft import main, parse

RECIPE = Path(__file__).parents[2] / "recipes" / "clara" / "tiny.yaml"
FSDP_SCRIPT = Path(__file__).parents[1] / "children" / "fsdp_on_cpu.py"
REAL_ROWS = Path(__file__).parents[3] / "shared" / "data" / "clara_pretrain_900.jsonl"
STAGES = tuple(TRAINED_PARTS)
# Of sharded tied weights both names are saved; real documents of single bytes are long.
TEXT = {"tie_word_embeddings": False, "max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clara_checkpoint(tmp_path_factory.mktemp("clara") / "tiny", text=TEXT)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {stage: write_rows(folder / f"{stage}.jsonl", stage) for stage in STAGES}


@pytest.fixture
def words(base: Path, data: dict[str, Path]) -> Callable[..., list[str]]:
    """Arguments of a short run of the tiny recipe."""

    def build(output_dir: Path, stage: str = "compression", *more: str, **overrides: object) -> list[str]:
        values = {
            "model_name_or_path": base,
            "document_data": data[stage],
            "stage": stage,
            "output_dir": output_dir,
            "eval_ratio": 0.0,
            "max_steps": 4,
            "save_steps": 2,
            "warmup_steps": 1,
            "num_retrieved": 2,
            "eval_strategy": "no",
            "generative_eval_rows": 0,
            "logging_steps": 1,
            "save_total_limit": 10,
            "disable_tqdm": True,
            "use_cpu": True,
        } | overrides
        options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return ["--config", str(RECIPE), *options, *more]

    return build


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_a_repository(words, tmp_path, base, stage):
    """A whole model with its code and processor; metadata with the stage and answers beside their controls."""
    out = tmp_path / "run"
    evaluation = {"eval_ratio": 0.25, "generative_eval_rows": 3, "eval_strategy": "steps", "eval_steps": 2}
    trainer = main(*parse(words(out, stage, role_starts="query_reasoner=compressor", **evaluation)))
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.num_retrieved == 2
    document = ["The amber is 0 m."]
    assert loaded.answer("How far is amber?", document, max_new_tokens=4) == trainer.model.answer(
        "How far is amber?", document, max_new_tokens=4
    )
    moved = {name for name, tensor in weights(base).items() if not torch.equal(tensor, weights(out)[name])}
    assert {name.rsplit(".", 1)[-1] for name in moved} == {*TRAINED_PARTS[stage], "query_reasoner"}
    assert {"modeling_clara_qwen3.py", "processing_clara_qwen3.py", "README.md"} <= {p.name for p in out.iterdir()}
    metadata = json.loads((out / "training_meta.json").read_text())
    assert metadata["settings"]["stage"] == stage
    generator = sum(tensor.numel() for name, tensor in weights(base).items() if name.endswith(".generator"))
    counted = {"total": generator, "trained": 0 if stage == "retrieval" else generator}
    assert metadata["parameters"]["generator"] == counted
    after = metadata["metrics"]["after"]["qa"]
    assert ("no_documents" in after) == (stage != "retrieval") and ("recall@1" in after) == (stage in STAGES[2:])
    assert len(metadata["eval_loss_curve"]) == 2
    assert str(tmp_path) not in json.dumps(metadata)


def test_bad_input_is_told_before_the_first_step(words, tmp_path, data, graft):
    out = tmp_path / "run"
    cases = {
        "`stage` is 'first'": [*words(out), "--stage", "first"],
        "leave out `use_peft`": words(out, use_peft=True),
        "it is for instruction, retrieval, end_to_end|it is for": words(out, document_data=data["instruction"]),
        "`document_data` is not for this model|settings are for CLaRa": words(out, model_name_or_path=graft),
        "`max_length` is 20": words(out, max_length=20),
    }
    text = words(out)
    place = text.index("--document_data")
    text[place : place + 2] = ["--text_data", "pydoc_topics"]
    config = tmp_path / "text.yaml"
    lines = [line for line in RECIPE.read_text().splitlines() if not line.startswith("document_data")]
    config.write_text("\n".join(lines))
    cases["`text_data` is not for this model; it trains on `document_data`"] = ["--config", str(config), *text[2:]]
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            main(*parse(arguments))
    assert not (out / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_uninterrupted(words, start_script, run_script, tmp_path, stage):
    """`kill -9` at a random moment after the first checkpoint."""
    settings = {"max_steps": 80, "save_steps": 4, "gradient_checkpointing": True}
    run_script(words(tmp_path / "whole", stage, **settings))
    broken = tmp_path / "broken"
    child = start_script(words(broken, stage, **settings))
    kill_behind_checkpoint(child, broken, random.uniform(0.0, 0.6))
    assert not (broken / "model.safetensors").exists()
    run_script(words(broken, stage, resume_from_checkpoint=True, **settings))
    assert difference(weights(tmp_path / "whole"), weights(broken)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["compression", "end_to_end"])
def test_two_processes_equal_one(words, run_script, tmp_path, stage):
    """DDP over gloo: two processes with half the batch each give the one-process losses and weights."""
    # Each process draws the rate of its own batch, so there is one to draw.
    shared = {"optim": "sgd", "learning_rate": 0.05, "gradient_checkpointing": True, "compression_rates": 4}
    run_script(words(tmp_path / "one", stage, per_device_train_batch_size=4, **shared))
    run_script(words(tmp_path / "two", stage, per_device_train_batch_size=2, **shared), processes=2)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_sharded_run_equals_one_process(words, run_script, tmp_path):
    """FSDP2 over two gloo processes; its checkpoint goes on in two processes again."""
    config = tmp_path / "fsdp.yaml"
    shared = {"learning_rate": 1e-3, "adam_epsilon": 1e-2, "compression_rates": 4}
    run_script(words(tmp_path / "one", "instruction", per_device_train_batch_size=4, **shared))
    arguments = words(tmp_path / "two", "instruction", per_device_train_batch_size=2, **shared)
    fsdp = """
fsdp: true
fsdp_config:
  version: 2
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: [RoleQwen3DecoderLayer]
  state_dict_type: FULL_STATE_DICT
"""
    config.write_text(Path(arguments[1]).read_text() + fsdp)
    output = run_script(["--config", str(config), *arguments[2:]], processes=2, script=FSDP_SCRIPT)
    assert "SHARDED 0 of" not in output and "SHARDED" in output
    assert_same_run(tmp_path / "one", tmp_path / "two")
    checkpoint = tmp_path / "two" / "checkpoint-2"
    again = words(
        tmp_path / "again", "instruction", per_device_train_batch_size=2, resume_from_checkpoint=checkpoint, **shared
    )
    run_script(["--config", str(config), *again[2:]], processes=2, script=FSDP_SCRIPT)
    assert difference(weights(tmp_path / "two"), weights(tmp_path / "again")) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not REAL_ROWS.is_file(), reason="the published rows are not beside the repository")
def test_the_published_rows_train(words, tmp_path):
    """Real rows of the first stage, long documents and all."""
    trainer = main(
        *parse(words(tmp_path / "run", document_data=REAL_ROWS, max_samples=40, max_steps=3, num_retrieved=5))
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(loss == loss for loss in losses)
    assert tiny_processor().document_token in trainer.processing_class.tokenizer.get_vocab()
