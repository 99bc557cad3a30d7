"""Training of recursive models: how many cycles a step makes, which it supervises, which it keeps in the graph.

- Random depth: each step draws its number of cycles, so that the model works at any (arXiv 2502.05171).
- Deep supervision: a loss behind every cycle, the states cut between them (TRM, arXiv 2510.04871).
- Truncated backpropagation: only the last cycles are part of the graph.
- The halting head learns whether the token chosen at a cycle is right.
- The embedding objective: the state is to be the next token's embedding, and no logits are made.
- An exponential moving average of the weights, which the run ends with.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .graft_trainer import GraftSFTTrainer

EMA_FILE = "ema.safetensors"


@dataclass
class RecursionArguments:
    """How a recursive model trains; other models ignore it."""

    train_cycles: list[int] = field(
        default_factory=list,
        metadata={"help": "cycles of a step, or the least and the most that each step draws from; default `H_cycles`"},
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


def check_recursion(args: RecursionArguments) -> None:
    """Whether the settings can be run.

    Raises:
        ValueError: a value out of range.
    """
    depths = args.train_cycles
    if len(depths) > 2 or any(depth < 1 for depth in depths) or depths != sorted(depths):
        raise ValueError(
            f"`train_cycles` is {depths}; give one number of cycles, or the least and the most, from 1 on."
        )
    if args.gradient_cycles is not None and args.gradient_cycles < 1:
        raise ValueError(f"`gradient_cycles` is {args.gradient_cycles}; at least the last cycle has a gradient.")
    if args.halt_loss_weight < 0:
        raise ValueError(f"`halt_loss_weight` is {args.halt_loss_weight}; it is 0 or more.")
    if args.objective not in ("tokens", "embeddings"):
        raise ValueError(f"`objective` is {args.objective!r}, neither tokens nor embeddings.")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"`ema_decay` is {args.ema_decay}; it is 0 (off) or more, and less than 1.")


def freeze_parts(model: PreTrainedModel, args: RecursionArguments) -> None:
    """Freeze what the flags name, and what the objective has no use for.

    Raises:
        ValueError: one of two tied parts is to be frozen and the other not.
    """
    backbone, head = model.base_model, model.get_output_embeddings()
    tied = head.weight is backbone.embed_tokens.weight
    if tied and args.objective == "tokens" and args.freeze_embeddings != args.freeze_head:
        raise ValueError(
            "Embeddings and head are one tensor in this model (`tie_word_embeddings`): set `freeze_embeddings` and "
            "`freeze_head` alike."
        )
    first, last = model.config.core_range
    frozen: list[nn.Module] = []
    if args.freeze_embeddings or args.objective == "embeddings":
        # The embeddings are the target there: one that moves is met at the same point by all of them.
        frozen.append(backbone.embed_tokens)
    if args.freeze_head or args.objective == "embeddings":
        frozen.append(head)
    if args.freeze_outer_layers:
        frozen += [*backbone.layers[:first], *backbone.layers[last:], backbone.norm]
    if args.halt_loss_weight == 0 or args.objective == "embeddings":
        frozen.append(backbone.q_head)
    for module in frozen:
        module.requires_grad_(False)


class RecursiveSFTTrainer(GraftSFTTrainer):
    """`GraftSFTTrainer` for recursive models.

    Args:
        recursion: how deep each step goes and what it learns from.

    Raises:
        ValueError: settings out of range.
    """

    def __init__(self, *args: Any, recursion: RecursionArguments, **kwargs: Any) -> None:
        check_recursion(recursion)
        self.recursion = recursion
        super().__init__(*args, **kwargs)
        self.average = WeightAverage(self, recursion.ema_decay) if recursion.ema_decay else None
        if self.average is not None:
            self.add_callback(self.average)

    def cycles_of_step(self, step: int) -> int:
        """Cycles that a step makes: the same on all processes, and in a run that was resumed."""
        depths = self.recursion.train_cycles or [self.model.config.H_cycles]
        return random.Random(f"{self.args.seed} {step}").randint(depths[0], depths[-1])

    def own_head(self) -> bool:
        """TRL's fused head knows one state a token, and neither cycles nor halting."""
        return self.model.training or super().own_head()

    def forward_options(self) -> dict[str, Any]:
        """The depth of a step, and what of it is supervised and kept in the graph."""
        if not self.model.training:
            return {}
        cycles = self.cycles_of_step(self.state.global_step)
        supervised = range(1, cycles + 1) if self.recursion.deep_supervision else None
        return {
            "num_cycles": cycles,
            "supervised_cycles": supervised,
            "gradient_cycles": self.recursion.gradient_cycles,
        }

    def summed_loss(
        self, outputs: Any, labels_N: torch.Tensor, positions_BS: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over the supervised cycles of the token loss and, weighted, of the halting head's."""
        if not self.model.training:
            return super().summed_loss(outputs, labels_N, positions_BS)
        metrics = self._metrics["train"]
        states = [logits.float()[0] for logits in outputs.cycle_logits or (outputs.logits,)]
        halt_NC = outputs.halt_logits[positions_BS].float()
        learned_N = labels_N != -100
        total = states[-1].new_zeros(())
        for cycle, logits_NV in enumerate(states):
            token_loss = functional.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum")
            right_N = (logits_NV.argmax(-1) == labels_N).float()
            halt_loss_N = functional.binary_cross_entropy_with_logits(halt_NC[:, cycle], right_N, reduction="none")
            total = total + token_loss + self.recursion.halt_loss_weight * (halt_loss_N * learned_N).sum()
        count = learned_N.sum().clamp(min=1)
        metrics["cycles"].append(self.cycles_of_step(self.state.global_step))
        metrics["token_loss"].append((token_loss.detach() / count).item())
        metrics["halting_loss"].append(((halt_loss_N.detach() * learned_N).sum() / count).item())
        return total / len(states), states[-1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The base's loss, or that of the embedding objective, in which the head has no part."""
        if self.recursion.objective == "tokens":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        positions_BS, labels_N = self.supervised_positions(inputs)
        forward_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        with _head_off(self.model, positions_BS) as states:
            outputs = model(**forward_inputs, **self.forward_options(), use_cache=False)
        learned_N = labels_N != -100
        target_ND = self.model.get_input_embeddings().weight[labels_N.clamp(min=0)].detach().float()
        distances = [1 - functional.cosine_similarity(state_ND.float(), target_ND, dim=-1) for state_ND in states]
        total = sum((distance_N * learned_N).sum() for distance_N in distances) / len(distances)
        if self.model.training:
            self._metrics["train"]["cosine_distance"].append(distances[-1].detach()[learned_N].mean().item())
        loss = self.per_item(total, labels_N, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save, and the moving average with a checkpoint that training can go on from."""
        super()._save(output_dir, state_dict)
        if self.average is not None and not self.average.in_model:
            self.average.save(Path(output_dir or self.args.output_dir))


@contextmanager
def _head_off(model: nn.Module, positions_BS: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Within it the head sees nothing; what it would see, (N, D) at these positions, is in the list, state by state."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(inputs[0][positions_BS])
        return (inputs[0][:1, :0],)

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


class WeightAverage(TrainerCallback):
    """An exponential moving average of the trained weights; it takes their place when training ends.

    Attributes:
        in_model: the model holds the average, and no longer the last step's weights.
    """

    def __init__(self, trainer: RecursiveSFTTrainer, decay: float) -> None:
        self.trainer, self.decay = trainer, decay
        self.in_model = False
        self.tensors: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the weights, or from the checkpoint that training goes on from."""
        self.in_model = False
        self.tensors = {name: parameter.detach().clone() for name, parameter in self._trained()}
        if state.global_step == 0:
            return
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / EMA_FILE
        if not path.is_file():
            raise ValueError(
                f"{path.parent.name} holds no {EMA_FILE}; it was written without `ema_decay`. Resume without it, or "
                "start again."
            )
        self.tensors = {name: tensor.to(self.tensors[name].device) for name, tensor in load_file(path).items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step of the average; it follows faster at the start, where the first weights are still far off."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, parameter in self._trained():
                self.tensors[name].lerp_(parameter.detach(), 1 - decay)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The average becomes the model."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self.tensors[name])
        self.in_model = True

    def save(self, directory: Path) -> None:
        """Write the average, in one step."""
        partial = directory / f"{EMA_FILE}.partial"
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, partial)
        partial.replace(directory / EMA_FILE)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
