"""A knowledge folder of real prose, with pictures of both kinds, and `data write` over it in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.topic_documents import topic_documents

LENGTH = 400  # a token is a byte
DESIGN = "架构设计如下 [IMAGE_REF: extracted_assets/design.png]\n编码器读取每个文档的全部文字并产生少量的记忆向量。"
DESIGN_SHOWN = "左侧的方框是编码器而右侧的方框是解码器。"
PHOTO_SHOWN = "A red square of sixty-four pixels stands in the middle of a larger white square with a thin black frame."


def raw_documents(topics: int) -> list[dict[str, Any]]:
    """Passages of a language reference, one of them twice, and texts and pictures that belong together."""
    rows = [{"id": f"topic-{one.id}", "source_type": "text", "text": one.text} for one in topic_documents()[:topics]]
    rows[3:3] = [
        {"id": "design", "source_type": "text", "text": DESIGN},
        {"id": "photo", "source_type": "image", "image": "raw_data/photo.png"},
        {"id": "again", "source_type": "text", "text": rows[1]["text"]},
        {"id": "undescribed", "source_type": "image", "image": "raw_data/other.png"},
        {"id": "lines", "source_type": "text", "text": "-- --- --\n***"},
        {"id": "control", "source_type": "text", "text": "A turn begins with <|im_start|> and has no other beginning."},
    ]
    return rows


def write_knowledge(folder: Path, topics: int = 12) -> Path:
    """The folder as `data collect` and `data describe` leave it."""
    for name, colour in (("extracted_assets/design", "blue"), ("raw_data/photo", "red"), ("raw_data/other", "green")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    write_lines(folder / "raw_knowledge.jsonl", raw_documents(topics))
    described = {"extracted_assets/design.png": DESIGN_SHOWN, "raw_data/photo.png": PHOTO_SHOWN, "gone.png": "Gone."}
    write_lines(
        folder / "image_descriptions.jsonl",
        [{"image": image, "description": text} for image, text in described.items()],
    )
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A token is a byte."""
    build_qwen_tokenizer(256).save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_words(knowledge: Path, rows: Path, tokenizer: Path, base_url: str, *more: object) -> list[str]:
    """The command."""
    words = ["data", "write", knowledge, rows, "--tokenizer", tokenizer, "--model", "scripted", "--base-url", base_url]
    return [*map(str, words), "--doc-max-length", str(LENGTH), *map(str, more)]


def start_write(words: list[str]) -> subprocess.Popen:
    """The command, in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "qwen_grafts.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
