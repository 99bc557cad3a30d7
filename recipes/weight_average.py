"""An exponential moving average of the weights that a run trains, which the run ends with (TRM, arXiv 2510.04871)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE_NAME = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """The average, in float32; it takes the weights' place when training ends.

    Args:
        trainer: its model's trained weights are averaged.
        decay: what of the average is left after a step; less in the first steps, whose weights are still far off:
            (1 + step) / (10 + step).

    Attributes:
        in_model: the model holds the average, and no longer the last step's weights.
    """

    def __init__(self, trainer: Trainer, decay: float) -> None:
        self.trainer, self.decay = trainer, decay
        self.in_model = False
        self.tensors: dict[str, torch.Tensor] = {}
        self._loaded: dict[str, torch.Tensor] | None = None

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint's average when training begins.

        Raises:
            ValueError: it has none, or that of other weights.
        """
        path = checkpoint / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"{checkpoint.name} holds no {FILE_NAME}: it was written without `ema_decay`. Resume without it, or "
                "start again in another `output_dir`."
            )
        self._loaded = load_file(path)
        trained = {name for name, _ in self._trained()}
        if different := trained ^ self._loaded.keys():
            raise ValueError(
                f"{path.parent.name}/{FILE_NAME} averages {len(self._loaded)} weights and this run trains "
                f"{len(trained)}; {len(different)} differ, as {min(different)}. Freeze what the first run froze."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the weights, or from what was loaded."""
        self.in_model = False
        self.tensors = {name: parameter.detach().float().clone() for name, parameter in self._trained()}
        for name, whole in (self._loaded or {}).items():
            own = self.tensors[name]
            own.copy_(distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole)
        self._loaded = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step of the average."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, parameter in self._trained():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The average becomes the model."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self.tensors[name])
        self.in_model = True

    def save(self, directory: Path) -> None:
        """Write the average, in one step; every process has to call it, and the first one writes."""
        whole = {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous()
            for name, tensor in self.tensors.items()
        }
        if not self.trainer.args.should_save:
            return
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{FILE_NAME}.partial"
        save_file(whole, partial)
        partial.replace(directory / FILE_NAME)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


__all__ = ["FILE_NAME", "WeightAverage"]
