"""LLaVA's JSON (`image`, `conversations`) to the columns that TRL trains a vision-language model on.

A row that would break a run, hours into it, is found before the first step: every text is parsed, every image file is
opened and decoded once, and each row that cannot be used is kept with its index in the file and the reason. Whether
such rows stop the run or are left out is the caller's choice; they are never dropped without a word.

Images stay file names in the data set and become pictures when a row is read, so half a million of them cost no memory.

    data = load_llava("blip_laion_cc_sbu_558k.json", "images", max_samples=5000)  # 4,900 to train on, 100 held out
    SFTTrainer(..., train_dataset=data.train, eval_dataset=data.eval)
"""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, Json, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..processing.guarded_images import ImageProblem, open_image
from ..processing.qwen_tokenizer import QWEN3_SPECIAL_TOKENS
from ..processing.thinking import EMPTY_ANSWER, NESTED, UNCLOSED, ThoughtProblem, split_thought
from .thinking_data import TEMPLATE_COLUMN, TEMPLATE_FEATURE, WITHOUT_THINKING

Turns = Literal["first", "all"]

NO_PROMPT = "no prompt"
NO_ANSWER = "no answer"
PLACEHOLDERS = "placeholder mismatch"
CONTROL_TOKEN = "control token in the text"
MALFORMED = "malformed row"

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_PLACEHOLDER = "<image>"
# Qwen3's tokenizer reads these in any text: one `<|image_pad|>` too many ends the run, one `<|im_end|>` a turn.
CONTROL_TOKENS = re.compile("|".join(re.escape(token) for token, special in QWEN3_SPECIAL_TOKENS.items() if special))

# One Arrow schema for every row: an image block has no text.
_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
_VERDICT = {"reason": Value("string"), "detail": Value("string")}
_THOUGHT_PROBLEMS = (UNCLOSED, NESTED, EMPTY_ANSWER)
_COLUMNS = {"first": ("prompt", "completion"), "all": ("messages",)}


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be trained on.

    Attributes:
        index: of the row in the file, from 0.
        reason: one of this module's reasons, of `ImageProblem`'s or of `ThoughtProblem`'s.
        detail: what exactly was found.
    """

    index: int
    reason: str
    detail: str


@dataclass(frozen=True)
class LlavaData:
    """Rows to train on and rows held out.

    Attributes:
        train: rows with images that open on access.
        eval: the same, held out; `None` for `eval_ratio=0`.
        refused: rows left out, in file order.
        total: rows taken from the file, `len(train) + len(eval) + len(refused)`.
        stripped_thoughts: answers of the rows kept that had a thought taken out.
    """

    train: Dataset
    eval: Dataset | None
    refused: list[RefusedRow]
    total: int
    stripped_thoughts: int


def load_llava(
    data_file: str | Path,
    image_root: str | Path,
    *,
    max_samples: int | None = None,
    eval_ratio: float = 0.02,
    seed: int = 42,
    turns: Turns = "first",
    on_bad_row: Literal["stop", "skip"] = "stop",
    strip_thinking: bool = False,
    num_proc: int | None = None,
) -> LlavaData:
    """Read, check and split a LLaVA file.

    Args:
        data_file: a JSON array of rows, or JSON lines.
        image_root: folder that the names in `image` are relative to.
        max_samples: a random subset of the file's rows, drawn before any image is opened.
        eval_ratio: part of the good rows to hold out, at least one of them unless 0.
        seed: of the subset and of the split.
        turns: "first" for columns `prompt`, `completion` and `images` (the first question and its answer: alignment),
            "all" for `messages` and `images` (the whole conversation: instruction tuning).
        on_bad_row: "stop" raises if a row is refused, "skip" leaves it out and reports it.
        strip_thinking: take `<think>…</think>` out of answers, and ask the chat template for an empty thought in the
            column `chat_template_kwargs`. A row where that cannot be done is left out and reported whatever
            `on_bad_row` says: a data set of generated thoughts has some that were cut off.
        num_proc: processes that check rows and decode images.

    Raises:
        ValueError: an argument makes no sense, the file has no rows of this kind, rows are refused and `on_bad_row` is
            "stop", or no row is left to train on.
    """
    data_file, image_root = Path(data_file), Path(image_root)
    if turns not in _COLUMNS:
        raise ValueError(f"`turns` must be 'first' or 'all', got {turns!r}.")
    check_choice_of_rows(max_samples, eval_ratio, on_bad_row)
    if not image_root.is_dir():
        raise ValueError(
            f"The image root {str(image_root)!r} is not a folder. Give the one that `image` is relative to."
        )

    rng = np.random.default_rng(seed)
    rows = read_llava(data_file)
    if max_samples is not None and max_samples < len(rows):
        rows = rows.select(np.sort(rng.permutation(len(rows))[:max_samples]))
    good, refused = check_rows(rows, image_root, turns=turns, strip_thinking=strip_thinking, num_proc=num_proc)
    stopping = [row for row in refused if row.reason not in _THOUGHT_PROBLEMS]
    if (stopping and on_bad_row == "stop") or not len(good):
        raise ValueError(
            f"{len(refused):,} of {len(rows):,} rows of {data_file.name} cannot be used: {summarize_refused(refused)}. "
            f"The first: {(stopping or refused)[0].detail} Nothing was trained. Repair the rows or files"
            + (f', or pass `on_bad_row="skip"` to go on with the other {len(good):,}.' if len(good) else ".")
        )

    order = rng.permutation(len(good))
    held_out = max(1, round(len(good) * eval_ratio)) if eval_ratio else 0
    if held_out == len(good):
        raise ValueError(
            f"`eval_ratio={eval_ratio}` of {len(good)} rows leaves none to train on. Give more rows or `eval_ratio=0`."
        )
    stripped_thoughts = sum(good["stripped_thoughts"][:])
    good = with_images(good.remove_columns("stripped_thoughts"), image_root)
    return LlavaData(
        train=good.select(np.sort(order[held_out:])),
        eval=good.select(np.sort(order[:held_out])) if held_out else None,
        refused=refused,
        total=len(rows),
        stripped_thoughts=stripped_thoughts,
    )


def read_llava(data_file: str | Path) -> Dataset:
    """Rows of a LLaVA file: `index` in the file, `conversations`, and `image` if any row has one.

    Raises:
        ValueError: no such file, no rows, not JSON, or no row has `conversations`.
    """
    data_file = Path(data_file)
    if not data_file.is_file():
        raise ValueError(f"There is no data file {str(data_file)!r}. Check the path, or download it.")
    try:
        rows = _load_json(data_file)
        if "conversations" in rows.column_names and not _keeps_text(rows.features["conversations"]):
            rows = _load_json(data_file, Features({name: Json() for name in rows.column_names}))
    except (DatasetGenerationError, StopIteration, ValueError) as error:  # the first two: not JSON, empty
        raise ValueError(
            f"No rows could be read from {data_file.name}: {error.__cause__ or 'it is empty'}. It must hold a JSON "
            "array of objects, or one object a line, each with `conversations` and, for images, `image`."
        ) from error
    if "conversations" not in rows.column_names:
        raise ValueError(
            f"None of the {len(rows):,} rows of {data_file.name} has `conversations`; found {rows.column_names}. "
            "Give a file in LLaVA's format."
        )
    rows = rows.select_columns([name for name in ("image", "conversations") if name in rows.column_names])
    return rows.add_column("index", list(range(len(rows))))


def _load_json(data_file: Path, features: Features | None = None) -> Dataset:
    # One chunk: the loader takes columns and types from the first, and fails on a later one that differs.
    chunksize = max(1, data_file.stat().st_size)
    name = glob.escape(str(data_file))
    return load_dataset("json", data_files=name, split="train", chunksize=chunksize, features=features)


def _keeps_text(conversations: Any) -> bool:
    """Whether the type that the loader found leaves every text as it was written.

    One `value` that is no text is enough to have all of them parsed: "3" comes back as a number, "null" as nothing.
    """
    turn = getattr(conversations, "feature", None)
    return turn == Json() or (isinstance(turn, dict) and turn.get("value") == Value("string"))


def check_rows(
    rows: Dataset,
    image_root: Path,
    *,
    turns: Turns = "first",
    strip_thinking: bool = False,
    num_proc: int | None = None,
) -> tuple[Dataset, list[RefusedRow]]:
    """Parse every row and decode every image file that the rows name, each file once.

    Nothing is taken from a cache: files change under the same name, and so may this code.

    Args:
        rows: of `read_llava`, or a part of them.
        image_root: folder that no image may leave.
        turns: as in `load_llava`.
        strip_thinking: as in `load_llava`.
        num_proc: processes to use.

    Returns:
        The good rows, `images` still file names, with the number of their `stripped_thoughts`, and the refused ones in
        file order.
    """
    columns = _COLUMNS[turns]
    kept = {"images": List(Value("string")), "stripped_thoughts": Value("int64")}
    if strip_thinking:
        kept[TEMPLATE_COLUMN] = TEMPLATE_FEATURE
    parsed = rows.map(
        _parse_row,
        fn_kwargs={"turns": turns, "strip_thinking": strip_thinking},
        remove_columns=rows.column_names,
        features=Features(dict.fromkeys(columns, _MESSAGES) | kept | {"index": Value("int64")} | _VERDICT),
        num_proc=num_proc,
        load_from_cache_file=False,
        desc="Checking conversations",
    )
    images = parsed["images"][:]
    verdicts = list(zip(parsed["reason"][:], parsed["detail"][:], strict=True))
    problems = _check_images({name for names in images for name in names}, image_root, num_proc)
    refused, good = [], []
    for row, (index, names, verdict) in enumerate(zip(parsed["index"][:], images, verdicts, strict=True)):
        if verdict[0] is None:
            verdict = next((problems[name] for name in names if name in problems), verdict)
        if verdict[0] is None:
            good.append(row)
        else:
            refused.append(RefusedRow(index, *verdict))
    return parsed.select(good).select_columns([*columns, *kept]), refused


def check_choice_of_rows(max_samples: int | None, eval_ratio: float, on_bad_row: str) -> None:
    """Whether rows can be drawn, held out and refused like this; see `load_llava`.

    Raises:
        ValueError: a value makes no sense.
    """
    if on_bad_row not in ("stop", "skip"):
        raise ValueError(f"`on_bad_row` must be 'stop' or 'skip', got {on_bad_row!r}.")
    if not 0 <= eval_ratio < 1:
        raise ValueError(f"`eval_ratio` must be at least 0 and below 1, got {eval_ratio}.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples}; leave it out to use every row.")


def summarize_refused(refused: Iterable[RefusedRow], first: int = 5) -> str:
    """Counts by reason, the most frequent first, with the indices of the first rows of each."""
    indices = defaultdict(list)
    for row in refused:
        indices[row.reason].append(row.index)
    return "; ".join(
        f"{len(found):,} {reason} (rows {', '.join(map(str, found[:first]))}{', …' if len(found) > first else ''})"
        for reason, found in sorted(indices.items(), key=lambda item: -len(item[1]))
    )


def with_images(dataset: Dataset, image_root: str | Path) -> Dataset:
    """The same rows with `images` as RGB pictures, opened each time a row is read.

    A look at another column reads whole rows too; `dataset.with_format(None)` has the file names and opens nothing.

    Args:
        dataset: `images` holds file names.
        image_root: folder that they are relative to and may not leave.
    """
    return dataset.with_transform(_OpenImages(Path(image_root).absolute()))


@dataclass(frozen=True)
class _OpenImages:
    """Format of a data set; a class rather than a closure, so that worker processes can be sent it."""

    image_root: Path

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "images" not in batch:  # left out by `select_columns`
            return batch
        return batch | {"images": [[open_image(name, self.image_root) for name in names] for names in batch["images"]]}


def _check_images(names: set[str], image_root: Path, num_proc: int | None) -> dict[str, tuple[str, str]]:
    """Reason and detail of every name whose file cannot be used."""
    if not names:
        return {}
    verdicts = Dataset.from_dict({"name": sorted(names)}).map(
        _check_image,
        fn_kwargs={"image_root": image_root},
        features=Features({"name": Value("string")} | _VERDICT),
        num_proc=num_proc,
        load_from_cache_file=False,
        desc="Decoding images",
    )
    return {row["name"]: (row["reason"], row["detail"]) for row in verdicts if row["reason"] is not None}


def _check_image(row: dict[str, Any], image_root: Path) -> dict[str, str | None]:
    try:
        open_image(row["name"], image_root)
    except ImageProblem as problem:
        return {"reason": problem.reason, "detail": str(problem)}
    return {"reason": None, "detail": None}


class RefusalError(ValueError):
    """Why a row's text cannot be used: reason, detail."""


def _parse_row(row: dict[str, Any], turns: Turns, strip_thinking: bool) -> dict[str, Any]:
    """One row to its columns, `reason` and `detail` set where it cannot be used."""
    parsed = {"index": row["index"], "images": [], "stripped_thoughts": 0, "reason": None, "detail": None}
    parsed |= {column: [] for column in _COLUMNS[turns]}
    if strip_thinking:
        parsed[TEMPLATE_COLUMN] = WITHOUT_THINKING
    try:
        images = _image_names(row.get("image"))
        spoken = _speech(row["conversations"])
        spoken = _first_exchange(spoken) if turns == "first" else _whole_conversation(spoken)
        if strip_thinking:
            split = [split_thought(text) if speaker == "gpt" else (None, text) for speaker, text in spoken]
            parsed["stripped_thoughts"] = sum(thought is not None for thought, _ in split)
            spoken = [(speaker, text) for (speaker, _), (_, text) in zip(spoken, split, strict=True)]
        messages = _to_messages(spoken, images)
    except (RefusalError, ThoughtProblem) as refusal:
        reason, detail = refusal.args
        return parsed | {"reason": reason, "detail": f"Row {row['index']}: {detail}."}
    if turns == "first":
        return parsed | {"prompt": messages[:-1], "completion": messages[-1:], "images": images}
    return parsed | {"messages": messages, "images": images}


def _image_names(image: Any) -> list[str]:
    names = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) for name in names):
        raise RefusalError(MALFORMED, f"`image` must be a file name or a list of them, not {image!r}")
    return names


def _speech(conversations: Any) -> list[tuple[str, str]]:
    """(speaker, text) of every turn; a system turn that says nothing is left out."""
    if conversations is None:
        raise RefusalError(NO_PROMPT, "it has no `conversations`")
    if not isinstance(conversations, list):
        raise RefusalError(MALFORMED, "`conversations` must be a list of turns")
    spoken = []
    for number, turn in enumerate(conversations):
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES:
            raise RefusalError(MALFORMED, f"turn {number} must have `from` human, gpt or system")
        text = turn.get("value")
        if not isinstance(text, str | None):
            raise RefusalError(MALFORMED, f"`value` of turn {number} must be text")
        spoken.append((turn["from"], text or ""))
    return [(speaker, text) for speaker, text in spoken if speaker != "system" or text.strip()]


def _first_exchange(spoken: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A system turn at the start, the first question and the answer that follows it."""
    speakers = [speaker for speaker, _ in spoken]
    if "human" not in speakers:
        raise RefusalError(NO_PROMPT, "no human speaks")
    question = speakers.index("human")
    if "gpt" not in speakers[question:]:
        raise RefusalError(NO_ANSWER, "gpt does not answer")
    start = [spoken[0]] if speakers[0] == "system" else []
    return [*start, spoken[question], spoken[speakers.index("gpt", question)]]


def _whole_conversation(spoken: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """All turns: perhaps a system turn, then human and gpt by turns, gpt last."""
    speakers = [speaker for speaker, _ in spoken if speaker != "system"]
    if "human" not in speakers:
        raise RefusalError(NO_PROMPT, "no human speaks")
    if speakers[-1] == "human":
        raise RefusalError(NO_ANSWER, "gpt does not answer the last question")
    if speakers != ["human", "gpt"] * (len(speakers) // 2) or "system" in [speaker for speaker, _ in spoken[1:]]:
        raise RefusalError(MALFORMED, "human and gpt must speak by turns, with a system turn only before them")
    return spoken


def _to_messages(spoken: list[tuple[str, str]], images: list[str]) -> list[dict[str, Any]]:
    """Turns to messages of content blocks, an image block where `<image>` stands, or before everything."""
    for speaker, text in spoken:
        if not text.strip():
            raise RefusalError(NO_PROMPT if speaker == "human" else NO_ANSWER, f"a turn of {speaker} is empty")
        if control := CONTROL_TOKENS.search(text):
            raise RefusalError(CONTROL_TOKEN, f"a turn of {speaker} contains {control.group()}")
        if speaker != "human" and _PLACEHOLDER in text:
            raise RefusalError(PLACEHOLDERS, f"`{_PLACEHOLDER}` in a turn of {speaker}; only a human shows images")
    placeholders = sum(text.count(_PLACEHOLDER) for _, text in spoken)
    if placeholders not in (0, len(images)) or (placeholders and not images):
        raise RefusalError(PLACEHOLDERS, f"{placeholders} `{_PLACEHOLDER}` for {len(images)} images")
    messages = [{"role": _ROLES[speaker], "content": _to_blocks(text)} for speaker, text in spoken]
    if not placeholders:
        question = next(message for message in messages if message["role"] == "user")
        question["content"][:0] = [_image_block() for _ in images]
    return messages


def _to_blocks(text: str) -> list[dict[str, str | None]]:
    """Text around `<image>`, without the line break that LLaVA sets between them."""
    first, *others = re.split(rf"\n?{_PLACEHOLDER}\n?", text)
    blocks = [_text_block(first)]
    for other in others:
        blocks += [_image_block(), _text_block(other)]
    return [block for block in blocks if block["type"] == "image" or block["text"].strip()]


def _text_block(text: str) -> dict[str, str | None]:
    return {"type": "text", "text": text}


def _image_block() -> dict[str, str | None]:
    return {"type": "image", "text": None}


__all__ = [
    "CONTROL_TOKEN",
    "CONTROL_TOKENS",
    "MALFORMED",
    "NO_ANSWER",
    "NO_PROMPT",
    "PLACEHOLDERS",
    "LlavaData",
    "RefusalError",
    "RefusedRow",
    "check_rows",
    "load_llava",
    "read_llava",
    "summarize_refused",
    "with_images",
]
