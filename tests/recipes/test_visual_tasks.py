"""The built-in tasks: balanced, reproducible, and no image in both splits."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from qwen_grafts.recipes.visual_tasks import CHANCE, COLOURS, MANY_SIZES, POSITIONS, draw_shape, visual_task


def pictures(dataset):
    return {row["images"][0].tobytes() for row in dataset}


def test_splits_share_no_image():
    for task in ("shapes", "digits", "letters"):
        train, test = (visual_task(task, split, shapes=100, letters=100) for split in ("train", "test"))
        assert not pictures(train) & pictures(test)


def test_answers_are_balanced():
    rows = visual_task("shapes", "train", shapes=96)
    for kind in ("shape", "colour", "position"):
        counts = Counter(row["completion"][0]["content"] for row in rows if row["kind"] == kind)
        assert len(set(counts.values())) == 1
        assert pytest.approx(CHANCE[kind]) == 1 / len(counts)


def test_letters_are_balanced_and_white_on_black():
    rows = visual_task("letters+captions", "train", letters=52)
    answers = [row["completion"][0]["content"] for row in rows]
    assert Counter(answers[::2]) == dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 2)
    assert answers[1::2] == [f"the letter {letter}" for letter in answers[::2]]
    for row in rows:
        image = np.asarray(row["images"][0].convert("L"), dtype=float)
        assert image[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 60 < image[8:-8, 8:-8].max()


def test_digits_are_all_there():
    assert len(visual_task("digits", "train")) == 8 * (1797 - 360)
    assert len(visual_task("digits", "test")) == 360


def test_same_seed_same_rows():
    first, again = (visual_task("shapes", "train", shapes=8, seed=4) for _ in range(2))
    assert pictures(first) == pictures(again) != pictures(visual_task("shapes", "train", shapes=8, seed=5))


def test_sizes_differ_in_every_kind_of_image():
    for split in ("train", "test"):
        rows = visual_task("shapes+digits+sizes", split, shapes=8)
        for kind in ("shape", "digit"):
            assert {row["images"][0].size for row in rows if row["kind"] == kind} == set(MANY_SIZES)
    assert {row["images"][0].size for row in visual_task("shapes", "train", shapes=8)} == {(32, 32)}


def test_shapes_lie_in_their_quarter_whatever_the_size():
    for size in (*MANY_SIZES, (64, 24)):
        for position, (right, bottom) in POSITIONS.items():
            image = np.asarray(draw_shape(random.Random(0), "square", "red", position, size))
            rows, columns = np.nonzero(image[..., 0] > 150)
            assert image.shape[:2] == size[::-1]
            assert (columns.mean() > size[0] / 2) == right
            assert (rows.mean() > size[1] / 2) == bottom


def test_one_size_is_what_it_always_was():
    """The Perceiver VLM's figures hang on these very pixels."""
    rng, scale = random.Random(7), 4
    image = Image.new("RGB", (128, 128), tuple(rng.randint(0, 60) for _ in range(3)))
    radius = rng.uniform(5.0, 7.0) * scale
    x, y = ((8 + 16 * quarter + rng.uniform(-1.5, 1.5)) * scale for quarter in POSITIONS["top right"])
    fill = tuple(min(255, max(0, channel + rng.randint(-25, 25))) for channel in COLOURS["green"])
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    expected = image.resize((32, 32), Image.Resampling.BOX)
    assert draw_shape(random.Random(7), "circle", "green", "top right").tobytes() == expected.tobytes()
    digits = load_digits()
    grey = np.round(digits.images[np.random.default_rng(0).permutation(len(digits.images))[0]] * (255 / 16))
    expected = Image.fromarray(grey.astype(np.uint8)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert visual_task("digits", "test")[0]["images"][0].tobytes() == expected.tobytes()


def test_captions_are_asked_for_in_training():
    rows = visual_task("shapes+captions", "train", shapes=8)
    asked = [row for row in rows if row["kind"] == "caption"]
    assert len(asked) == 8
    assert all(row["completion"][0]["content"] == row["description"] for row in asked)
    assert set(visual_task("shapes+captions", "test", shapes=8)["kind"]) == {"shape", "colour", "position"}


def test_thoughts_restate_the_scene():
    plain, thinking = (visual_task(name, "test", shapes=8) for name in ("shapes", "shapes+thoughts"))
    for row, thoughtful in zip(plain, thinking, strict=True):
        thought, answer = thoughtful["completion"][0]["content"].split("</think>\n\n")
        assert answer == row["completion"][0]["content"]
        assert thought == f"<think>\n{row['description']}. I am asked for the {row['kind']}.\n"
        assert thoughtful["images"][0].tobytes() == row["images"][0].tobytes()


@pytest.mark.parametrize("name", ["shape", "thoughts", "shapes+sights"])
def test_unknown_task(name):
    with pytest.raises(ValueError, match="no task '" + name.replace("+", r"\+")):
        visual_task(name, "train")
