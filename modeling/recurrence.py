"""The pieces of a recurrence over layers: where states start and how they move, which tokens stop, where a graph ends.

Shapes: B batch, S tokens of a call, D width.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from ..configuration.configuration_recursive_qwen import RecursiveQwenConfig


class Recurrence(nn.Module):
    """What is new beside the halting head: where the two states start and how far each run of the core moves them.

    A number a channel each.
    """

    def __init__(self, config: RecursiveQwenConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.H_init, self.L_init = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.input_gate_H, self.input_gate_L = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.update_gate_H, self.update_gate_L = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.reset_parameters(config)

    def reset_parameters(self, config: RecursiveQwenConfig) -> None:
        """States that start at nothing, and gates as the configuration says."""
        for state in (self.H_init, self.L_init):
            nn.init.zeros_(state)
        for gate in (self.input_gate_H, self.input_gate_L):
            nn.init.constant_(gate, config.input_gate_init)
        for gate in (self.update_gate_H, self.update_gate_L):
            nn.init.constant_(gate, config.update_gate_init)

    def forward(self, embedded: torch.Tensor) -> "Moves":
        """The numbers for a call on (B, S, D) embeddings, in their dtype and on their device.

        A method that read the parameters without this call would not find those that were offloaded.
        """
        starts = self.H_init, self.L_init
        gates = self.input_gate_H, self.input_gate_L, self.update_gate_H, self.update_gate_L
        return Moves(embedded, *(number.to(embedded) for number in starts + gates))


class Moves(NamedTuple):
    """How the states of a call move.

    Attributes:
        high_input, low_input, high_update, low_update: a_H, a_L, g and b of `modeling_recursive_qwen.py`'s formula.
    """

    embedded: torch.Tensor
    high_init: torch.Tensor
    low_init: torch.Tensor
    high_input: torch.Tensor
    low_input: torch.Tensor
    high_update: torch.Tensor
    low_update: torch.Tensor

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """z_H and z_L before the first run, (B, S, D) each."""
        return self.embedded + self.high_init, self.low_init.expand_as(self.embedded)

    def core_input(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """u of the formula, (B, S, D)."""
        return torch.addcmul(torch.lerp(self.embedded, high, self.high_input), self.low_input, low)


class HaltingHead(nn.Linear):
    """How sure a token is of what it will say, read off its high state; TRM's `q_head`, one for every token."""

    def forward(self, high: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S) logits. The state is a residual stream, of any length, so it is normalised first."""
        normed = high * torch.rsqrt(high.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(high.dtype)
        return super().forward(normed).squeeze(-1)


class SegmentEnds:
    """The cycles of a call that are supervised, and so how its graph is cut.

    Args:
        supervised_cycles: numbers of cycles, the first being 1; None: none but the last, and no cut.
        cycles: how many the call makes.
        gradient_cycles: how many cycles before each of them are part of the graph; None: all.

    Raises:
        ValueError: cycles that are not made, or no cycle with a gradient.
    """

    def __init__(self, supervised_cycles: Collection[int] | None, cycles: int, gradient_cycles: int | None) -> None:
        asked = set(supervised_cycles or ())
        if wrong := sorted(asked - set(range(1, cycles + 1))):
            raise ValueError(f"`supervised_cycles` asks for {wrong}; this call makes cycles 1 to {cycles}.")
        if gradient_cycles is not None and gradient_cycles < 1:
            raise ValueError(f"`gradient_cycles` is {gradient_cycles}; at least the last cycle has a gradient.")
        self.ends = sorted(asked | {cycles})
        self.gradient_cycles, self.cutting = gradient_cycles, supervised_cycles is not None

    def __contains__(self, number: int) -> bool:
        return number in self.ends

    def in_graph(self, cycle: int) -> bool:
        """Whether the cycle with this index, from 0 on, is part of the graph."""
        end = next(end for end in self.ends if end > cycle)
        return self.gradient_cycles is None or cycle >= end - self.gradient_cycles

    def cuts(self, cycle: int) -> bool:
        """Whether the states are cut from the graph behind it."""
        return self.cutting and cycle + 1 in self.ends


class Halting:
    """Which tokens of a call have stopped thinking.

    Attributes:
        halted: (B, S); None as long as no token has, so that nothing is spent on keeping tokens apart.
        used: (B, S) cycles that each token took.
    """

    def __init__(self, padding_BS: torch.Tensor, cycles: int, threshold: float, patience: int) -> None:
        self.padding, self.threshold, self.patience = padding_BS, threshold, patience
        self.halted: torch.Tensor | None = None
        self.sure_for = torch.zeros_like(padding_BS, dtype=torch.long)
        self.used = torch.full_like(self.sure_for, cycles)
        self.count = 0

    def rest(self, state: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """(B, S, D) states in which halted tokens have not moved."""
        return moved if self.halted is None else torch.where(self.halted.unsqueeze(-1), state, moved)

    def step(self, halt_logits_BS: torch.Tensor, cycle: int) -> bool:
        """Halt who has been sure for long enough; padding need not think twice. Returns whether all have halted."""
        sure = halt_logits_BS.sigmoid() > self.threshold
        self.sure_for = torch.where(sure, self.sure_for + 1, 0)
        stopping = (self.sure_for >= self.patience) | self.padding
        if self.halted is not None:
            stopping = stopping & ~self.halted
        count = int(stopping.sum())
        if count:
            self.used = torch.where(stopping, cycle + 1, self.used)
            self.halted = stopping if self.halted is None else self.halted | stopping
            self.count += count
        return self.count == stopping.numel()


def padding_of(attention_mask: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """(B, S), True on the padding of this call, which need not think twice."""
    batch, length = inputs_embeds.shape[:2]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask[:, -length:] == 0
    return torch.zeros((batch, length), dtype=torch.bool, device=inputs_embeds.device)


__all__ = ["Halting", "HaltingHead", "Recurrence", "SegmentEnds", "padding_of"]
