"""Descriptions of all pictures of a knowledge folder, in `image_descriptions.jsonl` beside its documents.

Who describes is an OpenAI-compatible endpoint that reads pictures, or one of our vision grafts. Each description is on
the disk before the next one in order, so a run that is killed goes on where it was. A picture that cannot be opened, or
that gets no description to use, is counted by its reason and tried again by the next run.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..whole_files import partial_of
from .picture_context import Picture, language_of, pictures_of
from .picture_describers import ATTEMPTS, Describer
from .raw_knowledge import DESCRIPTIONS, MARKER, RAW_KNOWLEDGE, read_descriptions, read_raw_knowledge
from .request_cost import CostEstimate, PlannedRequests, Range, count_prompt_tokens, estimate, rough_tokens

_REFUSALS_IN_A_ROW = 3  # at the start: then it is not the pictures


@dataclass
class DescriptionCounts:
    """What a run did, in pictures.

    Attributes:
        pictures: in the documents, each once.
        there: described by an earlier run.
        described: by this run.
        missing: reason -> those without a description.
        refusal: the endpoint's words about the last picture that it refused.
    """

    pictures: int = 0
    there: int = 0
    described: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    refusal: str | None = None

    def __str__(self) -> str:
        text = f"{self.pictures:,} pictures: {self.described:,} described, {self.there:,} described before"
        if self.missing:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.missing.most_common())
            text += f"; {self.missing.total():,} without a description: {reasons}"
        return f"{text}." + (f" The endpoint's last refusal: {self.refusal}" if self.refusal else "")


def describe_folder(folder: Path, describer: Describer, *, show_progress: bool = True) -> DescriptionCounts:
    """Describe what has no description yet.

    Args:
        folder: with `raw_knowledge.jsonl`.

    Raises:
        ValueError: there are no documents, or a line of a file cannot be read.
        EndpointError: the endpoint does not answer, or refuses the first pictures one and all.
    """
    images = [picture.image for picture in folder_pictures(folder)]
    path = folder / DESCRIPTIONS
    there = _there(path)
    counts = DescriptionCounts(pictures=len(images), there=sum(image in there for image in images))
    open_ones = (picture for picture in folder_pictures(folder) if picture.image not in there)
    at_most = min(_REFUSALS_IN_A_ROW, counts.pictures - counts.there)
    refusals = 0
    with path.open("a", encoding="utf-8") as lines, Progress(transient=True, disable=not show_progress) as progress:
        task = progress.add_task("Describing", total=len(images), completed=counts.there)
        for outcome in describer.describe(folder, open_ones):
            if outcome.description is None:
                counts.missing[outcome.reason] += 1
                if outcome.error is not None:
                    counts.refusal = str(outcome.error)
                    refusals += 1
                    if refusals == at_most and not counts.described and not there:
                        raise outcome.error
            else:
                lines.write(_line(outcome.picture.image, outcome.description))
                lines.flush()
                os.fsync(lines.fileno())
                counts.described += 1
            progress.advance(task)
    _sort(path, images)
    return counts


def folder_pictures(folder: Path) -> Iterator[Picture]:
    """The pictures of a knowledge folder.

    Raises:
        ValueError: it has no documents.
    """
    path = folder / RAW_KNOWLEDGE
    if not path.is_file():
        raise ValueError(
            f"{folder.name} has no {RAW_KNOWLEDGE}. Make it with: qwen-grafts data collect FOLDER {folder}"
        )
    languages = Counter(language_of(MARKER.sub("", document.text)) for document in read_raw_knowledge(path))
    return pictures_of(read_raw_knowledge(path), "zh" if languages["zh"] > languages["en"] else "en")


def description_cost(
    folder: Path, max_tokens: int, input_price: float | None, output_price: float | None
) -> CostEstimate:
    """What the pictures that have no description yet will take; tokens of texts are estimated by their bytes."""
    there = _there(folder / DESCRIPTIONS)
    messages = [_as_message(picture) for picture in folder_pictures(folder) if picture.image not in there]
    planned = PlannedRequests(
        "descriptions",
        len(messages),
        sum(count_prompt_tokens([message], rough_tokens) for message in messages),
        Range(40, min(150, max_tokens), max_tokens),
        Range(1, 1, ATTEMPTS),
    )
    return estimate([planned], input_price, output_price)


def _as_message(picture: Picture) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": picture.prompt()}]}


def _there(path: Path) -> dict[str, str]:
    """What earlier runs described."""
    _mend_last_line(path)
    return read_descriptions(path) if path.exists() else {}


def _line(image: str, description: str) -> str:
    return json.dumps({"image": image, "description": description}, ensure_ascii=False) + "\n"


def _mend_last_line(path: Path) -> None:
    """Take away what a killed run began to write; end a line that is whole but for its end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            file.truncate(len(content) - len(last))
        else:
            file.write(b"\n")


def _sort(path: Path, images: list[str]) -> None:
    """The order of the pictures, though some may have been described later; what else is there comes last."""
    descriptions = read_descriptions(path)
    order = [image for image in images if image in descriptions]
    placed = set(order)
    order += [image for image in descriptions if image not in placed]
    if order == list(descriptions):
        return
    partial = partial_of(path)
    with partial.open("w", encoding="utf-8") as lines:
        for image in order:
            lines.write(_line(image, descriptions[image]))
        lines.flush()
        os.fsync(lines.fileno())
    partial.replace(path)


__all__ = ["DescriptionCounts", "describe_folder", "description_cost", "folder_pictures"]
