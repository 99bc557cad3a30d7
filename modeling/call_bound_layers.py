"""Decoder layers whose linear modules add low-rank terms that the call chooses: a cycle's own, a role's own.

Which terms a layer adds travels with the call and not in the module, because a layer that gradient checkpointing
recomputes runs again long after its forward pass, when another call may have come between. Layers are stock; their
linear modules were exchanged.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


class CallBoundLayer:
    """Put before a stock decoder layer.

    Attributes:
        linear_class: what stands in place of `nn.Linear` in attention and MLP.
        argument: keyword of `forward`, and attribute of the linear modules, that says which terms are added.
        default: its value where the call says nothing.
    """

    linear_class: type[nn.Linear]
    argument: str
    default: Any

    def exchange_linears(self, *settings: Any) -> None:
        """Give attention and MLP linear layers with terms, made as `linear_class(stock, *settings)`."""
        for parent in (self.self_attn, self.mlp):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(parent, name, self.linear_class(module, *settings))

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock layer's, with the terms that the call names."""
        chosen = kwargs.pop(self.argument, self.default)
        for module in self.modules():
            if isinstance(module, self.linear_class):
                setattr(module, self.argument, chosen)
        return super().forward(hidden_states, *args, **kwargs)


NOT_SPLIT = (
    "Tensor parallelism would split this model's linear layers and leave their low-rank terms whole. Load it with "
    '`device_map="auto"`, which gives each device whole layers.'
)


def splits_linears(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of `from_pretrained` ask for tensor parallelism, which terms do not take part in."""
    asked = arguments.get("distributed_config") or arguments
    asked = asked if isinstance(asked, Mapping) else vars(asked)
    return bool(asked.get("tp_plan")) or (asked.get("tp_size") or 1) > 1


__all__ = ["NOT_SPLIT", "CallBoundLayer", "splits_linears"]
