"""One row of questions about documents: its fields checked and brought into one form, or why it cannot be used.

Two forms are read, those of CLaRa's published data (`apple/CLaRa_multi_stage`):

    compression (stage 1)           data_type "qa" or "paraphrase", question [text], answers [text], docs [text]
    instruction (stage 2),          question text, docs [text], pos_index [int], and the answer: `answer`, which is
    end_to_end (stage 3), retrieval     learned, with `gold_answer` or `golden_answers` to compare with; one is enough

Lists may be written as JSON, which is how files of text are read. So a text that is a JSON list of texts, or an object,
counts as one.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import Features, List, Value

from .llava_data import CONTROL_TOKEN, CONTROL_TOKENS, MALFORMED, NO_ANSWER, NO_PROMPT, RefusalError

Stage = Literal["compression", "instruction", "end_to_end", "retrieval"]
STAGES: tuple[Stage, ...] = get_args(Stage)
DATA_TYPES = ("qa", "paraphrase")

MISSING = "missing field"
NO_DOCUMENT = "no document"
NO_POSITIVE = "no positive document"
OTHER_STAGE = "row of another stage"
UNPAIRED = "questions and answers differ in number"
WRONG_POSITIVE = "pos_index does not fit the documents"

VERDICT = Features(
    {
        "questions": List(Value("string")),
        "answers": List(Value("string")),
        "gold_answers": List(List(Value("string"))),
        "documents": List(Value("string")),
        "positives": List(Value("int64")),
        "data_type": Value("string"),
        "reason": Value("string"),
        "detail": Value("string"),
        "digest": Value("string"),
    }
)
_FIRST_STAGE_FIELD = "answers"
_ANSWER_FIELDS = ("answer", "gold_answer", "golden_answers")
FIELDS = ("data_type", "question", "docs", "pos_index", _FIRST_STAGE_FIELD, *_ANSWER_FIELDS)


@dataclass(frozen=True)
class DocumentRowCheck:
    """Tells whether a row can be used in a stage."""

    stage: Stage

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """`VERDICT` of a row: its questions, as many answers, and documents, or `reason` and `detail`."""
        # Columns that a row does not have are nothing in the others' table.
        row = {name: value for name, value in row.items() if value is not None}
        try:
            checked = self._first_stage(row) if self.stage == STAGES[0] else self._later_stage(row)
        except RefusalError as refusal:
            return dict.fromkeys(VERDICT) | dict(zip(("reason", "detail"), refusal.args, strict=True))
        content = json.dumps(checked, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return dict.fromkeys(VERDICT) | checked | {"digest": hashlib.sha256(content).hexdigest()}

    def _first_stage(self, row: dict[str, Any]) -> dict[str, Any]:
        found = [f"`{name}`" for name in _ANSWER_FIELDS if name in row]
        if found and _FIRST_STAGE_FIELD not in row:
            raise RefusalError(
                OTHER_STAGE,
                f"it has {', '.join(found)} and no `{_FIRST_STAGE_FIELD}`: it is for {', '.join(STAGES[1:])}",
            )
        data_type = _text(row, "data_type", MISSING)
        if data_type not in DATA_TYPES:
            raise RefusalError(MALFORMED, f"`data_type` must be {' or '.join(DATA_TYPES)}, not {data_type!r}")
        answers = _texts(row, "answers", NO_ANSWER)
        questions = _texts(row, "question", NO_PROMPT) if data_type == "qa" else [""] * len(answers)
        if len(questions) != len(answers):
            raise RefusalError(UNPAIRED, f"`question` has {len(questions)} and `answers` {len(answers)}")
        documents = _texts(row, "docs", NO_DOCUMENT)
        return {
            "questions": questions,
            "answers": answers,
            "gold_answers": [[answer] for answer in answers],
            "documents": documents,
            "positives": list(range(len(documents))),
            "data_type": data_type,
        }

    def _later_stage(self, row: dict[str, Any]) -> dict[str, Any]:
        if not any(name in row for name in _ANSWER_FIELDS):
            if _FIRST_STAGE_FIELD in row:
                raise RefusalError(
                    OTHER_STAGE,
                    f"it has `{_FIRST_STAGE_FIELD}` and no `gold_answer` or `answer`: it is for {STAGES[0]}",
                )
            raise RefusalError(MISSING, "`gold_answer` and `answer` are missing")
        question = _text(row, "question", NO_PROMPT)
        documents = _texts(row, "docs", NO_DOCUMENT)
        if "golden_answers" in row:
            golds = _texts(row, "golden_answers", NO_ANSWER)
        else:
            golds = [_text(row, "gold_answer" if "gold_answer" in row else "answer", NO_ANSWER)]
        answer = _text(row, "answer", NO_ANSWER) if "answer" in row else golds[0]
        positives = _positions(row["pos_index"], len(documents)) if "pos_index" in row else []
        if self.stage == "retrieval" and not positives:
            found = "is empty" if "pos_index" in row else "is missing"
            raise RefusalError(NO_POSITIVE, f"`pos_index` {found}, and retrieval learns from positive documents")
        return {
            "questions": [question],
            "answers": [answer],
            "gold_answers": [golds],
            "documents": documents,
            "positives": positives,
            "data_type": "qa",
        }


def _text(row: dict[str, Any], name: str, if_empty: str) -> str:
    if name not in row:
        raise RefusalError(MISSING, f"`{name}` is missing")
    value = row[name]
    parsed = parsed_json(value)
    if not isinstance(value, str) or isinstance(parsed, dict) or _is_texts(parsed):
        raise RefusalError(MALFORMED, f"`{name}` must be text, not {_kind(parsed)}")
    return _checked(value, name, if_empty)


def _texts(row: dict[str, Any], name: str, if_empty: str) -> list[str]:
    """At least one text, none of them empty."""
    if name not in row:
        raise RefusalError(MISSING, f"`{name}` is missing")
    values = parsed_json(row[name])
    if not isinstance(values, list):
        raise RefusalError(MALFORMED, f"`{name}` must be a list of texts, not {_kind(values)}")
    if not values:
        raise RefusalError(if_empty, f"`{name}` is an empty list")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise RefusalError(MALFORMED, f"`{name}[{index}]` must be text, not {_kind(value)}")
    return [_checked(value, f"{name}[{index}]", if_empty) for index, value in enumerate(values)]


def _checked(text: str, name: str, if_empty: str) -> str:
    text = text.strip()
    if not text:
        raise RefusalError(if_empty, f"`{name}` is empty")
    if control := CONTROL_TOKENS.search(text):
        raise RefusalError(CONTROL_TOKEN, f"`{name}` contains {control.group()}")
    return text


def _positions(value: Any, documents: int) -> list[int]:
    values = parsed_json(value)
    if not isinstance(values, list):
        raise RefusalError(MALFORMED, f"`pos_index` must be a list of integers, not {value}")
    for index, position in enumerate(values):
        if not isinstance(position, int) or isinstance(position, bool):
            raise RefusalError(MALFORMED, f"`pos_index[{index}]` must be an integer, not {_kind(position)}")
        if not 0 <= position < documents:
            raise RefusalError(
                WRONG_POSITIVE, f"`pos_index[{index}]` is {position}, and `docs` has {documents}, counted from 0"
            )
    if len(set(values)) < len(values):
        raise RefusalError(WRONG_POSITIVE, f"`pos_index` repeats a document: {values}")
    return values


def parsed_json(value: Any) -> Any:
    """What a text is as JSON, if it is a list or an object; files of text are read that way."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # brackets nested too deep
            return value
    return value


def _is_texts(value: Any) -> bool:
    """Whether it is a list of texts; an answer may well be "[]" or "[1, 2]"."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", dict: "an object", type(None): "nothing"}.get(type(value), repr(value))


__all__ = [
    "DATA_TYPES",
    "FIELDS",
    "MISSING",
    "NO_DOCUMENT",
    "NO_POSITIVE",
    "OTHER_STAGE",
    "STAGES",
    "UNPAIRED",
    "VERDICT",
    "WRONG_POSITIVE",
    "DocumentRowCheck",
    "Stage",
    "parsed_json",
]
