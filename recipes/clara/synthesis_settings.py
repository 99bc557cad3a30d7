"""What `data write` is asked for: settings checked before anything is asked, and named so that runs can be compared."""

import hashlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .raw_knowledge import DESCRIPTIONS, RAW_KNOWLEDGE
from .row_writing import WritingSettings

DOC_MAX_LENGTH = 256
_LEAST_LENGTH, _MOST_ROUNDS = 16, 10


@dataclass(frozen=True)
class SynthesisSettings:
    """What rows are to be like.

    Attributes:
        doc_max_length: most tokens of a chunk; the model compresses as many as one passage.
        instruction_docs: documents of an instruction row, the right one among them.
        target_top_k: the same of an end-to-end row.
        eval_ratio: part of the documents to hold out.
        seed: of the split and of the order of documents in a row.
        embedding_model: of the endpoint, for hard negatives; None compares words.
    """

    doc_max_length: int = DOC_MAX_LENGTH
    instruction_docs: int = 5
    target_top_k: int = 20
    eval_ratio: float = 0.02
    seed: int = 42
    embedding_model: str | None = None
    writing: WritingSettings = field(default_factory=WritingSettings)

    def __post_init__(self) -> None:
        if self.doc_max_length < _LEAST_LENGTH:
            raise ValueError(f"`doc_max_length` is {self.doc_max_length} tokens; give {_LEAST_LENGTH} or more.")
        if self.instruction_docs < 1:
            raise ValueError(f"`instruction_docs` is {self.instruction_docs}; the right document is one already.")
        if self.target_top_k < self.instruction_docs:
            raise ValueError(
                f"`target_top_k` is {self.target_top_k} and `instruction_docs` {self.instruction_docs}; end-to-end "
                "rows have the negatives of instruction rows and more. Give at least as many."
            )
        if not 0 <= self.eval_ratio < 1:
            raise ValueError(f"`eval_ratio` must be at least 0 and below 1, got {self.eval_ratio}.")
        if self.seed < 0:
            raise ValueError(f"`seed` is {self.seed}; give 0 or more.")
        if not 1 <= self.writing.max_rounds <= _MOST_ROUNDS:
            raise ValueError(f"`max_rounds` is {self.writing.max_rounds}; give 1 to {_MOST_ROUNDS}.")


def doc_max_length_of(tokenizer: str) -> int:
    """Tokens of a passage of the model that a tokenizer belongs to; 256 where no CLaRa configuration lies beside it."""
    try:
        return PreTrainedConfig.get_config_dict(tokenizer)[0].get("doc_max_length", DOC_MAX_LENGTH)
    except OSError:
        return DOC_MAX_LENGTH


def named_settings(
    knowledge: Path, tokenizer: PreTrainedTokenizerBase, model: str, settings: SynthesisSettings
) -> dict[str, Any]:
    """All that the rows depend on, by names without a path of this machine; texts and tokenizer by their hashes."""
    files = {name: _file_digest(knowledge / name) for name in (RAW_KNOWLEDGE, DESCRIPTIONS)}
    backend = tokenizer.backend_tokenizer.to_str().encode()
    values = asdict(settings)
    writing = values.pop("writing")
    named = {"model": model, "tokenizer": hashlib.sha256(backend).hexdigest()[:16]} | values | writing
    return named | files | {"qwen-grafts": version("qwen-grafts")}


def _file_digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


__all__ = ["DOC_MAX_LENGTH", "SynthesisSettings", "doc_max_length_of", "named_settings"]
