"""Evaluation by generation, with the controls that tell seeing from guessing.

Exact match is counted on what the model writes, by kind of question. The same questions are asked again over a blank
image and over another row's image: a model that looks must fall to chance on both.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from rich.progress import track
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..processing.thinking import RESPONSE_TEMPLATE

CONTROLS = ("exact_match", "blank_image", "shuffled_image")


@dataclass
class KindResult:
    """Exact match of one kind of question, beside its controls; `rows` questions each."""

    exact_match: float
    blank_image: float
    shuffled_image: float
    rows: int


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    conversations: Iterable[tuple[list[dict[str, Any]], list[Image.Image]]],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    description: str | None = None,
    enable_thinking: bool | None = None,
    **generate_kwargs: Any,
) -> list[str]:
    """Greedy answers to (messages, images) pairs, in batches padded on the left.

    A thought is no part of an answer; one that `max_new_tokens` cuts off leaves the answer empty.

    Args:
        conversations: messages whose user turn is a string (images go before it) or blocks with image placeholders.
        description: shows a progress bar under this name.
        enable_thinking: the chat template's switch; None leaves it to the model.
    """
    switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    rows = list(conversations)
    starts = range(0, len(rows), batch_size)

    def batches() -> Iterator[tuple[list[str], BatchFeature]]:
        for start in track(starts, description, transient=True) if description else starts:
            batch = rows[start : start + batch_size]
            prompts = [
                processor.apply_chat_template(
                    _with_placeholders(messages, images), add_generation_prompt=True, **switch
                )
                for messages, images in batch
            ]
            images = [image for _, row_images in batch for image in row_images]
            yield (
                prompts,
                processor(text=prompts, images=images or None, padding=True, padding_side="left", return_tensors="pt"),
            )

    settings = {"max_new_tokens": max_new_tokens, "do_sample": False} | generate_kwargs
    return write_answers(model, processor, batches(), **settings)


def write_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batches: Iterable[tuple[list[str], BatchFeature]],
    **generate_kwargs: Any,
) -> list[str]:
    """What is written to batches of prompts, thoughts and special tokens left out; the model is left in its mode.

    Args:
        batches: rendered prompts, and the inputs they became, padded on the left.
    """
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for prompts, inputs in batches:
        inputs = inputs.to(model.device)
        with torch.no_grad():
            generated = model.generate(**inputs, **generate_kwargs)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]  # prompts end where the padded batch ends
        written = processor.batch_decode(new_tokens, skip_special_tokens=True)
        answers += _without_thoughts(processor, written, prompts)
    model.train(was_training)
    return answers


def grey_image(image: Image.Image) -> Image.Image:
    """A picture of the same size with nothing on it."""
    return Image.new("RGB", image.size, (128, 128, 128))


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 16,
    enable_thinking: bool | None = None,
) -> dict[str, dict[str, float]]:
    """Exact match by kind of question, with blank- and shuffled-image controls.

    Answers are compared without thoughts, on both sides.

    Args:
        dataset: rows of `images`, `prompt`, `completion` and, where there are several, `kind`.
        enable_thinking: as in `answer`.

    Returns:
        kind -> `KindResult` as a dict; rows without a kind count under "all".

    Raises:
        ValueError: an empty data set, or one row only, which cannot be shuffled.
    """
    if len(dataset) < 2:
        raise ValueError(f"Evaluation needs at least 2 rows (to shuffle images between them), got {len(dataset)}.")
    rows = list(dataset)
    targets = _without_thoughts(processor, [message_text(row["completion"][-1]) for row in rows], [""] * len(rows))
    hits: dict[str, dict[str, list[bool]]] = {}
    for control in CONTROLS:
        conversations = [
            (row["prompt"], images) for row, images in zip(rows, _control_images(rows, control), strict=True)
        ]
        written = answer(
            model,
            processor,
            conversations,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            description=f"Evaluating ({control.replace('_', ' ')})",
            enable_thinking=enable_thinking,
        )
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for row, text, target in zip(rows, written, targets, strict=True):
            by_kind[row.get("kind") or "all"].append(normalise(text) == normalise(target))
        hits[control] = by_kind
    return {
        kind: asdict(
            KindResult(
                **{control: sum(hits[control][kind]) / len(hits[control][kind]) for control in CONTROLS},
                rows=len(hits["exact_match"][kind]),
            )
        )
        for kind in hits["exact_match"]
    }


def normalise(text: str) -> str:
    """Case, surrounding space and a final full stop do not count."""
    return " ".join(text.lower().split()).rstrip(".")


def message_text(message: dict[str, Any]) -> str:
    """The text of a message, whether its content is a string or blocks."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(block.get("text") or "" for block in content)


def _without_thoughts(processor: ProcessorMixin, texts: list[str], prompts: list[str]) -> list[str]:
    """What was answered to each prompt, which may have opened a thought."""
    messages = processor.parse_response(texts, RESPONSE_TEMPLATE, prefix=prompts)
    return [message["content"] for message in messages]


def _with_placeholders(messages: list[dict[str, Any]], images: list[Image.Image]) -> list[dict[str, Any]]:
    """Image blocks before the first user turn that is a string; turns that have blocks already stay."""
    if any(not isinstance(message["content"], str) for message in messages):
        return messages
    first_user = next(i for i, message in enumerate(messages) if message["role"] == "user")
    blocks = [{"type": "image"} for _ in images] + [{"type": "text", "text": messages[first_user]["content"]}]
    return [*messages[:first_user], {"role": "user", "content": blocks}, *messages[first_user + 1 :]]


def _control_images(rows: list[dict[str, Any]], control: str) -> Iterator[list[Image.Image]]:
    """The images each row is asked about: its own, grey ones of the same size, or another row's."""
    partners = _partners(rows)
    for index, row in enumerate(rows):
        if control == "blank_image":
            yield [grey_image(image) for image in row["images"]]
        elif control == "shuffled_image":
            other = rows[partners[index]]["images"]
            yield [other[i % len(other)] for i in range(len(row["images"]))] if other else []
        else:
            yield row["images"]


def _partners(rows: list[dict[str, Any]]) -> list[int]:
    """For every row another one whose images it borrows: of the same kind, from half its rows away.

    An image of another kind would be too easy a control: no digit is to be seen on a drawing.
    """
    by_kind: dict[str | None, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_kind[row.get("kind")].append(index)
    partners = [(index + 1) % len(rows) for index in range(len(rows))]
    for members in by_kind.values():
        if len(members) > 1:
            half = len(members) // 2
            for place, index in enumerate(members):
                partners[index] = members[(place + half) % len(members)]
    return partners
