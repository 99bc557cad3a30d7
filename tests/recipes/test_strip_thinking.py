"""Training on chains of thought without the thoughts: what is read, what is rendered, what is learned."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Json, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from qwen_grafts.processing.guarded_images import MISSING
from qwen_grafts.processing.thinking import EMPTY_ANSWER, NESTED, UNCLOSED
from qwen_grafts.recipes import graft_sft, held_out
from qwen_grafts.recipes.generative_evaluation import answer, evaluate
from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer
from qwen_grafts.recipes.preflight import preflight
from qwen_grafts.recipes.thinking_data import strip_thoughts
from qwen_grafts.recipes.trained_parts import freeze
from qwen_grafts.recipes.training_data import DataArguments, load_training_data
from qwen_grafts.recipes.visual_tasks import visual_task

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
# Written answer -> what is left of it.
COT = {
    "<think>\nI SEE a disc.\n</think>\n\nred": "red",
    "<think>SECRET one</think><think>SECRET two</think>\n top left \n": "top left",
    "<think>\n\n</think>\n\n红色 🟥": "红色 🟥",
    "blue": "blue",
    "Look. <think>\nline\n\nSECRET 想 😀\n</think>\nIt is green.": "Look. \nIt is green.",
    "a < b": "a < b",
}
BAD = {
    "<think>cut off": UNCLOSED,
    "I SEE</think>red": UNCLOSED,
    "<think>a<think>b</think>c</think>red": NESTED,
    "<think>nothing else</think>\n": EMPTY_ANSWER,
}
STRIPPED = 4
Message = dict[str, Any]


def png(shade: int = 0) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (shade % 256, 50, 90)).save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}


def user(text: str, blocks: bool) -> Message:
    said = [{"type": "image", "text": None}, {"type": "text", "text": text}]
    return {"role": "user", "content": said if blocks else text}


def assistant(text: str, blocks: bool) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}] if blocks else text}


def conversations(answers: list[str], kind: str, blocks: bool) -> dict[str, list]:
    """Columns of prompt and completion, or of messages with an earlier turn."""
    if kind == "first":
        return {
            "prompt": [[user(f"Question {i} <think>?", blocks)] for i in range(len(answers))],
            "completion": [[assistant(text, blocks)] for text in answers],
        }
    again = {"role": "user", "content": [{"type": "text", "text": "And?"}] if blocks else "And?"}
    asked = [
        [user(f"Question {i} <think>?", blocks), assistant(text, blocks), again, assistant(text, blocks)]
        for i, text in enumerate(answers)
    ]
    return {"messages": asked}


def dataset_of(columns: dict[str, list]) -> Dataset:
    count = len(next(iter(columns.values())))
    data = Dataset.from_dict(columns | {"images": [[png(i)] for i in range(count)]})
    return data.cast_column("images", List(ImageFeature()))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., DataArguments]:
    """Save rows as a user would, in one of the three places; arguments that read them."""

    def write(answers: list[str], source: str, kind: str = "first", **more: Any) -> DataArguments:
        more = {"strip_thinking": True, "eval_ratio": 0.0} | more
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "data"
        folder.parent.mkdir()
        if source == "llava":
            folder.mkdir()
            Image.new("RGB", (32, 32)).save(folder / "a.png")
            turns = [
                [{"from": "human", "value": f"<image>\nQuestion {i} <think>?"}, {"from": "gpt", "value": text}]
                + ([{"from": "human", "value": "And?"}, {"from": "gpt", "value": text}] if kind == "all" else [])
                for i, text in enumerate(answers)
            ]
            rows = [{"image": "a.png", "conversations": spoken} for spoken in turns]
            (folder / "rows.json").write_text(json.dumps(rows))
            return DataArguments(data_file=str(folder / "rows.json"), image_root=str(folder), turns=kind, **more)
        dataset_of(conversations(answers, kind, source == "blocks")).save_to_disk(folder)
        return DataArguments(dataset_name=str(folder), **more)

    return write


@pytest.fixture
def trainer_of(graft: Path, tmp_path: Path) -> Callable[..., SFTTrainer]:
    def build(rows: Dataset, trainer_class: type = GraftSFTTrainer, **arguments: Any) -> SFTTrainer:
        values = {"max_length": None, "bf16": False, "report_to": "none", "use_cpu": True}
        values |= {"remove_unused_columns": False, "max_steps": 1}
        return trainer_class(
            model=AutoModelForImageTextToText.from_pretrained(graft),
            args=SFTConfig(output_dir=str(tmp_path / "run"), **(values | arguments)),
            train_dataset=rows,
            processing_class=AutoProcessor.from_pretrained(graft),
        )

    return build


def read_back(trainer: SFTTrainer, count: int) -> tuple[list[str], list[str]]:
    """Rows of the trainer's own loader as text: all of each, and what of it is learned."""
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(count)])
    tokenizer = trainer.processing_class.tokenizer
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    texts = [tokenizer.decode(ids[mask.bool()]) for ids, mask in rows]
    return texts, [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]


# The promise.


@pytest.mark.parametrize("kind", ["first", "all"])
@pytest.mark.parametrize("source", ["strings", "blocks", "llava"])
def test_no_thinking_token_is_ever_learned(save, trainer_of, source: str, kind: str) -> None:
    data = load_training_data(save([*COT, *BAD], source, kind), seed=0)
    trainer = trainer_of(data.train, assistant_only_loss=kind == "all")
    texts, learned = read_back(trainer, len(data.train))
    turns = 2 if kind == "all" else 1
    end = "<|im_end|>" if kind == "all" else "<|im_end|>\n"
    assert sorted(learned) == sorted(f"{left}{end}" * turns for left in COT.values())
    assert not any(tag in text for text in learned for tag in ("<think>", "</think>", "SECRET", "SEE", "想"))
    for text, supervised in zip(texts, learned, strict=True):
        assert "SECRET" not in text and "SEE" not in text
        last = supervised.removesuffix("\n").split("<|im_end|>")[-2]
        assert text.endswith(f"<|im_start|>assistant\n{EMPTY_THOUGHT}{last}<|im_end|>\n")
        assert text.count("</think>") == 1, "one empty thought, before the answer that is asked for"
    think_ids = trainer.processing_class.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    for batch in trainer.get_train_dataloader():
        assert not torch.isin(batch["labels"], torch.tensor(think_ids)).any()
        assert torch.isin(batch["input_ids"], torch.tensor(think_ids)).any()


@pytest.mark.parametrize("kind", ["first", "all"])
def test_without_stripping_thoughts_are_learned(save, trainer_of, kind: str) -> None:
    """What the test above would miss if it could not see."""
    data = load_training_data(save([*COT], "strings", kind, strip_thinking=False), seed=0)
    texts, learned = read_back(trainer_of(data.train, assistant_only_loss=kind == "all"), len(data.train))
    assert sum("<think>" in text for text in learned) >= 2
    assert not any(EMPTY_THOUGHT in text for text in texts)
    assert "chat_template_kwargs" not in data.train.column_names
    assert "stripped_thoughts" not in data.summary


def test_what_is_learned_does_not_depend_on_how_the_thought_was_written(save, trainer_of) -> None:
    plain = load_training_data(save([*COT.values()], "strings"), seed=0)
    batches = [trainer_of(plain.train)]
    stripped = load_training_data(save([*COT], "strings"), seed=0)
    batches.append(trainer_of(stripped.train))
    first, second = (read_back(trainer, len(COT)) for trainer in batches)
    assert first == second


# What is read.


@pytest.mark.parametrize("kind", ["first", "all"])
@pytest.mark.parametrize("source", ["strings", "blocks", "llava"])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_are_dropped_and_counted(save, source: str, kind: str, num_proc: int | None) -> None:
    """Whatever `on_bad_row` says, which is "stop" here."""
    answers = [*list(COT)[:3], *BAD, *list(COT)[3:]]
    data = load_training_data(save(answers, source, kind), seed=0, num_proc=num_proc)
    assert data.summary["refused_rows"] == dict(Counter(BAD.values()))
    assert [(row.index, row.reason) for row in data.refused] == [(3 + i, r) for i, r in enumerate(BAD.values())]
    assert data.refused[0].detail.startswith("Row 3") and "tag 1 opens is never closed" in data.refused[0].detail
    assert data.summary["stripped_thoughts"] == STRIPPED * (2 if kind == "all" else 1)
    assert (data.summary["train_rows"], data.summary["eval_rows"]) == (len(COT), 0)
    assert all(row["chat_template_kwargs"] == {"enable_thinking": False} for row in data.train)
    assert all(isinstance(row["images"][0], Image.Image) for row in data.train)
    messages = [row["messages"][-1] if kind == "all" else row["completion"][-1] for row in data.train]
    texts = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in messages]
    assert texts == [*COT.values()]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("kind", ["first", "all"])
def test_thoughts_in_a_key_of_their_own(tmp_path: Path, trainer_of, kind: str, key: str) -> None:
    rows = conversations(["red", "blue", "", "<think>in both</think>green"], kind, blocks=True)
    for messages in rows["completion" if kind == "first" else "messages"]:
        for message in messages:
            message[key] = "SECRET" if message["role"] == "assistant" else None
    for message in rows["completion" if kind == "first" else "messages"][1]:
        message[key] = None
    dataset_of(rows).save_to_disk(tmp_path / "data")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), strip_thinking=True, eval_ratio=0.0)
    data = load_training_data(arguments, seed=0)
    assert [(row.index, row.reason) for row in data.refused] == [(2, EMPTY_ANSWER)]
    assert "beside a content without text" in data.refused[0].detail
    turns = 2 if kind == "all" else 1
    assert data.summary["stripped_thoughts"] == 2 * turns
    for row in data.train:
        messages = row["messages"] if kind == "all" else row["prompt"] + row["completion"]
        assert all(set(message) == {"role", "content"} for message in messages)
        assert "SECRET" not in json.dumps(messages)
    _, learned = read_back(trainer_of(data.train, assistant_only_loss=kind == "all"), 3)
    end = "<|im_end|>" if kind == "all" else "<|im_end|>\n"
    assert learned == [f"{text}{end}" * turns for text in ("red", "blue", "green")]


def test_messages_of_mixed_types(tmp_path: Path) -> None:
    """Strings beside blocks, thoughts across blocks, content None, images in between."""
    image = {"type": "image"}
    contents = [
        "<think>SECRET</think>red",
        [
            {"type": "text", "text": "<think>SEC"},
            {"type": "text", "text": "RET</think>"},
            {"type": "text", "text": "x"},
        ],
        [{"type": "text", "text": "<think>SECRET</think>"}, image, {"type": "text", "text": "after"}],
        [{"type": "text", "text": "as "}, {"type": "text", "text": " is"}],
        None,
    ]
    rows = [[user("Q", True), {"role": "assistant", "content": content}] for content in contents]
    features = Features({"messages": List({"role": Value("string"), "content": Json()})})
    Dataset.from_dict({"messages": rows}, features=features).save_to_disk(tmp_path / "data")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), strip_thinking=True, eval_ratio=0.0)
    data = load_training_data(arguments, seed=0)
    assert [row["messages"][1]["content"] for row in data.train] == [
        "red",
        [{"type": "text", "text": "x"}],
        [{"type": "text", "text": "after"}, image],
        contents[3],
        None,
    ]
    assert all(row["messages"][0]["content"] == user("Q", True)["content"] for row in data.train)
    assert data.summary["stripped_thoughts"] == 3


def test_images_are_not_decoded(tmp_path: Path) -> None:
    rows = conversations([*COT, *BAD], "first", blocks=False)
    count = len(COT) + len(BAD)
    broken = Dataset.from_dict(rows | {"images": [[{"bytes": b"no image", "path": None}]] * count})
    broken.cast_column("images", List(ImageFeature())).save_to_disk(tmp_path / "data")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), strip_thinking=True, max_samples=9, eval_ratio=0.5)
    data = load_training_data(arguments, seed=0)
    assert len(data.train) + len(data.eval) + len(data.refused) == 9
    with pytest.raises(OSError):
        data.train[0]


def test_indices_are_those_of_the_source(save, tmp_path: Path) -> None:
    """In a random subset too, and apart for a held-out split of the data set's own."""
    answers = [f"<think>cut {i}" if i % 3 == 0 else f"answer {i}" for i in range(30)]
    arguments = save(answers, "strings", max_samples=20)
    data = load_training_data(arguments, seed=5)
    indices = [row.index for row in data.refused]
    assert len(indices) + len(data.train) == 20 and len(indices) > 3
    assert all(index % 3 == 0 for index in indices) and indices != sorted(indices)
    left = {row["completion"][0]["content"] for row in data.train}
    unstripped = load_training_data(DataArguments(**vars(arguments) | {"strip_thinking": False}), seed=5)
    chosen = [row["completion"][0]["content"] for row in unstripped.train]
    assert left == {text for text in chosen if not text.startswith("<think>")}
    assert indices == [answers.index(text) for text in chosen if text.startswith("<think>")]

    splits = {name: dataset_of(conversations(answers[:n], "first", False)) for name, n in (("train", 4), ("test", 8))}
    DatasetDict(splits).save_to_disk(tmp_path / "splits")
    data = load_training_data(DataArguments(dataset_name=str(tmp_path / "splits"), strip_thinking=True), seed=0)
    assert [row.detail.split(":")[0] for row in data.refused] == [
        *(f"Row {index} of train" for index in (0, 3)),
        *(f"Row {index} of test" for index in (0, 3, 6)),
    ]
    assert (len(data.train), len(data.eval)) == (2, 5)


def test_other_bad_rows_still_stop_a_run(save) -> None:
    arguments = save([*COT, *BAD], "llava")
    rows = json.loads(Path(arguments.data_file).read_text())
    rows[1]["image"] = "gone.png"
    Path(arguments.data_file).write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"5 of 10 rows.*The first: .*'gone\.png' is missing") as caught:
        load_training_data(arguments, seed=0)
    assert "2 unclosed think tag (rows 6, 7)" in str(caught.value)
    arguments.on_bad_row = "skip"
    data = load_training_data(arguments, seed=0)
    assert data.summary["refused_rows"] == dict(Counter(BAD.values())) | {MISSING: 1}
    assert data.summary["stripped_thoughts"] == STRIPPED - 1


@pytest.mark.parametrize("source", ["strings", "llava"])
def test_nothing_left(save, source: str) -> None:
    with pytest.raises(ValueError, match=r"No rows to train on in data; 4 were refused|4 of 4 rows"):
        load_training_data(save([*BAD], source, eval_ratio=0.5), seed=0)


def test_a_split_without_rows() -> None:
    rows = dataset_of(conversations([*COT], "first", False))
    none = Dataset.from_dict({name: [] for name in rows.column_names}, features=rows.features)
    stripped, problems, count = strip_thoughts(none)
    assert (len(stripped), problems, count) == (0, [], 0)


def test_texts_that_are_no_conversations(tmp_path: Path) -> None:
    Dataset.from_dict({"prompt": ["Q"], "completion": ["<think>a</think>b"]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"lists of messages in prompt or completion or messages.*conversational"):
        load_training_data(DataArguments(dataset_name=str(tmp_path / "data"), strip_thinking=True), seed=0)


def test_the_built_in_task_has_no_thoughts(trainer_of) -> None:
    arguments = DataArguments(task="shapes", task_shapes=4, task_test_shapes=2, strip_thinking=True)
    data = load_training_data(arguments, seed=0)
    assert (data.summary["stripped_thoughts"], data.summary["refused_rows"]) == (0, {})
    texts, learned = read_back(trainer_of(data.train), 3)
    plain = visual_task("shapes", "train", shapes=4, seed=0)
    assert learned == [f"{row['completion'][0]['content']}<|im_end|>\n" for row in plain.select(range(3))]
    assert all(EMPTY_THOUGHT in text for text in texts)


# What is rendered.


@pytest.mark.parametrize("kind", ["first", "all"])
@pytest.mark.parametrize("thinking", [None, True, False])
def test_both_kinds_of_rows_are_rendered_as_they_ask(trainer_of, kind: str, thinking: bool | None) -> None:
    rows = dataset_of(conversations(["red"], kind, blocks=True))
    if thinking is not None:
        rows = rows.add_column("chat_template_kwargs", [{"enable_thinking": thinking}])
    (text,), (learned,) = read_back(trainer_of(rows, assistant_only_loss=kind == "all"), 1)
    opening = {None: "", True: "<think>\n</think>\n\n", False: EMPTY_THOUGHT}[thinking]
    assert text.endswith(f"<|im_start|>assistant\n{opening}red<|im_end|>\n")
    assert learned.strip().endswith("</think>\n\nred<|im_end|>" if thinking else "red<|im_end|>")
    assert ("<think>" in learned) is False


def test_conversations_that_ask_for_different_things(trainer_of) -> None:
    rows = dataset_of(conversations(["red", "blue", "green"], "all", blocks=True))
    asked = [{"enable_thinking": value} for value in (True, False, False)]
    trainer = trainer_of(rows.add_column("chat_template_kwargs", asked), assistant_only_loss=True)
    with pytest.raises(ValueError, match="2 of 3 conversations of a batch differ"):
        read_back(trainer, 3)


def test_rows_without_images(tmp_path: Path, trainer_of) -> None:
    """TRL prepares them by itself, and heeds the column."""
    Dataset.from_dict(conversations([*COT], "all", blocks=False)).save_to_disk(tmp_path / "data")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), strip_thinking=True, eval_ratio=0.0)
    data = load_training_data(arguments, seed=0)
    trainer = trainer_of(data.train, assistant_only_loss=True)
    tokenizer = trainer.processing_class.tokenizer
    for row, left in zip(trainer.train_dataset, COT.values(), strict=True):
        assert tokenizer.decode(row["input_ids"]).endswith(f"{EMPTY_THOUGHT}{left}<|im_end|>\n")
        learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert tokenizer.decode(learned) == f"{left}<|im_end|>" * 2


def test_phase_2_opens_the_block(graft: Path) -> None:
    processor = AutoProcessor.from_pretrained(graft)
    messages = [user("Q", True)]
    prompts = {
        thinking: processor.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    }
    assert prompts[True].endswith("<|im_start|>assistant\n<think>\n")
    assert prompts[False].endswith(f"<|im_start|>assistant\n{EMPTY_THOUGHT}")


# Preflight.


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("enable_thinking is false", "false", "6 of 6 rows .* no empty thought before the answer"),
        ("{%- generation -%}", '{%- generation -%}{{- "<think></think>" -}}', "12 thinking tokens .* are supervised"),
    ],
    ids=["switch_ignored", "block_learned"],
)
def test_preflight_finds_another_template(save, trainer_of, written: str, instead: str, message: str) -> None:
    data = load_training_data(save([*COT], "strings"), seed=0)
    trainer = trainer_of(data.train)
    processor = trainer.processing_class
    freeze(trainer.model, [r"\bconnector\b"])
    rows = [data.train[index] for index in range(6)]
    preflight(trainer.model, processor, trainer.data_collator(rows), without_thinking=True)
    assert written in processor.chat_template
    processor.chat_template = processor.chat_template.replace(written, instead)
    batch = trainer.data_collator([data.train[index] for index in range(6)])
    with pytest.raises(ValueError, match=message):
        preflight(trainer.model, processor, batch, without_thinking=True)
    preflight(trainer.model, processor, batch)


# Evaluation.


class Writer:
    """A model that writes the same to every prompt, and keeps the prompts."""

    device, training = torch.device("cpu"), False

    def __init__(self, processor: Any, written: str) -> None:
        self.tokenizer = processor.tokenizer
        self.ids = torch.tensor([self.tokenizer.encode(written + "<|endoftext|>" * 2)])
        self.prompts: list[str] = []

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        self.prompts += self.tokenizer.batch_decode(input_ids)
        return torch.cat([input_ids, self.ids.expand(len(input_ids), -1)], dim=1)


@pytest.mark.parametrize(
    ("thinking", "written", "expected"),
    [
        (None, "red<|im_end|>", "red"),
        (None, "<think>\nblue?\n</think>\n\nred<|im_end|>", "red"),
        (True, "blue?\n</think>\n\nred<|im_end|>", "red"),
        (True, "blue? I cannot tell", ""),
        (True, "</think>\n\nred", "red"),
        (False, " red \n<|im_end|>", "red"),
        (False, "<think>\nstill\n</think>\n\nred<|im_end|>", "red"),
        (False, "Write `<think>`.", "Write `<think>`."),
    ],
)
def test_answers_are_without_thoughts(
    graft: Path, rows: Dataset, thinking: bool | None, written: str, expected: str
) -> None:
    processor = AutoProcessor.from_pretrained(graft)
    processor.tokenizer.response_template = None  # a tokenizer that nobody prepared
    writer = Writer(processor, written)
    asked = [(rows[index]["prompt"], rows[index]["images"]) for index in range(3)]
    assert answer(writer, processor, asked, enable_thinking=thinking) == [expected] * 3
    opening = {None: "", True: "<think>\n", False: EMPTY_THOUGHT}[thinking]
    assert len(writer.prompts) == 3
    assert all(prompt.endswith(f"<|im_start|>assistant\n{opening}") for prompt in writer.prompts)


@pytest.mark.parametrize("target", ["red", "<think>\nblue?\n</think>\n\nRed."])
def test_exact_match_is_on_the_answer(graft: Path, rows: Dataset, target: str) -> None:
    processor = AutoProcessor.from_pretrained(graft)
    completions = [[{"role": "assistant", "content": target}], [{"role": "assistant", "content": "blue?"}]]
    two = rows.select(range(2)).remove_columns(["completion", "kind"]).add_column("completion", completions)
    writer = Writer(processor, "blue?\n</think>\n\nred<|im_end|>")
    result = evaluate(writer, processor, two, enable_thinking=True)
    assert result["all"]["exact_match"] == 0.5
    assert all(prompt.endswith("<think>\n") for prompt in writer.prompts)


# The recipe.


def test_a_run_on_stripped_data(script_arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch, the evaluation on both sides and the metadata, as a user gets them."""
    answers = ([*COT] * 4) + [*BAD]
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "a.png")
    spoken = [[{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": text}] for text in answers]
    (tmp_path / "data" / "rows.json").write_text(
        json.dumps([{"image": "a.png", "conversations": turns} for turns in spoken])
    )
    switches, preflights = [], []
    evaluate_rows, check = held_out.evaluate, graft_sft.preflight

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        switches.append(kwargs["enable_thinking"])
        return evaluate_rows(*args, **kwargs)

    def checked(*args: Any, **kwargs: Any) -> Any:
        preflights.append((report := check(*args, **kwargs)).supervised)
        assert kwargs["without_thinking"]
        return report

    monkeypatch.setattr(held_out, "evaluate", evaluated)
    monkeypatch.setattr(graft_sft, "preflight", checked)
    words = script_arguments(
        tmp_path / "run",
        data_file=tmp_path / "data" / "rows.json",
        image_root=tmp_path / "data",
        eval_ratio=0.25,
        strip_thinking=True,
        max_steps=2,
        generative_eval_rows=2,
        generative_eval_tokens=2,
    )
    graft_args, *rest = graft_sft.parse(words)
    graft_args.task = None  # the tiny recipe's own
    trainer = graft_sft.main(graft_args, *rest)
    assert trainer.state.global_step == 2
    assert switches == [False, False]
    assert preflights[0].removesuffix("<|im_end|>\n") in COT.values()
    metadata = json.loads((tmp_path / "run" / "training_meta.json").read_text())
    assert metadata["dataset"]["stripped_thoughts"] == 4 * STRIPPED
    assert metadata["dataset"]["refused_rows"] == dict(Counter(BAD.values()))
    listed = [json.loads(line) for line in (tmp_path / "run" / "refused_rows.jsonl").read_text().splitlines()]
    assert [(row["index"], row["reason"]) for row in listed] == list(enumerate(BAD.values(), start=24))
