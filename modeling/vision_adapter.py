"""The vision bridge's trained part: from the tower's merged patches to the language model's width.

One linear layer is LLaVA's first projector (arXiv 2304.08485), two with a GELU between them its second (2310.03744).
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN


class FanInLinear(nn.Linear):
    """A linear layer whose output starts as large as its input, whatever its width."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights of variance 1 / fan-in, no bias."""
        init.normal_(self.weight, mean=0.0, std=self.in_features**-0.5)
        init.zeros_(self.bias)


class VisionAdapter(nn.Module):
    """Linear, or linear, activation, linear.

    Args:
        vision_size: width of a merged patch.
        language_size: width of the language model.
        adapter_type: `"linear"` or `"mlp"`.
        hidden_act: activation of the latter.
    """

    def __init__(self, vision_size: int, language_size: int, adapter_type: str, hidden_act: str) -> None:
        super().__init__()
        self.linear_1 = FanInLinear(vision_size, language_size)
        if adapter_type == "mlp":
            self.act = ACT2FN[hidden_act]
            self.linear_2 = FanInLinear(language_size, language_size)
        else:
            self.act, self.linear_2 = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(N, vision size) -> (N, language size)."""
        return self.linear_2(self.act(self.linear_1(hidden_states)))


__all__ = ["FanInLinear", "VisionAdapter"]
