"""Query rows from every kind of source, and each row that cannot be used."""

import csv
import io
import json

import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from tiny_qwen3_vl import LABELS, picture, query_rows, qwen3_vl_processor

from qwen_grafts.recipes.query_data import (
    QueryColumns,
    class_counts,
    imbalance,
    load_query_rows,
    stream_query_rows,
)
from qwen_grafts.recipes.vision_sft_collator import Qwen3VisionSFTCollator


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        picture(number, LABELS[number % 2]).save(folder / f"{number}.png")
    return folder


def rows(count=6, **values):
    return [
        {"image": f"{n}.png", "query": f" {n}? ", "caption": "" if n % 2 else f"c{n}"}
        | {"target_json": json.dumps({"label": LABELS[n % 2]})}
        | values
        for n in range(count)
    ]


def write(path, found):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    elif path.suffix == ".parquet":
        Dataset.from_list(found).to_parquet(path)
    else:
        path.write_text(json.dumps(found) if path.suffix == ".json" else "\n".join(map(json.dumps, found)))
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_files(tmp_path, images, suffix):
    data = load_query_rows(write(tmp_path / f"rows{suffix}", rows()), image_root=images, eval_ratio=0.2)
    assert (len(data.train), len(data.eval), data.refused) == (5, 1, [])
    everything = sorted([*data.train, *data.eval], key=lambda row: row["query"])
    assert [row["query"] for row in everything] == [f"{n}?" for n in range(6)]
    assert [row["caption"] for row in everything] == ["c0", None, "c2", None, "c4", None]
    assert all(row["image"].mode == "RGB" for row in everything)
    assert everything[3]["image"].tobytes() == picture(3, LABELS[1]).tobytes()
    assert sum(data.classes["label"].values()) == 5


def test_sources_agree(tmp_path, images):
    """Fingerprint and split depend on the content, not on the file it lies in."""
    sources = [write(tmp_path / f"rows{suffix}", rows()) for suffix in (".json", ".jsonl", ".csv", ".parquet")]
    found = [load_query_rows(source, image_root=images, eval_ratio=0.3) for source in sources]
    assert len({data.fingerprint for data in found}) == 1
    other = load_query_rows(write(tmp_path / "o.json", rows(query="else")), image_root=images, eval_ratio=0.3)
    assert other.fingerprint != found[0].fingerprint


def test_texts_stay_as_they_are_written(tmp_path, images):
    """What loaders that guess types make of them: numbers, nothing, and the keys of other rows."""
    targets = [{"a": 1}, {"b": None}, "NA", ["x"], 3]
    found = [row | {"target": target} for row, target in zip(rows(5, query="007"), targets, strict=True)]
    found[2]["target"] = '"NA"'
    for suffix in (".json", ".jsonl"):
        source = write(tmp_path / f"rows{suffix}", found)
        data = load_query_rows(source, image_root=images, columns=QueryColumns(target="target"), eval_ratio=0)
        assert [json.loads(row["target_json"]) for row in data.train] == [{"a": 1}, {"b": None}, "NA", ["x"], 3]
        assert data.train[0]["query"] == "007"
        assert data.eval is None


def test_columns_that_the_first_row_lacks(tmp_path, images):
    found = [{name: value for name, value in row.items() if name != "caption"} for row in rows(4)]
    found[2]["caption"] = "The third."
    for suffix in (".json", ".jsonl"):
        data = load_query_rows(write(tmp_path / f"rows{suffix}", found), image_root=images, eval_ratio=0)
        assert [row["caption"] for row in data.train] == [None, None, "The third.", None]


def test_choice_of_rows_that_makes_no_sense(tmp_path, images):
    source = write(tmp_path / "rows.jsonl", rows(4))
    for name, value in {"max_samples": -1, "eval_ratio": 1.0, "on_bad_row": "ignore"}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            load_query_rows(source, image_root=images, **{name: value})


def test_pictures_in_the_data(tmp_path):
    """A saved data set with its own splits, and names of its own for the columns."""
    renamed = query_rows(8).rename_columns({"image": "photo", "query": "text", "target_json": "answer"})
    splits = DatasetDict(train=renamed.select(range(5)), test=renamed.select(range(5, 8)))
    splits.save_to_disk(tmp_path / "saved")
    renamed.to_parquet(tmp_path / "rows.parquet")
    columns = QueryColumns(image="photo", query="text", target="answer")
    data = load_query_rows(str(tmp_path / "saved"), columns=columns)
    assert (len(data.train), len(data.eval)) == (5, 3)
    assert data.train.column_names == ["image", "query", "caption", "target_json"]
    assert data.train[1]["image"].tobytes() == picture(1, "yes").tobytes()
    data = load_query_rows(str(tmp_path / "rows.parquet"), columns=columns, max_samples=4, eval_ratio=0.25)
    assert (len(data.train), len(data.eval)) == (3, 1)


def test_image_folders(tmp_path):
    """A folder a class, with one question for all; and a table of names beside the images."""
    for number in range(6):
        (tmp_path / "a" / LABELS[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number, LABELS[number % 2]).save(tmp_path / "a" / LABELS[number % 2] / f"{number}.png")
    columns = QueryColumns(target="label", question="Is it?")
    data = load_query_rows(str(tmp_path / "a"), columns=columns, eval_ratio=0)
    assert {row["query"] for row in data.train} == {"Is it?"}
    assert data.classes == {"label": {"no": 3, "yes": 3}} or data.classes == {"label": {"yes": 3, "no": 3}}
    (tmp_path / "b").mkdir()
    picture(0, "yes").save(tmp_path / "b" / "x.png")
    picture(1, "yes").save(tmp_path / "b" / "y.png")
    table = [{"file_name": name, "query": "Is it?", "target_json": '{"l": 1}'} for name in ("x.png", "y.png")]
    (tmp_path / "b" / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    data = load_query_rows(str(tmp_path / "b"), eval_ratio=0)
    assert [row["target_json"] for row in data.train] == ['{"l": 1}'] * 2


def test_every_bad_row_is_named(tmp_path, images):
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:80])
    (images / "text.png").write_text("no image")
    header = io.BytesIO()
    Image.new("1", (9000, 9000)).save(header, "PNG")
    (images / "huge.png").write_bytes(header.getvalue())
    Image.new("RGB", (900, 4)).save(images / "thread.png")
    (tmp_path / "secret.png").write_bytes((images / "0.png").read_bytes())
    bad = [
        ({"image": "cut.png"}, "truncated or corrupt"),
        ({"image": "text.png"}, "not an image"),
        ({"image": "huge.png"}, "too large"),
        ({"image": "thread.png"}, "refused by the processor"),
        ({"image": "../secret.png"}, "outside the image root"),
        ({"image": str(tmp_path / "secret.png")}, "outside the image root"),
        ({"image": "gone.png"}, "missing"),
        ({"image": None}, "no image"),
        ({"query": "  "}, "no prompt"),
        ({"query": "x" * 300}, "too long"),
        ({"query": "a<|im_start|>b"}, "control token in the text"),
        ({"target_json": ""}, "no answer"),
        ({"target_json": "yes"}, "target is not JSON"),
        ({"target_json": "{'label': 'yes'}"}, "target is not JSON"),
        ({"target_json": '{"score": NaN}'}, "target is not JSON"),
        ({"target_json": "[" * 100_000}, "target is not JSON"),
    ]
    source = write(tmp_path / "rows.jsonl", rows() + [rows(1)[0] | values for values, _ in bad])
    collator = Qwen3VisionSFTCollator(qwen3_vl_processor(), max_length=128)
    kwargs = {"image_root": images, "collator": collator, "eval_ratio": 0.2}
    data = load_query_rows(source, on_bad_row="skip", **kwargs)
    assert [(row.index, row.reason) for row in data.refused] == [
        (6 + number, reason) for number, (_, reason) in enumerate(bad)
    ]
    assert len(data.train) + len(data.eval) == 6
    with pytest.raises(ValueError, match=r"16 of 22 rows of rows\.jsonl cannot be used: .*other 6 \(`on_bad"):
        load_query_rows(source, **kwargs)
    assert str(tmp_path) not in "".join(row.detail for row in data.refused if "secret" not in row.detail)


def test_odd_pictures(tmp_path, images):
    """Turned by EXIF, CMYK, palette, 16 bits, animated, of one pixel: all as upright RGB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "red").save(images / "turned.jpg", exif=exif)
    Image.new("CMYK", (9, 9)).save(images / "cmyk.jpg")
    Image.new("P", (9, 9)).save(images / "palette.png")
    Image.new("I;16", (9, 9), 65535).save(images / "deep.png")
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    names = ["turned.jpg", "cmyk.jpg", "palette.png", "deep.png", "dot.png", "moving.gif"]
    found = [row | {"image": name} for row, name in zip(rows(), names, strict=True)]
    data = load_query_rows(write(tmp_path / "rows.json", found), image_root=images, eval_ratio=0)
    pictures = [row["image"] for row in data.train]
    assert {image.mode for image in pictures} == {"RGB"}
    assert pictures[0].size == (10, 20)
    assert pictures[3].getpixel((0, 0)) == (255, 255, 255)
    assert pictures[5].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "[]", "it is empty"),
        ("rows.jsonl", "", "it is empty"),
        ("rows.csv", "image,query,target_json\n", "it is empty"),
        ("rows.json", '{"image": "0.png"}', "holds a dict, not an array"),
        ("rows.json", "[1]", "row 0 is a int, not an object"),
        ("rows.jsonl", '{"image": "0.png"}\n{', "cannot be read after 1 rows"),
        ("rows.csv", "image,query\n0.png\n", "fewer fields than the header"),
        ("rows.txt", "x", "is no .json, .jsonl, .csv or .parquet file"),
        (
            "rows.jsonl",
            '{"image": "0.png", "answer": "{}"}',
            r"'target_json' \(`target_key`\), 'query' \(",
        ),
    ],
)
def test_files_that_are_none(tmp_path, images, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_query_rows(str(tmp_path / name), image_root=images)


@pytest.mark.parametrize("saved", [False, True])
def test_no_rows(tmp_path, saved):
    source = tmp_path / ("folder" if saved else "rows.parquet")
    empty = query_rows(1).select([])
    empty.save_to_disk(source) if saved else empty.to_parquet(source)
    with pytest.raises(ValueError, match=f"No rows could be read from {source.name}: it is empty"):
        load_query_rows(str(source))
    if not saved:
        with pytest.raises(ValueError, match=r"No rows could be read from rows\.parquet: it is empty"):
            stream_query_rows(str(source))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_script_survives_every_file(tmp_path, images, suffix):
    """Emoji, right-to-left text, a list as target."""
    values = {"query": "🙃 هل هذه سخرية؟", "caption": "é 中文", "target_json": '["نعم", "🙃", 1]'}
    source = write(tmp_path / f"rows{suffix}", rows(2, **values))
    data = load_query_rows(source, image_root=images, eval_ratio=0)
    assert {name: data.train[1][name] for name in values} == values
    assert data.classes == {}


def test_one_row(tmp_path, images):
    source = write(tmp_path / "rows.json", rows(1))
    with pytest.raises(ValueError, match=r"`eval_ratio=0\.02` of 1 rows leaves none to train on"):
        load_query_rows(source, image_root=images)
    assert len(load_query_rows(source, image_root=images, eval_ratio=0).train) == 1


def test_names_need_a_root(tmp_path, images):
    with pytest.raises(ValueError, match="no `image_root` is given"):
        load_query_rows(write(tmp_path / "rows.json", rows()))
    with pytest.raises(ValueError, match="is not a folder"):
        load_query_rows(write(tmp_path / "rows.json", rows()), image_root=tmp_path / "gone")


def test_imbalance():
    classes = class_counts(['{"label": "yes", "id": 1}'] * 3 + ['{"label": "no", "id": 2, "x": [1]}'])
    assert classes == {"label": {"yes": 3, "no": 1}, "id": {"1": 3, "2": 1}}
    assert imbalance(classes).splitlines()[0] == "label: yes 3, no 1 (1 : 3.0)"
    assert class_counts(["[1]", '{"why": "one"}', '{"why": "two"}']) == {}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_stream(tmp_path, images, suffix):
    source = write(tmp_path / f"rows{suffix}", [*rows(), rows(1, query=" ")[0]])
    data = stream_query_rows(source, image_root=images, eval_rows=2, on_bad_row="skip")
    assert [row["query"] for row in data.eval] == ["0?", "1?"]
    streamed = list(data.train)
    assert sorted(row["query"] for row in streamed) == ["2?", "3?", "4?", "5?"]
    assert all(row["image"].mode == "RGB" for row in streamed)
    assert [row["query"] for row in data.train] == [row["query"] for row in streamed]
    assert [(row.index, row.reason) for row in data.refused] == [(6, "no prompt")]  # read twice, counted once
    with pytest.raises(ValueError, match="of the stream cannot be used: no prompt"):
        list(stream_query_rows(source, image_root=images).train)
