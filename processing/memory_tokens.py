"""The tokens that CLaRa adds to a Qwen3 tokenizer: real special tokens of a fast tokenizer, in rows the model has left.

They are known by their names and survive every copy, pickle and save of the tokenizer. Their order is that of
`ClaraQwen3Config`: placeholder, separator, memory tokens rate by rate.
"""

from collections.abc import Sequence

from transformers import AddedToken, PreTrainedTokenizerBase

from ..configuration.configuration_clara_qwen3 import check_rates

DOCUMENT_TOKEN = "<|document_pad|>"
SEPARATOR_TOKEN = "<|document_sep|>"


def memory_token_names(doc_max_length: int, compression_rate: int) -> list[str]:
    """Names of the memory tokens of a rate."""
    return [f"<|mem_{compression_rate}_{index}|>" for index in range(doc_max_length // compression_rate)]


def new_token_names(doc_max_length: int, compression_rates: Sequence[int]) -> list[str]:
    """Names of all new tokens, in the order of their ids.

    Raises:
        ValueError: rates that a passage of that length cannot have.
    """
    check_rates(doc_max_length, list(compression_rates))
    memory = [name for rate in compression_rates for name in memory_token_names(doc_max_length, rate)]
    return [DOCUMENT_TOKEN, SEPARATOR_TOKEN, *memory]


def add_memory_tokens(
    tokenizer: PreTrainedTokenizerBase, doc_max_length: int, compression_rates: Sequence[int]
) -> PreTrainedTokenizerBase:
    """Give a tokenizer the new tokens behind those it has; the same tokenizer is returned.

    Raises:
        ValueError: rates out of range, a tokenizer that has memory tokens of other rates already, or one whose ids have
            gaps.
    """
    names = new_token_names(doc_max_length, compression_rates)
    vocabulary = tokenizer.get_vocab()
    if not set(names) <= vocabulary.keys():
        if DOCUMENT_TOKEN in vocabulary:
            raise ValueError(
                f"The tokenizer has memory tokens already, and of these {len(names)} it lacks "
                f"{len(set(names) - vocabulary.keys())}. Start from the language model's own tokenizer."
            )
        if len(vocabulary) <= (highest := max(vocabulary.values())):
            # They would stand behind the highest id now, and in the first gap when the tokenizer is loaded again.
            raise ValueError(
                f"The tokenizer has {len(vocabulary)} tokens and ids up to {highest}: new tokens would move into the "
                "gaps when it is saved. Use one whose ids follow each other."
            )
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    first_new_id(tokenizer, doc_max_length, compression_rates)
    return tokenizer


def first_new_id(tokenizer: PreTrainedTokenizerBase, doc_max_length: int, compression_rates: Sequence[int]) -> int:
    """Id of the first new token, `ClaraQwen3Config.document_token_id`.

    Raises:
        ValueError: the tokenizer lacks some of the tokens, or they do not stand side by side.
    """
    names, vocabulary = new_token_names(doc_max_length, compression_rates), tokenizer.get_vocab()
    if missing := [name for name in names if name not in vocabulary]:
        raise ValueError(
            f"The tokenizer lacks {len(missing)} of {len(names)} tokens of `doc_max_length` {doc_max_length} at "
            f"compression rates {list(compression_rates)}: {', '.join(missing[:3])}{', …' if missing[3:] else ''}. "
            "Use the one that was saved with the model."
        )
    ids = [vocabulary[name] for name in names]
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ValueError(
            f"The {len(ids)} memory tokens have ids from {min(ids)} to {max(ids)} that do not follow each other; the "
            "tokenizer was changed after they were added. Use the one that was saved with the model."
        )
    return ids[0]


__all__ = [
    "DOCUMENT_TOKEN",
    "SEPARATOR_TOKEN",
    "add_memory_tokens",
    "first_new_id",
    "memory_token_names",
    "new_token_names",
]
