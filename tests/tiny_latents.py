"""Documents for latent indexes, and latents that depend on the text alone, as a compressor's do."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_grafts.recipes.latent_index import ClaraIndex

SETTINGS = {"fingerprint": "compressor-1", "compression_rate": 16, "num_memory_tokens": 3, "hidden_size": 8}
SIZE = (3, 8)
BUILD = {"batch_size": 4, "shard_size": 10}


def documents(count: int, first: int = 0) -> list[dict[str, str]]:
    return [
        {"id": f"d{number}", "text": f"Document {number}, of some words."} for number in range(first, first + count)
    ]


def compress(texts: list[str]) -> list[tuple[list[str], torch.Tensor]]:
    """One to three passages of each document."""
    compressed = []
    for text in texts:
        seed = zlib.crc32(text.encode())
        passages = [f"{text} (part {number})" for number in range(1 + seed % 3)]
        latents = torch.randn(len(passages), *SIZE, generator=torch.Generator().manual_seed(seed))
        compressed.append((passages, 5 * latents + 1))
    return compressed


def add(index: ClaraIndex, added: list[Any]) -> None:
    compressed = compress([document["text"] for document in added])
    index.add(added, [latents for _, latents in compressed], [passages for passages, _ in compressed])


def all_latents(shown: list[dict[str, str]]) -> torch.Tensor:
    """Of all passages, (R, M, D)."""
    return torch.cat([latents for _, latents in compress([document["text"] for document in shown])])


def all_passages(shown: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {"id": document["id"], "passage": number, "text": text}
        for document, (passages, _) in zip(shown, compress([document["text"] for document in shown]), strict=True)
        for number, text in enumerate(passages)
    ]


def queries(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed)) + 0.2


def nearest(queries_BMD: torch.Tensor, latents_RMD: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine of every query with every passage, then the largest; scores and rows, (B, K)."""
    pairs = (queries_BMD.double().flatten(1)[:, None], latents_RMD.double().flatten(1)[None])
    found = torch.nn.functional.cosine_similarity(*pairs, dim=-1).topk(top_k)
    return found.values, found.indices


class KilledError(BaseException):
    """Nothing of ours catches it."""


@contextmanager
def killed_at_rename(lived: int) -> Iterator[list[str]]:
    """After so many files got their name, the next one kills who would give it; yields the names that were given."""
    rename, renamed = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        if len(renamed) == lived:
            raise KilledError
        renamed.append(target.name)
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        yield renamed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
