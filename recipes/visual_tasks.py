"""Three small visual question-answering tasks that need no download, with answers that leave no room for taste.

Shapes: generated drawings, 3 shapes x 4 colours x 4 positions, size, place and background jittered; asked for shape,
colour or position. Digits: scikit-learn's 1,797 real handwritten digits (UCI ML, 8 x 8 grey levels), split by digit,
training images moved by a pixel or two. Letters: the capitals A to Z, printed in fonts that come with matplotlib,
turned, moved and blurred. Each scene also has a description in words, from which a language model can
learn the questions before it has eyes.

A task's name says what is in it, `shapes+digits` for one, and what it has beside that:
- `sizes`: images differ in size and proportions;
- `captions`: a scene's description is asked for as well, in training rows;
- `thoughts`: answers begin with a thought between `<think>` and `</think>`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import matplotlib
import numpy as np
from datasets import Dataset, Features, Image, Value
from datasets import List as ListFeature
from PIL import Image as PILImage
from PIL import ImageChops, ImageDraw, ImageFilter, ImageFont
from sklearn.datasets import load_digits

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "yellow": (235, 205, 40)}
POSITIONS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

QUESTIONS = {
    "shape": "What shape is it?",
    "colour": "What colour is it?",
    "position": "Where is it?",
    "digit": "Which digit is it?",
    "letter": "Which letter is it?",
    "caption": "What does the image show?",
}
SCENES = ("shapes", "digits", "letters")
EXTRAS = ("captions", "sizes", "thoughts")
CHANCE = {"shape": 1 / 3, "colour": 1 / 4, "position": 1 / 4, "digit": 1 / 10, "letter": 1 / 26}

FACES = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold", "Serif-Italic")
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")

# Width and height in pixels.
ONE_SIZE = ((32, 32),)
MANY_SIZES = ((32, 32), (48, 32), (32, 48), (48, 48))
FEATURES = Features(
    {
        "images": ListFeature(Image()),
        "prompt": ListFeature({"role": Value("string"), "content": Value("string")}),
        "completion": ListFeature({"role": Value("string"), "content": Value("string")}),
        "kind": Value("string"),
        "description": Value("string"),
    }
)


@dataclass(frozen=True)
class Scene:
    """One image, what it shows in words, and the answer to every question about it."""

    image: PILImage.Image
    description: str
    answers: dict[str, str] = field(default_factory=dict)

    def thought(self, kind: str) -> str:
        """What there is to think before an answer of this kind: the scene restated, then what is asked."""
        return f"{self.description}. I am asked for the {kind}."


def draw_shape(
    rng: random.Random, shape: str, colour: str, position: str, size: tuple[int, int] = ONE_SIZE[0]
) -> PILImage.Image:
    """A drawing of the given size; drawn four times larger and reduced, so that edges are smooth."""
    scale = 4
    width, height = size
    unit = min(size) / 32
    background = tuple(rng.randint(0, 60) for _ in range(3))
    image = PILImage.new("RGB", (width * scale, height * scale), background)
    quarter_x, quarter_y = POSITIONS[position]
    radius = rng.uniform(5.0, 7.0) * unit * scale
    centre_x = (width / 4 + width / 2 * quarter_x + rng.uniform(-1.5, 1.5) * unit) * scale
    centre_y = (height / 4 + height / 2 * quarter_y + rng.uniform(-1.5, 1.5) * unit) * scale
    fill = tuple(min(255, max(0, channel + rng.randint(-25, 25))) for channel in COLOURS[colour])
    draw = ImageDraw.Draw(image)
    box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([(centre_x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=fill)
    return image.resize(size, PILImage.Resampling.BOX)


def shape_scenes(count: int, split: str, seed: int = 0, sizes: Sequence[tuple[int, int]] = ONE_SIZE) -> Iterator[Scene]:
    """`count` scenes, each combination of shape, colour and position equally often (up to the remainder).

    Args:
        count: scenes to draw.
        split: "train" or "test", drawn from two generators.
        seed: of both.
        sizes: of the images, in turn.
    """
    rng = random.Random(seed * 2 + (split == "test"))
    combinations = [(s, c, p) for s in SHAPES for c in COLOURS for p in POSITIONS]
    for index in range(count):
        if index % len(combinations) == 0:
            rng.shuffle(combinations)
        shape, colour, position = combinations[index % len(combinations)]
        yield Scene(
            draw_shape(rng, shape, colour, position, sizes[index % len(sizes)]),
            f"a {colour} {shape} at the {position}",
            {"shape": shape, "colour": colour, "position": position},
        )


def digit_scenes(
    split: str,
    seed: int = 0,
    held_out: int = 360,
    shifts: int = 8,
    sizes: Sequence[tuple[int, int]] = ONE_SIZE,
) -> Iterator[Scene]:
    """Real handwritten digits, enlarged; an image that is no square has a black margin.

    Args:
        split: "train" or "test", a seeded split by digit.
        held_out: digits of the test split, shown as they are.
        shifts: how often each training digit appears, moved by up to 2 pixels; 1,437 images are few.
        sizes: of the images, in turn.
    """
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.images))
    chosen = np.repeat(order[held_out:], shifts) if split == "train" else order[:held_out]
    for number, index in enumerate(chosen):
        size = sizes[number % len(sizes)]
        side = min(size)
        grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
        image = PILImage.fromarray(grey).convert("RGB")
        image = image.resize((side, side), PILImage.Resampling.BILINEAR)
        if split == "train":
            image = ImageChops.offset(image, *rng.integers(-2, 3, size=2).tolist())
        canvas = PILImage.new("RGB", size)
        canvas.paste(image, ((size[0] - side) // 2, (size[1] - side) // 2))
        word = DIGITS[digits.target[index]]
        yield Scene(canvas, f"the digit {word}", {"digit": word})


def letter_scenes(
    count: int, split: str, seed: int = 0, sizes: Sequence[tuple[int, int]] = ONE_SIZE
) -> Iterator[Scene]:
    """`count` capitals, white on black as the digits are, each equally often (up to the remainder).

    Args:
        count: letters to draw.
        split: "train" or "test", drawn from two generators.
        seed: of both.
        sizes: of the images, in turn.
    """
    rng = random.Random(seed * 2 + (split == "test"))
    letters = list(ascii_uppercase)
    for index in range(count):
        if index % len(letters) == 0:
            rng.shuffle(letters)
        letter = letters[index % len(letters)]
        size = sizes[index % len(sizes)]
        yield Scene(_print_letter(rng, letter, size), f"the letter {letter}", {"letter": letter})


def _print_letter(rng: random.Random, letter: str, size: tuple[int, int]) -> PILImage.Image:
    """A letter turned by up to 15 degrees, at 60 to 95% of the height, off the centre by up to 2 of 32 pixels."""
    side = min(size)
    font = ImageFont.truetype(str(_FONTS / f"DejaVu{rng.choice(FACES)}.ttf"), round(side * rng.uniform(0.75, 1.2)))
    image = PILImage.new("L", size)
    centre = tuple(length / 2 + rng.uniform(-2, 2) * side / 32 for length in size)
    stroke = rng.choice((0, 0, 1))
    ImageDraw.Draw(image).text(centre, letter, fill=rng.randint(160, 255), font=font, anchor="mm", stroke_width=stroke)
    image = image.rotate(rng.uniform(-15, 15), PILImage.Resampling.BILINEAR)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5) * side / 32)).convert("RGB")


def as_dataset(scenes: Iterator[Scene], *, captions: bool = False, thoughts: bool = False) -> Dataset:
    """One row a question: TRL's conversational prompt and completion, the image as PNG bytes, kind, description.

    Args:
        captions: one more row a scene, which asks for its description.
        thoughts: answers begin with a thought between `<think>` and `</think>`.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for scene in scenes:
            png = BytesIO()
            scene.image.save(png, format="PNG")
            answers = scene.answers | ({"caption": scene.description} if captions else {})
            for kind, answer in answers.items():
                thought = f"<think>\n{scene.thought(kind)}\n</think>\n\n" if thoughts else ""
                yield {
                    "images": [{"bytes": png.getvalue(), "path": None}],
                    "prompt": [{"role": "user", "content": QUESTIONS[kind]}],
                    "completion": [{"role": "assistant", "content": thought + answer}],
                    "kind": kind,
                    "description": scene.description,
                }

    return Dataset.from_list(list(rows()), features=FEATURES)


def visual_task(name: str, split: str, *, shapes: int = 4_000, letters: int = 4_000, seed: int = 0) -> Dataset:
    """The rows of a task.

    Args:
        name: "shapes", "digits" and "letters", any of them, and any of "captions", "sizes" and "thoughts", joined by
            "+".
        split: "train" or "test"; the two never share an image.
        shapes: scenes to draw, three questions each.
        letters: letters to print.
        seed: of drawing and splitting.

    Raises:
        ValueError: an unknown task or split.
    """
    parts = set(name.split("+"))
    if not parts & {*SCENES} or not parts <= {*SCENES, *EXTRAS} or split not in ("train", "test"):
        raise ValueError(
            f"There is no task {name!r} with a split {split!r}; tasks are {', '.join(SCENES)}, alone or joined by "
            f"`+`, and with them any of {', '.join(EXTRAS)}; splits are train and test."
        )
    sizes = MANY_SIZES if "sizes" in parts else ONE_SIZE
    scenes: list[Scene] = []
    if "shapes" in parts:
        scenes += shape_scenes(shapes, split, seed, sizes)
    if "digits" in parts:
        scenes += digit_scenes(split, seed, sizes=sizes)
    if "letters" in parts:
        scenes += letter_scenes(letters, split, seed, sizes)
    return as_dataset(iter(scenes), captions="captions" in parts and split == "train", thoughts="thoughts" in parts)
