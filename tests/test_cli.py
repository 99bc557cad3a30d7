"""The console script: what it promises for ever, and what it says when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from base_checkpoints import chat_checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from qwen_grafts.cli import app, main

COMMANDS = (
    "graft",
    "train",
    "export",
    "verify",
    "push",
    "card",
    "info",
    "ask",
    "inference",
    "index",
    "answer",
    "data",
    "demo",
)
GROUPS = {"graft": ("perceiver-vlm", "vision-bridge", "recursive", "clara"), "data": ("collect", "clean")}


def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    """The command as the shell sees it: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["qwen-grafts", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


@pytest.fixture
def command(capsys, monkeypatch):
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


def test_every_command_has_help_with_an_example(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out
        for part in GROUPS.get(name, (None,)):
            code, text, _ = command(name, *([part] if part else []), "--help")
            assert code == 0
            assert "Example:" in text, name


def test_installed_script_answers():
    script = Path(sys.executable).with_name("qwen-grafts")
    assert "Usage" in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout


def test_export_verify_info(command, tmp_path):
    out = tmp_path / "tiny"
    code, text, _ = command("export", "--preset", "perceiver-vlm-tiny", out)
    assert code == 0
    assert f"qwen-grafts verify {out}" in text
    AutoProcessor.from_pretrained(out)
    assert AutoModelForImageTextToText.from_pretrained(out).num_parameters() == 811_712
    code, text, _ = command("verify", out)
    assert code == 0
    assert "is fit to publish" in text
    by_dir, by_name = (json.loads(command("info", target, "--json")[1]) for target in (out, "perceiver-vlm-tiny"))
    assert by_dir == by_name
    code, _, err = command("export", "--preset", "perceiver-vlm-tiny", out)
    assert code == 1
    assert "already holds" in err
    assert command("export", "--preset", "perceiver-vlm-tiny", "--overwrite", out)[0] == 0


def test_info_of_the_specified_preset(command):
    info = json.loads(command("info", "perceiver-vlm-8b", "--json")[1])
    assert info["tokens_per_image"] == 64
    assert info["parameters"]["parts"]["connector"] == {"total": 82_445_824, "trained": 82_445_824}
    trained, frozen = info["parameters"]["trained"], info["parameters"]["frozen"]
    assert trained == 82_445_824
    assert info["parameters"]["total"] == trained + frozen
    assert info["memory_bytes"]["weights"] == frozen * 2 + trained * 4
    assert info["memory_bytes"]["gradients"] == trained * 4
    assert info["memory_bytes"]["optimizer"] == trained * 8


def test_info_of_a_recursive_preset(command):
    info = json.loads(command("info", "recursive-0.6b", "--json")[1])
    parts = {part: counts["total"] for part, counts in info["parameters"]["parts"].items()}
    assert list(parts) == ["embed_tokens", "prelude", "core", "coda", "norm", "recurrence", "q_head"]
    assert (parts["core"], parts["recurrence"], parts["q_head"]) == (2 * parts["prelude"], 6 * 1024, 1025)
    assert info["parameters"]["trained"] == info["parameters"]["total"] == 596_049_920 + 6 * 1024 + 1025
    slot = 2 * 8 * 128 * 2  # keys and values, heads, width, bytes of bfloat16
    assert info["depth"] == {
        "configured": {"layer_evaluations": 182, "cache_bytes_per_token": 182 * slot},
        "stock": {"layer_evaluations": 28, "cache_bytes_per_token": 28 * slot},
    }
    _, text, _ = command("info", "recursive-0.6b")
    assert "182 layer evaluations; the stock model's 28" in text and "image" not in text
    assert json.loads(command("info", "perceiver-vlm-tiny", "--json")[1])["depth"] is None


def test_info_of_a_clara_preset(command):
    info = json.loads(command("info", "clara-4b", "--json")[1])
    slot = 2 * 36 * 8 * 128 * 2  # keys and values, layers, heads, width, bytes of bfloat16
    assert info["passage"]["tokens"] == 256
    assert info["passage"]["cache_bytes"] == 256 * slot
    assert info["passage"]["compressed"] == [
        {"rate": rate, "latents": count, "latent_bytes": count * 2560 * 2, "cache_bytes": count * slot}
        for rate, count in ((32, 8), (4, 64), (16, 16), (128, 2))
    ]
    assert info["parameters"]["trained"] == 3 * 33_030_144 + 91 * 2560
    _, text, _ = command("info", "clara-4b")
    assert "A passage of 256 tokens takes 37,748,736 bytes of KV cache" in text
    assert "At rate 32 it is 8 latents: 40,960 bytes to keep, 1,179,648 bytes of KV cache" in text
    assert "image" not in text
    assert json.loads(command("info", "perceiver-vlm-tiny", "--json")[1])["passage"] is None


def test_graft_clara_and_take_a_role_out(command, tmp_path):
    chat_checkpoint(tmp_path / "source", layers=2, first_special_id=256)
    out, role = tmp_path / "clara", tmp_path / "generator"
    words = ("--source", tmp_path / "source", "--rates", "8", "--rates", "4", "--doc-max-length", "16")
    words += ("--lora-rank", "3", "--lora-alpha", "4.5", "--dtype", "bfloat16")
    code, text, err = command("graft", "clara", *words, out)
    assert code == 0, err
    assert f"qwen-grafts train RECIPE --model_name_or_path {out}" in text
    config = AutoConfig.from_pretrained(out)
    assert (config.compression_rates, config.doc_max_length, str(config.dtype)) == ([8, 4], 16, "torch.bfloat16")
    assert (config.lora_rank, config.lora_alpha) == (3, 4.5)
    code, _, err = command("graft", "clara", *words, out)
    assert (code, "already holds" in err) == (1, True)
    code, _, err = command("graft", "clara", *words, "--overwrite", "--graft-only", out)
    assert (code, "names its base on the Hub" in err) == (1, True)
    code, text, err = command("export", "--model", out, "--role", "generator", role)
    assert code == 0, err
    assert f"Wrote {role}, a PEFT adapter." in text
    adapter = json.loads((role / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (3, 4.5)
    code, _, err = command("export", "--model", out, "--role", "reader", tmp_path / "reader")
    assert (code, "There is no role 'reader'; the roles are" in err) == (1, True)


def test_graft_a_qwen_and_ask_it(command, tmp_path):
    chat_checkpoint(tmp_path / "source", "qwen2")
    out = tmp_path / "recursive"
    words = ("--source", tmp_path / "source", "--core", "1:3", "--H-cycles", "4", "--L-cycles", "1", out)
    code, text, err = command("graft", "recursive", *words)
    assert code == 0, err
    assert "qwen-grafts train" in text
    config = AutoConfig.from_pretrained(out)
    assert (config.core_range, config.H_cycles, config.L_cycles) == ([1, 3], 4, 1)
    code, text, err = command("inference", out, "Hello", "--max-new-tokens", "3", "--no-color")
    assert code == 0, err
    assert "mean cycles 4.00 of 4; 54 layer evaluations, all tokens at fixed depth." in text
    sampled = ("--max-new-tokens", "3", "--temperature", "1", "--rollouts", "2")
    code, text, err = command("inference", out, "Hello", *sampled)
    assert code == 0, err
    assert "Confidence of 2 answers  " in text
    code, _, err = command("inference", out, "Hello", "--num-cycles", "0")
    assert (code, err.count("Error: `num_cycles` is 0")) == (1, 1)


def test_info_for_a_recipe(command):
    recipe = Path(__file__).parents[1] / "recipes/perceiver_vlm/stage2_instruct.yaml"
    code, text, _ = command("info", "perceiver-vlm-8b", "--recipe", recipe, "--json")
    info = json.loads(text[text.index("{") :])
    layers, rank, hidden, inner, kv = 36, 32, 4096, 12_288, 1024
    lora = layers * rank * (2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner))
    assert code == 0
    assert info["parameters"]["trained"] == 82_445_824 + lora
    assert info["parameters"]["total"] == 8_686_168_432 + lora


def test_config_only_export_builds_at_full_size_on_meta(command, tmp_path):
    import torch

    assert command("export", "--preset", "perceiver-vlm-8b", "--config-only", tmp_path / "big")[0] == 0
    config = AutoConfig.from_pretrained(tmp_path / "big")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(parameter.numel() for parameter in model.model.connector.parameters()) == 82_445_824
    assert not list((tmp_path / "big").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--preset", "perceiver-vlm-9b", "OUT"], "no preset 'perceiver-vlm-9b'"),
        (["export", "OUT"], "exactly one of"),
        (["export", "--preset", "clara-tiny", "--role", "generator", "OUT"], "leave out --preset"),
        (
            ["export", "--model", "m", "--role", "generator", "--graft-only", "--config-only", "--overwrite", "OUT"],
            "`--role` writes an adapter of `--model DIR` into a new folder; leave out --graft-only, --config-only",
        ),
        (["info", "nonsense"], "neither a preset"),
        (["demo", "--image", __file__], "together"),
        (["demo", "--dir", "OUT", "--image", __file__, "--question", "What?"], "run `qwen-grafts demo` first"),
        (["graft", "perceiver-vlm", "--vision", "v", "--language", "l", "--connector", "{", "OUT"], "JSON object"),
        (
            ["graft", "vision-bridge", "--vision", "v", "--language", "l", "--adapter", "qformer", "OUT"],
            "linear or mlp",
        ),
        (["graft", "recursive", "--source", "s", "--core", "7", "OUT"], "`--core` is FIRST:END"),
    ],
)
def test_errors_are_one_line_with_the_remedy(command, tmp_path, arguments, message):
    code, _, err = command(*(str(tmp_path / "out") if word == "OUT" else word for word in arguments))
    assert code == 1
    assert err.startswith("Error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen-grafts", "--debug", "info", "nonsense"])
    with pytest.raises(ValueError, match="neither a preset"):
        main()


def test_app_names_no_other_commands():
    named = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    assert named == set(COMMANDS)
