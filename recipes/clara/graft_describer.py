"""Pictures described by one of our vision grafts, loaded the way any user loads it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ...processing.guarded_images import ImageProblem
from ..generative_evaluation import answer
from .picture_context import Picture
from .picture_describers import Outcome, checked_description, open_picture


class GraftDescriber:
    """Descriptions by a vision graft, greedily and in batches.

    Args:
        repository: folder or repository id.
        max_tokens: of a description.
        batch_size: pictures at a time.

    Raises:
        ValueError: another kind of model.
    """

    def __init__(self, repository: str, max_tokens: int, batch_size: int) -> None:
        self.processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
        self.model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True, dtype="auto")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_tokens, self.batch_size = max_tokens, batch_size

    def describe(self, folder: Path, pictures: Iterable[Picture]) -> Iterator[Outcome]:
        """An outcome for each picture, in their order."""
        batch: list[tuple[Picture, Image.Image | None, str]] = []
        for picture in pictures:
            try:
                batch.append((picture, open_picture(folder, picture.image), ""))
            except ImageProblem as problem:
                batch.append((picture, None, problem.reason))
            if len(batch) == self.batch_size:
                yield from self._describe(batch)
                batch = []
        yield from self._describe(batch)

    def _describe(self, batch: list[tuple[Picture, Image.Image | None, str]]) -> Iterator[Outcome]:
        outcomes = {picture: Outcome(picture, reason=reason) for picture, _, reason in batch}
        for attempt in range(2):  # a third time the same words would be the same answer
            asked = [
                (picture, image)
                for picture, image, _ in batch
                if image is not None and outcomes[picture].description is None
            ]
            if not asked:
                break
            written = answer(
                self.model,
                self.processor,
                [([{"role": "user", "content": picture.prompt(attempt)}], [image]) for picture, image in asked],
                batch_size=self.batch_size,
                max_new_tokens=self.max_tokens,
                enable_thinking=False,
            )
            for (picture, _), text in zip(asked, written, strict=True):
                outcomes[picture] = Outcome(picture, *checked_description(text, picture.image))
        yield from outcomes.values()


__all__ = ["GraftDescriber"]
