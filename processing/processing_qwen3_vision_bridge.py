"""Processor of the vision bridge: Qwen2.5-VL's image processor, Qwen3's tokenizer, a placeholder a merged patch.

An image is resized to sides that are whole merged patches (28 pixels in the published tower), keeping its proportions,
within a budget of pixels: `size={"shortest_edge": min_pixels, "longest_edge": max_pixels}`, which in spite of their
names are areas. One merged patch is one placeholder. The frames of a video are images, one after the other.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData

from .vision_language_processing import VisionLanguageProcessor

MAX_ASPECT_RATIO = 200  # beyond it Qwen2.5-VL's image processor gives up


class Qwen3VisionBridgeProcessor(VisionLanguageProcessor):
    """Text with one `<|image_pad|>` an image, and images of any size, to model inputs.

    Args:
        image_processor: Qwen2.5-VL's.
        tokenizer: Qwen3's.
        chat_template: defaults to the tokenizer's, which for Qwen3 does not render images; give ours.

    Raises:
        ValueError: the tokenizer lacks a vision token, or the image processor's smallest size exceeds its largest.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        _pixel_budget(image_processor.size)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        """As every processor, after a look at what the image processor would fail on without a word about which."""
        _pixel_budget(kwargs.get("size") or self.image_processor.size, **_budget(kwargs))
        flat = make_flat_list_of_images(images)
        for index, image in enumerate(flat):
            _check_sides(_sides(image), f"Image {index} of {len(flat)}")
        return super()._process_images(images, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for one image: a placeholder a merged patch."""
        merge_size = kwargs.get("merge_size") or self.image_processor.merge_size
        frames, height, width = (int(side) for side in image_inputs["image_grid_thw"][image_idx])
        return self.image_token * (frames * height * width // merge_size**2)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """Placeholders for images of the given (height, width); vLLM asks before it sees any pixel."""
        if image_sizes is None:
            return MultiModalData()
        options = {**kwargs, **kwargs.get("images_kwargs", {})}
        minimum, maximum = _pixel_budget(options.get("size") or self.image_processor.size, **_budget(options))
        budget = {"min_pixels": minimum, "max_pixels": maximum}
        patches = [self.image_processor.get_number_of_image_patches(*size, budget) for size in image_sizes]
        tokens = [count // self.image_processor.merge_size**2 for count in patches]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=patches)


def _budget(options: dict[str, Any]) -> dict[str, int]:
    return {name: options[name] for name in ("min_pixels", "max_pixels") if options.get(name) is not None}


def _pixel_budget(size: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> tuple[int, int]:
    """Least and most pixels of an image after resizing.

    Raises:
        ValueError: they contradict each other.
    """
    minimum = size["shortest_edge"] if min_pixels is None else min_pixels
    maximum = size["longest_edge"] if max_pixels is None else max_pixels
    if not 0 < minimum <= maximum:
        raise ValueError(
            f"An image cannot have at least {minimum} and at most {maximum} pixels: `min_pixels` (or "
            "`size['shortest_edge']`) must be positive and no larger than `max_pixels` (`size['longest_edge']`)."
        )
    return minimum, maximum


def _sides(image: Any) -> tuple[int, ...]:
    """Sides of a picture, an array or a tensor; of what is still a file name nothing is known."""
    return tuple(image.size) if hasattr(image, "getbands") else tuple(getattr(image, "shape", ()))


def _check_sides(sides: tuple[int, ...], what: str) -> None:
    if 0 in sides:
        raise ValueError(f"{what} has no pixels ({' x '.join(map(str, sides))}). Leave it out, or load it again.")
    if len(sides) == 2 and max(sides) > MAX_ASPECT_RATIO * min(sides):
        raise ValueError(
            f"{what} is {sides[0]} x {sides[1]} pixels; the tower reads proportions of up to {MAX_ASPECT_RATIO} to 1. "
            "Crop it, or cut it into several images."
        )


__all__ = ["Qwen3VisionBridgeProcessor"]
