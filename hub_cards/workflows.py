"""The command line's longer jobs: graft from base checkpoints, export what was trained, finish a run.

Each is a short sequence over the exporter, the cards and the clean room.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import cached_file

from ..configuration import GRAFTS, Graft, Qwen3PerceiverConnectorConfig
from ..configuration.layer_selection import LayerSelection
from ..configuration.presets import RECOMMENDED_CONNECTOR
from ..processing import ClaraQwen3Processor, add_memory_tokens, load_chat_template, set_response_template
from ..processing.vision_language_processing import vision_token_ids
from ..recipes.run_metadata import read_metadata, write_metadata
from .cards import build_adapter_card, build_card, placeholder_repo_id
from .clean_room import CleanRoomReport, verify
from .exporter import export_repository, free_target
from .figures import draw_figures
from .graft_parts import check_graft_only, generation_config, graft_class, whole_model_class
from .static_checks import is_local_name

ADAPTER = "adapter_config.json"


def graft_perceiver_vlm(
    vision: str, language: str, out: Path, *, connector: str = "recommended", **options: Any
) -> Path:
    """Assemble a Perceiver VLM from two checkpoints and export it.

    Args:
        connector: "recommended", "specified" (the plain connector of `perceiver-vlm-8b`), or a JSON object of
            `Qwen3PerceiverConnectorConfig` values.
        options: revisions, dtype and overwrite, as `_graft_vision_language` takes them.

    Raises:
        ValueError: a connector that is neither, or what `_graft_vision_language` refuses.
    """
    named = {"recommended": RECOMMENDED_CONNECTOR, "specified": {}}
    values = named[connector] if connector in named else _connector_values(connector)
    connector_config = Qwen3PerceiverConnectorConfig(**values)
    return _graft_vision_language(
        GRAFTS["qwen3_perceiver"],
        vision,
        language,
        out,
        settings={"connector_config": connector_config},
        processor_settings={"num_image_tokens": connector_config.num_latents},
        **options,
    )


def graft_vision_bridge(vision: str, language: str, out: Path, *, adapter: str = "linear", **options: Any) -> Path:
    """Assemble a vision bridge from a Qwen2.5-VL and a Qwen3 and export it.

    Args:
        adapter: "linear" or "mlp".
        options: revisions, dtype and overwrite, as `_graft_vision_language` takes them.

    Raises:
        ValueError: another adapter, or what `_graft_vision_language` refuses.
    """
    if adapter not in ("linear", "mlp"):
        raise ValueError(f"`--adapter` is linear or mlp, not {adapter!r}.")
    settings = {"adapter_type": adapter}
    return _graft_vision_language(GRAFTS["qwen3_vision_bridge"], vision, language, out, settings=settings, **options)


def graft_recursive(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    core: str | None = None,
    select: LayerSelection = "all",
    layers: int | None = None,
    H_cycles: int = 3,
    L_cycles: int = 3,
    dtype: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Make a recursive model of a Qwen2 or Qwen3 and export it.

    Args:
        source: repository id or folder of a dense Qwen2 or Qwen3, with its tokenizer.
        revision: branch, tag or commit of it.
        core: "FIRST:END", the core's first layer in the source and the one after its last; default the middle half.
        select: which layers are kept, see `select_layers`.
        layers: of the new core, for "sandwich" and "even".
        dtype: of the model; "auto" takes the source's.

    Raises:
        ValueError: a core that is not two numbers, a tokenizer with more ids than the model has rows, what
            `RecursiveQwenForCausalLM.from_qwen_pretrained` refuses, or a folder that is not empty.
    """
    # The cheap refusals come before gigabytes are read.
    out = free_target(out, overwrite)
    core_range = _core_range(core) if core is not None else None
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    model = graft_class(GRAFTS["recursive_qwen"], "AutoModelForCausalLM").from_qwen_pretrained(
        source,
        revision=revision,
        dtype=dtype,
        layer_selection=select,
        core_range=core_range,
        L_layers=layers,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
    )
    highest = max(tokenizer.get_vocab().values())
    if highest >= model.config.vocab_size:
        raise ValueError(
            f"The tokenizer of {source!r} has ids up to {highest}, the model {model.config.vocab_size} rows. Put the "
            "tokenizer that the model was trained with into its folder."
        )
    # A recursive model is its source until it is trained, and is asked in the same words.
    tokenizer.chat_template = tokenizer.chat_template or load_chat_template()
    # A base model's generation stops at <|endoftext|> only; ours answers in turns.
    model.generation_config.update(**generation_config(tokenizer).to_diff_dict())
    license = _license_of(source, model.config.base_models)
    card = build_card(model.config, repo_id=placeholder_repo_id(out), license=license)
    return export_repository(model, tokenizer, out, card=card, overwrite=overwrite)


def graft_clara(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    doc_max_length: int = 256,
    compression_rates: Sequence[int] = (32,),
    lora_rank: int = 16,
    lora_alpha: float = 32,
    dtype: str = "auto",
    overwrite: bool = False,
    graft_only: bool = False,
) -> Path:
    """Give a Qwen3 the roles and tokens of CLaRa and export it.

    Args:
        source: repository id or folder of a dense Qwen3, with its tokenizer.
        revision: branch, tag or commit of it.
        doc_max_length: tokens of a passage at most.
        compression_rates: tokens of a passage for one latent; the first one is the default.
        lora_rank, lora_alpha: of the roles.
        dtype: of the model; "auto" takes the source's.
        graft_only: leave the source's weights where they are on the Hub.

    Raises:
        ValueError: rates out of range or too many for the vocabulary, a tokenizer without a chat template that leaves a
            user's text as it is, `graft_only` of a folder, what `ClaraQwen3ForCausalLM.from_qwen_pretrained` refuses,
            or a folder that is not empty.
    """
    # The cheap refusals come before gigabytes are read.
    out = free_target(out, overwrite)
    if graft_only and is_local_name(source):
        raise ValueError(
            f"A graft-only repository names its base on the Hub, and {source!r} is a folder. Graft from a repository "
            "id, or export the whole model."
        )
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    tokenizer.chat_template = tokenizer.chat_template or load_chat_template()
    add_memory_tokens(tokenizer, doc_max_length, compression_rates)
    processor = ClaraQwen3Processor(set_response_template(tokenizer), doc_max_length, compression_rates)
    processor("Does the template leave a question as it is?")
    model = graft_class(GRAFTS["clara_qwen3"], "AutoModelForCausalLM").from_qwen_pretrained(
        source,
        revision=revision,
        dtype=dtype,
        doc_max_length=doc_max_length,
        compression_rates=list(compression_rates),
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        document_token_id=processor.document_token_id,
    )
    # A base model's generation stops at <|endoftext|> only; ours answers in turns.
    model.generation_config.update(**generation_config(tokenizer).to_diff_dict())
    card = build_card(
        model.config, repo_id=placeholder_repo_id(out), license=_license_of(source, model.config.base_models)
    )
    return export_repository(model, processor, out, card=card, overwrite=overwrite, graft_only=graft_only)


def _license_of(source: str, base_models: Mapping[str, Mapping[str, str]] | None) -> str | None:
    """The licence that a checkpoint's own card names; None where it has no card, or one that names none."""
    revision = base_models["language"]["revision"] if base_models else None
    card = cached_file(source, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
    return ModelCard.load(card).data.license if card else None


def _core_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise ValueError(f"`--core` is FIRST:END, the core's first layer and the one after its last, not {text!r}.")
    return int(found[1]), int(found[2])


def _graft_vision_language(
    graft: Graft,
    vision: str,
    language: str,
    out: Path,
    *,
    settings: dict[str, Any],
    processor_settings: Mapping[str, Any] = MappingProxyType({}),
    vision_revision: str | None = None,
    language_revision: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Assemble a vision graft from two checkpoints and export it.

    Args:
        vision: repository id or folder of the tower's checkpoint.
        language: repository id or folder of a dense Qwen3.
        settings: configuration values of the new part.
        processor_settings: arguments of the graft's processor.

    Raises:
        ValueError: a tokenizer without Qwen3's vision tokens, unsuitable checkpoints, or a folder that is not empty.
    """
    # The cheap refusals come before gigabytes are read.
    out = free_target(out, overwrite)
    revisions = {"vision_revision": vision_revision, "language_revision": language_revision}
    processor = graft_class(graft, "AutoProcessor").from_vision_language_pretrained(
        vision, language, chat_template=load_chat_template(), **revisions, **processor_settings
    )
    model = graft_class(graft, "AutoModelForCausalLM").from_vision_language_pretrained(
        vision, language, dtype=dtype, **revisions, **vision_token_ids(processor.tokenizer), **settings
    )
    # A base model's generation stops at <|endoftext|> only; ours answers in turns.
    model.generation_config.update(**generation_config(processor.tokenizer).to_diff_dict())
    return export_repository(model, processor, out, overwrite=overwrite)


def export_folder(directory: Path, out: Path, *, graft_only: bool = False, overwrite: bool = False) -> Path:
    """Export a trained folder: a checkpoint as it is or its graft alone, an adapter merged into its base.

    Args:
        directory: a graft or a stock image-text model, or an adapter of either.
        out: folder of the new repository.
        graft_only: store the trained new parts alone.
        overwrite: replace a model that is there already.

    Raises:
        ValueError: `out` is not empty, the model is of another kind, the weights do not fit, an adapter names no base,
            or `graft_only` of bases that are not on the Hub, of a model without such a form, or of an adapter, which
            changes them.
    """
    adapter = PeftConfig.from_pretrained(directory) if (directory / ADAPTER).is_file() else None
    if graft_only and adapter is not None:
        raise ValueError(f"{directory} holds an adapter, which changes the language model; it has no graft-only form.")
    if adapter is not None and not adapter.base_model_name_or_path:
        raise ValueError(f"{ADAPTER} in {directory} names no base model; set `base_model_name_or_path`.")
    source = {"pretrained_model_name_or_path": directory}
    if adapter is not None:
        source = {"pretrained_model_name_or_path": adapter.base_model_name_or_path, "revision": adapter.revision}
    # The cheap refusals come before gigabytes are read.
    free_target(out, overwrite)
    config: PreTrainedConfig = AutoConfig.from_pretrained(**source, trust_remote_code=True)
    auto_class = whole_model_class(config)
    stock = config.model_type not in GRAFTS
    if graft_only:
        check_graft_only(config)
    model = auto_class.from_pretrained(**source, trust_remote_code=True, dtype="auto")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, directory).merge_and_unload()
    if stock and (directory / "processor_config.json").is_file():
        # A run saves its processor beside the adapter. A graft's comes from where its code comes from.
        source = {"pretrained_model_name_or_path": directory}
    processor = AutoProcessor.from_pretrained(**source, trust_remote_code=True)
    out = export_repository(model, processor, out, graft_only=graft_only, overwrite=overwrite)
    if (training := read_metadata(directory)) is not None:
        write_metadata(training, out)
        write_card(out)
    return out


def write_card(directory: Path, *, repo_id: str | None = None) -> Path:
    """Write README.md, and the figures there are, from configuration and `training_meta.json`."""
    training = read_metadata(directory)
    repo_id = repo_id or placeholder_repo_id(directory)
    figures = draw_figures(training or {}, directory)
    shared = {"repo_id": repo_id, "training": training, "figures": figures}
    card: ModelCard
    if (directory / ADAPTER).is_file():
        adapter = PeftConfig.from_pretrained(directory)
        model_type = _type_of_base(adapter, training or {})
        graft = GRAFTS.get(model_type)
        auto_processor = "AutoProcessor" if graft is not None and graft.has_processor else None
        card = build_adapter_card(adapter, pipeline_tag=_task_of(model_type), auto_processor=auto_processor, **shared)
    else:
        config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        old = ModelCard.load(directory / "README.md") if (directory / "README.md").is_file() else None
        # Of weights that nobody trained here, the licence is known to the card they came with alone.
        license = old.data.license if old is not None and training is None else None
        card = build_card(config, base_models=getattr(config, "base_models", None), license=license, **shared)
    card.save(directory / "README.md")
    return directory / "README.md"


def _type_of_base(adapter: PeftConfig, training: Mapping[str, Any]) -> str:
    """`model_type` of an adapter's base, by the run's record or else by the base itself; "" where neither is there."""
    name = adapter.base_model_name_or_path
    if "model_type" in training or not name or is_local_name(name):
        return training.get("model_type") or ""
    base = {"pretrained_model_name_or_path": name, "revision": adapter.revision}
    return AutoConfig.from_pretrained(**base, trust_remote_code=True).model_type


def _task_of(model_type: str) -> str:
    """The Hub's task of a graft, or of a stock model."""
    if model_type in GRAFTS:
        return GRAFTS[model_type].pipeline_tag
    # Models that read images are listed among those that write text, too.
    sees = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    writes = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "text-generation" if writes and not sees else "image-text-to-text"


def finish_run(directory: Path, *, repo_id: str | None = None) -> CleanRoomReport | None:
    """After training: our card in place of the trainer's, then the clean room.

    Returns:
        The clean room's report; None for an adapter whose base lies in a local folder: nobody else could load it, so
        there is nothing to check before the base is published and named (`set_adapter_base`).

    Raises:
        CleanRoomError: what was saved does not load and answer by itself.
    """
    if (directory / ADAPTER).is_file() and is_local_name(PeftConfig.from_pretrained(directory).base_model_name_or_path):
        return None
    write_card(directory, repo_id=repo_id)
    return verify(directory)


def set_adapter_base(directory: Path, repo_id: str, revision: str | None = None) -> None:
    """Name the Hub repository, and its commit, that an adapter belongs to, in place of the folder it was trained on.

    Raises:
        ValueError: the folder holds no adapter.
    """
    if not (directory / ADAPTER).is_file():
        raise ValueError(f"{directory} holds no adapter ({ADAPTER}); a base is named for adapters only.")
    adapter = PeftConfig.from_pretrained(directory)
    adapter.base_model_name_or_path, adapter.revision = repo_id, revision
    adapter.save_pretrained(directory)


def _connector_values(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`--connector` is recommended, specified or a JSON object; {text!r} is none: {error}"
        ) from None
    return {name: value for name, value in values.items() if name != "model_type"}
