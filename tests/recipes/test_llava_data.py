"""LLaVA files to data sets for TRL: what each row becomes, which rows are refused, and what a trainer is given."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from transformers import SiglipImageProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from qwen_grafts.processing import Qwen3PerceiverProcessor, build_qwen_tokenizer, load_chat_template
from qwen_grafts.processing.guarded_images import CORRUPT, MISSING, NOT_AN_IMAGE, OUTSIDE_ROOT, TOO_LARGE, ImageProblem
from qwen_grafts.recipes.llava_data import (
    CONTROL_TOKEN,
    MALFORMED,
    NO_ANSWER,
    NO_PROMPT,
    PLACEHOLDERS,
    RefusedRow,
    check_rows,
    load_llava,
    read_llava,
    summarize_refused,
    with_images,
)

Row = dict[str, Any]
Write = Callable[..., Path]
IMAGE = {"type": "image", "text": None}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def turns(*values: str) -> list[dict[str, str]]:
    """human, gpt, human, …"""
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def row(prompt: str = "<image>\nWhat is it?", answer: str = "a temple", image: Any = "china.jpg") -> Row:
    return {"id": "7", "image": image, "conversations": turns(prompt, answer)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and one of every kind of bad file."""
    folder = tmp_path_factory.mktemp("data") / "images"
    (folder / "deep").mkdir(parents=True)
    china, flower = (Image.fromarray(array) for array in load_sample_images().images)
    china.save(folder / "china.jpg")
    flower.save(folder / "deep" / "flower.png")
    content = (folder / "china.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder.parent / "secret.jpg").write_bytes(content)
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(rows: list[Any], name: str = "llava.json") -> Path:
        path = tmp_path / name
        lines = name.endswith(".jsonl")
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
        return path

    return write_rows


@pytest.fixture(scope="module")
def processor() -> Qwen3PerceiverProcessor:
    return Qwen3PerceiverProcessor(
        SiglipImageProcessor(size={"height": 32, "width": 32}),
        build_qwen_tokenizer(486),
        num_image_tokens=8,
        chat_template=load_chat_template(),
    )


def load_rows(write: Write, root: Path, rows: list[Row], **kwargs: Any) -> list[Row]:
    return list(load_llava(write(rows), root, eval_ratio=0, **kwargs).train)


# What a row becomes


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_first_exchange(write: Write, root: Path, name: str) -> None:
    rows = [row(), {**row(), "conversations": turns("Colour?\n<image>", "red ", "Sure?", "")}]
    data = load_llava(write(rows, name), root, eval_ratio=0)
    assert data.eval is None and data.refused == [] and data.total == 2
    assert data.train.column_names == ["prompt", "completion", "images"]
    first, second = data.train
    assert first["prompt"] == [{"role": "user", "content": [IMAGE, text("What is it?")]}]
    assert first["completion"] == [{"role": "assistant", "content": [text("a temple")]}]
    assert second["prompt"] == [{"role": "user", "content": [text("Colour?"), IMAGE]}]
    assert second["completion"] == [{"role": "assistant", "content": [text("red ")]}]
    assert np.array_equal(np.asarray(first["images"][0]), np.asarray(Image.open(root / "china.jpg")))


def test_whole_conversation(write: Write, root: Path) -> None:
    spoken = [{"from": "system", "value": "Be brief."}, *turns("<image>\nWhat?", "a temple", "Where?", "China")]
    data = load_llava(write([{**row(), "conversations": spoken}]), root, eval_ratio=0, turns="all")
    assert data.train.column_names == ["messages", "images"]
    assert data.train[0]["messages"] == [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [IMAGE, text("What?")]},
        {"role": "assistant", "content": [text("a temple")]},
        {"role": "user", "content": [text("Where?")]},
        {"role": "assistant", "content": [text("China")]},
    ]


@pytest.mark.parametrize(
    ("prompt", "images", "content"),
    [
        ("What?", ["china.jpg"], [IMAGE, text("What?")]),
        ("What?", ["china.jpg", "deep/flower.png"], [IMAGE, IMAGE, text("What?")]),
        ("<image>", "china.jpg", [IMAGE]),
        ("<image>\n<image>\nAlike?", ["china.jpg"] * 2, [IMAGE, IMAGE, text("Alike?")]),
        ("Is <image> as <image>?", ["china.jpg"] * 2, [text("Is "), IMAGE, text(" as "), IMAGE, text("?")]),
        ("\nA\n\n<image>\n\nB\n", "china.jpg", [text("\nA\n"), IMAGE, text("\nB\n")]),
        ("Hello", None, [text("Hello")]),
        ("Hello", [], [text("Hello")]),
    ],
)
def test_placeholders(write: Write, root: Path, prompt: str, images: Any, content: list[Row]) -> None:
    rows = [row(prompt, image=images)]
    first = load_rows(write, root, rows)[0]
    assert first["prompt"][0]["content"] == content
    assert load_rows(write, root, rows, turns="all")[0]["messages"][0]["content"] == content
    assert len(first["images"]) == content.count(IMAGE)


def test_a_system_turn_stays_with_the_first_exchange(write: Write, root: Path) -> None:
    spoken = [{"from": "system", "value": "Be brief."}, *turns("What?", "a temple")]
    silent = [{"from": "system", "value": ""}, *turns("What?", "a temple")]
    kept, left_out = load_rows(write, root, [{**row(), "conversations": c} for c in (spoken, silent)])
    assert [message["role"] for message in kept["prompt"]] == ["system", "user"]
    assert kept["prompt"][1]["content"] == [IMAGE, text("What?")]
    assert [message["role"] for message in left_out["prompt"]] == ["user"]


def test_images_of_a_later_turn_keep_their_order(write: Write, root: Path) -> None:
    spoken = turns("<image>One?", "yes", "And <image>?", "no")
    rows = [{"image": ["china.jpg", "deep/flower.png"], "conversations": spoken}]
    loaded = load_rows(write, root, rows, turns="all")[0]
    assert [message["content"] for message in loaded["messages"][::2]] == [
        [IMAGE, text("One?")],
        [text("And "), IMAGE, text("?")],
    ]
    photographs = load_sample_images().images
    assert np.array_equal(np.asarray(loaded["images"][1]), photographs[1])


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_rows_may_differ_in_keys_and_types(write: Write, root: Path, name: str) -> None:
    rows = [
        row(),
        {**row("Alike?", image=["china.jpg", "deep/flower.png"]), "id": 8},
        {"conversations": turns("Hello", "Hi")},
        {**row("<image>\n\u00e9\u2028\U0001f600"), "model": {"name": "x"}},
        {"image": "china.jpg", "conversations": [{**turn, "weight": 1} for turn in turns("3", "4")]},
    ]
    rows[0:0] = [row(answer="x" * 1000)] * 12_000  # 13 MB: what differs comes in a later chunk of the loader
    path = write(rows, name)
    good, refused = check_rows(read_llava(path), root)
    assert refused == [] and len(good) == 12_005
    assert [len(images) for images in good["images"][12_000:]] == [1, 2, 0, 1, 1]
    assert good[12_003]["prompt"][0]["content"][1] == text("\u00e9\u2028\U0001f600")
    assert good[12_004]["completion"][0]["content"] == [text("4")]


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
@pytest.mark.parametrize("odd", [row(prompt=3), row(answer=["a"]), {**row(), "conversations": "What?"}, row()])
def test_texts_that_look_like_json_stay_texts(write: Write, root: Path, name: str, odd: Row) -> None:
    answers = ["3", "true", "null", "[1]", '{"a": 1}', "007", "1e5", "2020-01-01", '"quoted"', "NaN"]
    rows = [*(row(answer=answer) for answer in answers), odd]
    good, refused = check_rows(read_llava(write(rows, name)), root)
    assert [completion[0]["content"][0]["text"] for completion in good["completion"]][:10] == answers
    assert [(problem.index, problem.reason) for problem in refused] == [(10, MALFORMED)] * (odd != row())


def test_dates_stay_texts(write: Write, root: Path) -> None:
    spoken = turns("2020-01-01", "2020-01-02T10:00:00")
    loaded = load_rows(write, root, [{"image": "china.jpg", "conversations": spoken}] * 2)[0]
    assert loaded["completion"][0]["content"] == [text("2020-01-02T10:00:00")]


# Refused rows

BAD_ROWS: list[tuple[str, Row]] = [
    (MISSING, row(image="nothing.jpg")),
    (MISSING, row(image="")),
    (CORRUPT, row(image="half.jpg")),
    (NOT_AN_IMAGE, row(image="page.jpg")),
    (TOO_LARGE, row(image="bomb.png")),
    (OUTSIDE_ROOT, row(image="../secret.jpg")),
    (OUTSIDE_ROOT, row(image="/etc/hostname")),
    (OUTSIDE_ROOT, row(image="link.jpg")),
    (MISSING, row("<image><image>", image=["china.jpg", "nothing.jpg"])),
    (PLACEHOLDERS, row("<image><image>")),
    (PLACEHOLDERS, row("<image>", image=["china.jpg"] * 2)),
    (PLACEHOLDERS, row("<image>", image=None)),
    (PLACEHOLDERS, row(answer="<image> a temple")),
    (NO_PROMPT, row(" \n")),
    (NO_PROMPT, {"image": "china.jpg"}),
    (NO_PROMPT, {**row(), "conversations": []}),
    (NO_PROMPT, {**row(), "conversations": [{"from": "human"}, *turns("", "a")[1:]]}),
    (NO_PROMPT, {**row(), "conversations": turns("", "a temple")[1:]}),
    (NO_ANSWER, row(answer="")),
    (NO_ANSWER, {**row(), "conversations": turns("What?")}),
    (CONTROL_TOKEN, row("<|image_pad|>What?")),
    (CONTROL_TOKEN, row(answer="a temple<|im_end|>")),
    (MALFORMED, {**row(), "conversations": [{"from": "narrator", "value": "Once"}]}),
    (MALFORMED, {**row(), "conversations": "What? A temple."}),
    (MALFORMED, row(prompt=3)),
    (MALFORMED, row(image=["china.jpg", None])),
    (MALFORMED, row(image=3)),
]


@pytest.mark.parametrize("which", ["first", "all"])
def test_every_reason(write: Write, root: Path, which: str) -> None:
    rows = [part for _, bad in BAD_ROWS for part in (row(), bad)]  # bad rows have odd indices
    data = load_llava(write(rows), root, eval_ratio=0, on_bad_row="skip", turns=which)
    assert [(refused.index, refused.reason) for refused in data.refused] == [
        (2 * number + 1, reason) for number, (reason, _) in enumerate(BAD_ROWS)
    ]
    assert len(data.train) == len(BAD_ROWS) and data.total == len(rows)
    assert all(str(root) not in refused.detail for refused in data.refused)
    assert "'half.jpg'" in data.refused[2].detail and data.refused[9].detail == "Row 19: 2 `<image>` for 1 images."


@pytest.mark.parametrize(
    ("spoken", "reason"),
    [
        (turns("a", "b", "c"), NO_ANSWER),
        (turns("a", "b", "", "d"), NO_PROMPT),
        (turns("a", "b", "c", " "), NO_ANSWER),
        (turns("a", "b", "c", "d")[1:], MALFORMED),
        ([*turns("a", "b"), {"from": "gpt", "value": "c"}], MALFORMED),
        ([*turns("a", "b"), {"from": "system", "value": "s"}, *turns("c", "d")], MALFORMED),
    ],
)
def test_a_whole_conversation_has_to_be_whole(write: Write, root: Path, spoken: list[Row], reason: str) -> None:
    raw = read_llava(write([row(), {**row(), "conversations": spoken}]))
    assert [refused.reason for refused in check_rows(raw, root, turns="all")[1]] == [reason]
    assert check_rows(raw, root, turns="first")[1] == []  # which looks at one exchange only


def test_the_answer_is_the_one_after_the_question(write: Write, root: Path) -> None:
    spoken = turns("", "Welcome!", "What?", "a temple")[1:]
    loaded = load_rows(write, root, [{**row(), "conversations": spoken}])[0]
    assert loaded["completion"][0]["content"] == [text("a temple")]


def test_stop_reports_every_reason_before_training(write: Write, root: Path) -> None:
    rows = [row() for _ in range(20)]
    for index in (1, 3, 4, 9, 11, 12, 19):
        rows[index] = row(image=f"gone/{index}.jpg")
    rows[5], rows[17] = row(image="half.jpg"), row(answer="")
    with pytest.raises(ValueError) as caught:
        load_llava(write(rows), root)
    message = str(caught.value)
    assert "9 of 20 rows of llava.json cannot be used" in message
    assert "7 missing (rows 1, 3, 4, 9, 11, …); 1 truncated or corrupt (rows 5); 1 no answer (rows 17)" in message
    assert "'gone/1.jpg'" in message and 'on_bad_row="skip"' in message and "other 11" in message
    data = load_llava(write(rows), root, on_bad_row="skip", num_proc=2)
    assert [refused.index for refused in data.refused] == [1, 3, 4, 5, 9, 11, 12, 17, 19]
    assert (len(data.train), len(data.eval), data.total) == (10, 1, 20)


def test_indices_are_those_of_the_file_in_a_subset_too(write: Write, root: Path) -> None:
    rows = [row(f"question {index}", image="china.jpg" if index % 3 else "nothing.jpg") for index in range(60)]
    data = load_llava(write(rows), root, max_samples=30, on_bad_row="skip", eval_ratio=0)
    indices = [refused.index for refused in data.refused]
    assert indices == sorted(indices) and all(index % 3 == 0 for index in indices)
    assert len(indices) + len(data.train) == data.total == 30 and 0 < len(indices) < 20
    assert indices != list(range(0, 3 * len(indices), 3))  # drawn from the whole file


def test_nothing_left(write: Write, root: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 2 rows .*2 missing \(rows 0, 1\)") as caught:
        load_llava(write([row(image="no.jpg")] * 2), root, on_bad_row="skip")
    assert "skip" not in str(caught.value)
    with pytest.raises(ValueError, match="leaves none to train on"):
        load_llava(write([row()]), root)


def test_files_are_looked_at_again_each_time(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "repaired"
    folder.mkdir()
    path = write([row(image="a.png")] * 3)
    assert len(check_rows(read_llava(path), folder)[1]) == 3
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    assert check_rows(read_llava(path), folder)[1] == []


def test_summary() -> None:
    refused = [RefusedRow(index, "b" if index > 5 else "a", "") for index in range(2000)]
    assert summarize_refused(refused, first=2) == "1,994 b (rows 6, 7, …); 6 a (rows 0, 1, …)"
    assert summarize_refused([]) == ""


# Arguments


@pytest.mark.parametrize("content", ["", " \n", "[]", "{}", "[1, 2]", '[{"a": 1},', "hello", '{"data": [{"a": 1}]}'])
@pytest.mark.parametrize("name", ["odd.json", "odd.jsonl"])
def test_files_without_rows(tmp_path: Path, root: Path, content: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*`conversations`"):
        load_llava(path, root)


def test_arguments(write: Write, root: Path, tmp_path: Path) -> None:
    path = write([row()] * 3)
    for kwargs in ({"eval_ratio": 1}, {"eval_ratio": -0.1}, {"max_samples": 0}, {"turns": "last"}, {"on_bad_row": "?"}):
        with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}`"):
            load_llava(path, root, **kwargs)
    with pytest.raises(ValueError, match="no data file"):
        load_llava(tmp_path / "no.json", root)
    with pytest.raises(ValueError, match="not a folder"):
        load_llava(path, path)


def test_a_file_name_with_wildcards(write: Write, root: Path) -> None:
    assert len(load_rows(lambda rows: write(rows, "data[1]*.json"), root, [row()])) == 1


# Split


def questions(dataset: Dataset) -> list[str]:
    return [prompt[0]["content"][1]["text"] for prompt in dataset.with_format(None)["prompt"]]


def test_five_thousand_are_4900_and_100(write: Write, root: Path) -> None:
    path = write([row(f"question {index}") for index in range(7000)])

    def load(seed: int) -> tuple[list[str], list[str]]:
        data = load_llava(path, root, max_samples=5000, eval_ratio=0.02, seed=seed)
        return questions(data.train), questions(data.eval)

    train, held_out = load(42)
    assert (len(train), len(held_out)) == (4900, 100)
    assert len({*train, *held_out}) == 5000
    assert max(int(question.split()[1]) for question in train) > 6900  # a random subset, not the first rows
    assert load(42) == (train, held_out)
    other_train, other_held_out = load(43)
    assert set(other_held_out) != set(held_out) and {*other_train, *other_held_out} != {*train, *held_out}


def test_sizes_are_of_good_rows(write: Write, root: Path) -> None:
    rows = [row(image="china.jpg" if index % 2 else "nothing.jpg") for index in range(200)]
    data = load_llava(write(rows), root, eval_ratio=0.29, on_bad_row="skip")
    assert (len(data.train), len(data.eval), len(data.refused)) == (
        71,
        29,
        100,
    )  # 0.29 * 100 is 28.999… in floating point
    assert len(load_llava(write([row()] * 4), root, max_samples=9, eval_ratio=0.02).eval) == 1


# What a trainer is given


def test_images_open_on_access_and_survive(write: Write, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"question {index}", image=("china.jpg", "deep/flower.png")[index % 2]) for index in range(12)]
    path = write(rows)
    monkeypatch.chdir(root.parent)
    train = load_llava(path, root.name, eval_ratio=0).train  # a relative root
    monkeypatch.chdir("/")
    assert train.features["images"].feature.dtype == "string"
    flower = load_sample_images().images[1]
    shuffled = train.shuffle(seed=0).select(range(6))
    for dataset in (train, shuffled, pickle.loads(pickle.dumps(shuffled)), train.select_columns(["prompt", "images"])):
        for example in dataset:
            odd = int(example["prompt"][0]["content"][1]["text"].split()[1]) % 2
            assert isinstance(example["images"][0], Image.Image)
            assert np.array_equal(np.asarray(example["images"][0]), flower) == bool(odd)
    assert train.select_columns(["prompt"])[0] == {"prompt": train[0]["prompt"]}
    assert train[:2]["images"][0][0].size == train["images"][0][0].size == (640, 427)
    loader = DataLoader(shuffled, batch_size=3, num_workers=2, collate_fn=list)
    assert [example["prompt"] for batch in loader for example in batch] == list(shuffled.with_format(None)["prompt"])


def test_a_file_that_disappears_is_named(root: Path) -> None:
    dataset = with_images(Dataset.from_dict({"images": [["china.jpg"], ["gone.jpg"]]}), root)
    assert dataset[0]["images"][0].size == (640, 427)
    with pytest.raises(ImageProblem, match=r"'gone\.jpg' is missing"):
        dataset[1]


def test_a_batch_of_prompts_and_answers(write: Write, root: Path, processor: Qwen3PerceiverProcessor) -> None:
    rows = [
        row(),
        row("Compare <image> and <image>.", "one is a flower", ["china.jpg", "deep/flower.png"]),
        row("Hello", "Hi there", None),
        row("What?", " été\n"),
    ]
    train = load_llava(write(rows), root, eval_ratio=0).train
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    for _ in range(2):  # the collator writes into its examples
        batch = collator([train[index] for index in range(4)])
        supervised = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
        assert supervised == [f"{row['conversations'][1]['value']}<|im_end|>\n" for row in rows]
        assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [8, 16, 0, 8]
        assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert not torch.equal(batch["pixel_values"][1], batch["pixel_values"][2])
    prompt = processor.tokenizer.decode(batch["input_ids"][1][batch["labels"][1] == -100])
    shown = f"<|vision_start|>{'<|image_pad|>' * 8}<|vision_end|>"
    assert f"<|im_start|>user\nCompare {shown} and {shown}.<|im_end|>\n<|im_start|>assistant\n" in prompt


def test_a_batch_of_conversations(write: Write, root: Path, processor: Qwen3PerceiverProcessor) -> None:
    rows = [
        {"image": "china.jpg", "conversations": turns("<image>\nWhat?", "a temple", "Where?", "China")},
        {"conversations": turns("Hello", "Hi")},
    ]
    train = load_llava(write(rows), root, eval_ratio=0, turns="all").train
    collator = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    batch = collator([train[0], train[1]])
    supervised = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert supervised == ["a temple<|im_end|>China<|im_end|>", "Hi<|im_end|>"]
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [8, 0]
