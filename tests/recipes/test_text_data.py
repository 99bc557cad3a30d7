"""Texts and token rows: every source, what is refused, and documents that share a row without seeing each other."""

import csv
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from recursive_checkpoint import tiny_recursive, tiny_tokenizer, token_rows
from torch.nn import functional
from trl import SFTConfig

from qwen_grafts.recipes.recursive_trainer import RecursionArguments, RecursiveSFTTrainer
from qwen_grafts.recipes.text_data import load_text, load_token_rows
from qwen_grafts.recipes.training_data import DataArguments, load_training_data

TEXTS = ["First.", "The second\none.", "A third, with a comma."]
WITH_EMPTY = ["First.", "", "The second\none.", "  \n ", "A third, with a comma."]


def write(folder: Path, kind: str, key: str = "text") -> str:
    """The texts with two empty ones between them, as a source of a kind."""
    rows, path = [{key: text, "number": index} for index, text in enumerate(WITH_EMPTY)], folder / f"texts.{kind}"
    if kind == "txt":
        path.write_text("First.\n\nThe second\none.\n \n\nA third, with a comma.\n", encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [key, "number"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "csv", "parquet", "saved"])
def test_every_source_gives_the_same_texts(tmp_path, kind):
    key = "text" if kind == "txt" else "body"
    data = load_text(write(tmp_path, kind, key), text_key=key, eval_ratio=0.0)
    assert data.train["text"][:] == TEXTS
    assert data.eval is None
    assert data.empty == (0 if kind == "txt" else 2)


def test_split_and_subset_are_seeded(tmp_path):
    def drawn(seed: int, **settings: object) -> tuple[list[str], list[str]]:
        data = load_text("pydoc_topics", seed=seed, **settings)
        return data.train["text"][:], data.eval["text"][:]

    train, held_out = drawn(0, eval_ratio=0.1)
    assert len(held_out) == round(0.1 * (len(train) + len(held_out)))
    assert not set(train) & set(held_out)
    assert (train, held_out) == drawn(0, eval_ratio=0.1)
    assert held_out != drawn(1, eval_ratio=0.1)[1]
    subset = drawn(0, max_samples=10, eval_ratio=0.2)
    assert [len(part) for part in subset] == [8, 2]


def test_splits_of_the_source_are_kept(tmp_path):
    folder = tmp_path / "saved"
    DatasetDict(
        train=Dataset.from_dict({"text": TEXTS}), validation=Dataset.from_dict({"text": ["", "held out"]})
    ).save_to_disk(folder)
    data = load_text(str(folder), eval_ratio=0.5)
    assert (data.train["text"][:], data.eval["text"][:], data.empty) == (TEXTS, ["held out"], 1)


def test_texts_that_cannot_be_used(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\n\n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    Dataset.from_dict({"text": [None, " "]}).save_to_disk(tmp_path / "nothing")
    cases = {
        "lacks 'text' .*it has body, number": {"source": write(tmp_path, "jsonl", "body")},
        "of 5 rows holds int64, not text": {"source": write(tmp_path, "parquet"), "text_key": "number"},
        "1 of 1 texts in blank.txt are empty": {"source": str(tmp_path / "blank.txt")},
        "2 of 2 texts in nothing are empty": {"source": str(tmp_path / "nothing")},
        "latin.txt is no UTF-8 text": {"source": str(tmp_path / "latin.txt")},
        r"notes.pdf is no .json, .jsonl, .csv or .parquet file": {"source": str(tmp_path / "notes.pdf")},
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message):
            load_text(**settings)


def test_token_rows(tmp_path):
    folder = tmp_path / "rows"
    rows = token_rows(5, 9, 4, 12)
    rows.add_column("source", ["a"] * 4).save_to_disk(folder)
    data = load_token_rows(str(folder), eval_ratio=0.25)
    assert data.train.column_names == ["input_ids", "labels"]
    assert (len(data.train), len(data.eval)) == (3, 1)
    whole = load_token_rows(str(folder), eval_ratio=0.0)
    assert whole.train.to_dict() == rows.to_dict()
    with pytest.raises(ValueError, match="no folder of a saved data set"):
        load_token_rows(str(tmp_path / "none"))
    rows.remove_columns("labels").save_to_disk(tmp_path / "ids")
    with pytest.raises(ValueError, match="lacks labels; it has input_ids"):
        load_token_rows(str(tmp_path / "ids"))
    bad = {"input_ids": [[1, 2], [3, 4], [5]], "labels": [[1, 2, 3], [9, -100], [5]]}
    Dataset.from_dict(bad).save_to_disk(tmp_path / "bad")
    with pytest.raises(
        ValueError, match="Of 3 token rows in train, 1 have more or fewer labels than ids, and 2 have no"
    ):
        load_token_rows(str(tmp_path / "bad"))


def test_sources_fit_the_model(tmp_path):
    tokenizer = tiny_tokenizer()
    data = load_training_data(DataArguments(text_data=write(tmp_path, "csv"), eval_ratio=0.0), 0, None, tokenizer)
    assert data.final_summary() | {"fingerprint": ""} == {
        "name": "texts.csv",
        "fingerprint": "",
        "train_rows": 3,
        "eval_rows": 0,
        "refused_rows": {"empty": 2},
    }
    with pytest.raises(ValueError, match="`task` is not for this model; it trains on `text_data`"):
        load_training_data(DataArguments(task="shapes"), 0, None, tokenizer)
    with pytest.raises(ValueError, match="got 2: text_data, token_data"):
        load_training_data(DataArguments(text_data="a", token_data="b"), 0, None, tokenizer)


def trainer(folder: Path, rows: Dataset, **settings: object) -> RecursiveSFTTrainer:
    values = {"max_length": 64, "bf16": False, "report_to": "none", "use_cpu": True, "shuffle_dataset": False}
    values |= {"gradient_checkpointing": False} | settings
    return RecursiveSFTTrainer(
        model=tiny_recursive().train(),
        args=SFTConfig(output_dir=str(folder), **values),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        recursion=RecursionArguments(train_cycles=[3], deep_supervision=True),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_documents_of_a_packed_row_do_not_see_each_other(tmp_path, checkpointing):
    """The summed loss of two packed rows is that of their documents, each alone."""
    texts = ["A short one.", "A longer text, of many words.", "Third!", "And a fourth of these documents.", "Five."]
    rows = Dataset.from_dict({"text": texts})
    packed = trainer(tmp_path, rows, packing=True, packing_strategy="bfd_split", gradient_checkpointing=checkpointing)
    if checkpointing:
        packed.model.gradient_checkpointing_enable()
    assert len(packed.train_dataset) < len(texts)
    batch = packed.data_collator(list(packed.train_dataset))
    assert len(batch["input_ids"]) == 1
    assert int((batch["position_ids"] == 0).sum()) == len(texts)
    loss = packed.compute_loss(packed.model, batch, num_items_in_batch=1)
    apart = trainer(tmp_path, rows)
    alone = [
        apart.compute_loss(apart.model, apart.data_collator([row]), num_items_in_batch=1).item()
        for row in apart.train_dataset
    ]
    assert loss.item() == pytest.approx(sum(alone), rel=1e-5)
    assert packed._metrics["train"]["num_tokens"] == [sum(len(text) + 1 for text in texts)]
    wrapped = trainer(tmp_path, rows, packing=True, packing_strategy="wrapped")
    assert "position_ids" not in wrapped.data_collator(list(wrapped.train_dataset))  # there they do, as documented


def test_labels_of_token_rows_are_learned(tmp_path):
    """Padded side by side, each row's labels stay its own."""
    data = token_rows(5, 12, 8)
    tokens = trainer(tmp_path, data)
    batch = tokens.data_collator(list(tokens.train_dataset))
    tokens.recursion.halt_loss_weight = 0.0
    loss = tokens.compute_loss(tokens.model, dict(batch), num_items_in_batch=1)
    total = 0.0
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        for logits in tokens.model(ids, num_cycles=3, supervised_cycles=(1, 2, 3)).cycle_logits:
            total += functional.cross_entropy(logits[0, :-1], labels[1:], reduction="sum").item() / 3
    assert loss.item() == pytest.approx(total, rel=1e-5)
