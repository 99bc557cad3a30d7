"""Pictures of a knowledge folder: each decoded once, written once, under a name that no marker can break on.

What is written is what `decode_image` gives, upright on white and without the camera's notes (a photograph says where
it was taken): a JPEG as a JPEG again, all else as PNG, so that every endpoint reads it. The name is that of its
document, letters and digits of any script and nothing else, and a hash of its pixels.
"""

import hashlib
import io
import re
import unicodedata
from pathlib import Path, PurePosixPath

from PIL import Image

from ...processing.guarded_images import decode_image
from .file_problems import TINY, FileProblem

SMALLEST_SIDE = 16
_JPEG = b"\xff\xd8\xff"
_JPEG_QUALITY = 95
_LONGEST_NAME = 40  # characters; at most 4 bytes each, and a file name may have 255
_NO_LETTER = re.compile(r"[\W_]+")
_HASH_DIGITS = 16


class AssetStore:
    """Pictures of one folder below the knowledge folder.

    Args:
        directory: the knowledge folder.
        folder: name of the folder below it.
    """

    def __init__(self, directory: Path, folder: str) -> None:
        self.directory, self.folder = directory, folder
        self._names: dict[str, str] = {}  # digest of the pixels -> name

    def add(self, data: bytes, document: str) -> tuple[str, bool]:
        """Write a picture, unless it is there already.

        Args:
            data: content of its file.
            document: path of the document that it is from; names it.

        Returns:
            Its path in the knowledge folder, and whether it is new.

        Raises:
            ImageProblem: it is no picture, broken or too large.
            FileProblem: `TINY`, nothing that has to be described.
        """
        image = decode_image(io.BytesIO(data), document)
        if min(image.size) < SMALLEST_SIDE or all(low == high for low, high in image.getextrema()):
            raise FileProblem(TINY, f"{image.width} x {image.height}")
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:_HASH_DIGITS]
        is_new = digest not in self._names
        if is_new:
            stem = _NO_LETTER.sub("-", unicodedata.normalize("NFC", PurePosixPath(document).stem)).strip("-")
            suffix = ".jpg" if data.startswith(_JPEG) else ".png"
            self._names[digest] = f"{stem[:_LONGEST_NAME] or 'picture'}-{digest}{suffix}"
            self._write(image, self._names[digest])
        return f"{self.folder}/{self._names[digest]}", is_new

    def know(self, path: str) -> None:
        """Take a picture for written, as an earlier run left it."""
        name = PurePosixPath(path).name
        self._names[PurePosixPath(name).stem[-_HASH_DIGITS:]] = name

    def forget(self, path: str) -> None:
        """Delete a picture whose document turned out to be none."""
        name = PurePosixPath(path).name
        del self._names[PurePosixPath(name).stem[-_HASH_DIGITS:]]
        (self.directory / path).unlink()

    def drop_others(self) -> None:
        """Delete what a run left that is not known: pictures of files that were changed since."""
        known = set(self._names.values())
        for path in (self.directory / self.folder).glob("*"):
            if path.name not in known:
                path.unlink()

    def _write(self, image: Image.Image, name: str) -> None:
        path = self.directory / self.folder / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{name}.partial")
        if path.suffix == ".jpg":
            image.save(partial, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        else:
            image.save(partial, "PNG")
        partial.replace(path)


__all__ = ["SMALLEST_SIDE", "AssetStore"]
