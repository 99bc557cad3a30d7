"""From a model in memory to a folder that is a Hub repository: weights, flat code, processor, card.

A folder is written beside its destination and renamed into place when everything is there, so `out` is always a whole
repository: the old one or the new one. The code is that of the classes at hand, flattened when they are this
package's and copied as they are when they were loaded as remote code.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..configuration import GRAFTS, preset_config
from ..configuration.code_files import PACKAGE, code_set
from .cards import build_card, placeholder_repo_id
from .code_rules import relative_imports
from .graft_parts import (
    Processor,
    build_processor,
    check_graft_only,
    generation_config,
    graft_class,
    parameter_table,
    tokenizer_of,
)
from .static_checks import NAME_KEYS, is_local_name

# Above this many parameters a random model is made in bfloat16: float32 would only double the download.
LARGE = 1_000_000_000


def export_repository(
    model: PreTrainedModel,
    processor: Processor,
    out: str | os.PathLike,
    *,
    card: ModelCard | None = None,
    files: Sequence[str | os.PathLike] = (),
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    graft_only: bool = False,
) -> Path:
    """Write a model as a repository.

    Args:
        model: of one of this package's classes, or of the same class loaded with `trust_remote_code=True`; a PEFT
            model after `merge_and_unload()`.
        processor: the model's processor (or tokenizer, for a graft without images).
        out: the folder; its parents are made.
        card: README.md; without one, a card that claims nothing about training.
        files: further files to copy beside it, as `training_meta.json` and the card's figures.
        overwrite: replace a model that is there already.
        max_shard_size: of a weights file.
        graft_only: store the trained new parts alone and name the bases; for models whose bases were not changed.

    Returns:
        The folder.

    Raises:
        ValueError: `out` is in use, the model is an adapter that was not merged, the code of model and processor
            does not fit together, or `graft_only` of a model whose bases are not on the Hub or that has no such form.
        OSError: the disk is full or not writable; `out` is as it was before.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"A {type(model).__name__} is not a model that can be exported. Merge an adapter first "
            "(`model = model.merge_and_unload()`), or save it as an adapter."
        )
    if graft_only:
        check_graft_only(model.config)
    auto_map = _auto_map(model.config)
    code = _live_code(model.config, auto_map, [model.config, model, processor])
    out = free_target(out, overwrite)
    card = card or build_card(model.config, repo_id=placeholder_repo_id(out))
    kept = _graft_tensors(model) if graft_only else None
    with staged(out) as folder:
        model.save_pretrained(folder, state_dict=kept, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        _finish(folder, auto_map, code, card, files, {"graft_only": True} if graft_only else {})
        if graft_only:
            _check_rebuilt(model, folder)
    return out


def export_preset(
    name: str,
    out: str | os.PathLike,
    *,
    config_only: bool = False,
    tokenizer: str | os.PathLike | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a preset as a repository, with random weights or none.

    Weights are float32, or bfloat16 in presets of more than a billion parameters; the card says which.

    Args:
        name: of a preset.
        out: the folder; its parents are made.
        config_only: leave the weights out; nothing of the model's size is then allocated.
        tokenizer: repository id or folder of Qwen3's tokenizer; a byte-level one with the same special tokens when
            left out.
        seed: of the random weights.
        overwrite: replace a model that is there already.

    Returns:
        The folder.

    Raises:
        ValueError: no such preset, `out` is in use, or a tokenizer that does not fit the preset.
        OSError: the disk is full or not writable, or the tokenizer cannot be loaded.
    """
    config = preset_config(name)
    out = free_target(out, overwrite)
    processor = build_processor(config, AutoTokenizer.from_pretrained(tokenizer) if tokenizer else None)
    generation = generation_config(tokenizer_of(processor))
    large = sum(parameter_table(config).values()) > LARGE
    config.dtype = torch.bfloat16 if large else torch.float32
    card = build_card(config, repo_id=placeholder_repo_id(out), random_weights=True, config_only=config_only)
    model_class = graft_class(GRAFTS[config.model_type], "AutoModelForCausalLM")
    if not config_only:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class._from_config(config, dtype=config.dtype)
        model.generation_config = generation
        return export_repository(model, processor, out, card=card, overwrite=overwrite)
    config.architectures = [model_class.__name__]
    auto_map = _auto_map(config)
    with staged(out) as folder:
        for part in (config, generation, processor):
            part.save_pretrained(folder)
        _finish(folder, auto_map, _live_code(config, auto_map, [config]), card)
    return out


def _graft_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a graft-only repository.

    Raises:
        ValueError: a base came from a local folder, so that nobody else could fetch it.
    """
    bases, parts = model.config.base_models or {}, model.config.base_parts
    if set(bases) != set(parts):
        raise ValueError(
            f"A graft-only repository names its bases on the Hub; this model knows {len(bases)} of {len(parts)} "
            f"({', '.join(bases) or 'none'}). Graft from repository ids instead of folders, or export the whole model."
        )
    return {name: tensor for name, tensor in model.state_dict().items() if model.is_new(name)}


def _check_rebuilt(model: PreTrainedModel, folder: Path) -> None:
    """Assemble what was written and compare it with the model: what the bases do not give back would be lost.

    Raises:
        ValueError: tensors outside the graft differ from those of the bases.
    """
    rebuilt = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), rebuilt[name])]
    if changed:
        raise ValueError(
            f"{len(changed)} tensors outside the graft are not those of its bases: {', '.join(changed[:5])}"
            f"{', …' if len(changed) > 5 else ''}. They were trained too; export the whole model."
        )


def free_target(out: str | os.PathLike, overwrite: bool) -> Path:
    """The destination, resolved.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    out = Path(out).resolve()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not (out / "config.json").is_file():
        raise ValueError(f"{out} exists and is no model repository (no config.json); choose another folder.")
    if not overwrite:
        count = sum(1 for _ in out.iterdir())
        raise ValueError(f"{out} already holds {count} files. Choose another folder, or replace it with `overwrite`.")
    return out


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or disappears."""
    staging = out.with_name(f".{out.name}.{uuid4().hex[:8]}.partial")
    try:
        staging.mkdir(parents=True)
        yield staging
        _swap(staging, out)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(next(folder for folder in out.parents if folder.is_dir())).free
        raise OSError(
            f"{out} was not written: {error}. What stood there is untouched. {free / 1e9:.2f} GB were free; make room "
            "or choose another disk, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, out: Path) -> None:
    """Put `staging` in the place of `out`, which comes back if that fails."""
    if not out.exists():
        staging.rename(out)
        return
    old = staging.with_suffix(".old")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _finish(
    folder: Path,
    auto_map: dict[str, Any],
    code: dict[str, str],
    card: ModelCard,
    files: Sequence[str | os.PathLike] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """What no `save_pretrained` writes, or writes only for some classes."""
    for name, source in code.items():
        (folder / name).write_text(source, encoding="utf-8")
    for path in folder.glob("*config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "config.json" and auto_map:
            values |= {"auto_map": auto_map, **settings}
        if path.name == "processor_config.json" and "AutoProcessor" in auto_map:
            values["auto_map"] = {"AutoProcessor": auto_map["AutoProcessor"]}
        text = json.dumps(_portable(values), indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    for path in folder.glob("*.safetensors"):
        # safetensors lets nobody but the owner read its files; a server often runs as somebody else.
        path.chmod((folder / "config.json").stat().st_mode)
    card.save(folder / "README.md")
    for file in files:
        shutil.copy(file, folder)


def _portable(values: Any) -> Any:
    """Configuration values without what only this machine knows: cached repositories, local paths."""
    if isinstance(values, list):
        return [_portable(value) for value in values]
    if not isinstance(values, dict):
        return values
    kept = {}
    for key, value in values.items():
        if key == "auto_map":
            kept[key] = {auto: _own_reference(reference) for auto, reference in value.items()}
        elif key in NAME_KEYS and isinstance(value, str) and is_local_name(value):
            kept[key] = ""
        elif key not in ("is_local", "local_files_only"):
            kept[key] = _portable(value)
    return kept


def _own_reference(reference: Any) -> Any:
    """`owner/name--module.Class`, as transformers notes where code came from, without the repository."""
    if isinstance(reference, list | tuple):
        return [_own_reference(item) for item in reference]
    return reference.split("--")[-1] if isinstance(reference, str) else reference


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(f"{PACKAGE}.")


def _auto_map(config: PreTrainedConfig) -> dict[str, Any]:
    """The whole `auto_map`: the graft's for our classes, for remote ones the one they were loaded with."""
    graft = GRAFTS.get(config.model_type)
    own = None if _is_ours(type(config)) else getattr(config, "auto_map", None)
    auto_map = own or (graft.auto_map if graft else {})
    return {auto: _own_reference(reference) for auto, reference in auto_map.items()}


def _live_code(config: PreTrainedConfig, auto_map: dict[str, Any], objects: list[Any]) -> dict[str, str]:
    """File name -> source of the code that `objects` are made of.

    Raises:
        ValueError: two of them come from different versions of a file, or a file that `auto_map` names is not there.
    """
    code: dict[str, str] = {}
    for cls in map(type, objects):
        for name, source in _sources(cls, config.model_type).items():
            if code.setdefault(name, source) != source:
                raise ValueError(
                    f"The {cls.__name__} was loaded with another version of {name} than the rest. Load model and "
                    "processor from one place: both from the repository, or both with this package."
                )
    named = [ref for refs in auto_map.values() for ref in (refs if isinstance(refs, list) else [refs]) if ref]
    missing = sorted({f"{reference.split('.')[0]}.py" for reference in named} - code.keys())
    if missing:
        raise ValueError(
            f"`auto_map` names {', '.join(missing)}, which is not among the {len(code)} code files of the given "
            "objects. Give the processor that was loaded from the same repository as the model."
        )
    return code


def _sources(cls: type, model_type: str) -> dict[str, str]:
    """The flat code of one class: ours is flattened, remote code is copied; stock classes have none."""
    if _is_ours(cls):
        return code_set(GRAFTS[model_type])
    if not cls.__module__.startswith("transformers_modules."):
        return {}
    waiting, sources = [Path(sys.modules[cls.__module__].__file__)], {}
    while waiting:
        path = waiting.pop()
        if path.name not in sources:
            sources[path.name] = path.read_text(encoding="utf-8")
            waiting += [path.with_name(name) for name in relative_imports(path)]
    return sources
