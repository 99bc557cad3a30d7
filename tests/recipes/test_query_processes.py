"""Query rows in two processes: the losses and the adapter of one, padded and packed, replicated and sharded."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from tiny_qwen3_vl import query_rows
from transformers import AutoModelForImageTextToText

from qwen_grafts.recipes.graft_sft import parse

FSDP_RECIPE = Path(__file__).parents[2] / "recipes" / "qwen3_vl_sft" / "full_8b_fsdp2.yaml"
FSDP_ON_CPU = Path(__file__).parents[1] / "children" / "fsdp_on_cpu.py"
# Steps in proportion to the gradients: AdamW makes steps of full size of the rounding of gradients that are zero.
EXACT = {"optim": "sgd", "learning_rate": 0.05, "lora_dropout": 0.0, "max_steps": 4, "save_steps": 4, "eval_ratio": 0}


@pytest.fixture
def ragged(tmp_path):
    """16 rows with answers of 20 to 60 tokens: a mean of the processes' means is another loss."""
    targets = [json.dumps({"label": "yes", "why": "x" * (number * 11 % 37)}) for number in range(16)]
    rows = query_rows(16).remove_columns("target_json").add_column("target_json", targets)
    rows.to_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def metadata(folder):
    return json.loads((folder / "training_meta.json").read_text())


def assert_same_losses(one, two):
    curves = [metadata(folder)["loss_curve"] for folder in (one, two)]
    assert len(curves[0]) == 4
    for (step, loss), (same_step, other) in zip(*curves, strict=True):
        assert step == same_step and other == pytest.approx(loss, abs=1e-4)
    assert metadata(one)["effective_batch_size"] == metadata(two)["effective_batch_size"]


def assert_same_run(one, two):
    """Losses to 1e-4, adapter to 1e-5, and it has moved by more."""
    assert_same_losses(one, two)
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()
    assert max((adapters[0][name] - adapters[1][name]).abs().max().item() for name in adapters[0]) < 1e-5
    assert max(tensor.abs().max().item() for name, tensor in adapters[0].items() if "lora_B" in name) > 1e-3


@pytest.mark.slow
def test_two_processes_equal_one(words, run_script, ragged, tmp_path):
    """The same batch of 8 rows: by one process, by two, and by two on packed rows."""
    shared = {"query_data": ragged, **EXACT}
    run_script(words(tmp_path / "one", per_device_train_batch_size=4, **shared))
    halves = {"per_device_train_batch_size": 2} | shared
    run_script(words(tmp_path / "two", **halves), processes=2)
    run_script(words(tmp_path / "packed", pack_rows=True, **halves), processes=2)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "packed")


@pytest.fixture
def fsdp_words(checkpoint, ragged, tmp_path):
    """Arguments of `full_8b_fsdp2.yaml` at a small size, in float32 on CPUs; its FSDP settings as they are."""

    def build(output_dir, **overrides):
        values = yaml.safe_load(FSDP_RECIPE.read_text())
        for name in ("image_root", "image_max_pixels", "dataset_num_proc", "dataloader_num_workers", "bf16"):
            del values[name]
        values |= EXACT | {"model_name_or_path": str(checkpoint), "query_data": str(ragged), "bf16": False}
        values |= {"max_length": 512, "eval_strategy": "no", "lr_scheduler_type": "constant", "warmup_steps": 0}
        values |= {"logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "output_dir": str(output_dir)} | overrides
        recipe = tmp_path / f"{output_dir.name}.yaml"
        recipe.write_text(yaml.safe_dump(values))
        return ["--config", str(recipe)]

    return build


def test_fsdp_settings_make_a_plugin():
    """What accelerate shards by, with the classes to wrap that Qwen3-VL has."""
    _, training_args, _ = parse(["--config", str(FSDP_RECIPE), "--use_cpu", "true", "--bf16", "false"])
    plugin = FullyShardedDataParallelPlugin(**training_args.fsdp_plugin_args)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and plugin.activation_checkpointing
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


@pytest.mark.slow
def test_sharded_equals_one_process(fsdp_words, run_script, checkpoint, tmp_path):
    """Losses and weights of one process, every parameter sharded; one process loads what is left."""
    run_script(fsdp_words(tmp_path / "one", fsdp=False, fsdp_config={}, per_device_train_batch_size=4))
    output = run_script(fsdp_words(tmp_path / "two"), processes=2, script=FSDP_ON_CPU)
    sharded, total = re.search(r"SHARDED (\d+) of (\d+)", output).groups()
    assert sharded == total
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    before = load_file(checkpoint / "model.safetensors")
    moved = {name for name in one if not torch.equal(before[name], two[name])}
    assert moved and all("language_model" in name or "lm_head" in name for name in moved)
    for folder in (tmp_path / "two", tmp_path / "two" / "checkpoint-4"):
        loaded = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        assert all(torch.equal(loaded[name], two[name]) for name in two)


@pytest.mark.slow
def test_sharded_run_resumes(fsdp_words, run_script, tmp_path):
    """With AdamW's state, from the newest checkpoint and not from the beginning."""
    adamw = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_steps": 2}
    sharded = {"processes": 2, "script": FSDP_ON_CPU}
    run_script(fsdp_words(tmp_path / "whole", **adamw), **sharded)
    run_script(fsdp_words(tmp_path / "broken", **adamw | {"max_steps": 2}), **sharded)
    (tmp_path / "broken" / "checkpoint-2" / "marked").touch()
    run_script(fsdp_words(tmp_path / "broken", **adamw), **sharded)
    assert (tmp_path / "broken" / "checkpoint-2" / "marked").exists()  # a run from the beginning writes it anew
    whole, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert metadata(tmp_path / "whole")["loss_curve"] == metadata(tmp_path / "broken")["loss_curve"]
