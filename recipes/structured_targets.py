"""Answers that should be JSON against targets that are: valid, exact, and right field by field.

Everything is counted over all rows: an answer that is no JSON object is wrong in every field, as a class of its own, so
that a model cannot gain by writing less.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NO_VALUE = "(no value)"
INVALID = "(no valid JSON)"
# Fields with more different values in the targets hold free text or numbers: accuracy says enough.
MOST_CLASSES = 20


@dataclass
class JsonScores:
    """What was measured.

    Attributes:
        overall: `valid_json`, `exact_match`, `macro_f1`, `micro_f1` (both over the fields that hold classes, where
            there are any) and `rows`.
        fields: field -> `accuracy`, with classes also `macro_f1` and `micro_f1`, and `rows` that ask for it.
        confusion: field -> {"targets": classes, "answers": classes and what else was written, "counts": rows by
            target, columns by answer}.
    """

    overall: dict[str, float]
    fields: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """All measures by "all" and field, as `training_meta.json` and the card have them."""
        return {"all": self.overall} | self.fields

    def flat(self) -> dict[str, float]:
        """All measures in one dictionary: `exact_match`, `label_accuracy`."""
        fields = {
            f"{name}_{measure}": value
            for name, measures in self.fields.items()
            for measure, value in measures.items()
            if measure != "rows"
        }
        return self.overall | fields


def score_json(answers: Sequence[str], targets: Sequence[str]) -> JsonScores:
    """Compare what was written with what was wanted, as JSON values: spacing and the order of keys do not count.

    Args:
        answers: as the model wrote them. Around the JSON only a Markdown code fence is forgiven.
        targets: JSON.

    Raises:
        ValueError: no rows, or not one answer for every target.
    """
    if not targets or len(answers) != len(targets):
        raise ValueError(
            f"Scoring needs one answer for every target and at least one, got {len(answers)} answers and "
            f"{len(targets)} targets."
        )
    wanted = [json.loads(target) for target in targets]
    parsed = [parse_json(answer) for answer in answers]
    exact = sum(valid and _same(value, target) for (valid, value), target in zip(parsed, wanted, strict=True))
    scores = JsonScores(
        {"valid_json": sum(valid for valid, _ in parsed) / len(parsed), "exact_match": exact / len(wanted)}
    )
    names = list(dict.fromkeys(name for target in wanted if isinstance(target, dict) for name in target))
    for name in names:
        pairs = [
            (target[name], _value(valid, value, name))
            for (valid, value), target in zip(parsed, wanted, strict=True)
            if isinstance(target, dict) and name in target
        ]
        scores.fields[name], confusion = _score_field(pairs)
        if confusion is not None:
            scores.confusion[name] = confusion
    with_classes = [scores.fields[name] for name in scores.confusion]
    for measure in ("macro_f1", "micro_f1") if with_classes else ():
        scores.overall[measure] = sum(measures[measure] for measures in with_classes) / len(with_classes)
    scores.overall["rows"] = len(wanted)
    return scores


def parse_json(text: str) -> tuple[bool, Any]:
    """Whether a text is JSON, and its value."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removesuffix("```").partition("\n")[2]
    try:
        return True, json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False, None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _same(value: Any, target: Any) -> bool:
    """Equality of JSON values; Python alone would take `true` for 1."""
    return _key(value) == _key(target)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else _key(value)


@dataclass(frozen=True)
class _Missing:
    """In place of a value: why there is none."""

    label: str


def _value(valid: bool, answer: Any, name: str) -> Any:
    if not valid:
        return _Missing(INVALID)
    return answer[name] if isinstance(answer, dict) and name in answer else _Missing(NO_VALUE)


def _score_field(pairs: list[tuple[Any, Any]]) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Measures of one field, and its confusion matrix where it holds classes.

    Micro F1 counts an answer without a value as missed and not as a false alarm; with a value everywhere it equals
    accuracy.
    """
    hits = [not isinstance(answer, _Missing) and _same(answer, target) for target, answer in pairs]
    measures: dict[str, float] = {"accuracy": sum(hits) / len(pairs)}
    classes = {_key(target): _label(target) for target, _ in pairs}
    repeated = len(pairs) >= 2 * len(classes) or len(classes) <= 2
    confusion = None
    if len(classes) <= MOST_CLASSES and repeated and not any(isinstance(t, dict | list) for t, _ in pairs):
        keys = sorted(classes)
        missing = [label for label in (NO_VALUE, INVALID) if any(a == _Missing(label) for _, a in pairs)]
        columns = [*keys, None, *(_Missing(label) for label in missing)]
        counts = [[0] * len(columns) for _ in keys]
        for target, answer in pairs:
            place = answer if isinstance(answer, _Missing) else _key(answer) if _key(answer) in classes else None
            counts[keys.index(_key(target))][columns.index(place)] += 1
        other = len(keys)
        labels = [*(classes[key] for key in keys), "(other)", *missing]
        kept = [i for i in range(len(columns)) if i != other or any(row[i] for row in counts)]
        confusion = {
            "targets": labels[: len(keys)],
            "answers": [labels[i] for i in kept],
            "counts": [[row[i] for i in kept] for row in counts],
        }
        measures |= _f1(counts, len(keys), answered=sum(not isinstance(a, _Missing) for _, a in pairs))
    return measures | {"rows": len(pairs)}, confusion


def _f1(counts: list[list[int]], classes: int, answered: int) -> dict[str, float]:
    per_class = []
    for index in range(classes):
        hit = counts[index][index]
        wanted, given = sum(counts[index]), sum(row[index] for row in counts)
        per_class.append(2 * hit / (wanted + given))
    hits, total = sum(counts[i][i] for i in range(classes)), sum(map(sum, counts))
    return {"macro_f1": sum(per_class) / classes, "micro_f1": 2 * hits / (total + answered)}


__all__ = ["INVALID", "NO_VALUE", "JsonScores", "parse_json", "score_json"]
