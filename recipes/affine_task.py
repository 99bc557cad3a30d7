"""Running affine evaluation: a task that one pass cannot do, and each further pass brings a step closer.

    tokens    0  +3  *2  +6  *5 …
    labels        3   6   5   4 …      the running value modulo 7

The value at position t depends on all tokens up to t, one after the other, so a model of fixed depth meets a length at
which it fails. One that may think longer need not. A row opens with the value it starts from: without it, the first
operation attends to itself alone and cannot be told from one behind its like. It ends with its last value, which is
what `generate` writes.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, set_seed

from ..configuration import RecursiveQwenConfig
from ..modeling import RecursiveQwenForCausalLM

MODULUS = 7
VALUES = [str(value) for value in range(MODULUS)]
OPERATIONS = [f"+{value}" for value in range(MODULUS)] + [f"*{value}" for value in range(1, MODULUS)]
VOCABULARY = ["<pad>", "<unk>", *VALUES, *OPERATIONS]
IDS = {token: index for index, token in enumerate(VOCABULARY)}
CHANCE = 1 / MODULUS
# Measured on trained models: three cycles in a row lose up to a point more, five save less.
HALT_PATIENCE = 4

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "initializer_range": 96**-0.5,
    "tie_word_embeddings": False,
    "pad_token_id": IDS["<pad>"],
    "eos_token_id": [IDS[value] for value in VALUES],
}


def affine_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the task's words; a message is the words it consists of."""
    backend = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


def affine_model(seed: int, H_cycles: int = 16) -> RecursiveQwenForCausalLM:
    """One Qwen3 layer of random weights, which is the core; its update gates are open, since it has no source."""
    set_seed(seed)
    config = RecursiveQwenConfig(
        num_hidden_layers=1,
        core_range=[0, 1],
        H_cycles=H_cycles,
        L_cycles=1,
        halt_patience=HALT_PATIENCE,
        update_gate_init=1.0,
        input_gate_init=0.25,
        **SIZES,
    )
    model = RecursiveQwenForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, max_new_tokens=1
    )
    return model


def curriculum(steps: int, longest: int, share: float) -> list[int]:
    """Length of the rows of each step: it grows from 1 on, then stays.

    Args:
        share: of the steps over which it grows; with `cycles_warmup` of the same share, as the number of cycles does.
    """
    growing = share * steps
    return [1 + int((longest - 1) * min(1.0, step / growing)) for step in range(steps)]


def affine_batches(lengths: Sequence[int], tokens: int, seed: int) -> Dataset:
    """All rows of a run, those of a step side by side: long rows are few and short ones many, the tokens as many.

    Args:
        lengths: of the rows of each step.
        tokens: operations of a step, about.
        seed: of the operations.

    Returns:
        Columns `input_ids` and `labels`, each a list of rows; `collate_batches` hands them to a trainer.
    """
    counts = [max(1, tokens // length) for length in lengths]
    rows = affine_rows([length for length, count in zip(lengths, counts, strict=True) for _ in range(count)], seed)
    columns: dict[str, list[list[list[int]]]] = {}
    for name in rows.column_names:
        remaining = iter(rows[name])
        columns[name] = [list(islice(remaining, count)) for count in counts]
    return Dataset.from_dict(columns)


def collate_batches(batches: list[dict[str, list[list[int]]]]) -> dict[str, torch.Tensor]:
    """The rows of a step (B, S), all of one length."""
    (batch,) = batches
    ids_BS = torch.tensor(batch["input_ids"])
    return {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), "labels": torch.tensor(batch["labels"])}


def affine_rows(lengths: Sequence[int], seed: int) -> Dataset:
    """Random rows, one of each length: 0, the operations and the last value, with the running values as labels.

    Args:
        lengths: number of operations of each row.
        seed: of the operations.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    multiplies_RT = torch.randint(0, 2, (len(lengths), longest), generator=generator).bool()
    added_RT = torch.randint(0, MODULUS, multiplies_RT.shape, generator=generator)
    factors_RT = torch.randint(1, MODULUS, multiplies_RT.shape, generator=generator)
    numbers_RT = torch.where(multiplies_RT, factors_RT, added_RT)
    tokens_RT = IDS["+0"] + numbers_RT + torch.where(multiplies_RT, MODULUS - 1, 0)
    value_R, values = torch.zeros(len(lengths), dtype=torch.long), []
    for step in range(longest):
        number_R = numbers_RT[:, step]
        value_R = torch.where(multiplies_RT[:, step], value_R * number_R, value_R + number_R) % MODULUS
        values.append(value_R)
    labels_RT = torch.stack(values, dim=1) + IDS["0"]
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for tokens, labels, length in zip(tokens_RT.tolist(), labels_RT.tolist(), lengths, strict=True):
        rows["input_ids"].append([IDS["0"], *tokens[:length], labels[length - 1]])
        rows["labels"].append([-100, -100, *labels[:length]])
    return Dataset.from_dict(rows)


def operations_and_values(rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows of one length T, the tokens to read (R, 1 + T) and the value behind each operation (R, T)."""
    return torch.tensor(rows["input_ids"])[:, :-1], torch.tensor(rows["labels"])[:, 2:]


@torch.no_grad()
def affine_accuracy(model: Any, rows: Dataset, **call: Any) -> dict[str, float]:
    """Share of right running values, of all positions of all rows.

    Args:
        model: any causal model of this vocabulary; it is left in evaluation mode.
        rows: of one length.
        call: depth of the call: `num_cycles`, `halt_threshold`.

    Returns:
        `accuracy`, `accuracy_last` (the last value of each row alone) and, where tokens may halt, `cycles`, the mean of
        the operations.
    """
    model.eval()
    tokens_RS, labels_RT = operations_and_values(rows)
    output = model(tokens_RS, use_cache=False, **call)
    right_RT = output.logits[:, 1:].argmax(-1) == labels_RT
    measured = {"accuracy": right_RT.float().mean().item(), "accuracy_last": right_RT[:, -1].float().mean().item()}
    if getattr(output, "cycles_used", None) is not None:
        measured["cycles"] = output.cycles_used[:, 1:].float().mean().item()
    return measured


def measure_depth(
    model: Any, seed: int, *, lengths: Sequence[int], depths: Sequence[int], thresholds: Sequence[float] = (), rows: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy against depth and, of tokens that may halt, against the cycles they took.

    Args:
        seed: of the rows; another one than that of the rows learned from.
        lengths: of the rows.
        depths: numbers of cycles that every token takes.
        thresholds: how sure the halting head must be; the most cycles are those of the last depth.
        rows: of each length.

    Returns:
        `depth`: length -> cycles -> accuracy; `halting`: length -> threshold -> {"accuracy", "cycles"}. Keys are text,
        as JSON has them.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {"depth": {}, "halting": {}}
    for length in lengths:
        held_out = affine_rows([length] * rows, seed)
        found["depth"][str(length)] = {
            str(depth): affine_accuracy(model, held_out, num_cycles=depth, halt_threshold=1.0)["accuracy"]
            for depth in depths
        }
        found["halting"][str(length)] = {
            str(threshold): affine_accuracy(model, held_out, num_cycles=depths[-1], halt_threshold=threshold)
            for threshold in thresholds
        }
    return found


__all__ = [
    "CHANCE",
    "IDS",
    "MODULUS",
    "SIZES",
    "affine_accuracy",
    "affine_batches",
    "affine_model",
    "affine_rows",
    "affine_tokenizer",
    "collate_batches",
    "curriculum",
    "measure_depth",
    "operations_and_values",
]
