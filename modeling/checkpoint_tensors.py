"""One part of a safetensors checkpoint, and a model out of it.

A vision tower of 1.3 GB lies in a checkpoint of 16.6 GB. The checkpoint's index says which shards hold the tower; only
those are downloaded and opened, and of those only the tower's bytes are read.

Tensors are read into memory of their own, not mapped: that takes the same memory, and nothing that happens to the file
afterwards (cut short, written over, saved into again by the model that came out of it) can reach the model.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash


def commit_of(name: str, revision: str) -> str | None:
    """The commit of a branch, tag or commit of a Hub repository; None for a folder.

    Raises:
        OSError: no such repository or revision, or it cannot be reached, in transformers' words; a folder without
            `config.json`.
    """
    file = cached_file(name, "config.json", revision=revision)
    if file is None:
        raise OSError(f"{name} has no config.json: it is no folder of a model, or its model is not saved yet.")
    return None if file.startswith(name) else extract_commit_hash(file, None)


def read_tensors(
    name: str,
    *,
    part: str,
    prefixes: tuple[str, ...] = ("",),
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    leave: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """Read the tensors of one part of a checkpoint.

    Args:
        name: repository id or folder.
        part: what the part is called in errors: "vision", "language".
        prefixes: what the part's names may start with, by preference: a checkpoint is read by the first one that any
            of its names starts with. `""` is the whole checkpoint and belongs at the end.
        revision: branch, tag or commit of a repository; None: its main branch. Of a commit all files fit together, a
            branch may move.
        dtype: floating type of the result; None leaves every tensor as it is stored. Tensors are converted one by one
            while they are read, which takes no memory beyond the largest of them.
        leave: beginnings of the names of tensors that are not wanted.

    Returns:
        The tensors by name, without the prefix.

    Raises:
        ValueError: no safetensors checkpoint, one without that part, or one of its files is missing or damaged.
        OSError: the repository cannot be reached, in transformers' words.
    """
    shards = _weight_map(name, part, revision)
    prefix = next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in shards)), None)
    if prefix is None:
        raise ValueError(
            f"The {part} checkpoint {name!r} holds no tensor whose name starts with "
            f"{' or '.join(map(repr, prefixes))}, but {_few(shards)}. Nothing was assembled; choose another checkpoint."
        )
    wanted: dict[str, list[str]] = {}
    for key, shard in shards.items():
        if key.startswith(prefix) and not key.startswith(leave):
            wanted.setdefault(shard, []).append(key)
    files = {}
    for shard, keys in wanted.items():
        with _blaming(shard, keys, part, name):
            files[shard] = cached_file(name, shard, revision=revision)
    tensors = {}
    with logging.tqdm(total=sum(map(len, wanted.values())), desc=f"Reading the {part} tensors") as bar:
        for shard, keys in wanted.items():
            with _blaming(shard, keys, part, name), safe_open(files[shard], framework="pt", backend="pread") as file:
                for key in keys:
                    tensor = file.get_tensor(key)
                    if dtype is not None and tensor.is_floating_point():
                        tensor = tensor.to(dtype)
                    tensors[key.removeprefix(prefix)] = tensor
                    bar.update()
    return tensors


def load_part(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, torch.Tensor],
    *,
    part: str,
    name: str,
    new: tuple[str, ...] = (),
) -> PreTrainedModel:
    """Build a model around tensors from `read_tensors`; it takes them over without a copy.

    Args:
        model_class: a transformers class.
        config: its configuration.
        tensors: all its weights. The first floating type among them becomes the model's.
        part: what it is called in errors.
        name: the checkpoint's name, for errors.
        new: what the names of parameters hold that the checkpoint cannot have; they are initialised.

    Raises:
        ValueError: tensors are missing, are of another shape or have no place to go.
    """
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = [key for key in info["missing_keys"] if not any(part in key for part in new)]
    mismatched = [f"{key} {list(theirs)} (the model has {list(ours)})" for key, theirs, ours in info["mismatched_keys"]]
    problems = (
        ("lacks {} of the model's tensors: {}", missing),
        ("has {} that the model does not know: {}", info["unexpected_keys"]),
        ("has {} of another shape: {}", mismatched),
    )
    if found := [words.format(len(keys), _few(sorted(keys))) for words, keys in problems if keys]:
        raise ValueError(
            f"The {part} checkpoint {name!r} does not fit {model_class.__name__}: it {'; it '.join(found)}. "
            "Nothing was assembled; download it again or choose another."
        )
    return model


def _weight_map(name: str, part: str, revision: str | None) -> dict[str, str]:
    """The file of every tensor in a checkpoint. A single file goes before an index, as in `from_pretrained`."""
    try:
        single = cached_file(name, SAFE_WEIGHTS_NAME, revision=revision)
    except OSError:
        return _read_index(name, part, revision)
    with _blaming(SAFE_WEIGHTS_NAME, (), part, name), safe_open(single, framework="pt", backend="pread") as file:
        return dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)


def _read_index(name: str, part: str, revision: str | None) -> dict[str, str]:
    try:
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, revision=revision)
    except OSError as error:
        if error.__cause__ is not None:  # no such repository, no access, no network: transformers says which
            raise
        raise ValueError(
            f"The {part} checkpoint {name!r} has neither {SAFE_WEIGHTS_NAME} nor its index: {_said(error)}. "
            "Nothing was assembled. Weights in pytorch_model.bin become safetensors when transformers loads them and "
            "`save_pretrained` writes them."
        ) from error
    try:
        # Published code opens no files; this is transformers' reader of JSON that is open to all.
        return dict(PreTrainedConfig.from_json_file(index).weight_map)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{SAFE_WEIGHTS_INDEX_NAME} of the {part} checkpoint {name!r} is broken: {_said(error)}. "
            "Nothing was assembled; download it again."
        ) from error


@contextmanager
def _blaming(shard: str, keys: Collection[str], part: str, name: str) -> Iterator[None]:
    """Turn what goes wrong with a file into an error that says which file and which tensors are concerned."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        concerned = f", with {_few(keys)}," if keys else ""
        raise ValueError(
            f"{shard}{concerned} of the {part} checkpoint {name!r} cannot be read: {_said(error)}. "
            "Nothing was assembled; download that file again."
        ) from error


def _said(error: Exception) -> str:
    return str(error).rstrip(".")


def _few(keys: Iterable[str]) -> str:
    keys = list(keys)
    return f"{', '.join(keys[:5])}{f', … ({len(keys)} in all)' if len(keys) > 5 else ''}"


__all__ = ["commit_of", "load_part", "read_tensors"]
