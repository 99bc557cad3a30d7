"""One query row: its image opened, its texts and its length checked, or the reason why it cannot be used."""

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.guarded_images import OUTSIDE_ROOT, ImageProblem, decode_image, open_image, upright_rgb
from .llava_data import CONTROL_TOKEN, CONTROL_TOKENS, MALFORMED, NO_ANSWER, NO_PROMPT, RefusalError
from .query_sources import as_text
from .vision_sft_collator import Qwen3VisionSFTCollator

NOT_JSON = "target is not JSON"
NO_IMAGE = "no image"
TOO_LONG = "too long"
UNUSABLE = "refused by the processor"

TEXTS = ("query", "caption", "target_json")
VERDICT = (*TEXTS, "reason", "detail", "digest")


@dataclass(frozen=True)
class RowCheck:
    """Tells whether a row can be used.

    Attributes:
        image_root: folder that no image may leave; None where images lie in the data itself.
        collator: rows that it would refuse, for their length for one, are refused here.
    """

    image_root: Path | None
    collator: Qwen3VisionSFTCollator | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """`VERDICT` of a row: its texts as they will be used, `reason` and `detail` set where it cannot be."""
        checked = dict.fromkeys(VERDICT)
        try:
            checked |= {
                "query": _text(row.get("query"), "query", NO_PROMPT),
                "caption": _text(row.get("caption"), "caption", None),
                "target_json": _target(row.get("target_json")),
            }
            image = open_row_image(row["image"], self.image_root)
            self._check_length(checked | {"image": image})
        except ImageProblem as problem:
            return checked | {"reason": problem.reason, "detail": str(problem)}
        except RefusalError as refusal:
            return checked | dict(zip(("reason", "detail"), refusal.args, strict=True))
        texts = json.dumps([checked[name] for name in TEXTS], ensure_ascii=False)
        checked["digest"] = hashlib.sha256(texts.encode("utf-8", "surrogatepass") + image.tobytes()).hexdigest()
        return checked

    def _check_length(self, row: dict[str, Any]) -> None:
        if self.collator is None:
            return
        keys = (self.collator.image_key, self.collator.query_key, self.collator.caption_key, self.collator.target_key)
        names = dict(zip(("image", *TEXTS), keys, strict=True))
        try:
            length = self.collator.row_length({key: row[name] for name, key in names.items()})
        except ValueError as error:
            raise RefusalError(UNUSABLE, str(error)) from error
        limit = self.collator.max_length
        if limit is not None and length > limit:
            raise RefusalError(TOO_LONG, f"{length} tokens with its image, `max_length` is {limit}")


def _text(value: Any, name: str, if_empty: str | None) -> str | None:
    if not isinstance(value, str | None):
        raise RefusalError(MALFORMED, f"`{name}` must be text, not {type(value).__name__}")
    text = (value or "").strip()
    if not text and if_empty is not None:
        raise RefusalError(if_empty, f"`{name}` is empty")
    if control := CONTROL_TOKENS.search(text):
        raise RefusalError(CONTROL_TOKEN, f"`{name}` contains {control.group()}")
    return text or None


def _target(value: Any) -> str:
    text = _text(as_text(value), "target", NO_ANSWER)
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # brackets nested too deep
        raise RefusalError(NOT_JSON, f"{text[:60]!r}: {error}") from error
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def open_row_image(image: Any, root: Path | None) -> Image.Image:
    """An image of a data set: a file name, encoded bytes with or without one, or a picture.

    Raises:
        ImageProblem, RefusalError: it cannot be used.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    name, content = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
    if content is not None:
        return decode_image(BytesIO(content), Path(name or "picture").name)
    if not name:
        raise RefusalError(NO_IMAGE, "the image is empty")
    if not isinstance(name, str):
        raise RefusalError(MALFORMED, f"the image must be a picture or a file name, not {type(name).__name__}")
    if root is None:
        raise ImageProblem(name, OUTSIDE_ROOT, "no `image_root` is given")
    path = Path(name)
    inside = isinstance(image, dict) and path.is_relative_to(root)  # `datasets` writes whole paths
    return open_image(path.relative_to(root) if inside else name, root)


__all__ = ["NOT_JSON", "NO_IMAGE", "TEXTS", "TOO_LONG", "UNUSABLE", "VERDICT", "RowCheck", "open_row_image"]
