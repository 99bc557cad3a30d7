"""Conversations without their thoughts, for training that is to leave thinking alone.

Of an assistant's messages the answer is kept. The thought goes, in the content or in a key of its own, and the row asks
the chat template for `enable_thinking=False`: the prompt then ends in an empty thought, as at inference with thinking
off, and nothing of it is supervised. Rows say so themselves, in the column `chat_template_kwargs` that TRL reads.
"""

from typing import Any

from datasets import Dataset, Json, LargeList, List, Value, concatenate_datasets

from ..processing.thinking import EMPTY_ANSWER, THOUGHT_KEYS, ThoughtProblem, split_thought

TEMPLATE_COLUMN = "chat_template_kwargs"
TEMPLATE_FEATURE = {"enable_thinking": Value("bool")}
WITHOUT_THINKING = {"enable_thinking": False}

_CONVERSATIONS = ("prompt", "completion", "messages")
_VERDICT = {"reason": Value("string"), "detail": Value("string"), "stripped": Value("int64")}


def strip_thoughts(
    dataset: Dataset, num_proc: int | None = None
) -> tuple[Dataset, list[tuple[int, ThoughtProblem]], int]:
    """Take the thoughts out of every assistant message. No image is decoded.

    Args:
        dataset: rows of `prompt` and `completion`, or of `messages`; contents are strings or blocks.
        num_proc: processes to use.

    Returns:
        The rows whose answers remain, the others as (index, problem), and the number of answers of the rows that remain
        which had a thought.

    Raises:
        ValueError: no column of conversations.
    """
    features = dataset.features
    columns = [name for name in _CONVERSATIONS if isinstance(features.get(name), List | LargeList | Json)]
    if not columns:
        raise ValueError(
            f"`strip_thinking` needs conversations, lists of messages in {' or '.join(_CONVERSATIONS)}; the data set "
            f"has {', '.join(features)}. Give it in TRL's conversational format."
        )
    if not len(dataset):
        return dataset, [], 0
    texts = dataset.with_format(None).select_columns(columns)
    texts = texts.map(
        _strip_row,
        features=type(features)(
            {name: _without_thought_keys(features[name]) for name in columns}
            | {TEMPLATE_COLUMN: TEMPLATE_FEATURE}
            | _VERDICT
        ),
        num_proc=num_proc,
        load_from_cache_file=False,  # this code may change under the same name
        desc="Stripping thoughts",
    )
    reasons, details, stripped = (texts[name][:] for name in ("reason", "detail", "stripped"))
    good = [row for row, reason in enumerate(reasons) if reason is None]
    problems = [(row, ThoughtProblem(reason, details[row])) for row, reason in enumerate(reasons) if reason is not None]
    others = dataset.remove_columns([name for name in (*columns, TEMPLATE_COLUMN) if name in features])
    texts = texts.remove_columns(list(_VERDICT))
    whole = concatenate_datasets([texts, others], axis=1) if others.column_names else texts
    return whole.select(good) if problems else whole, problems, sum(stripped[row] for row in good)


def _without_thought_keys(feature: List | LargeList | Json) -> List | LargeList | Json:
    """Type of a conversation whose messages have lost the keys for thoughts."""
    message = getattr(feature, "feature", None)
    if not isinstance(message, dict):  # JSON, of the messages or of all of it, has no fixed keys
        return feature
    return type(feature)({key: value for key, value in message.items() if key not in THOUGHT_KEYS})


def _strip_row(row: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Every conversation of one row without thoughts, `reason` and `detail` set where one cannot be taken out."""
    verdict = {TEMPLATE_COLUMN: WITHOUT_THINKING, "reason": None, "detail": None, "stripped": 0}
    stripped: dict[str, Any] = {}
    for name, messages in row.items():
        stripped[name] = [{key: message[key] for key in message if key not in THOUGHT_KEYS} for message in messages]
        try:
            for number, message in enumerate(messages):
                if message["role"] == "assistant":
                    had_thought, stripped[name][number]["content"] = _strip_message(message)
                    verdict["stripped"] += had_thought
        except ThoughtProblem as problem:
            verdict |= {"reason": problem.reason, "detail": f"{name}, message {number}: {problem.detail}"}
    return stripped | verdict


def _strip_message(message: dict[str, Any]) -> tuple[bool, Any]:
    """Whether an assistant's message had a thought, and its content without."""
    content = message.get("content")
    beside = any(message.get(key) for key in THOUGHT_KEYS)
    text = content if isinstance(content, str) else "".join(block.get("text") or "" for block in content or [])
    thought, answer = split_thought(text)
    if beside and not answer.strip():
        raise ThoughtProblem(EMPTY_ANSWER, "a thought stands beside a content without text")
    if thought is None:
        return beside, content
    if isinstance(content, str):
        return True, answer
    first = next(block for block in content if block.get("text"))  # a thought may begin in one block and end in another
    return True, [
        {**block, "text": answer} if block is first else block
        for block in content
        if block is first or not block.get("text")
    ]


__all__ = ["TEMPLATE_COLUMN", "TEMPLATE_FEATURE", "WITHOUT_THINKING", "strip_thoughts"]
