"""Scores of JSON answers, against scikit-learn's where it has them."""

import json
import random

import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from qwen_grafts.recipes.structured_targets import INVALID, NO_VALUE, parse_json, score_json


def test_measures_equal_scikit_learn():
    rng = random.Random(0)
    classes = ["joy", "anger", "fear"]
    targets = [rng.choice(classes) for _ in range(200)]
    answers = [rng.choice([target, *classes]) for target in targets]
    scores = score_json([json.dumps({"mood": a}) for a in answers], [json.dumps({"mood": t}) for t in targets])
    assert scores.fields["mood"] == pytest.approx(
        {
            "accuracy": accuracy_score(targets, answers),
            "macro_f1": f1_score(targets, answers, average="macro"),
            "micro_f1": f1_score(targets, answers, average="micro"),
            "rows": 200,
        }
    )
    confusion = scores.confusion["mood"]
    assert confusion["targets"] == confusion["answers"] == sorted(classes)
    assert confusion["counts"] == confusion_matrix(targets, answers).tolist()
    assert scores.overall["exact_match"] == scores.fields["mood"]["accuracy"]


def test_by_hand():
    """Two classes; one answer is no JSON, one lacks the field, one says something else."""
    targets = ['{"label": "a", "n": 1}'] * 4 + ['{"label": "b", "n": 2}'] * 2
    answers = [
        '{"n": 1, "label":"a"}',
        "label: a",
        '{"n": 1}',
        '{"label": "c", "n": 1.5}',
        '```json\n{"label": "b", "n": 2}\n```',
        '{"label": "a", "n": 2}',
    ]
    scores = score_json(answers, targets)
    assert scores.overall["valid_json"] == pytest.approx(5 / 6)
    assert scores.overall["exact_match"] == pytest.approx(2 / 6)
    assert scores.fields["n"]["accuracy"] == pytest.approx(4 / 6)
    assert scores.confusion["label"] == {
        "targets": ["a", "b"],
        "answers": ["a", "b", "(other)", NO_VALUE, INVALID],
        "counts": [[1, 0, 1, 1, 1], [1, 1, 0, 0, 0]],
    }
    # a: 1 hit, 4 wanted, 2 given; b: 1 hit, 2 wanted, 1 given; 4 answers have a value
    assert scores.fields["label"]["macro_f1"] == pytest.approx((2 / 6 + 2 / 3) / 2)
    assert scores.fields["label"]["micro_f1"] == pytest.approx(2 * 2 / (6 + 4))
    assert scores.overall["rows"] == 6
    assert scores.flat()["label_accuracy"] == pytest.approx(2 / 6)


def test_values_keep_their_type():
    """`true` is not 1, 1 is not "1", and a text "null" is not null."""
    targets = ['{"x": true}', '{"x": 1}', '{"x": "null"}', '{"x": null}']
    answers = ['{"x": 1}', '{"x": "1"}', '{"x": null}', '{"x": null}']
    assert score_json(answers, targets).overall["exact_match"] == 0.25


def test_lists_and_free_text_have_no_classes():
    targets = ['["a", "b"]', '{"tags": ["x"], "why": "one"}', '{"tags": [], "why": "two"}', '{"why": "three"}']
    scores = score_json(targets, targets)
    assert scores.overall == {"valid_json": 1.0, "exact_match": 1.0, "rows": 4}
    assert scores.fields == {"tags": {"accuracy": 1.0, "rows": 2}, "why": {"accuracy": 1.0, "rows": 3}}
    assert scores.confusion == {}


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a": Infinity}', "yes", "```", "[" * 5000, "{} {}"])
def test_not_json(text):
    assert parse_json(text) == (False, None)


def test_counts_must_agree():
    with pytest.raises(ValueError, match="got 1 answers and 2 targets"):
        score_json(["{}"], ["{}", "{}"])
    with pytest.raises(ValueError, match="at least one"):
        score_json([], [])
