"""The recipe script on a recursive model: a whole run, LoRA, kill and resume, several processes, bad input."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from finished_runs import assert_same_run, difference, kill_behind_checkpoint, weights
from peft import AutoPeftModelForCausalLM
from recursive_checkpoint import recursive_checkpoint, tiny_tokenizer, token_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qwen_grafts.recipes.graft_sft import main, parse

RECIPE = Path(__file__).parents[2] / "recipes" / "recursive_qwen" / "tiny.yaml"
FSDP_SCRIPT = Path(__file__).parents[1] / "children" / "fsdp_on_cpu.py"
LENGTHS = (9, 30, 17, 24, 5, 28, 12, 21, 14, 26, 8, 19, 11, 16, 23, 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recursive_checkpoint(tmp_path_factory.mktemp("recursive") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "tokens"
    token_rows(*LENGTHS).save_to_disk(folder)
    return folder


@pytest.fixture
def words(base: Path) -> Callable[..., list[str]]:
    """Arguments of a short run of the tiny recipe, on its own text unless told otherwise."""

    def build(output_dir: Path, *more: str, **overrides: object) -> list[str]:
        values = {
            "model_name_or_path": base,
            "output_dir": output_dir,
            "max_samples": 6,
            "max_length": 48,
            "max_steps": 4,
            "save_steps": 2,
            "warmup_steps": 1,
            "eval_strategy": "no",
            "logging_steps": 1,
            "save_total_limit": 10,
            "disable_tqdm": True,
            "use_cpu": True,
        } | overrides
        options = [w for name, value in values.items() for w in (f"--{name}", str(value))]
        return ["--config", str(RECIPE), *options, *more]

    return build


@pytest.fixture
def token_words(words: Callable[..., list[str]], rows: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The same on token rows, which are padded."""
    config = tmp_path / "tokens.yaml"
    kept = [line for line in RECIPE.read_text().splitlines() if not line.startswith(("text_data", "packing"))]
    config.write_text("\n".join(kept))

    def build(output_dir: Path, *more: str, **overrides: object) -> list[str]:
        settings = {"token_data": rows, "max_samples": len(LENGTHS), "eval_ratio": 0.0} | overrides
        return ["--config", str(config), *words(output_dir, *more, **settings)[2:]]

    return build


def test_tiny_recipe_leaves_a_repository(words, tmp_path, base):
    """Text packed by TRL, evaluated; a loadable model with its code, and metadata with the recursion's settings."""
    out = tmp_path / "run"
    trainer = main(*parse(words(out, eval_strategy="steps", eval_steps=2, eval_ratio=0.2)))
    again = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tiny_tokenizer()("Some text.")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trainer.model.eval()(ids).logits)
    moved = {name for name, tensor in weights(base).items() if not torch.equal(tensor, weights(out)[name])}
    assert moved == weights(base).keys()
    assert {"modeling_recursive_qwen.py", "recursive_cache.py", "README.md"} <= {path.name for path in out.iterdir()}
    metadata = json.loads((out / "training_meta.json").read_text())
    assert metadata["model_type"] == "recursive_qwen"
    wanted = {"train_cycles": [1, 4], "deep_supervision": True, "ema_decay": 0.99, "text_data": "pydoc_topics"}
    assert wanted.items() <= metadata["settings"].items()
    assert metadata["dataset"]["name"] == "pydoc_topics"
    assert (metadata["dataset"]["train_rows"], metadata["dataset"]["eval_rows"]) == (5, 1)
    assert (len(metadata["loss_curve"]), len(metadata["eval_loss_curve"])) == (4, 2)
    assert str(tmp_path) not in json.dumps(metadata)


def test_prompts_and_completions_of_text(token_words, tmp_path):
    """`dataset_name`: TRL's formats without images; the completion alone is learned."""
    texts = {"prompt": ["Two and two is", "The sky is"] * 4, "completion": [" four.", " blue today."] * 4}
    Dataset.from_dict(texts).save_to_disk(tmp_path / "rows")
    arguments = token_words(tmp_path / "run", max_steps=2)
    where = arguments.index("--token_data")
    arguments[where : where + 2] = ["--dataset_name", str(tmp_path / "rows")]
    trainer = main(*parse(arguments))
    learned = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    assert trainer.processing_class.decode(learned).split("<|")[0] in texts["completion"]
    assert len(learned) < len(trainer.train_dataset[0]["input_ids"])


def test_lora_trains_core_gates_and_halting_head(token_words, tmp_path):
    out = tmp_path / "adapter"
    trainer = main(*parse(token_words(out, use_peft=True, lora_r=4, deep_supervision=False)))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    low_rank = {name for name in trained if "lora_" in name}
    assert len(low_rank) == 2 * 2 * 7  # two matrices for each linear layer of the core's two layers
    assert all(".layers.1." in name or ".layers.2." in name for name in low_rank)
    assert all("recurrence.modules_to_save" in name or "q_head.modules_to_save" in name for name in trained - low_rank)
    assert len(trained - low_rank) == 6 + 2
    adapted = AutoPeftModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor([tiny_tokenizer()("Some text.")["input_ids"]])
    with torch.no_grad():
        outputs, wanted = adapted(ids, supervised_cycles=[3]), trainer.model.eval()(ids, supervised_cycles=[3])
        torch.testing.assert_close(outputs.logits, wanted.logits)
        torch.testing.assert_close(outputs.halt_logits, wanted.halt_logits)
        plain = adapted.merge_and_unload()(ids, supervised_cycles=[3])
    torch.testing.assert_close(plain.logits, wanted.logits, atol=1e-4, rtol=1e-4)


def test_bad_input_is_told_before_the_first_step(words, token_words, tmp_path, graft):
    out = tmp_path / "run"
    cases = {
        "settings are for recursive models.*train_cycles": words(out, model_name_or_path=graft),
        "only rows with images are answered": words(out, generative_eval_rows=4),
        "`image_min_pixels`|reads no images": words(out, image_min_pixels=100),
        "`ema_decay` is 2": words(out, ema_decay=2),
        "lacks 'body'": words(out, text_data=RECIPE.with_name("none.csv"), text_key="body"),
        "exceeds the language model's 512 positions": words(out, max_length=4000, packing_strategy="bfd"),
    }
    (tmp_path / "none.csv").write_text("text\nA row.\n")
    cases["lacks 'body'"] = words(out, text_data=tmp_path / "none.csv", text_key="body")
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            main(*parse(arguments))
    strange = token_rows(12, 9)
    strange = strange.map(lambda row: {"input_ids": [1000, *row["input_ids"][1:]]}, keep_in_memory=True)
    strange.save_to_disk(tmp_path / "strange")
    with pytest.raises(
        ValueError, match="2 ids and labels of the first batch are outside the model's vocabulary of 288"
    ):
        main(*parse(token_words(out, token_data=tmp_path / "strange")))
    assert not (out / "model.safetensors").exists()


def test_frozen_parts_stay_in_their_precision(words, tmp_path, base):
    """The hybrid in bfloat16: what trains does so in float32, the rest stays as it was loaded."""
    frozen = {"freeze_embeddings": True, "freeze_head": True, "freeze_outer_layers": True}
    run = words(tmp_path / "run", dtype="bfloat16", bf16=True, gradient_checkpointing=True, **frozen)
    trainer = main(*parse(run))
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    precisions = {parameter.dtype: parameter.requires_grad for parameter in trainer.model.parameters()}
    assert precisions == {torch.float32: True, torch.bfloat16: False}
    before, after = weights(base), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    assert {name.split(".")[1] for name in moved} <= {"layers", "recurrence", "q_head"}
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"1", "2"}


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(words, start_script, run_script, tmp_path):
    """`kill -9` at a random moment after the first checkpoint: the same depths, weights and average."""
    settings = {"max_steps": 60, "save_steps": 4}
    run_script(words(tmp_path / "whole", **settings))
    broken = tmp_path / "broken"
    child = start_script(words(broken, **settings))
    kill_behind_checkpoint(child, broken, random.uniform(0.0, 0.6))
    assert not (broken / "model.safetensors").exists()
    run_script(words(broken, resume_from_checkpoint=True, **settings))
    assert difference(weights(tmp_path / "whole"), weights(broken)) == 0.0
    averages = [load_file(run / "checkpoint-60" / "ema.safetensors") for run in (tmp_path / "whole", broken)]
    assert difference(*averages) == 0.0


PROCESS_RUNS = {
    "deep": {},
    "shallow, truncated, checkpointing": {
        "deep_supervision": False,
        "gradient_cycles": 1,
        "gradient_checkpointing": True,
    },
    "embeddings": {"objective": "embeddings"},
}


def compare(one: Path, two: Path) -> None:
    assert_same_run(one, two)
    averages = [load_file(run / "checkpoint-2" / "ema.safetensors") for run in (one, two)]
    assert difference(*averages) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("settings", PROCESS_RUNS.values(), ids=PROCESS_RUNS)
def test_two_processes_equal_one(token_words, run_script, tmp_path, settings):
    """DDP over gloo: two processes with half the batch each give the one-process losses, weights and average."""
    shared = {"optim": "sgd", "learning_rate": 0.05, "train_cycles": 2} | settings
    run_script(token_words(tmp_path / "one", per_device_train_batch_size=4, **shared))
    run_script(token_words(tmp_path / "two", per_device_train_batch_size=2, **shared), processes=2)
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tokens", "embeddings"])
def test_sharded_run_equals_one_process(token_words, run_script, tmp_path, objective):
    """FSDP2 over two gloo processes; and its checkpoint goes on, average and all, in two processes again."""
    config = tmp_path / "fsdp.yaml"
    # Not SGD, which keeps nothing that torch could load again; a large epsilon, lest rounding decides a sign.
    shared = {"learning_rate": 1e-3, "adam_epsilon": 1e-2, "objective": objective}
    run_script(token_words(tmp_path / "one", per_device_train_batch_size=4, **shared))
    arguments = token_words(tmp_path / "two", per_device_train_batch_size=2, **shared)
    fsdp = """
fsdp: true
fsdp_config:
  version: 2
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: [Qwen3DecoderLayer]
  state_dict_type: FULL_STATE_DICT
"""
    config.write_text(Path(arguments[1]).read_text() + fsdp)
    output = run_script(["--config", str(config), *arguments[2:]], processes=2, script=FSDP_SCRIPT)
    assert "SHARDED 0 of" not in output
    assert "SHARDED" in output
    compare(tmp_path / "one", tmp_path / "two")
    again = token_words(
        tmp_path / "again",
        per_device_train_batch_size=2,
        resume_from_checkpoint=tmp_path / "two" / "checkpoint-2",
        **shared,
    )
    run_script(["--config", str(config), *again[2:]], processes=2, script=FSDP_SCRIPT)
    assert difference(weights(tmp_path / "two"), weights(tmp_path / "again")) < 1e-6
