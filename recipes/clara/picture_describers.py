"""One picture described: opened with care, asked about, and the answer looked at.

Only pixels leave the folder: every picture is opened by `processing/guarded_images.py`, which follows no name out of
it, scaled down and written anew.
"""

import base64
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ...processing.guarded_images import ImageProblem, open_image
from .chat_endpoint import ChatEndpoint, EndpointError, UnusableAnswerError
from .picture_context import Picture
from .raw_knowledge import image_file

TOO_SMALL = "too small or too narrow to show anything"
NO_WORDS = "described without a word"
NAMES_FILE = "described by its file"
REFUSED = "refused by the endpoint"

_LONGEST_SIDE = 1024
_LARGEST_FILE = 1_500_000  # bytes; in base64 a third more. Many servers take no more than a few megabytes.
_SHORTEST_SIDE, _STEEPEST = 8, 200  # Qwen's vision processors take nothing narrower than 1:200
ATTEMPTS = 3
_LATER_TEMPERATURE = 0.7  # greedy again would be the same answer again

_FILE_NAME_IN_TEXT = re.compile(
    r"\.(?:png|jpe?g|gif|webp|bmp|tiff?|svg)\b|IMAGE_REF|extracted_assets|raw_data|\bfile ?names?\b|文件名",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """A description, or why there is none; `error` where the endpoint said that."""

    picture: Picture
    description: str | None = None
    reason: str | None = None
    error: EndpointError | None = None


class Describer(Protocol):
    """Who describes."""

    def describe(self, folder: Path, pictures: Iterable[Picture]) -> Iterator[Outcome]:
        """An outcome for each picture, in their order."""


class EndpointDescriber:
    """Descriptions by an OpenAI-compatible endpoint that reads pictures.

    Args:
        max_tokens: of a description.
    """

    def __init__(self, endpoint: ChatEndpoint, max_tokens: int) -> None:
        self.endpoint, self.max_tokens = endpoint, max_tokens

    def describe(self, folder: Path, pictures: Iterable[Picture]) -> Iterator[Outcome]:
        """An outcome for each picture, in their order."""
        return self.endpoint.in_order(lambda picture: self._describe(folder, picture), pictures)

    def _describe(self, folder: Path, picture: Picture) -> Outcome:
        try:
            url = data_uri(open_picture(folder, picture.image))
        except ImageProblem as problem:
            return Outcome(picture, reason=problem.reason)
        reason = NO_WORDS
        for attempt in range(ATTEMPTS):
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": picture.prompt(attempt)},
            ]
            try:
                text = self.endpoint.ask(
                    [{"role": "user", "content": content}],
                    max_tokens=self.max_tokens,
                    temperature=_LATER_TEMPERATURE if attempt else 0.0,
                    attempt=attempt,
                )
            except UnusableAnswerError as error:
                reason = f"with an answer that is {error.reason}"
                continue
            except EndpointError as error:
                if error.status not in (400, 413, 422):
                    raise
                return Outcome(picture, reason=REFUSED, error=error)
            description, reason = checked_description(text, picture.image)
            if description is not None:
                return Outcome(picture, description)
        return Outcome(picture, reason=reason)


def checked_description(text: str, image: str) -> tuple[str | None, str]:
    """A description on one line, or None with the reason: it says nothing, or it speaks of the picture's file."""
    text = " ".join(text.split())
    if not any(character.isalpha() for character in text):
        return None, NO_WORDS
    stem = Path(image).stem
    named = len(stem) >= 5 and not stem.isalpha() and stem.lower() in text.lower()
    if named or _FILE_NAME_IN_TEXT.search(text):
        return None, NAMES_FILE
    return text, ""


def open_picture(folder: Path, image: str) -> Image.Image:
    """A picture of the folder, upright in RGB and no larger than a vision model looks at.

    Raises:
        ImageProblem: it cannot be used, or leads out of the folder.
    """
    picture = open_image(image_file(image, folder).relative_to(folder.resolve()), folder)
    short, long = sorted(picture.size)
    if short < _SHORTEST_SIDE or long > _STEEPEST * short:
        raise ImageProblem(image, TOO_SMALL, f"{picture.width} x {picture.height} pixels")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """A picture as a URL of itself: PNG, which keeps small writing sharp, or JPEG where that is too large."""
    for kind, settings in (("png", {}), *(("jpeg", {"quality": quality}) for quality in (90, 75, 50))):
        stream = io.BytesIO()
        picture.save(stream, kind, **settings)
        if stream.tell() <= _LARGEST_FILE:
            break
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


__all__ = [
    "ATTEMPTS",
    "NAMES_FILE",
    "NO_WORDS",
    "REFUSED",
    "TOO_SMALL",
    "Describer",
    "EndpointDescriber",
    "Outcome",
    "checked_description",
    "data_uri",
    "open_picture",
]
