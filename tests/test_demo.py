"""The demos' steps one by one; `make demo` and `make demo-vision-bridge` run them all."""

import io
import sys

import pytest
from PIL import Image
from rich.console import Console

from qwen_grafts.cli import main
from qwen_grafts.demo import DEMOS
from qwen_grafts.demo_steps import (
    ask_clean,
    ask_samples,
    held_out_samples,
    results_table,
    show_reply,
    tiny_tokenizer,
)
from qwen_grafts.hub_cards import export_preset
from qwen_grafts.recipes.language_pretraining import described, described_for_thinking
from qwen_grafts.recipes.visual_tasks import MANY_SIZES, visual_task
from qwen_grafts.report import write_report

METRICS = {
    "before": {"digit": {"exact_match": 0.1, "blank_image": 0.1, "shuffled_image": 0.1, "rows": 9}},
    "after": {
        "digit": {"exact_match": 0.9, "blank_image": 0.1, "shuffled_image": 0.1, "rows": 9},
        "digit, thinking": {"exact_match": 0.8, "blank_image": 0.1, "shuffled_image": 0.1, "rows": 9},
    },
}


def printed(*shown: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    for item in shown:
        console.print(item)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def rows():
    return visual_task("shapes+digits+captions+sizes+thoughts", "train", shapes=48).select(range(400))


def test_words_of_the_rows_are_few_tokens(rows):
    tokenizer = tiny_tokenizer(described_for_thinking(rows, 0), ["user\nassistant\n"] * len(rows))
    text = "user\nassistant\na red circle at the top left. I am asked for the colour."
    assert len(tokenizer(text)["input_ids"]) == 19
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    plain = tiny_tokenizer(described(visual_task("shapes", "train", shapes=16)))
    assert len(plain("What colour is it?")["input_ids"]) == 5


def test_samples_differ_in_size(tmp_path):
    samples = held_out_samples(tmp_path / "samples", 0, MANY_SIZES, count=8)
    assert len(samples) == 8
    assert {Image.open(sample["image"]).size for sample in samples} == set(MANY_SIZES)
    assert {Image.open(s["image"]).size for s in held_out_samples(tmp_path / "samples", 0, count=4)} == {(32, 32)}
    assert len({sample["question"] for sample in samples}) == 4


def test_table_shows_both_modes():
    text = printed(results_table(METRICS))
    line = next(line for line in text.splitlines() if "digit, thinking" in line)
    assert "0.800" in line and "0.900" not in line


def test_report_shows_thoughts_in_grey(tmp_path):
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    replies = [
        {"name": "thinking off", "thought": "", "answer": "two"},
        {"name": "thinking on", "thought": "The image shows <b>two</b>.", "answer": "six"},
    ]
    path = write_report(
        tmp_path / "report.html",
        graft="Vision bridge",
        trained_part="adapter",
        metadata={
            "metrics": METRICS,
            "parameters": {"adapter": {"total": 7, "trained": 7}, "vision_tower": {"total": 5, "trained": 0}},
            "loss_curve": [[1, 2.0], [2, 1.0]],
            "eval_loss_curve": [],
            "steps": 2,
            "duration_seconds": 60,
        },
        samples=[{"image": tmp_path / "a.png", "question": "Which?", "expected": "two", "replies": replies}],
        card="---\nlicense: mit\n---\n# Card\n",
        seconds=60,
    )
    page = path.read_text(encoding="utf-8")
    assert '<p class="thought">The image shows &lt;b&gt;two&lt;/b&gt;.</p>' in page
    assert '<p class="right">two' in page
    assert '<p class="wrong">six (it is two)' in page
    assert "Vision bridge, tiny preset. Only the adapter was trained\n(7 of\n12 parameters)" in page
    assert "<td>digit, thinking</td>" in page


def test_published_model_is_asked_in_a_clean_process(tmp_path):
    published = export_preset("vision-bridge-tiny", tmp_path / "published")
    samples = held_out_samples(tmp_path / "samples", 0, MANY_SIZES, count=2)
    switches = {"off": False, "on": True}
    console = Console(file=io.StringIO())
    answered = ask_samples(published, samples, console, switches)
    assert [[reply["name"] for reply in sample["replies"]] for sample in answered] == [["off", "on"]] * 2
    for sample in answered:
        off, _ = sample["replies"]
        assert off.keys() == {"name", "thought", "answer"}
        assert not off["thought"]
    with pytest.raises(RuntimeError, match="clean process failed"):
        ask_clean(tmp_path, samples[:1])


def test_thought_is_dimmed():
    console = Console(file=io.StringIO(), force_terminal=True)
    show_reply({"thought": "[red] it is", "answer": "red"}, console)
    assert console.file.getvalue().splitlines() == ["\x1b[2m[red] it is\x1b[0m", "red"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vision"], "no demo of 'vision'; demos: perceiver-vlm, vision-bridge"),
        (["vision-bridge", "--thinking"], "only with them"),
        (["--dir", "OUT", "--image", __file__, "--question", "?", "--thinking"], "not taught to think"),
        (
            ["vision-bridge", "--dir", "OUT", "--image", __file__, "--question", "?"],
            "run `qwen-grafts demo vision-bridge` first",
        ),
    ],
)
def test_errors_name_the_remedy(monkeypatch, capsys, tmp_path, arguments, message):
    words = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["qwen-grafts", "demo", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert message in capsys.readouterr().err


def test_demos_do_not_share_a_folder():
    assert len({demo.directory for demo in DEMOS.values()}) == len(DEMOS)
