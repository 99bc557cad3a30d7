"""Training of recursive models: how many cycles a step makes, which it supervises, which it keeps in the graph.

- Random depth: each step draws its number of cycles, so that the model works at any (arXiv 2502.05171).
- Growing depth: the first steps make few cycles (arXiv 2511.07384).
- Deep supervision: a loss behind every cycle, the states cut between them (TRM, arXiv 2510.04871).
- Truncated backpropagation: only the last cycles are part of the graph.
- The halting head learns whether the token chosen at a cycle is right.
- The embedding objective: the state is to be the next token's embedding, and no logits are made.
- An exponential moving average of the weights, which the run ends with (`weight_average.py`).

Shapes: B rows, S tokens of a row, N supervised positions of all rows, V vocabulary, D width, C supervised cycles.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from trl import SFTConfig

from .graft_trainer import GraftSFTTrainer
from .weight_average import WeightAverage

OBJECTIVES = ("tokens", "embeddings")


@dataclass
class RecursionArguments:
    """How a recursive model trains; for another model none may be set."""

    train_cycles: list[int] = field(
        default_factory=list,
        metadata={"help": "cycles of a step, or the least and the most that each step draws from; default `H_cycles`"},
    )
    cycles_warmup: float = field(
        default=0.0, metadata={"help": "share of the steps over which the number of cycles grows, from 1 on"}
    )
    deep_supervision: bool = field(
        default=False, metadata={"help": "a loss behind every cycle, the states cut between them"}
    )
    gradient_cycles: int | None = field(
        default=None, metadata={"help": "backpropagate through this many cycles only, the last ones"}
    )
    halt_loss_weight: float = field(default=0.5, metadata={"help": "weight of the halting head's loss; 0 freezes it"})
    objective: str = field(
        default="tokens", metadata={"help": "tokens: cross-entropy; embeddings: the state is to be the next embedding"}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "decay a step of a moving average of the weights, which the run ends with"}
    )
    freeze_embeddings: bool = field(default=False, metadata={"help": "the input embeddings stay as they are"})
    freeze_head: bool = field(default=False, metadata={"help": "the language-model head stays as it is"})
    freeze_outer_layers: bool = field(
        default=False, metadata={"help": "the layers before and behind the core, and the last norm, stay as they are"}
    )


def is_recursive(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a recursive model, of this package's class or loaded as remote code."""
    return config.model_type == "recursive_qwen"


def check_recursion(args: RecursionArguments, config: PreTrainedConfig) -> None:
    """Whether a model can be trained with these settings.

    Args:
        config: of the model.

    Raises:
        ValueError: a value out of range, two that contradict each other, or any for a model that is not recursive.
    """
    if not is_recursive(config):
        default = RecursionArguments()
        names = [f.name for f in fields(RecursionArguments) if getattr(args, f.name) != getattr(default, f.name)]
        if names:
            raise ValueError(
                f"{len(names)} settings are for recursive models, and this is a {config.model_type!r}: leave out "
                f"{', '.join(names)}."
            )
        return
    depths = args.train_cycles
    if len(depths) > 2 or any(depth < 1 for depth in depths) or depths != sorted(depths):
        raise ValueError(
            f"`train_cycles` is {depths}; give one number of cycles, or the least and the most, from 1 on."
        )
    if not 0 <= args.cycles_warmup <= 1:
        raise ValueError(f"`cycles_warmup` is {args.cycles_warmup}; it is a share of the steps, 0 (off) to 1.")
    if args.gradient_cycles is not None and args.gradient_cycles < 1:
        raise ValueError(f"`gradient_cycles` is {args.gradient_cycles}; at least the last cycle has a gradient.")
    if args.gradient_cycles is not None and args.deep_supervision:
        raise ValueError(
            f"`gradient_cycles` is {args.gradient_cycles}, and with `deep_supervision` the graph of each loss is one "
            "cycle long. Choose one."
        )
    if args.halt_loss_weight < 0:
        raise ValueError(f"`halt_loss_weight` is {args.halt_loss_weight}; it is 0 or more.")
    if args.objective not in OBJECTIVES:
        raise ValueError(f"`objective` is {args.objective!r}, neither {' nor '.join(OBJECTIVES)}.")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"`ema_decay` is {args.ema_decay}; it is 0 (off) or more, and less than 1.")
    if config.tie_word_embeddings and args.objective == "tokens" and args.freeze_embeddings != args.freeze_head:
        raise ValueError(
            "Embeddings and head are one tensor in this model (`tie_word_embeddings`): set `freeze_embeddings` and "
            "`freeze_head` alike."
        )


def frozen_parts(model: PreTrainedModel, args: RecursionArguments) -> list[nn.Module]:
    """What the flags name and what the objective has no use for; nothing of a model that is not recursive.

    Args:
        model: with or without PEFT.
    """
    if not is_recursive(model.config):
        return []
    model = model.get_base_model() if is_peft_model(model) else model
    backbone, head = model.base_model, model.get_output_embeddings()
    first, last = model.config.core_range
    frozen: list[nn.Module] = []
    if args.freeze_embeddings or args.objective == "embeddings":
        # The embeddings are the target there: were they trained, all of them would soon be the same.
        frozen.append(backbone.embed_tokens)
    if args.freeze_head or args.objective == "embeddings":
        frozen.append(head)
    if args.freeze_outer_layers:
        frozen += [*backbone.layers[:first], *backbone.layers[last:], backbone.norm]
    if args.halt_loss_weight == 0 or args.objective == "embeddings":
        frozen.append(backbone.q_head)
    return frozen


class RecursiveSFTTrainer(GraftSFTTrainer):
    """`GraftSFTTrainer` for recursive models. It freezes what `recursion` says.

    Evaluation is at the configuration's depth, with its halting rule, and of the last step's weights.

    Args:
        model: a `RecursiveQwenForCausalLM`.
        recursion: how deep each step goes and what it learns from.

    Raises:
        ValueError: settings out of range, or that this loss does not know.
    """

    def __init__(
        self, model: PreTrainedModel, args: SFTConfig, *more: Any, recursion: RecursionArguments, **kwargs: Any
    ) -> None:
        check_recursion(recursion, model.config)
        if args.loss_type != "nll" or args.label_smoothing_factor or kwargs.get("compute_loss_func"):
            raise ValueError(
                "Recursive models train on a loss of their own; leave out `loss_type`, `label_smoothing_factor` and "
                "`compute_loss_func`."
            )
        if recursion.ema_decay and args.load_best_model_at_end:
            raise ValueError(
                "`load_best_model_at_end` ends a run with a checkpoint's weights and `ema_decay` with the average. "
                "Choose one."
            )
        if args.ddp_find_unused_parameters is None:
            # A step of one run of the core has no gates, and one that is cut short no first states.
            args.ddp_find_unused_parameters = True
        self.recursion = recursion
        self.average: WeightAverage | None = None
        super().__init__(model, args, *more, **kwargs)
        for module in frozen_parts(self.model, recursion):
            module.requires_grad_(False)
        if recursion.ema_decay:
            self.average = WeightAverage(self, recursion.ema_decay)
            self.add_callback(self.average)

    def cycles_of_step(self, step: int) -> int:
        """Cycles that a step makes: the same on all processes, and in a run that was resumed."""
        depths = self.recursion.train_cycles or [self.model.config.H_cycles]
        if (steps := self.recursion.cycles_warmup * self.state.max_steps) > step:
            depths = [1 + int((depth - 1) * step / steps) for depth in depths]
        return random.Random(f"{self.args.seed} {step}").randint(depths[0], depths[-1])

    def own_head(self) -> bool:
        """In training, always: TRL's fused head knows one state a token, and neither cycles nor halting."""
        return self.model.training or super().own_head()

    def forward_options(self) -> dict[str, Any]:
        """The depth of a step, and what of it is supervised and kept in the graph."""
        if not self.model.training:
            return {}
        cycles = self.cycles_of_step(self.state.global_step)
        return {
            "num_cycles": cycles,
            "supervised_cycles": range(1, cycles + 1) if self.recursion.deep_supervision else None,
            "gradient_cycles": self.recursion.gradient_cycles,
        }

    def summed_loss(
        self, outputs: Any, labels_N: torch.Tensor, positions_BS: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over the supervised cycles of the token loss and, weighted, of the halting head's."""
        if not self.model.training:
            return super().summed_loss(outputs, labels_N, positions_BS, inputs)
        logits_CNV = [logits.float()[0] for logits in outputs.cycle_logits or (outputs.logits,)]
        halt_NC = outputs.halt_logits[positions_BS].float()
        learned_N = labels_N != -100
        total = halt_NC.new_zeros(())
        for logits_NV, halt_N in zip(logits_CNV, halt_NC.unbind(-1), strict=True):
            token_loss = functional.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum")
            right_N = (logits_NV.argmax(-1) == labels_N).float()
            halt_loss_N = functional.binary_cross_entropy_with_logits(halt_N, right_N, reduction="none")
            halt_loss = (halt_loss_N * learned_N).sum()
            total = total + token_loss + self.recursion.halt_loss_weight * halt_loss
        self._record("cycles", float(self.cycles_of_step(self.state.global_step)))
        self._record_mean("token_loss", token_loss, learned_N.sum())
        self._record_mean("halting_loss", halt_loss, learned_N.sum())
        return total / len(logits_CNV), logits_CNV[-1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The base's loss, or that of the embedding objective, in which the head has no part.

        That one is the mean over supervised tokens, and over supervised cycles, of the cosine distance (0 to 2) between
        a state behind the last norm and the embedding of the next token.
        """
        if self.recursion.objective == "tokens":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        positions_BS, labels_N = self.supervised_positions(inputs)
        learned_N = labels_N != -100
        forward_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        with _head_aside(self.model, positions_BS):
            outputs = model(**forward_inputs, **self.forward_options(), use_cache=False)
        target_ND = _embeddings_of(self.model, labels_N.clamp(min=0))
        totals = [
            ((1 - functional.cosine_similarity(states[0].float(), target_ND, dim=-1)) * learned_N).sum()
            for states in outputs.cycle_logits or (outputs.logits,)
        ]
        if self.model.training:
            self._record("cycles", float(self.cycles_of_step(self.state.global_step)))
        self._record_mean("cosine_distance", totals[-1], learned_N.sum())
        loss = self.per_item(torch.stack(totals).mean(), labels_N, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _record(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and, with a checkpoint that training can go on from, the moving average."""
        super().save_model(output_dir, _internal_call)
        if self.average is not None and not self.average.in_model:
            self.average.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights of a checkpoint, and the average it holds."""
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)


@contextmanager
def _head_aside(model: nn.Module, positions_BS: torch.Tensor) -> Iterator[None]:
    """Within it the head computes nothing and hands on what it would have read at these positions: (1, N, D).

    The states become the model's output in this way: what a sharded model does before its backward pass hangs on that.
    """
    head, held = model.get_output_embeddings(), []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        held.append(inputs[0][positions_BS][None])
        return (inputs[0][:1, :0],)

    handles = [head.register_forward_pre_hook(keep), head.register_forward_hook(lambda *_: held.pop())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _embeddings_of(model: nn.Module, tokens_N: torch.Tensor) -> torch.Tensor:
    """(N, D), in float32 and without a graph; sharded ones are put together."""
    table_VD = model.get_input_embeddings().weight.detach()
    return (table_VD.full_tensor() if isinstance(table_VD, DTensor) else table_VD)[tokens_N].float()


__all__ = ["RecursionArguments", "RecursiveSFTTrainer", "check_recursion", "frozen_parts", "is_recursive"]
