"""One frozen language model in several roles: each role has low-rank terms of its own on every linear layer.

    role r:   W x + (alpha / rank) U_r D_r x

D and U are LoRA's A and B (arXiv 2106.09685), and a role's terms are a LoRA adapter of the stock Qwen3: `role_tensors`
gives them as PEFT names them, `hub_cards/role_adapters.py` writes them as PEFT stores them. They are no PEFT modules
inside the model because PEFT's active adapter is a state of the model: layers that gradient checkpointing recomputes
would run in whatever role came last. Here the role is an argument of the call (`CallBoundLayer`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .call_bound_layers import CallBoundLayer


class RoleTerms(nn.ParameterDict):
    """One matrix a role."""

    def __init__(self, roles: Sequence[str], rows: int, columns: int) -> None:
        super().__init__({role: nn.Parameter(torch.empty(rows, columns)) for role in roles})

    def reset(self, roles: Sequence[str]) -> None:
        """Make roles new: their terms start at nothing, and not at a point where they would stay nothing."""
        raise NotImplementedError


class RoleDown(RoleTerms):
    """D, (rank, in)."""

    def reset(self, roles: Sequence[str]) -> None:
        for role in roles:
            nn.init.kaiming_uniform_(self[role], a=math.sqrt(5))


class RoleUp(RoleTerms):
    """U, (out, rank)."""

    def reset(self, roles: Sequence[str]) -> None:
        for role in roles:
            nn.init.zeros_(self[role])


class RoleLinear(nn.Linear):
    """A linear layer with a low-rank term a role; without a role it is the stock layer."""

    def __init__(self, linear: nn.Linear, roles: Sequence[str], rank: int, alpha: float, dropout: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.role_down = RoleDown(roles, rank, self.in_features)
        self.role_up = RoleUp(roles, self.out_features, rank)
        self.scaling, self.dropout = alpha / rank, dropout
        self.role: str | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out). Dropout belongs to a role that trains: a frozen one is the same in training."""
        output = super().forward(hidden_states)
        if self.role is None:
            return output
        down, up = self.role_down[self.role], self.role_up[self.role]
        read = functional.dropout(hidden_states.to(down.dtype), self.dropout, self.training and down.requires_grad)
        return output + (self.scaling * functional.linear(functional.linear(read, down), up)).to(output.dtype)


class RoleQwen3DecoderLayer(CallBoundLayer, Qwen3DecoderLayer):
    """Qwen3's layer in the role that the call names."""

    linear_class, argument, default = RoleLinear, "role", None


def role_linears(model: nn.Module) -> Iterator[tuple[str, RoleLinear]]:
    """All linear layers with roles, and their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RoleLinear))


@torch.no_grad()
def copy_role(model: nn.Module, source: str, target: str) -> None:
    """Give a role the terms of another one."""
    for _, linear in role_linears(model):
        for terms in (linear.role_down, linear.role_up):
            terms[target].copy_(terms[source])


@torch.no_grad()
def reset_role(model: nn.Module, role: str) -> None:
    """Make a role new."""
    for _, linear in role_linears(model):
        linear.role_down.reset([role])
        linear.role_up.reset([role])


def role_tensors(language_model: nn.Module, role: str) -> dict[str, torch.Tensor]:
    """A role as PEFT stores an adapter of a stock `Qwen3ForCausalLM`: name -> tensor."""
    tensors = {}
    for name, linear in role_linears(language_model):
        tensors[f"base_model.model.model.{name}.lora_A.weight"] = linear.role_down[role].detach()
        tensors[f"base_model.model.model.{name}.lora_B.weight"] = linear.role_up[role].detach()
    return tensors


@torch.no_grad()
def load_role_tensors(language_model: nn.Module, role: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a role from an adapter in PEFT's names.

    Raises:
        ValueError: tensors are missing, of another shape, or have no place to go; nothing was changed.
    """
    expected = role_tensors(language_model, role)
    differing = sorted(expected.keys() ^ tensors.keys())
    differing += [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if differing:
        raise ValueError(
            f"The adapter does not fit the role {role!r}: {len(differing)} of {len(expected)} tensors are missing, too "
            f"many or of another shape, the first of them {differing[0]}. It must adapt all linear layers of a Qwen3 "
            "of this size, with this rank."
        )
    for name, tensor in expected.items():
        tensor.copy_(tensors[name])


__all__ = [
    "RoleLinear",
    "RoleQwen3DecoderLayer",
    "RoleTerms",
    "copy_role",
    "load_role_tensors",
    "reset_role",
    "role_linears",
    "role_tensors",
]
