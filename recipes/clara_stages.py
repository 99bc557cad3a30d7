"""The stages a CLaRa model is trained in: what each learns, from what, and which roles train.

| stage       | loss                                                    | trains                                |
|-------------|---------------------------------------------------------|---------------------------------------|
| compression | answers about one document, and means kept together     | compressor, generator, new embeddings |
| instruction | the same about several documents                        | the same, with a new generator        |
| retrieval   | the right documents of a batch before all others        | query reasoner                        |
| end_to_end  | answers from the documents that the question chose      | query reasoner, generator             |

Source: CLaRa (arXiv 2511.18659); retrieval alone is a contrastive loss over the documents of a batch.
"""

from dataclasses import dataclass, field, fields

from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.configuration_clara_qwen3 import ROLES
from ..modeling.role_lora import copy_role, reset_role

TRAINED_PARTS = {
    "compression": ("compressor", "generator", "memory"),
    "instruction": ("compressor", "generator", "memory"),
    "retrieval": ("query_reasoner",),
    "end_to_end": ("query_reasoner", "generator"),
}
# Stages in which a question chooses its documents.
CHOOSING = ("retrieval", "end_to_end")
NEW = "new"


@dataclass
class ClaraArguments:
    """How a CLaRa model trains; for another model none may be set."""

    mse_weight: float = field(
        default=0.1, metadata={"help": "weight of the loss that keeps the means of text and memory together; 0: off"}
    )
    compression_rates: list[int] = field(
        default_factory=list,
        metadata={"help": "rates to train, of those the checkpoint knows; each batch takes one; default all"},
    )
    num_retrieved: int | None = field(
        default=None, metadata={"help": "documents that a question chooses; default the model's `num_retrieved`"}
    )
    role_starts: list[str] = field(
        default_factory=list,
        metadata={"help": "ROLE=new or ROLE=OTHER_ROLE: how a role starts, where not as the checkpoint has it"},
    )


def is_clara(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a CLaRa model, of this package's class or loaded as remote code."""
    return config.model_type == "clara_qwen3"


def check_clara(args: ClaraArguments, stage: str | None, config: PreTrainedConfig) -> None:
    """Whether a model can be trained with these settings.

    Args:
        stage: of the run.
        config: of the model.

    Raises:
        ValueError: a value out of range, a rate or role that there is not, or any setting for a model of another kind.
    """
    if not is_clara(config):
        default = ClaraArguments()
        names = [f.name for f in fields(ClaraArguments) if getattr(args, f.name) != getattr(default, f.name)]
        names += ["stage"] * (stage is not None)
        if names:
            raise ValueError(
                f"{len(names)} settings are for CLaRa models, and this is a {config.model_type!r}: leave out "
                f"{', '.join(names)}."
            )
        return
    if stage not in TRAINED_PARTS:
        raise ValueError(f"`stage` is {stage!r}; a CLaRa model trains in one of {', '.join(TRAINED_PARTS)}.")
    if args.mse_weight < 0:
        raise ValueError(f"`mse_weight` is {args.mse_weight}; it is 0 (off) or more.")
    for rate in args.compression_rates:
        config.num_memory_tokens(rate)
    if args.num_retrieved is not None and args.num_retrieved < 1:
        raise ValueError(f"`num_retrieved` is {args.num_retrieved}; a question chooses 1 document or more.")
    for pair in args.role_starts:
        role, _, start = pair.partition("=")
        if role not in ROLES or start not in (NEW, *ROLES) or start == role:
            raise ValueError(
                f"`role_starts` takes ROLE=new or ROLE=OTHER_ROLE, got {pair!r}; the roles are {', '.join(ROLES)}."
            )


def trained_names(stage: str) -> list[str]:
    """Regular expressions on the names of the parameters that a stage trains."""
    return [rf"\.{part}$" for part in TRAINED_PARTS[stage]]


def start_roles(model: PreTrainedModel, args: ClaraArguments) -> None:
    """Make roles new, or copies of others, as `role_starts` says."""
    for pair in args.role_starts:
        role, _, start = pair.partition("=")
        if start == NEW:
            reset_role(model, role)
        else:
            copy_role(model, start, role)


__all__ = [
    "CHOOSING",
    "TRAINED_PARTS",
    "ClaraArguments",
    "check_clara",
    "is_clara",
    "start_roles",
    "trained_names",
]
