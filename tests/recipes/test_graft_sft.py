"""The recipe script as users start it: train, kill, resume, several processes, LoRA, bad input."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from distinct_export import VISION_PRESETS
from finished_runs import difference, kill_behind_checkpoint, weights
from peft import AutoPeftModelForCausalLM
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoModelForCausalLM

from qwen_grafts.configuration import preset_config
from qwen_grafts.hub_cards import export_folder, finish_run, verify
from qwen_grafts.recipes.clara_stages import check_clara
from qwen_grafts.recipes.graft_sft import main, parse
from qwen_grafts.recipes.recursive_trainer import check_recursion
from qwen_grafts.recipes.resume import last_complete_checkpoint
from qwen_grafts.recipes.trained_parts import parse_learning_rates
from qwen_grafts.recipes.training_data import SOURCES

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))
LORA = {"use_peft": True, "lora_target_modules": r".*language_model.*\.(q_proj|v_proj)"}


@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_run_leaves_a_repository(script_arguments, tmp_path, graft, new_part):
    """Only the new part moves, the metadata tells the run, the clean room passes."""
    out = tmp_path / "run"
    main(*parse(script_arguments(out, generative_eval_rows=12)))
    before, after = weights(graft), weights(out)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if f".{new_part}." in name}
    metadata = json.loads((out / "training_meta.json").read_text())
    assert metadata["steps"] == 6
    assert len(metadata["loss_curve"]) == 6
    assert metadata["dataset"]["train_rows"] == 48
    assert set(metadata["metrics"]) == {"before", "after"}
    assert set(metadata["metrics"]["after"]["shape"]) == {"exact_match", "blank_image", "shuffled_image", "rows"}
    assert str(tmp_path) not in json.dumps(metadata)
    assert metadata["command"].startswith("qwen-grafts train")
    report = finish_run(out)
    assert "logits" in dict(report.checks)


def test_loss_falls(script_arguments, tmp_path):
    """A random language model is trained along: a connector alone cannot make it speak."""
    arguments = script_arguments(tmp_path, max_steps=40, learning_rate=5e-3, trainable="connector|language_model")
    trainer = main(*parse(arguments))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.slow
def test_every_checkpoint_loads_by_itself(script_arguments, tmp_path):
    main(*parse(script_arguments(tmp_path, max_steps=4)))
    for checkpoint in (tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        verify(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_killed_and_resumed_equals_uninterrupted(script_arguments, start_script, run_script, tmp_path):
    """`kill -9` at a random moment after the first checkpoint."""
    arguments = {"max_steps": 40, "save_steps": 4}
    run_script(script_arguments(tmp_path / "whole", **arguments))
    broken = tmp_path / "broken"
    child = start_script(script_arguments(broken, **arguments))
    kill_behind_checkpoint(child, broken, random.uniform(0.0, 0.6))
    assert not (broken / "model.safetensors").exists()
    run_script(script_arguments(broken, resume_from_checkpoint=True, **arguments))
    assert difference(weights(tmp_path / "whole"), weights(broken)) == 0.0


def test_half_written_checkpoints_are_passed_over(tmp_path, graft):
    whole, cut, stateless = (tmp_path / f"checkpoint-{step}" for step in (9, 10, 11))
    for folder in (whole, cut, stateless):
        folder.mkdir()
        (folder / "optimizer.pt").touch()
        (folder / "trainer_state.json").write_text('{"global_step": 9}')
        (folder / "model.safetensors").write_bytes((graft / "model.safetensors").read_bytes())
    (cut / "model.safetensors").write_bytes((graft / "model.safetensors").read_bytes()[:-100])
    (stateless / "trainer_state.json").unlink()
    assert last_complete_checkpoint(tmp_path) == str(whole)
    assert last_complete_checkpoint(tmp_path / "nothing") is None


@pytest.mark.slow
@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_two_processes_equal_one(script_arguments, run_script, tmp_path):
    """DDP over gloo: two processes with half the batch each give the one-process weights and losses."""
    run_script(script_arguments(tmp_path / "one", per_device_train_batch_size=4, use_cpu=True))
    run_script(script_arguments(tmp_path / "two", per_device_train_batch_size=2, use_cpu=True), processes=2)
    curves = [json.loads((tmp_path / run / "training_meta.json").read_text())["loss_curve"] for run in ("one", "two")]
    assert len(curves[0]) == 6
    for (step, one), (same_step, two) in zip(*curves, strict=True):
        assert step == same_step
        assert two == pytest.approx(one, abs=1e-4)
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4


@pytest.mark.slow
def test_accelerate_launch_equals_a_plain_start(script_arguments, run_script, tmp_path):
    run_script(script_arguments(tmp_path / "plain"))
    run_script(script_arguments(tmp_path / "launched"), accelerate=True)
    assert difference(weights(tmp_path / "plain"), weights(tmp_path / "launched")) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_plain_trl_sft_trains_an_export(graft, rows, tmp_path):
    """TRL's own command on an exported folder: this package is not imported, the code is the repository's."""
    (tmp_path / "data").mkdir()
    rows.remove_columns(["kind", "description"]).to_parquet(tmp_path / "data" / "train.parquet")
    options = {
        "model_name_or_path": graft,
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "max_length": "null",
        "learning_rate": 1e-3,
        "bf16": False,
        "save_steps": 3,
        "report_to": "none",
        "trust_remote_code": True,
    }
    config = tmp_path / "sft.yaml"
    config.write_text(yaml.safe_dump({k: str(v) if isinstance(v, Path) else v for k, v in options.items()}))
    config.write_text(config.read_text().replace("'null'", "null"))
    child = subprocess.run(
        [Path(sys.executable).with_name("trl"), "sft", "--config", config],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        assert {path.name for path in graft.glob("*.py")} <= {path.name for path in folder.iterdir()}
    moved = difference(weights(graft), weights(tmp_path / "run"))
    assert 0.0 < moved < 0.1


@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_lora_saves_loads_and_merges(script_arguments, rows, new_part, tmp_path):
    out, merged = tmp_path / "adapter", tmp_path / "merged"
    trainer = main(*parse(script_arguments(out, lora_modules_to_save=new_part, **LORA)))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name or f"{new_part}.modules_to_save" in name for name in trained)
    adapted = AutoPeftModelForCausalLM.from_pretrained(out)
    export_folder(out, merged)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    batch = trainer.data_collator([rows[0], rows[1]])
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(adapted.eval()(**batch).logits, wanted)
        torch.testing.assert_close(plain.eval()(**batch).logits, wanted, atol=1e-5, rtol=0)


def test_bad_input_is_told_before_the_first_step(script_arguments, tmp_path):
    cases = {
        "exactly one of": {"dataset_name": "somewhere/else"},
        "no task 'circles'": {"task": "circles"},
        "matches none of": {"trainable": "conector"},
    }
    for message, overrides in cases.items():
        with pytest.raises(ValueError, match=message):
            main(*parse(script_arguments(tmp_path / "run", **overrides)))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_learning_rates_are_expression_and_rate(script_arguments, tmp_path):
    words = ["--learning_rates", r"\bconnector\b=2e-5", "a=b=1"]
    graft_args, _, _ = parse([*script_arguments(tmp_path), *words])
    assert parse_learning_rates(graft_args.learning_rates) == {r"\bconnector\b": 2e-5, "a=b": 1.0}
    for wrong in ("connector", "connector=fast", "=1e-3", "(=1e-3"):
        with pytest.raises(ValueError, match="EXPRESSION=RATE"):
            parse_learning_rates([wrong])


def test_llava_rows_that_cannot_be_used(script_arguments, tmp_path):
    """`stop` ends the run before the first step; `skip` trains on the others and lists each with its index."""
    (tmp_path / "images").mkdir()
    rows = []
    for index, array in enumerate(load_sample_images().images * 4):
        Image.fromarray(array[: 100 + index]).save(tmp_path / "images" / f"{index}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A photograph."}]
        rows.append({"id": str(index), "image": f"{index}.jpg", "conversations": turns})
    whole = (tmp_path / "images" / "2.jpg").read_bytes()
    (tmp_path / "images" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    rows[5]["image"] = "../rows.json"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = [word for word in script_arguments(tmp_path / "run") if word not in ("--task", "shapes")]
    config = yaml.safe_load(Path(words[1]).read_text())
    config = {key: value for key, value in config.items() if not key.startswith("task")}
    (tmp_path / "llava.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", str(tmp_path / "llava.yaml"), *words[2:]]
    words += ["--data_file", str(tmp_path / "rows.json"), "--image_root", str(tmp_path / "images")]
    words += ["--eval_ratio", "0.2", "--generative_eval_rows", "0"]
    with pytest.raises(ValueError, match="2 of 8 rows"):
        main(*parse([*words, "--on_bad_row", "stop"]))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))
    trainer = main(*parse([*words, "--on_bad_row", "skip", "--max_steps", "2"]))
    assert trainer.state.global_step == 2
    listed = [json.loads(line) for line in (tmp_path / "run" / "refused_rows.jsonl").read_text().splitlines()]
    assert sorted((row["index"], row["reason"]) for row in listed) == [
        (2, "truncated or corrupt"),
        (5, "outside the image root"),
    ]
    summary = json.loads((tmp_path / "run" / "training_meta.json").read_text())["dataset"]
    assert summary["train_rows"] + summary["eval_rows"] == 6
    assert summary["name"] == "rows.json"


def test_unknown_setting_is_an_error(script_arguments, tmp_path):
    with pytest.raises(ValueError, match="learning_ratio"):
        parse([*script_arguments(tmp_path), "--learning_ratio", "1"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recipe_says_what_it_needs_and_parses(recipe):
    first, second = recipe.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# Hardware: ")
    assert second.startswith("# Run: ")
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if recipe.parent.name != "accelerate":
        graft_args, training_args, model_args = parse(["--config", str(recipe), "--use_cpu", "true"])
        cut = graft_args.query_data or graft_args.text_data  # there a filter or a split, elsewhere a cut
        assert (training_args.max_length is None) == (cut is None)
        assert model_args.model_name_or_path == values["model_name_or_path"]
        assert sum(getattr(graft_args, source) is not None for source in SOURCES) == 1
        if recipe.parent.name == "recursive_qwen":
            check_recursion(graft_args, preset_config("recursive-tiny" if recipe.stem == "tiny" else "recursive-0.6b"))
        if recipe.parent.name == "clara":
            preset = "clara-tiny" if recipe.stem == "tiny" else "clara-4b"
            check_clara(graft_args, graft_args.stage, preset_config(preset))
