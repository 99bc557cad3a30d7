"""A tiny recursive Qwen with its tokenizer, in memory or saved, and rows of token ids to train it on."""

from pathlib import Path
from typing import Any

import torch
from contracts.model_contract import randomize
from datasets import Dataset
from tiny_recursive import recursive_config
from transformers import PreTrainedTokenizerBase

from qwen_grafts.modeling import RecursiveQwenForCausalLM
from qwen_grafts.processing import build_qwen_tokenizer

BYTES = 256
VOCABULARY = 288


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A token is a byte."""
    return build_qwen_tokenizer(BYTES)


def tiny_recursive(**settings: Any) -> RecursiveQwenForCausalLM:
    """A model that uses every part it has: gates of trained size, a halting head that is not sure."""
    tokenizer = tiny_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = RecursiveQwenForCausalLM(recursive_config(**({"vocab_size": VOCABULARY} | ids | settings)))
    with torch.no_grad():
        randomize(model)
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.copy_(0.5 + 0.3 * torch.tanh(parameter - 1.0))
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.mul_(0.2)
    return model


def recursive_checkpoint(folder: Path, **settings: Any) -> Path:
    """The same as a folder, whose code comes with it."""
    tiny_recursive(**settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def token_rows(*lengths: int, seed: int = 0) -> Dataset:
    """Rows of these lengths whose labels are other tokens than their ids, and about half of which are learned."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for length in lengths:
        ids, labels = torch.randint(0, BYTES, (2, length), generator=generator)
        labels[torch.rand(length, generator=generator) < 0.5] = -100
        labels[-1] = 7
        rows["input_ids"].append(ids.tolist())
        rows["labels"].append(labels.tolist())
    return Dataset.from_dict(rows)
