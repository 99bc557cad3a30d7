"""Image files a data set may name: sound ones come back as upright RGB, all others as one named problem."""

from __future__ import annotations

import pickle
import resource
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from qwen_grafts.processing.guarded_images import (
    CORRUPT,
    MAX_PIXELS,
    MISSING,
    NOT_AN_IMAGE,
    OUTSIDE_ROOT,
    TOO_LARGE,
    ImageProblem,
    open_image,
    resolve_image_path,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return load_sample_images().images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def png_with_header_only(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds one byte of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def problem_with(name: str, root: Path, **kwargs: int) -> ImageProblem:
    with pytest.raises(ImageProblem) as caught:
        open_image(name, root, **kwargs)
    message = str(caught.value)
    assert repr(name) in message and caught.value.reason in message
    assert str(root.parent) not in message.replace(repr(name), "")  # says nothing about the machine
    return caught.value


def pixels_of(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


# Names


def test_names_below_the_root_are_followed(root: Path) -> None:
    (root / "deep").mkdir()
    Image.new("RGB", (2, 2), RED).save(root / "deep" / "a.png")
    (root / "link.png").symlink_to(root / "deep" / "a.png")
    (root.parent / "door").symlink_to(root)
    real = (root / "deep" / "a.png").resolve()
    assert resolve_image_path("deep/a.png", root) == real
    assert resolve_image_path("link.png", root) == real
    assert resolve_image_path("./deep//a.png", root.parent / "door") == real
    assert open_image(Path("link.png"), root).getpixel((0, 0)) == RED


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "deep/../in.png", "{outside}", "{inside}"])
def test_absolute_names_and_parents_are_refused(root: Path, name: str) -> None:
    for path in (root.parent / "secret.png", root / "in.png"):
        Image.new("RGB", (2, 2)).save(path)
    name = name.format(outside=root.parent / "secret.png", inside=root / "in.png")
    assert problem_with(name, root).reason == OUTSIDE_ROOT


def test_links_out_of_the_root_are_refused(root: Path) -> None:
    outside = root.parent / "images_of_others"  # begins as the root's name does
    outside.mkdir()
    Image.new("RGB", (2, 2)).save(outside / "secret.png")
    (root / "file.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "relative.png").symlink_to(Path("..") / "images_of_others" / "secret.png")
    for name in ("file.png", "folder/secret.png", "relative.png"):
        assert problem_with(name, root).reason == OUTSIDE_ROOT


def test_what_is_no_file_is_missing(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "dangling.png").symlink_to(root / "gone.png")
    for name in ("nothing.png", "folder", "", ".", "loop.png", "dangling.png", "nul\0.png", "long" * 1000):
        assert problem_with(name, root).reason == MISSING, name


# Broken files


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.05, 0.6, 0.98])
def test_truncated_files(root: Path, photographs: list[np.ndarray], suffix: str, kept: float) -> None:
    path = root / f"photo.{suffix}"
    Image.fromarray(photographs[0]).resize((160, 107)).save(path)
    content = path.read_bytes()
    open_image(path.name, root)
    path.write_bytes(content[: int(len(content) * kept)])
    assert problem_with(path.name, root).reason == CORRUPT


def test_damaged_and_empty_files_are_corrupt(root: Path, photographs: list[np.ndarray]) -> None:
    path = root / "photo.png"
    Image.fromarray(photographs[1]).resize((64, 43)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert problem_with("photo.png", root).reason == CORRUPT
    path.write_bytes(b"\xff\xd8\xff\xe0 begins like a JPEG")
    assert problem_with("photo.png", root).reason == CORRUPT
    path.write_bytes(b"")
    assert problem_with("photo.png", root).reason == CORRUPT


def test_other_files_are_not_images(root: Path) -> None:
    (root / "page.jpg").write_text("<!DOCTYPE html><title>403 Forbidden</title>")
    (root / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    Image.new("F", (2, 2), 0.5).save(root / "float.tif")
    Image.new("I", (2, 2), 70_000).save(root / "int32.tif")
    for name in ("page.jpg", "script.png", "float.tif", "int32.tif"):
        assert problem_with(name, root).reason == NOT_AN_IMAGE


def test_no_program_is_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setenv("PATH", str(root), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # look for it again
    ghostscript = root / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {root / 'started'}\nexit 1\n")
    ghostscript.chmod(0o755)
    Image.new("RGB", (4, 4)).save(root / "a.eps")
    (root / "a.eps").rename(root / "a.jpg")
    with pytest.raises(subprocess.CalledProcessError), Image.open(root / "a.jpg") as image:
        image.load()
    (root / "started").unlink()
    assert problem_with("a.jpg", root).reason == NOT_AN_IMAGE
    assert not (root / "started").exists()


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (9_000, 9_000), (1, MAX_PIXELS + 1)])
def test_a_bomb_is_refused_by_its_header(root: Path, width: int, height: int) -> None:
    (root / "bomb.png").write_bytes(png_with_header_only(width, height))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PIL's warning becomes the problem, it is not passed on as well
        assert problem_with("bomb.png", root).reason == TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB; the largest would take 1.2 GB
    assert limit == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters


def test_the_limit_is_exact_and_can_be_set(root: Path) -> None:
    Image.new("RGB", (10, 10)).save(root / "a.png")
    assert open_image("a.png", root, max_pixels=100).size == (10, 10)
    problem = problem_with("a.png", root, max_pixels=99)
    assert problem.reason == TOO_LARGE and "10 x 10" in str(problem)


def test_a_problem_survives_pickling() -> None:
    problem = pickle.loads(pickle.dumps(ImageProblem("a.png", TOO_LARGE, "9 x 9")))
    assert (problem.name, problem.reason, problem.detail) == ("a.png", TOO_LARGE, "9 x 9")
    assert isinstance(problem, ValueError)


# Sound files


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_photographs_come_back_as_they_are(root: Path, photographs: list[np.ndarray], suffix: str) -> None:
    for index, photograph in enumerate(photographs):
        Image.fromarray(photograph).save(root / f"{index}.{suffix}")
        image = open_image(f"{index}.{suffix}", root)
        assert type(image) is Image.Image and image.mode == "RGB" and np.array_equal(np.asarray(image), photograph)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_photographs(root: Path, photographs: list[np.ndarray], suffix: str) -> None:
    Image.fromarray(photographs[1]).save(root / f"a.{suffix}", quality=90)
    image = np.asarray(open_image(f"a.{suffix}", root)).astype(int)
    assert np.abs(image - photographs[1]).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(root: Path, suffix: str, orientation: int) -> None:
    quarters = np.zeros((32, 64, 3), dtype=np.uint8)
    quarters[:16, :32], quarters[:16, 32:], quarters[16:, :32] = RED, GREEN, BLUE
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters).save(root / f"a.{suffix}", exif=exif, quality=100)
    image = open_image(f"a.{suffix}", root)
    # Where the corners of the stored picture (red, green, blue, black by rows) lie when it is shown.
    shown = {1: "rgbk", 2: "grkb", 3: "kbgr", 4: "bkrg", 5: "rbgk", 6: "brkg", 7: "kgbr", 8: "gkrb"}[orientation]
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    width, height = image.size
    corners = [image.getpixel(at) for at in ((4, 4), (width - 5, 4), (4, height - 5), (width - 5, height - 5))]
    colours = {"r": RED, "g": GREEN, "b": BLUE, "k": (0, 0, 0)}
    assert np.abs(np.array(corners) - np.array([colours[letter] for letter in shown])).max() < 60
    assert ImageOps.exif_transpose(image).size == image.size and not image.getexif()  # nobody turns it again


def test_damaged_exif_does_not_cost_the_picture(root: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(root / "a.jpg", exif=b"Exif\0\0garbage")
    assert open_image("a.jpg", root).size == (8, 8)


def test_cmyk_jpeg(root: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(root / "a.jpg", quality=100)
    red, green, blue = open_image("a.jpg", root).getpixel((4, 4))
    assert red > 250 and green < 5 and blue < 5


def test_transparency_is_laid_on_white(root: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putdata([0, 1])
    palette.save(root / "palette.png", transparency=0)
    palette.save(root / "palette.gif", transparency=0)
    palette.save(root / "half.png", transparency=bytes([128, 255]))
    layered = Image.new("RGBA", (2, 1))
    layered.putdata([(0, 0, 0, 0), (*BLUE, 255)])
    layered.save(root / "layered.png")
    layered.save(root / "layered.webp", lossless=True)
    grey = Image.new("LA", (3, 1))
    grey.putdata([(0, 0), (0, 128), (90, 255)])
    grey.save(root / "grey.png")
    key = Image.new("RGB", (2, 1))
    key.putdata([RED, BLUE])
    key.save(root / "key.png", transparency=RED)
    for name in ("palette.png", "palette.gif", "layered.png", "layered.webp", "key.png"):
        assert pixels_of(open_image(name, root)) == [[WHITE, BLUE]], name
    assert pixels_of(open_image("half.png", root)) == [[(255, 127, 127), BLUE]]
    assert pixels_of(open_image("grey.png", root)) == [[WHITE, (127, 127, 127), (90, 90, 90)]]


def test_other_modes(root: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putdata([0, 1])
    palette.save(root / "palette.png")
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 1])
    bits.save(root / "bits.png")
    Image.new("L", (2, 1), 77).save(root / "grey.jpg", quality=100)
    assert pixels_of(open_image("palette.png", root)) == [[RED, BLUE]]
    assert pixels_of(open_image("bits.png", root)) == [[(0, 0, 0), WHITE]]
    assert pixels_of(open_image("grey.jpg", root)) == [[(77, 77, 77)] * 2]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled(root: Path, name: str) -> None:
    values = np.array([[0, 255, 257, 32_768, 65_278, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(root / name)
    with Image.open(root / name) as stored:
        assert stored.mode in ("I;16", "I")
    image = np.asarray(open_image(name, root))
    assert image[0].tolist() == [[value] * 3 for value in (0, 1, 1, 128, 254, 255)]


def test_animation_gives_its_first_frame(root: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED, BLUE)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:], lossless=True)
        with Image.open(root / name) as stored:
            assert stored.n_frames == 3
        assert open_image(name, root).getpixel((0, 0)) == GREEN, name


def test_one_pixel(root: Path) -> None:
    for mode, colour in (("RGB", RED), ("RGBA", (*RED, 255)), ("P", 0), ("L", 9), ("I;16", 9)):
        Image.new(mode, (1, 1), colour).save(root / "a.png")
        image = open_image("a.png", root)
        assert (image.size, image.mode) == ((1, 1), "RGB")
