"""Small tokenizers of Qwen3's kind: the same class, pre-tokenisation and special tokens, another size.

Real checkpoints bring their own tokenizer. These serve presets that are built from nothing: byte-level, so that every
text round-trips, with Qwen3's special tokens in Qwen3's order at the ids a configuration asks for.
"""

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from .thinking import set_response_template

# Order and flags of Qwen3's `added_tokens_decoder`; its first id there is 151643.
QWEN3_SPECIAL_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}
QWEN3_FIRST_SPECIAL_ID = 151643


def build_qwen_tokenizer(
    first_special_id: int, texts: Iterable[str] = (), more_special_tokens: Sequence[str] = ()
) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen3's special tokens from `first_special_id` on, whose `parse_response` knows thoughts.

    Args:
        first_special_id: id of `<|endoftext|>`; ordinary tokens lie below it. At least 256.
        texts: corpus to learn merges from; without one, a token is a byte.
        more_special_tokens: what a graft adds, behind Qwen3's.

    Raises:
        ValueError: `first_special_id` leaves no room for the 256 bytes.
    """
    if first_special_id < 256:
        raise ValueError(f"`first_special_id` must leave room for 256 bytes below it, got {first_special_id}.")
    special = QWEN3_SPECIAL_TOKENS | dict.fromkeys(more_special_tokens, True)
    backend = Qwen2Tokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=first_special_id, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    bpe = json.loads(backend.to_str())["model"]
    ordinary = sorted((token for token in bpe["vocab"] if token not in special), key=bpe["vocab"].get)
    vocab = {token: index for index, token in enumerate(ordinary)}
    vocab |= {token: first_special_id + index for index, token in enumerate(special)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in bpe["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken(t, special=flag, normalized=False) for t, flag in special.items()])
    return set_response_template(tokenizer)
