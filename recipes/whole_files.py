"""Files that are there whole or not at all: written under a name beside their own, and renamed.

For folders that one process writes; where several may (`latent_shards`), the names beside are drawn.
"""

import json
from pathlib import Path
from typing import Any


def partial_of(path: Path) -> Path:
    """The name to write to; `partial_of(path).replace(path)` gives the file its own."""
    return path.with_name(f"{path.name}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    partial = partial_of(path)
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


__all__ = ["partial_of", "write_json"]
