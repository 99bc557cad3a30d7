"""Streams in a run: the same rows and counts however they are read, and the next row after a break."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_qwen3_vl import LABELS, picture, query_rows
from torch.utils.data import DataLoader

from qwen_grafts.recipes.graft_sft import main, parse
from qwen_grafts.recipes.query_data import QueryColumns, stream_query_rows

REFUSED = {3: "no prompt", 8: "target is not JSON"}


@pytest.fixture
def streamed(tmp_path):
    """A folder of three Parquet files with ten rows, two of which cannot be used."""
    rows = [
        row | {"query": " " if n == 3 else f"{n}?", "target_json": "yes" if n == 8 else json.dumps({"n": n})}
        for n, row in enumerate(query_rows(10))
    ]
    whole = query_rows(10).remove_columns(["query", "target_json"])
    whole = whole.add_column("query", [row["query"] for row in rows])
    whole = whole.add_column("target_json", [row["target_json"] for row in rows])
    (tmp_path / "rows").mkdir()
    for shard, span in enumerate((range(4), range(4, 8), range(8, 10))):
        whole.select(span).to_parquet(tmp_path / "rows" / f"train-{shard}.parquet")
    return tmp_path / "rows"


def settings(streamed, **values):
    chosen = {"query_data": streamed, "streaming": True, "streaming_eval_rows": 2, "on_bad_row": "skip"}
    return chosen | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4} | values


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("workers", [0, 3])
def test_data_workers_read_each_row_once(streamed, workers):
    """`datasets` itself hands each worker shards, and skips the held-out rows in each of them."""
    data = stream_query_rows(str(streamed), eval_rows=2, on_bad_row="skip")
    assert [row["query"] for row in data.eval] == ["0?", "1?"]
    found = [row["query"] for row in DataLoader(data.train, batch_size=None, num_workers=workers)]
    assert sorted(found) == ["2?", "4?", "5?", "6?", "7?", "9?"]
    assert {row.index: row.reason for row in data.refused} == REFUSED
    assert sorted(row["query"] for row in data.train) == sorted(found)
    assert len(data.refused) == 2  # read twice, counted once


@pytest.mark.parametrize("workers", [0, 2])
def test_refused_rows_are_counted(words, streamed, tmp_path, workers):
    out = tmp_path / "run"
    main(*parse(words(out, **settings(streamed, dataloader_num_workers=workers))))
    dataset = json.loads((out / "training_meta.json").read_text())["dataset"]
    assert dataset["refused_rows"] == {"no prompt": 1, "target is not JSON": 1}
    listed = [json.loads(line) for line in (out / "refused_rows.jsonl").read_text().splitlines()]
    assert {row["index"]: row["reason"] for row in listed} == REFUSED


def test_a_refused_row_stops_the_run_from_a_worker(words, streamed, tmp_path):
    arguments = words(tmp_path / "run", **settings(streamed, dataloader_num_workers=1, on_bad_row="stop"))
    with pytest.raises(ValueError, match=r"Row [38] of the stream cannot be used: .* \(`on_bad_row: skip`\)"):
        main(*parse(arguments))


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_stream_goes_on_after_the_last_row_seen(words, streamed, tmp_path, workers):
    """Five steps of four rows are more than three passes over the six rows; the break lies in the second."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chosen = settings(streamed, max_steps=5, save_steps=3, lr_scheduler_type="constant", dataloader_num_workers=workers)
    main(*parse(words(whole, **chosen)))
    main(*parse(words(broken, **chosen | {"max_steps": 3})))
    assert not all(torch.equal(adapter(whole)[name], tensor) for name, tensor in adapter(broken).items())
    main(*parse(words(broken, **chosen, resume_from_checkpoint=True)))
    assert all(torch.equal(adapter(whole)[name], tensor) for name, tensor in adapter(broken).items())
    metadata = [json.loads((run / "training_meta.json").read_text()) for run in (whole, broken)]
    assert metadata[0]["loss_curve"] == metadata[1]["loss_curve"]
    assert metadata[0]["dataset"] == metadata[1]["dataset"]


@pytest.mark.slow
def test_two_processes_equal_one(words, run_script, streamed, tmp_path):
    """Each process opens its own rows of the stream; three passes over it, rows left out on the way."""
    chosen = settings(streamed, optim="sgd", learning_rate=0.05, lora_dropout=0.0, max_grad_norm=0.0, max_steps=5)
    run_script(words(tmp_path / "one", **chosen))
    run_script(words(tmp_path / "two", **chosen | {"per_device_train_batch_size": 1}), processes=2)
    metadata = [json.loads((tmp_path / run / "training_meta.json").read_text()) for run in ("one", "two")]
    assert metadata[0]["dataset"] == metadata[1]["dataset"]
    for (step, one), (same_step, two) in zip(*(found["loss_curve"] for found in metadata), strict=True):
        assert step == same_step and two == pytest.approx(one, abs=1e-4)
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def test_nothing_to_train_on(words, streamed, tmp_path):
    with pytest.raises(ValueError, match="`eval_rows=10` leaves no row of rows to train on"):
        stream_query_rows(str(streamed), eval_rows=10, on_bad_row="skip")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "0.png", "query": "", "target_json": "{}"}\n' * 3)
    arguments = words(tmp_path / "run", **settings(bad, streaming_eval_rows=0))
    with pytest.raises(ValueError, match=r"No row of the stream bad.jsonl can be used: 3 no prompt"):
        main(*parse(arguments))


def test_a_class_becomes_its_name(tmp_path):
    for number in range(4):
        (tmp_path / LABELS[number % 2]).mkdir(exist_ok=True)
        picture(number, LABELS[number % 2]).save(tmp_path / LABELS[number % 2] / f"{number}.png")
    data = stream_query_rows(str(tmp_path), columns=QueryColumns(target="label", question="Is it?"))
    found = sorted(json.loads(row["target_json"])["label"] for row in data.train)
    assert found == ["no", "no", "yes", "yes"]
