"""Configuration of CLaRa on Qwen3: one frozen language model, three roles, memory tokens.

    ClaraQwen3Config
      text_config           Qwen3Config, any size
      lora_*                the roles' low-rank terms on its linear layers
      doc_max_length        tokens of a passage
      compression_rates     tokens of a passage for one memory token; a checkpoint may know several

A passage of up to `doc_max_length` tokens is compressed into `doc_max_length // rate` vectors of the language model's
width, whatever its length. Source: CLaRa (arXiv 2511.18659).

New tokens stand side by side in the vocabulary, in rows that Qwen3 leaves unused:

    document_token_id         placeholder of a latent in a prompt; its own row is never read
    … + 1                     separator behind a document
    … + 2 and on              memory tokens, rate by rate, each rate `doc_max_length // rate` of them
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

from .soft_token_config import SoftTokenConfig

Role = Literal["compressor", "query_reasoner", "generator"]
ROLES: tuple[str, ...] = get_args(Role)


@strict
class ClaraQwen3Config(SoftTokenConfig):
    """Configuration of `ClaraQwen3Model` and `ClaraQwen3ForCausalLM`.

    Args:
        doc_max_length: tokens of a passage at most; longer documents are several passages.
        compression_rates: the rates that the checkpoint has memory tokens for; the first one is the default.
        lora_rank: rank of a role's low-rank terms.
        lora_alpha: they are scaled by `lora_alpha / lora_rank`.
        lora_dropout: of what a term reads, while its role trains.
        num_retrieved: documents that an answer is given from, where the call does not say.
        retrieval_temperature: cosines are divided by it before the softmax.
        document_token_id: the first of the new tokens; see above.
        stored_roles: of a graft-only repository, the roles that it stores; None: all.
        (the rest): see `SoftTokenConfig`.

    Raises:
        ValueError: lengths, rates or ranks out of range, another language model, or new tokens that do not fit into
            the vocabulary.
    """

    model_type = "clara_qwen3"
    sub_configs = {"text_config": Qwen3Config}
    token_ids = ("document_token_id",)

    doc_max_length: int = 256
    compression_rates: list[int] | tuple[int, ...] = (32,)
    lora_rank: int = 16
    lora_alpha: float | int = 32
    lora_dropout: float | int = 0.1
    num_retrieved: int = 5
    retrieval_temperature: float | int = 0.02
    document_token_id: int = 151669
    stored_roles: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.compression_rates = [int(rate) for rate in self.compression_rates]
        check_rates(self.doc_max_length, self.compression_rates)
        if self.lora_rank < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"`lora_rank` is {self.lora_rank} and `lora_dropout` {self.lora_dropout}; the rank is 1 or more, the "
                "dropout 0 (off) or more and less than 1."
            )
        if self.num_retrieved < 1 or self.retrieval_temperature <= 0:
            raise ValueError(
                f"`num_retrieved` is {self.num_retrieved} and `retrieval_temperature` {self.retrieval_temperature}; "
                "the first is 1 or more, the second more than 0."
            )
        if unknown := sorted(set(self.stored_roles or ()) - set(ROLES)):
            raise ValueError(f"`stored_roles` names {', '.join(unknown)}; the roles are {', '.join(ROLES)}.")
        rows, end = self.text_config.vocab_size, self.separator_token_id + self.num_new_embeddings
        if end > rows:
            raise ValueError(
                f"The rates {self.compression_rates} need {self.num_new_embeddings + 1} new tokens from id "
                f"{self.document_token_id} on, and the vocabulary ends at {rows}: {end - rows} too many. Choose fewer "
                "or higher rates, or a shorter `doc_max_length`."
            )

    @property
    def separator_token_id(self) -> int:
        """Id of the token behind a document."""
        return self.document_token_id + 1

    @property
    def num_new_embeddings(self) -> int:
        """Rows of the new embeddings: the separator's, then the memory tokens'."""
        return 1 + sum(map(self.num_memory_tokens, self.compression_rates))

    def num_memory_tokens(self, compression_rate: int | None = None) -> int:
        """Latents of a passage.

        Raises:
            ValueError: a rate that the checkpoint has no memory tokens for.
        """
        return len(self.memory_token_ids(compression_rate))

    def memory_token_ids(self, compression_rate: int | None = None) -> range:
        """Ids of the memory tokens of a rate; of the first one where none is given.

        Raises:
            ValueError: a rate that the checkpoint has no memory tokens for.
        """
        rate = chosen_rate(compression_rate, self.compression_rates)
        counts = [self.doc_max_length // known for known in self.compression_rates]
        position = self.compression_rates.index(rate)
        first = self.separator_token_id + 1 + sum(counts[:position])
        return range(first, first + counts[position])

    def parameter_part(self, name: str) -> str | None:
        """Which part a new parameter, by its name, is of: its role, or `"memory_tokens"`."""
        last = name.rpartition(".")[2]
        return last if last in ROLES else "memory_tokens" if last == "memory" else None


def chosen_rate(compression_rate: int | None, compression_rates: Sequence[int]) -> int:
    """The rate of a call; the checkpoint's first one where the call names none.

    Raises:
        ValueError: a rate that the checkpoint has no memory tokens for.
    """
    rate = compression_rates[0] if compression_rate is None else compression_rate
    if rate not in compression_rates:
        raise ValueError(
            f"`compression_rate` is {rate}; this checkpoint knows {len(compression_rates)}: "
            f"{', '.join(map(str, compression_rates))}."
        )
    return rate


def check_rates(doc_max_length: int, compression_rates: list[int]) -> None:
    """Whether passages can be compressed at these rates.

    Raises:
        ValueError: none, one that appears twice, or one that leaves no memory token.
    """
    if not compression_rates or len(set(compression_rates)) < len(compression_rates):
        raise ValueError(f"`compression_rates` is {compression_rates}; give one or more, each once.")
    if bad := [rate for rate in compression_rates if not 1 <= rate <= doc_max_length]:
        raise ValueError(
            f"Compression rates {bad} are out of range: a passage of {doc_max_length} tokens (`doc_max_length`) has a "
            f"memory token at rates from 1 to {doc_max_length}."
        )


__all__ = ["ROLES", "ClaraQwen3Config", "Role", "check_rates", "chosen_rate"]
