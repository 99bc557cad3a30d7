"""The built-in tasks: balanced, reproducible, and no image in both splits."""

from collections import Counter

import pytest

from qwen_grafts.recipes.visual_tasks import CHANCE, visual_task


def pictures(dataset):
    return {row["images"][0].tobytes() for row in dataset}


def test_splits_share_no_image():
    for task in ("shapes", "digits"):
        assert not pictures(visual_task(task, "train", shapes=100)) & pictures(visual_task(task, "test", shapes=100))


def test_answers_are_balanced():
    rows = visual_task("shapes", "train", shapes=96)
    for kind in ("shape", "colour", "position"):
        counts = Counter(row["completion"][0]["content"] for row in rows if row["kind"] == kind)
        assert len(set(counts.values())) == 1
        assert pytest.approx(CHANCE[kind]) == 1 / len(counts)


def test_digits_are_all_there():
    assert len(visual_task("digits", "train")) == 8 * (1797 - 360)
    assert len(visual_task("digits", "test")) == 360


def test_same_seed_same_rows():
    first, again = (visual_task("shapes", "train", shapes=8, seed=4) for _ in range(2))
    assert pictures(first) == pictures(again) != pictures(visual_task("shapes", "train", shapes=8, seed=5))


def test_unknown_task():
    with pytest.raises(ValueError, match="no task 'shape'"):
        visual_task("shape", "train")
