"""The demos' steps one by one; `make demo` and the other demos run them all."""

import io
import json
import sys

import pytest
from PIL import Image
from rich.console import Console

from qwen_grafts import ClaraIndex
from qwen_grafts import demo_clara as clara
from qwen_grafts import demo_qwen3_vl_sft as sft
from qwen_grafts import demo_recursive as recursive
from qwen_grafts.cli import main
from qwen_grafts.demo import DEMOS, ask
from qwen_grafts.demo_results import image_results, json_results, results_table
from qwen_grafts.demo_steps import ask_clean, ask_samples, held_out_samples, show_reply, tiny_tokenizer, train_tiny
from qwen_grafts.hub_cards import export_preset, export_repository, verify
from qwen_grafts.recipes.affine_task import HALT_PATIENCE, affine_model, affine_tokenizer
from qwen_grafts.recipes.affine_training import train_affine
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
    text = printed(results_table(image_results(METRICS)))
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
        headline="A Qwen3 that learned to see",
        subject="Vision bridge, tiny preset",
        trained_part="adapter",
        results=image_results(METRICS),
        metadata={
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
        (["vision"], "no demo of 'vision'; demos: perceiver-vlm, vision-bridge, qwen3-vl-sft, recursive, clara"),
        (["vision-bridge", "--thinking"], "only with them"),
        (["--dir", "OUT", "--image", __file__, "--question", "?", "--thinking"], "not taught to think"),
        (
            ["vision-bridge", "--dir", "OUT", "--image", __file__, "--question", "?"],
            "run `qwen-grafts demo vision-bridge` first",
        ),
        (
            ["qwen3-vl-sft", "--dir", "OUT", "--image", __file__, "--question", "?"],
            "run `qwen-grafts demo qwen3-vl-sft` first",
        ),
        (["recursive", "--dir", "OUT", "--image", __file__, "--question", "?"], "reads no images"),
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


@pytest.fixture(scope="module")
def json_rows():
    return list(sft.query_rows())


def test_rows_of_the_sft_demo_share_no_pixel(json_rows, tmp_path):
    """Whatever a split holds out, training has not seen it."""
    assert len({row["image"].tobytes() for row in json_rows}) == len(json_rows) == 1_797 + 2 * 13 * 20
    path = sft.write_rows(tmp_path, json_rows[:2] + json_rows[-1:])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[-1] == {
        "image": "0002.png",
        "query": "Which photograph is it from?",
        "target_json": {"photo": "flower"},
    }
    digit = rows[0]["target_json"]
    assert digit["parity"] == ("odd" if int(digit["digit"]) % 2 else "even")
    assert Image.open(tmp_path / "images" / rows[0]["image"]).tobytes() == json_rows[0]["image"].tobytes()


def test_fields_stand_beside_their_blank_images_and_their_commonest_class():
    field = {"accuracy": 0.25, "macro_f1": 0.2, "micro_f1": 0.25, "blank_image": 0.125, "rows": 8}
    whole = {"valid_json": 1.0, "exact_match": 0.0, "blank_image": 0.0, "rows": 8}
    after = {"all": whole | {"exact_match": 0.5}, "digit": field | {"accuracy": 0.75}}
    metadata = {
        "metrics": {"before": {"all": whole, "digit": field}, "after": after},
        "confusion": {"digit": {"targets": ["1", "2"], "answers": ["1", "2"], "counts": [[2, 1], [1, 4]]}},
    }
    everything, digit = json_results(metadata)
    assert (everything.before, everything.after, everything.chance) == (0.0, 0.5, None)
    assert (digit.before, digit.after, digit.controls, digit.chance) == (0.25, 0.75, {"blank image": 0.125}, 5 / 8)
    table = printed(results_table([everything, digit]))
    assert "shuffled" not in table and "0.625" in table


@pytest.mark.slow
def test_sft_demo_in_few_steps_and_once_more(tmp_path, monkeypatch, json_rows):
    """Every step on few rows: base, rows, adapter, merged copy, answers and page; a second run replaces the first."""
    for name, value in {"SHAPES": 8, "LETTERS": 26, "STEPS": 2}.items():
        monkeypatch.setattr(sft, f"PRETRAINING_{name}", value)
    monkeypatch.setattr(sft, "query_rows", lambda seed: iter(json_rows[:60] + json_rows[-60:]))
    few = ["--max_steps", "20", "--generative_eval_rows", "8", "--eval_steps", "10"]
    monkeypatch.setattr(
        sft, "train_tiny", lambda *args, overrides, **kwargs: train_tiny(*args, overrides=overrides + few, **kwargs)
    )
    for _ in range(2):
        report = sft.run(tmp_path, repo_id=None, seed=0, console=Console(file=io.StringIO()))
    page = report.read_text(encoding="utf-8")
    assert "A Qwen3-VL that learned to answer with JSON" in page
    assert page.count('alt="confusion matrix of') == 3
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert sum(1 for _ in (tmp_path / "data" / "images").iterdir()) == 120
    reply = ask("qwen3-vl-sft", tmp_path, tmp_path / "samples" / "00.png", "Which digit is it?")
    assert reply.keys() == {"thought", "answer"}


def test_published_recursive_model_says_how_long_each_token_thought(tmp_path):
    """Its head is not tied, and the clean room takes it; halting at once is seen through the published copy."""
    model = affine_model(seed=0, H_cycles=6)
    model.model.q_head.bias.data.fill_(5.0)
    published = export_repository(model, affine_tokenizer(), tmp_path / "published")
    assert "logits" in dict(verify(published).checks)
    samples = recursive.think_clean(published, seed=1)
    assert [len(sample["tokens"]) for sample in samples] == list(recursive.SHOWN_LENGTHS)
    for sample in samples:
        assert sample["cycles"] == [HALT_PATIENCE] * len(sample["tokens"])
        assert {len(row) for row in sample.values()} == {len(sample["tokens"])}
    assert "cycles" in printed(recursive.cycles_table(samples[0]))


@pytest.mark.slow
def test_recursive_demo_in_few_steps_and_once_more(tmp_path, monkeypatch):
    """Every step on few rows: rows, model, control, curves, card, page; a second run replaces the first."""
    few = {"steps": 12}
    monkeypatch.setattr(recursive, "train_affine", lambda *args, **kwargs: train_affine(*args, **kwargs | few))
    monkeypatch.setattr(recursive, "MEASURED_ROWS", 8)
    for _ in range(2):
        page = recursive.run(tmp_path, repo_id=None, seed=0, console=Console(file=io.StringIO())).read_text()
    assert "<td>trained with 1 cycle</td><td>24</td>" in page
    assert page.count("<th>cycles</th>") == len(recursive.SHOWN_LENGTHS)
    card = (tmp_path / "published" / "README.md").read_text()
    assert "length 24, 32 cycles" in card
    assert "length 16, halting above 0.9" in card


@pytest.mark.slow
def test_clara_demo_in_few_steps_and_once_more(tmp_path, monkeypatch):
    """Every step on few rows: model, rows, two runs, index, tables, page; a second run replaces the first."""
    few = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    monkeypatch.setattr(clara, "train_tiny", lambda *args: train_tiny(*args[:-1], [*args[-1], *few]))
    for name, value in {"DOCUMENTS": 30, "FINDING_BATCHES": 1, "MEASURED": 6, "SHOWN": 2, "CANDIDATES": 4}.items():
        monkeypatch.setattr(clara, name, value)
    for _ in range(2):
        page = clara.run(tmp_path, repo_id=None, seed=0, console=Console(file=io.StringIO())).read_text("utf-8")
    assert page.count("<td>untrained</td>") == page.count("<td>trained</td>") == len(clara.RATES)
    assert page.count("<td>words in common</td>") == 1
    assert 'alt="quality against compression rate"' in page
    index = ClaraIndex.load(tmp_path / "index")
    assert index.num_documents == 30
    card = (tmp_path / "published" / "README.md").read_text(encoding="utf-8")
    assert "retrieval among 30 documents, rate 16" in card and "topics of new documents, rate 48" in card
    with pytest.raises(ValueError, match="qwen-grafts answer"):
        ask("clara", tmp_path, tmp_path / "none.png", "What?")
