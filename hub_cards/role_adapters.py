"""The roles of a CLaRa model as PEFT adapters of the stock Qwen3, one folder each.

    export_role("outputs/clara-4b", "generator", "outputs/clara-4b-generator")
    PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(BASE), "outputs/clara-4b-generator")

PEFT loads, merges and pushes them like any other adapter. What it cannot hold are the embeddings of the new tokens: the
compressor's and the query reasoner's folders have them as `memory_tokens.safetensors`.
"""

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from ..configuration.configuration_clara_qwen3 import ROLES
from ..modeling.role_lora import load_role_tensors, role_linears, role_tensors
from ..recipes.clara_stages import is_clara
from .cards import build_adapter_card, placeholder_repo_id
from .exporter import free_target, staged

MEMORY_TOKENS = "memory_tokens.safetensors"
_READS = {
    "compressor": f"it reads a passage and its memory tokens, whose embeddings lie in `{MEMORY_TOKENS}`",
    "query_reasoner": f"it reads a question and its memory tokens, whose embeddings lie in `{MEMORY_TOKENS}`",
    "generator": "it answers prompts in which documents stand as latents, which the whole model makes",
}


def export_role(model: str | os.PathLike | PreTrainedModel, role: str, out: str | os.PathLike) -> Path:
    """Write a role of a CLaRa model as a PEFT adapter of the Qwen3 that it was made of.

    Where that Qwen3 is on the Hub, a card is written, too.

    Args:
        model: a folder or repository id, or the model itself.
        role: "compressor", "query_reasoner" or "generator".
        out: the folder; its parents are made.

    Returns:
        The folder.

    Raises:
        ValueError: no such role, another kind of model, or a folder that is not empty.
    """
    _check_role(role)
    out = free_target(out, overwrite=False)
    if not isinstance(model, PreTrainedModel):
        model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True)
    _check_has_roles(model)
    config = model.config
    language = model.base_model.language_model
    base = (config.base_models or {}).get("language", {})
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        auto_mapping={"base_model_class": Qwen3ForCausalLM.__name__, "parent_library": Qwen3ForCausalLM.__module__},
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted({name.rpartition(".")[2] for name, _ in role_linears(language)}),
        base_model_name_or_path=base.get("repo_id"),
        revision=base.get("revision"),
        inference_mode=True,
    )
    with staged(out) as folder:
        adapter.save_pretrained(folder)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in role_tensors(language, role).items()}
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        if role != "generator":
            memory = language.embed_tokens.memory.detach().cpu().contiguous()
            save_file({"memory": memory}, folder / MEMORY_TOKENS, metadata={"format": "pt"})
        if base:
            about = f"It is the {role.replace('_', ' ')} of a CLaRa model: {_READS[role]}."
            repo_id = placeholder_repo_id(out)
            card = build_adapter_card(adapter, repo_id=repo_id, pipeline_tag="text-generation", about=about)
            card.save(folder / "README.md")
    return out


@torch.no_grad()
def load_role(model: PreTrainedModel, role: str, folder: str | os.PathLike) -> None:
    """Fill a role from a PEFT adapter of the same base, and the new embeddings if they lie beside it.

    Raises:
        ValueError: no such role, another kind of adapter or of model, an adapter of another scale, or tensors that do
            not fit; nothing was changed.
    """
    _check_role(role)
    _check_has_roles(model)
    folder, config = Path(folder), model.config
    adapter = PeftConfig.from_pretrained(folder)
    if adapter.peft_type != PeftType.LORA or adapter.use_rslora or adapter.use_dora or adapter.alpha_pattern:
        raise ValueError(
            f"The adapter in {folder} is no plain LoRA, and a role is: train it without rank stabilisation, DoRA and "
            "`alpha_pattern`."
        )
    scales = adapter.lora_alpha / adapter.r, config.lora_alpha / config.lora_rank
    if scales[0] != scales[1]:
        raise ValueError(
            f"The adapter scales its terms by {scales[0]:g} (`lora_alpha` / `r`), the model by {scales[1]:g}. Train it "
            "with the model's `lora_rank` and `lora_alpha`."
        )
    language = model.base_model.language_model
    memory_file = folder / MEMORY_TOKENS
    memory = load_file(memory_file)["memory"] if memory_file.is_file() else None
    if memory is not None and memory.shape != language.embed_tokens.memory.shape:
        raise ValueError(
            f"{MEMORY_TOKENS} holds {len(memory)} new embeddings, the model {len(language.embed_tokens.memory)}: other "
            "compression rates."
        )
    load_role_tensors(language, role, load_file(folder / SAFETENSORS_WEIGHTS_NAME))
    if memory is not None:
        language.embed_tokens.memory.copy_(memory)


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"There is no role {role!r}; the roles are {', '.join(ROLES)}.")


def _check_has_roles(model: PreTrainedModel) -> None:
    if not is_clara(model.config):
        raise ValueError(f"This is a {model.config.model_type!r}, which has no roles; only CLaRa models have.")


__all__ = ["MEMORY_TOKENS", "export_role", "load_role"]
