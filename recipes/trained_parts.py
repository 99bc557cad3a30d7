"""Which parameters a run trains, and how fast: regular expressions on their names."""

import re

import torch
from transformers import PreTrainedModel


def freeze(model: PreTrainedModel, trainable: list[str]) -> None:
    """Freeze all but the parameters whose name matches; those train in float32 whatever the rest is loaded in.

    Args:
        trainable: regular expressions; without one, the modules that the graft adds.

    Raises:
        ValueError: an expression that matches no parameter.
    """
    trainable = trainable or [rf"\b{module}\b" for module in model.graft_modules]
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"`trainable` expression {pattern!r} matches none of {len(names)} parameters.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in trainable))
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def parse_learning_rates(pairs: list[str]) -> dict[str, float]:
    """`["EXPRESSION=RATE", …]` as a dictionary.

    Raises:
        ValueError: a pair that is not one.
    """
    rates = {}
    for pair in pairs:
        expression, _, rate = pair.rpartition("=")
        try:
            rates[expression] = float(rate)
            re.compile(expression or "(")
        except (ValueError, re.error) as error:
            raise ValueError(f"`learning_rates` takes EXPRESSION=RATE, got {pair!r}: {error}.") from None
    return rates
