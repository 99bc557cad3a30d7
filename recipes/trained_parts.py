"""Which parameters a run trains, and how fast: regular expressions on their names."""

import re
from collections.abc import Iterable

import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import ModelConfig, get_peft_config

from .recursive_trainer import is_recursive

# PEFT's "all-linear" reaches the vision tower and what connects it, too.
LINEAR = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
LANGUAGE_MODEL_LINEAR = r".*\blanguage_model\b.*\." + LINEAR
# What a recursive model has beside its source's parts.
RECURSIVE_PARTS = ("recurrence", "q_head")


def lora(model_args: ModelConfig, model: PreTrainedModel) -> PeftConfig | None:
    """The adapter of a run, None without one: by default on the language model's linear layers and nowhere else.

    Of a recursive model, on those of the core, and what is new in it is trained whole beside them.

    It names the commit of its base model, where that comes from the Hub (`pin_revision`): an adapter fits no other.
    """
    config = get_peft_config(model_args)
    if config is not None:
        if is_recursive(model.config):
            core = "|".join(map(str, range(*model.config.core_range)))
            config.target_modules = config.target_modules or rf".*\.layers\.({core})\..*\.{LINEAR}"
            config.modules_to_save = config.modules_to_save or list(RECURSIVE_PARTS)
        config.target_modules = config.target_modules or LANGUAGE_MODEL_LINEAR
        config.revision = model_args.model_revision
        if not _is_causal_lm(model):
            # PEFT then notes the base's class in the adapter, and `AutoPeftModelForCausalLM` loads by that name.
            config.task_type = None
    return config


def _is_causal_lm(model: PreTrainedModel) -> bool:
    """Whether `AutoModelForCausalLM` gives this class, by registration or by remote code; stock Qwen-VL it does not."""
    remote = "AutoModelForCausalLM" in (getattr(model.config, "auto_map", None) or {})
    return remote or AutoModelForCausalLM._model_mapping.get(type(model.config), None) is type(model)


def freeze(model: PreTrainedModel, trainable: list[str], frozen: Iterable[nn.Module] = ()) -> None:
    """Freeze all but the parameters whose name matches; those train in float32 whatever the rest is loaded in.

    Args:
        trainable: regular expressions; without one, the modules that the graft adds, and of a recursive model, which
            adds none that could learn alone, everything.
        frozen: modules of the model that stay frozen whatever matches.

    Raises:
        ValueError: an expression that matches no parameter, or none for a model that is no graft.
    """
    default = ["."] if is_recursive(model.config) else [rf"\b{name}\b" for name in getattr(model, "graft_modules", ())]
    trainable = trainable or default
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} is no graft, so nothing says what to train: set `use_peft: true`, or name the "
            r"parameters, for all of the language model `trainable: ['\blanguage_model\b', '\blm_head\b']`."
        )
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"`trainable` expression {pattern!r} matches none of {len(names)} parameters.")
    held = {id(parameter) for module in frozen for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) not in held and any(re.search(pattern, name) for pattern in trainable))
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
