"""Image files that a data set names, opened as if a stranger had written both the names and the files.

A name may point anywhere and a file may be broken, no picture at all, or small on disk and huge in memory. So a name
has to stay below the image root after every link is followed, the size in the header is judged before a pixel is
decoded, only formats that PIL decodes by itself are tried (PostScript would start Ghostscript), and what comes back is
a whole 8-bit RGB picture, upright, with nothing of the file left in it. Everything else is one `ImageProblem`.
"""

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

# Four times what a 16-megapixel photograph needs: 192 MB of RGB. Vision towers look at far less than one.
MAX_PIXELS = 64_000_000

MISSING = "missing"
OUTSIDE_ROOT = "outside the image root"
CORRUPT = "truncated or corrupt"
NOT_AN_IMAGE = "not an image"
TOO_LARGE = "too large"

_REMEDIES = {
    MISSING: "check the image root, or download the file",
    OUTSIDE_ROOT: "name it relative to the image root, without `..`, and put a copy where a link leaves the root",
    CORRUPT: "download or save it again",
    NOT_AN_IMAGE: "convert it to 8- or 16-bit JPEG, PNG, GIF, WebP, BMP, TIFF, JPEG 2000 or PPM",
    TOO_LARGE: "scale it down before training",
}
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM")
# What PIL's decoders raise on damaged files; `UnidentifiedImageError` is an `OSError`.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageProblem(ValueError):  # noqa: N818
    """An image file that cannot be used.

    Attributes:
        name: the file as the data set wrote it, which says nothing about the machine.
        reason: one of `MISSING`, `OUTSIDE_ROOT`, `CORRUPT`, `NOT_AN_IMAGE`, `TOO_LARGE`.
        detail: what was seen, where that says more than the reason.
    """

    def __init__(self, name: str, reason: str, detail: str = "") -> None:
        super().__init__(name, reason, detail)  # `args` as the signature: the error survives pickling between processes
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"Image {self.name!r} is {self.reason}{detail}: {_REMEDIES[self.reason]}."


def resolve_image_path(name: str, root: Path) -> Path:
    """Where a name of the data set leads, links followed.

    Args:
        name: file relative to `root`, as the data set wrote it.
        root: folder that no image may leave; it may itself be reached through a link.

    Raises:
        ImageProblem: `OUTSIDE_ROOT` for an absolute name, a `..`, or a link out of the root; `MISSING` where there is
            no regular file.
    """
    relative = Path(name)
    if relative.anchor or ".." in relative.parts:
        raise ImageProblem(name, OUTSIDE_ROOT)
    try:
        path = (root / relative).resolve()
        inside, is_file = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a closed folder, a name no disk can hold
        raise ImageProblem(name, MISSING, "the name cannot be followed") from error
    if not inside:
        raise ImageProblem(name, OUTSIDE_ROOT)
    if not is_file:
        raise ImageProblem(name, MISSING)
    return path


def open_image(path_or_name: str | Path, root: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open, check and decode one image.

    The first frame of an animation, turned as its EXIF orientation says, transparency laid on white, 16-bit values
    scaled to 8 bits. Nothing is kept open, and no metadata comes along that could turn the picture a second time.

    Args:
        path_or_name: file relative to `root`, as the data set wrote it.
        root: folder that no image may leave.
        max_pixels: refuse a larger width x height before any pixel is decoded.

    Returns:
        An RGB image.

    Raises:
        ImageProblem: with the reason.
    """
    name = str(path_or_name)
    path = resolve_image_path(name, root)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageProblem(name, MISSING, error.strerror or "it cannot be read") from error
    with stream:
        return decode_image(stream, name, max_pixels)


def decode_image(stream: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`open_image` for the bytes of a file, wherever they lie.

    Args:
        stream: the file's content, from its beginning.
        name: what to call it in an error.
        max_pixels: as in `open_image`.

    Raises:
        ImageProblem: with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(stream, formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageProblem(name, TOO_LARGE, f"{image.width} x {image.height}, {max_pixels:,} pixels at most")
            image.load()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ImageProblem(name, TOO_LARGE, f"more pixels than PIL's {Image.MAX_IMAGE_PIXELS:,}") from error
        except ImageProblem:
            raise
        except _DECODER_ERRORS as error:
            stream.seek(0)
            reason = CORRUPT if _begins_like_an_image(stream.read(16)) else NOT_AN_IMAGE
            raise ImageProblem(name, reason) from error
        try:
            return upright_rgb(image)
        except ValueError as error:
            raise ImageProblem(name, NOT_AN_IMAGE, str(error)) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture that is open already, as `open_image` gives it.

    Raises:
        ValueError: nothing says which of its values is white (floating point, 32 bits).
    """
    rgb = _to_rgb(image)
    turn = _UPRIGHT.get(_orientation(image))
    upright = rgb.copy() if turn is None else rgb.transpose(turn)
    upright.info = {}
    return upright


def _begins_like_an_image(prefix: bytes) -> bool:
    """Whether the first bytes (none: an interrupted download) are those of a format that is read here."""
    return not prefix or any(Image.OPEN[name][1](prefix) is True for name in _FORMATS)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; a damaged EXIF block says nothing about the pixels and counts as upright."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, neither clipped nor with transparency dropped.

    Raises:
        ValueError: nothing says which value is white (floating point, 32 bits), or PIL has no conversion.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"pixels of mode {image.mode} do not say which value is white")
    if image.mode.startswith("I"):  # 16 bits; `convert` alone would clip them at 255
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


__all__ = [
    "CORRUPT",
    "MAX_PIXELS",
    "MISSING",
    "NOT_AN_IMAGE",
    "OUTSIDE_ROOT",
    "TOO_LARGE",
    "ImageProblem",
    "decode_image",
    "open_image",
    "resolve_image_path",
    "upright_rgb",
]
