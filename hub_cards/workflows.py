"""The command line's longer jobs: graft from base checkpoints, export what was trained, finish a run.

Each is a short sequence over the exporter, the cards and the clean room.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from ..configuration import Qwen3PerceiverConnectorConfig
from ..configuration.presets import RECOMMENDED_CONNECTOR
from ..modeling import Qwen3PerceiverVLM
from ..processing import Qwen3PerceiverProcessor, load_chat_template
from ..recipes.run_metadata import read_metadata, write_metadata
from .cards import build_adapter_card, build_card, loss_curve_figure, placeholder_repo_id
from .clean_room import CleanRoomReport, verify
from .exporter import export_repository
from .graft_parts import VISION_TOKENS, generation_config
from .static_checks import is_local_name

ADAPTER = "adapter_config.json"
LOSS_CURVE = "loss_curve.png"


def graft_perceiver_vlm(
    vision: str,
    language: str,
    out: Path,
    *,
    connector: str = "recommended",
    vision_revision: str | None = None,
    language_revision: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Assemble a Perceiver VLM from two checkpoints and export it.

    Args:
        connector: "recommended", "specified" (the plain connector of `perceiver-vlm-8b`), or a JSON object of
            `Qwen3PerceiverConnectorConfig` values.

    Raises:
        ValueError: a connector that is neither, a tokenizer without Qwen3's vision tokens, unsuitable checkpoints, or
            a folder that is not empty.
    """
    named = {"recommended": RECOMMENDED_CONNECTOR, "specified": {}}
    values = named[connector] if connector in named else _connector_values(connector)
    tokenizer = AutoTokenizer.from_pretrained(language, revision=language_revision or "main")
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION_TOKENS.items()}
    if absent := [token for token in VISION_TOKENS.values() if token not in tokenizer.get_vocab()]:
        raise ValueError(f"The tokenizer of {language!r} lacks {', '.join(absent)}; use one of the Qwen3 family.")
    model = Qwen3PerceiverVLM.from_vision_language_pretrained(
        vision=vision,
        language=language,
        connector_config=Qwen3PerceiverConnectorConfig(**values),
        vision_revision=vision_revision,
        language_revision=language_revision,
        dtype=dtype,
        **ids,
    )
    # A base model's generation stops at <|endoftext|> only; ours answers in turns.
    model.generation_config.update(**generation_config(tokenizer).to_diff_dict())
    processor = Qwen3PerceiverProcessor.from_vision_language_pretrained(
        vision,
        language,
        num_image_tokens=model.config.num_image_tokens,
        chat_template=load_chat_template(),
        vision_revision=vision_revision,
        language_revision=language_revision,
    )
    return export_repository(model, processor, out, overwrite=overwrite)


def export_folder(directory: Path, out: Path, *, graft_only: bool = False, overwrite: bool = False) -> Path:
    """Export a trained folder: a checkpoint as it is or its graft alone, an adapter merged into its base.

    Raises:
        ValueError: `out` is not empty, the weights do not fit, or `graft_only` of bases that are not on the Hub or of
            a merged adapter, which changes them.
    """
    if graft_only and (directory / ADAPTER).is_file():
        raise ValueError(f"{directory} holds an adapter, which changes the language model; it has no graft-only form.")
    if (directory / ADAPTER).is_file():
        adapted = AutoPeftModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype="auto")
        model, source = adapted.merge_and_unload(), adapted.peft_config["default"].base_model_name_or_path
    else:
        model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype="auto")
        source = directory
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    out = export_repository(model, processor, out, graft_only=graft_only, overwrite=overwrite)
    if (training := read_metadata(directory)) is not None:
        write_metadata(training, out)
        write_card(out)
    return out


def write_card(directory: Path, *, repo_id: str | None = None) -> Path:
    """Write README.md, and the loss curve where there is one, from configuration and `training_meta.json`."""
    training = read_metadata(directory)
    repo_id = repo_id or placeholder_repo_id(directory)
    figures: dict[str, str] = {}
    if training is not None and training.get("loss_curve"):
        loss_curve_figure(training, directory / LOSS_CURVE)
        figures = {LOSS_CURVE: "Training loss by step."}
    card: ModelCard
    if (directory / ADAPTER).is_file():
        adapter = PeftConfig.from_pretrained(directory)
        card = build_adapter_card(adapter, repo_id=repo_id, training=training, figures=figures)
    else:
        config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        card = build_card(
            config,
            repo_id=repo_id,
            training=training,
            base_models=getattr(config, "base_models", None),
            figures=figures,
        )
    card.save(directory / "README.md")
    return directory / "README.md"


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
