"""Markers, paths of images and folders: taken out where they stand, and nothing else."""

import time
from collections import Counter

import pytest

from qwen_grafts.recipes.clara.technical_references import (
    FOLDER,
    IMAGE_PATH,
    MARKER,
    asks_about_files,
    strip_references,
)

STRIPPED = {
    "架构设计如下 [IMAGE_REF: extracted_assets/架构.png]": ("架构设计如下", {MARKER: 1}),
    "cut [IMAGE_REF: extracted_assets/arch": ("cut", {MARKER: 1}),
    "cut [IMAGE_REF: a\nnext line": ("cut \nnext line", {MARKER: 1}),
    "[IMAGE\\_REF: a\\_b.png] escaped": ("escaped", {MARKER: 1}),
    "[image ref：x.png]尾": ("尾", {MARKER: 1}),
    "[IMAGE_REF: scan[1].png] end": ("end", {MARKER: 1}),
    "Two: [IMAGE_REF: a.png], [IMAGE_REF: b.png].": ("Two:,.", {MARKER: 2}),
    "如图images/架构图.png所示，系统": ("如图所示，系统", {IMAGE_PATH: 1}),
    "见架构图.png所示。": ("见架构图所示。", {IMAGE_PATH: 1}),
    "图片“架构图.png”显示": ("图片显示", {IMAGE_PATH: 1}),
    "图 架构图.png。": ("图。", {IMAGE_PATH: 1}),
    "See figure1.PNG, or https://example.org/x/y.png?v=1.": ("See, or.", {IMAGE_PATH: 2}),
    "![Three boxes](images/a(1).png) in a row": ("Three boxes in a row", {IMAGE_PATH: 1}),
    "D:\\papers\\figures\\p.jpg shows it": ("shows it", {IMAGE_PATH: 1}),
    "./a.png, ../b/c.jpg and /d.gif": (", and", {IMAGE_PATH: 3}),
    "It forwards (see images/a.png), and (Cf. b.png) logs (see also Section 3).": (
        "It forwards, and logs (see also Section 3).",
        {IMAGE_PATH: 2},
    ),
    "网关（见images/架构.png）转发，日志(参见 b.png)在后（见第三节）。": (
        "网关转发，日志在后（见第三节）。",
        {IMAGE_PATH: 2},
    ),
    "The plan (images/a.png) is good.": ("The plan is good.", {IMAGE_PATH: 1}),
    "It lies in raw_data, beside /srv/extracted_assets/.": ("It lies in, beside", {FOLDER: 2}),
    "图片保存在 raw_data/ 里": ("图片保存在 里", {FOLDER: 1}),
    "The plan (see images/a.png) is good.": ("The plan is good.", {IMAGE_PATH: 1}),
    "The plan (See also: a.png, b.png and c.png).": ("The plan.", {IMAGE_PATH: 3}),
    'As drawn (as shown in "a.png", cf. b.png).': ("As drawn.", {IMAGE_PATH: 2}),
    "系统架构(见a.png)分为三层（详见 images/b.png 和 c.png）。": ("系统架构分为三层。", {IMAGE_PATH: 3}),
    "架构（参见：[IMAGE_REF: 架构.png]）如下（见下文）": ("架构如下（见下文）", {MARKER: 1}),
    "Read on (see page 3), call see(), sort(see) and look at a.png": (
        "Read on (see page 3), call see(), sort(see) and look at",
        {IMAGE_PATH: 1},
    ),
    "call f(), then see a.png": ("call f(), then see", {IMAGE_PATH: 1}),
}
KEPT = [
    "PNG is a format; .png ends its names.",
    "Use /usr/bin/python and src/main.py, not C:\\Windows.",
    "[IMAGE DESCRIPTION] Three boxes and an arrow.",
    "raw_database and my_raw_data are tables.",
    "a.pngx, b.jpeg2 and  two  blanks ( )",
    "[1] a list [IMAGE] of things",
    "  blanks around stay  ",
]


@pytest.mark.parametrize("text", STRIPPED)
def test_stripped(text: str) -> None:
    found: Counter[str] = Counter()
    expected, counted = STRIPPED[text]
    assert strip_references(text, found) == expected
    assert +found == counted
    again: Counter[str] = Counter()
    assert strip_references(expected, again) == expected
    assert not +again


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    found: Counter[str] = Counter()
    assert strip_references(text, found) == text
    assert not +found


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the file path of the architecture image?", "It is not given."),
        ("What is the image file called?", "plan"),
        ("Which folder contains the screenshot?", "The first one."),
        ("In which folder are the pictures of the system stored?", "In the second."),
        ("Which folder holds it?", "extracted_assets/"),
        ("Where is it located?", "raw_data/a.png"),
        ("What does the path a/b.png say?", "Nothing."),
        ("图片存放在哪个文件夹？", "第一个"),
        ("架构图的文件名是什么？", "架构"),
        ("它保存在哪里？", "extracted_assets/架构.png"),
    ],
)
def test_questions_about_files(question: str, answer: str) -> None:
    assert asks_about_files(question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("In which directory does the installer put packages?", "site-packages"),
        ("What does the design [IMAGE_REF: a.png] show?", "Three boxes, see b.png"),
        ("What is the path of the river in the picture?", "North to south."),
        ("Where is the museum located?", "In the old harbour."),
        ("架构设计如下，包含哪些部分？", "三个部分，见 架构.png"),
        ("数据保存在哪里？", "保存在数据库中"),
    ],
)
def test_other_questions(question: str, answer: str) -> None:
    assert not asks_about_files(question, answer)


@pytest.mark.parametrize(
    "piece", ["a/", "图", "[IMAGE_REF:", "![", "(", "/", "a.", "\\_", "raw_data/", "a.png", "image "]
)
def test_time_grows_with_the_length(piece: str) -> None:
    """Ten times as long takes no more than some ten times the time; its square would be a hundred times."""
    took = []
    for count in (2_000, 20_000):
        start = time.process_time()
        strip_references(piece * count + " .png", Counter())
        asks_about_files(piece * count, "")
        took.append(time.process_time() - start)
    assert took[1] < 40 * max(took[0], 0.01)
