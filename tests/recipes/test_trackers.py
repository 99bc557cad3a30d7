"""What reaches a tracker: losses, answers before and after training, and what the run is."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qwen_grafts.recipes.graft_sft import main, parse

EVALUATED = {"generative_eval_rows": 2, "generative_eval_tokens": 4}


def test_tensorboard(words, tmp_path, monkeypatch):
    """All of a run lies in one folder below `output_dir`, and nothing in the working folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "run"
    trainer = main(*parse(words(out, report_to="tensorboard", **EVALUATED)))
    (folder,) = (out / "runs").iterdir()
    assert not list((tmp_path / "elsewhere").iterdir())
    events = EventAccumulator(str(folder)).Reload()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(curve)
    for stage, step in (("pre", 0), ("post", 4)):
        for measure in ("exact_match", "valid_json", "blank_image", "label_accuracy", "rows"):
            (event,) = events.Scalars(f"train/gen_eval/{stage}_{measure}")
            assert event.step == step
        assert events.Scalars(f"train/gen_eval/{stage}_rows")[0].value == 2
    (record,) = events.Tensors("training_meta/text_summary")
    metadata = json.loads(record.tensor_proto.string_val[0])
    written = json.loads((out / "training_meta.json").read_text())
    for name in ("command", "settings", "seed", "dataset", "parameters", "versions", "model_type"):
        assert metadata[name] == written[name], name
    assert metadata["settings"]["generative_eval_tokens"] == 4 and "metrics" not in metadata


def test_wandb_offline(words, tmp_path, start_script, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    main(*parse(words(tmp_path / "run", report_to="wandb", **EVALUATED)))
    run = wandb.run
    assert run.config["training_meta"]["settings"]["generative_eval_tokens"] == 4
    assert {f"train/gen_eval/{stage}_exact_match" for stage in ("pre", "post")} <= set(dict(run.summary))
    wandb.finish()


def test_trackio(words, tmp_path):
    """In a process of its own, since trackio reads where it writes from the environment once."""
    pytest.importorskip("trackio")
    arguments = words(tmp_path / "run", report_to="trackio", project="sft", **EVALUATED)
    code = (
        "import json, sys\n"
        "from qwen_grafts.recipes.graft_sft import main, parse\n"
        "import trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "main(*parse(sys.argv[1:]))\n"
        "trackio.finish()\n"
        "runs = [(run.config, SQLiteStorage.get_logs('sft', run.name)) for run in trackio.Api().runs('sft')]\n"
        "print('FOUND', json.dumps(runs))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    ((config, logs),) = json.loads(child.stdout.split("FOUND ")[1])
    assert config["training_meta"]["settings"]["generative_eval_tokens"] == 4
    for stage in ("pre", "post"):
        assert any(f"train/gen_eval/{stage}_exact_match" in log for log in logs)


def test_missing_tracker_is_told_before_anything_is_read(words, tmp_path):
    for name in ("neptune", "no_tracker"):
        arguments = words(tmp_path / "run", report_to=name, query_data=tmp_path / "no rows", model_name_or_path="none")
        with pytest.raises(ValueError, match=rf"`report_to` names {name}: not installed, .* `report_to: none`"):
            main(*parse(arguments))
    assert not (tmp_path / "run").exists()
