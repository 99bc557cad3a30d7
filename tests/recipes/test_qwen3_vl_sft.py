"""SFT of a stock Qwen3-VL, as users run it: train, evaluate, kill, resume, publish, and TRL's own command beside it."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, List, concatenate_datasets
from distinct_export import VISION_PRESETS
from finished_runs import kill_behind_checkpoint
from peft import AutoPeftModelForCausalLM, PeftModel
from PIL import Image as PILImage
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_qwen3_vl import FIRST_SPECIAL_ID, query_rows
from tiny_vision_bridge import tower_config
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    TrainerCallback,
)
from trl import ModelConfig, SFTConfig

from qwen_grafts.hub_cards import export_folder, finish_run, set_adapter_base, verify, write_card
from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template
from qwen_grafts.recipes.graft_sft import main, parse, run
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.model_loading import load_model
from qwen_grafts.recipes.query_evaluation import GenerationSettings, evaluate_qwen3, generate_answers
from qwen_grafts.recipes.resume import last_complete_checkpoint
from qwen_grafts.recipes.vision_language_pretraining import tiny_qwen2_5_vl_config
from qwen_grafts.recipes.vision_sft_collator import Qwen3VisionSFTCollator

RECIPE = Path(__file__).parents[2] / "recipes" / "qwen3_vl_sft" / "tiny.yaml"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_run_leaves_an_adapter_and_its_record(words, tmp_path, checkpoint):
    out = tmp_path / "run"
    trainer = main(*parse(words(out, generative_eval_rows=4, generative_eval_tokens=12)))
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    text = (out / "training_meta.json").read_text()
    metadata = json.loads(text)
    assert (metadata["steps"], len(metadata["loss_curve"])) == (4, 4)
    assert metadata["dataset"]["train_rows"] == 12
    assert metadata["dataset"]["classes"]["label"] == {"yes": 8, "no": 4}
    for when in ("before", "after"):
        assert {"valid_json", "exact_match", "blank_image", "rows"} <= set(metadata["metrics"][when]["all"])
        assert {"accuracy", "macro_f1", "micro_f1"} <= set(metadata["metrics"][when]["label"])
    assert sum(map(sum, metadata["confusion"]["label"]["counts"])) == 4
    assert metadata["model_type"] == "qwen3_vl"
    assert metadata["settings"]["lora_r"] == 8 and metadata["settings"]["generative_eval_tokens"] == 12
    assert str(tmp_path) not in text and str(checkpoint.parent) not in text and Path.home().name not in text.split("/")
    draft = (out / "README.md").read_text()
    assert "saved while the training run went on" in draft and "| 4 | " in draft and str(checkpoint.parent) not in draft
    assert finish_run(out) is None  # the base lies in a local folder: nobody else could load the adapter


def test_adapter_loads_and_merges(words, tmp_path, checkpoint, saved_rows):
    trainer = main(*parse(words(tmp_path / "run")))
    batch = trainer.data_collator([query_rows(2)[0]])
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    directly = AutoModelForImageTextToText.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(adapted(**batch).logits, wanted)
        torch.testing.assert_close(directly(**batch).logits, wanted)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            AutoModelForImageTextToText.from_pretrained(checkpoint)(**batch).logits, wanted, atol=1e-3
        )


QLORA = {
    "load_in_4bit": True,
    "dtype": "bfloat16",
    "bf16": True,
    "generative_eval_rows": 2,
    "generative_eval_tokens": 4,
}


def test_qlora(words, tmp_path, checkpoint):
    """bitsandbytes on the CPU: 4 bits and LoRA in the language model, tower, embeddings and head as they were."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    graft_args, training_args, model_args = parse(words(tmp_path / "run", **QLORA))
    trainer = main(graft_args, training_args, model_args)
    quantized = [name for name, m in trainer.model.named_modules() if type(m) is bitsandbytes.nn.Linear4bit]
    assert len(quantized) == 3 * 7
    assert all("language_model" in name for name in quantized)
    stored = load_file(checkpoint / "model.safetensors")
    kept = {
        name: parameter for name, parameter in trainer.model.named_parameters() if "language_model.layers" not in name
    }
    assert any("visual" in name for name in kept) and any("lm_head" in name for name in kept)
    for name, parameter in kept.items():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad, name
        assert torch.equal(parameter, stored[name.removeprefix("base_model.model.")].to(torch.bfloat16)), name
    assert "bitsandbytes" in json.loads((tmp_path / "run" / "training_meta.json").read_text())["versions"]

    batch = trainer.data_collator([query_rows(2)[0]])
    again = PeftModel.from_pretrained(load_model(model_args, Console()), tmp_path / "run").eval()
    exact = AutoModelForImageTextToText.from_pretrained(tmp_path / "run").eval()
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run", dtype="float32").merge_and_unload()
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).logits.float()
        untrained = load_model(model_args, Console()).eval()(**batch).logits.float()
        loaded, size = again(**batch).logits.float(), (untrained - wanted).norm()
        assert (loaded - wanted).norm() < 0.1 * size  # in bfloat16, with and without autocast
        torch.testing.assert_close(merged(**batch).logits, exact(**batch).logits, atol=1e-3, rtol=1e-3)
    weights = dict(again.named_parameters())
    for name, tensor in adapter(tmp_path / "run").items():
        assert torch.equal(weights[name.replace(".weight", ".default.weight")], tensor.float()), name


def test_qlora_learns_after_an_evaluation(words, tmp_path):
    """An evaluation leaves the gradients as they are; bitsandbytes' own inference on a CPU takes them away."""
    pytest.importorskip("bitsandbytes")
    settings = QLORA | {"lora_dropout": 0.0, "max_steps": 2}
    curves = []
    for count in (0, 4):
        trainer = main(*parse(words(tmp_path / str(count), **(settings | {"generative_eval_rows": count}))))
        curves.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_qlora_on_grafts(words, tmp_path, graft):
    pytest.importorskip("bitsandbytes")
    trainer = main(*parse(words(tmp_path / "run", model_name_or_path=graft, max_steps=1, **QLORA)))
    quantized = [name for name, module in trainer.model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert quantized and all("language_model" in name for name in quantized)
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    batch = trainer.data_collator([query_rows(1)[0]])
    with torch.no_grad():
        wanted = adapted(**batch).logits
        torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("graft", "kind"), [(VISION_PRESETS[1], "Qwen3-Vision-Bridge")], indirect=["graft"])
def test_the_scripts_error_names_the_model_and_keeps_its_cause(words, tmp_path, graft, kind, checkpoint):
    cases = {checkpoint: "Qwen3-VL SFT", graft: f"{kind} SFT", tmp_path / "nothing": "SFT"}
    for name, said in cases.items():
        with pytest.raises(RuntimeError, match=f"^{said} failed: ") as raised:
            run(words(tmp_path / "run", model_name_or_path=name, target_key="labels"))
        assert isinstance(raised.value.__cause__, ValueError | OSError)
        assert str(raised.value).endswith(str(raised.value.__cause__))


@pytest.mark.slow
def test_the_script_says_what_failed_and_why(words, start_script, tmp_path):
    output, _ = start_script(words(tmp_path / "run", target_key="labels")).communicate(timeout=300)
    assert "ValueError: The data lacks 'labels' (`target_key`)" in output
    assert "RuntimeError: Qwen3-VL SFT failed: The data lacks 'labels'" in output


@pytest.mark.slow
def test_the_recorded_command_repeats_the_run(tmp_path, checkpoint):
    """From the folder of the recipe and the data: the same adapter, to the bit."""
    recipe = tmp_path / "recipes" / "qwen3_vl_sft" / "tiny.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE.read_text())
    shutil.copytree(checkpoint, tmp_path / "base")
    query_rows(12).to_parquet(tmp_path / "rows.parquet")
    values = {"model_name_or_path": "base", "query_data": "rows.parquet", "output_dir": "out", "max_steps": 2}
    command = f"qwen-grafts train {recipe} " + " ".join(f"--{name} {value}" for name, value in values.items())
    saved = []
    for _ in range(2):
        program, *rest = shlex.split(command)
        child = subprocess.run(
            [Path(sys.executable).with_name(program), *rest],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-2000:]
        command = json.loads((tmp_path / "out" / "training_meta.json").read_text())["command"]
        assert str(tmp_path) not in command
        saved.append(adapter(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_card_of_an_adapter(words, tmp_path):
    """With the base named, the card shows results before and after, the control and the confusion matrix."""
    out = tmp_path / "run"
    main(*parse(words(out, generative_eval_rows=4, generative_eval_tokens=12)))
    set_adapter_base(out, "Qwen/Qwen3-VL-8B-Instruct", "0" * 40)
    report = finish_run(out, repo_id="someone/sarcasm")
    assert report is not None
    card = (out / "README.md").read_text()
    assert "base_model_relation: adapter" in card
    assert "| questions | valid JSON before | valid JSON | exact match before | exact match |" in card
    assert "and with another row's image" not in card
    assert "confusion_label.png" in card and (out / "confusion_label.png").is_file()
    assert "trust_remote_code" not in card and "custom_code" not in card
    assert "AutoPeftModelForCausalLM.from_pretrained(repo_id, dtype" in card
    assert write_card(out, repo_id="someone/sarcasm").read_text() == card


def test_batch_of_ragged_prompts_equals_one_by_one(checkpoint):
    processor, model = (
        AutoProcessor.from_pretrained(checkpoint),
        AutoModelForImageTextToText.from_pretrained(checkpoint),
    )
    rows = list(query_rows(6))
    collator = Qwen3VisionSFTCollator(processor, training=False)
    texts = [
        generate_answers(model, processor, rows, collator, GenerationSettings(max_new_tokens=8, batch_size=size), "")
        for size in (6, 4, 1)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1


def test_evaluation(checkpoint, monkeypatch):
    """The names of the measures; the blank image is asked about; a model in training mode stays in it."""
    processor, model = (
        AutoProcessor.from_pretrained(checkpoint),
        AutoModelForImageTextToText.from_pretrained(checkpoint),
    )
    rows = query_rows(4)
    seen = []

    def answers(model, processor, asked, collator, cfg, description):
        seen.append([row["image"].getcolors(maxcolors=9999) for row in asked])
        return [rows[0]["target_json"]] * 3 + ["no JSON" if len(seen) == 2 else rows[0]["target_json"]]

    monkeypatch.setattr("qwen_grafts.recipes.query_evaluation.generate_answers", answers)
    result = evaluate_qwen3(model, processor, rows, Qwen3VisionSFTCollator(processor), GenerationSettings(stage="post"))
    assert result.metrics["gen_eval/post_valid_json"] == 1.0
    assert result.metrics["gen_eval/post_exact_match"] == result.metrics["gen_eval/post_blank_image"] == 0.25
    assert result.metrics["gen_eval/post_label_accuracy"] == 0.5
    assert result.metrics["gen_eval/post_label_blank_image"] == 0.25
    assert all(len(colours) > 1 for colours in seen[0]) and all(len(colours) == 1 for colours in seen[1])
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        evaluate_qwen3(model, processor, [], Qwen3VisionSFTCollator(processor))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(words, start_script, run_script, tmp_path):
    """`kill -9` after the first checkpoint; LoRA with dropout."""
    settings = {"max_steps": 24, "save_steps": 3, "save_total_limit": 20}
    run_script(words(tmp_path / "whole", **settings))
    broken = tmp_path / "broken"
    child = start_script(words(broken, **settings))
    kill_behind_checkpoint(child, broken)
    assert not (broken / "adapter_model.safetensors").exists()
    run_script(words(broken, resume_from_checkpoint=True, **settings))
    whole, resumed = adapter(tmp_path / "whole"), adapter(broken)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [
        json.loads((tmp_path / run / "training_meta.json").read_text())["loss_curve"] for run in ("whole", "broken")
    ]
    assert curves[0] == curves[1]


class FullDisk(TrainerCallback):
    """After the first checkpoint no file may grow beyond a few bytes, as the operating system sees to it."""

    def __init__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_save(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, self.limits[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def test_full_disk_leaves_the_previous_checkpoint(words, tmp_path, monkeypatch):
    """The only checkpoint kept is not given up for one that could not be written, and the run goes on from it."""
    settings = {"save_total_limit": 1}
    main(*parse(words(tmp_path / "whole", **settings)))
    broken, disk = tmp_path / "broken", FullDisk()
    train = GraftSFTTrainer.train
    with monkeypatch.context() as patch:
        patch.setattr(
            GraftSFTTrainer, "train", lambda self, *args, **kwargs: (self.add_callback(disk), train(self, **kwargs))[1]
        )
        try:
            with pytest.raises((OSError, RuntimeError, SafetensorError), match=r"File too large|os error 27|write"):
                main(*parse(words(broken, **settings)))
        finally:
            disk.make_room()
    assert last_complete_checkpoint(broken) == str(broken / "checkpoint-2")
    main(*parse(words(broken, resume_from_checkpoint=True, **settings)))
    whole, resumed = adapter(tmp_path / "whole"), adapter(broken)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)
def test_grafts_train_on_the_same_rows(words, tmp_path, graft):
    trainer = main(*parse(words(tmp_path, model_name_or_path=graft, max_steps=2, generative_eval_rows=2)))
    assert trainer.state.global_step == 2
    assert set(json.loads((tmp_path / "training_meta.json").read_text())["metrics"]) == {"before", "after"}


def test_other_qwen_vl(words, tmp_path):
    """A stock Qwen2.5-VL with the same recipe."""
    tokenizer = build_qwen_tokenizer(FIRST_SPECIAL_ID)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = Qwen2VLImageProcessor(size={"shortest_edge": 256, "longest_edge": 1024}, **sizes)
    template = load_chat_template()
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=template)
    config = tiny_qwen2_5_vl_config(tower_config(out_hidden_size=64), tokenizer)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    trainer = main(*parse(words(tmp_path / "run", model_name_or_path=tmp_path / "base", generative_eval_rows=2)))
    assert trainer.model_accepts_loss_kwargs
    assert {type(trainer.model.base_model.model)} == {Qwen2_5_VLForConditionalGeneration}
    assert all("language_model" in name for name in adapter(tmp_path / "run"))
    batch = trainer.data_collator([query_rows(1)[0]])
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    assert dict(verify(export_folder(tmp_path / "run", tmp_path / "merged")).checks)["snippet"].endswith("ran")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted(**batch).logits, atol=1e-4, rtol=1e-4)


def test_full_training_of_the_language_model(words, tmp_path, checkpoint):
    arguments = words(tmp_path, use_peft=False, max_steps=2, trainable=r"\blanguage_model\b")
    main(*parse(arguments))
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("language_model" in name for name in moved)
    with pytest.raises(ValueError, match="is no graft, so nothing says what to train"):
        main(*parse([*words(tmp_path / "other"), "--use_peft", "False"]))


def test_stream(words, tmp_path, saved_rows):
    rows = tmp_path / "rows.parquet"
    query_rows(12).to_parquet(rows)
    arguments = words(tmp_path / "run", query_data=rows, streaming=True, streaming_eval_rows=3, generative_eval_rows=3)
    trainer = main(*parse(arguments))
    assert trainer.state.global_step == 4
    dataset = json.loads((tmp_path / "run" / "training_meta.json").read_text())["dataset"]
    assert (dataset["train_rows"], dataset["eval_rows"]) == (None, 3)
    with pytest.raises(ValueError, match="max_steps"):
        main(*parse([*words(tmp_path / "endless", query_data=rows, streaming=True), "--max_steps", "-1"]))


def test_fewer_rows_than_a_batch(words, tmp_path):
    rows = tmp_path / "rows.parquet"
    query_rows(1).to_parquet(rows)
    arguments = words(tmp_path / "run", query_data=rows, eval_ratio=0, per_device_train_batch_size=4, max_steps=1)
    assert main(*parse(arguments)).state.global_step == 1


def test_odd_rows_train(words, tmp_path):
    """Pictures of every kind, one pixel among them, with emoji, right-to-left text and lists: one step, all rows."""
    root = tmp_path / "images"
    root.mkdir()
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (40, 10), "red").save(root / "turned.jpg", exif=exif)
    PILImage.new("CMYK", (9, 30), (0, 90, 200, 10)).save(root / "cmyk.jpg")
    PILImage.new("P", (9, 9), 3).save(root / "palette.png")
    PILImage.new("I;16", (20, 9), 40_000).save(root / "deep.png")
    PILImage.new("LA", (12, 12), (200, 100)).save(root / "clear.png")
    PILImage.new("RGB", (1, 1), "white").save(root / "dot.png")
    frames = [PILImage.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    PILImage.new("1", (31, 9)).save(root / "bits.png")
    values = {"query": "🙃 هل هذه سخرية؟", "caption": "é 中文", "target_json": ["نعم", "🙃", 1]}
    found = [values | {"image": path.name} for path in sorted(root.iterdir())]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, found)))
    settings = {"query_data": tmp_path / "rows.jsonl", "image_root": root, "eval_ratio": 0, "max_steps": 1}
    trainer = main(*parse(words(tmp_path / "run", per_device_train_batch_size=4, **settings)))
    assert trainer.state.epoch == 1.0 and trainer.state.global_step == 1
    (logged,) = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert 0 < logged["loss"] < 50 and 0 < logged["grad_norm"] < float("inf")
    dataset = json.loads((tmp_path / "run" / "training_meta.json").read_text())["dataset"]
    assert (dataset["train_rows"], dataset["refused_rows"]) == (8, {})


def test_flash_attention_falls_back_with_a_word(words, tmp_path, capsys):
    main(*parse(words(tmp_path, attn_implementation="flash_attention_2", max_steps=1)))
    assert capsys.readouterr().out.count("flash_attention_2 is not available here") == 1


def test_bad_settings(words, tmp_path):
    for message, overrides in {
        "16 of 16 rows of tiny cannot be used: 16 too long": {"max_length": 8},
        "it has image, query, caption, target_json": {"target_key": "labels"},
    }.items():
        with pytest.raises(ValueError, match=message):
            main(*parse(words(tmp_path / "run", **overrides)))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))


@pytest.fixture
def trl_curve(checkpoint, tmp_path):
    """Run TRL's own command on rows in its format; returns its losses by step."""

    def run(rows: Dataset, **overrides: object) -> list[tuple[int, float]]:
        out, data = tmp_path / "trl", tmp_path / "trl_data"
        data.mkdir(exist_ok=True)
        messages = [
            {
                "prompt": [{"role": "user", "content": row["query"].strip()}],
                "completion": [{"role": "assistant", "content": row["target_json"]}],
            }
            for row in rows
        ]
        images = [[image] for image in rows["image"]]
        features = Features({"images": List(Image())})
        texts, pictures = Dataset.from_list(messages), Dataset.from_dict({"images": images}, features)
        concatenate_datasets([pictures, texts], axis=1).to_parquet(data / "train.parquet")
        recipe = yaml.safe_load(RECIPE.read_text())
        names = {field.name for kind in (SFTConfig, ModelConfig) for field in fields(kind)}
        options = {name: value for name, value in recipe.items() if name in names} | {
            "model_name_or_path": str(checkpoint),
            "dataset_name": str(data),
            "output_dir": str(out),
            "use_cpu": True,
            "max_length": None,
            "trust_remote_code": True,
        }
        config = tmp_path / "trl.yaml"
        config.write_text(yaml.safe_dump(options | overrides))
        child = subprocess.run(
            [Path(sys.executable).with_name("trl"), "sft", "--config", config],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-3000:]
        state = json.loads((out / f"checkpoint-{overrides['max_steps']}" / "trainer_state.json").read_text())
        return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]

    return run


@pytest.mark.slow
def test_loss_curve_equals_plain_trl(words, tmp_path, trl_curve, monkeypatch):
    """Same model, data and seed. With accumulation TRL averages means; ours is exact, and TRL's with the flag off."""
    rows = query_rows(16)
    targets = [json.dumps({"label": "yes", "why": "x" * (number * 5 % 37)}) for number in range(16)]
    rows = rows.remove_columns(["target_json", "caption"]).add_column("target_json", targets)
    rows.to_parquet(tmp_path / "rows.parquet")
    one, two = ({"per_device_train_batch_size": 4 // n, "gradient_accumulation_steps": n} for n in (1, 2))
    shared = {"max_steps": 6, "save_steps": 6}

    def ours(name: str, settings: dict[str, int]) -> list[tuple[int, float]]:
        arguments = words(tmp_path / name, query_data=tmp_path / "rows.parquet", eval_ratio=0, **shared, **settings)
        trainer = main(*parse(arguments))
        return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]

    def largest_difference(first: list[tuple[int, float]], second: list[tuple[int, float]]) -> float:
        assert [step for step, _ in first] == [step for step, _ in second] == list(range(1, 7))
        return max(abs(a - b) for (_, a), (_, b) in zip(first, second, strict=True))

    whole = ours("whole", one)
    assert largest_difference(whole, trl_curve(rows, **shared, **one)) < 1e-3
    theirs = trl_curve(rows, **shared, **two)
    exact = ours("exact", two)
    assert exact[0][1] == pytest.approx(whole[0][1], abs=1e-4)  # later steps draw another dropout
    assert largest_difference(exact, theirs) > 0.02
    inexact = lambda *args: setattr(model := load_model(*args), "accepts_loss_kwargs", False) or model  # noqa: E731
    monkeypatch.setattr("qwen_grafts.recipes.graft_sft.load_model", inexact)
    assert largest_difference(ours("inexact", two), theirs) < 1e-3
