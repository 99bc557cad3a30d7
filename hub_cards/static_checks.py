"""What can be said of a published folder without running any of it: files, leaks, code and weights."""

import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..configuration import GRAFTS
from ..recipes.weights_files import read_shard
from .code_rules import code_findings, defined_classes, relative_imports

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
TEXT_SUFFIXES = (".cfg", ".jinja", ".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml", ".yml")
# What a trainer keeps to resume a run, and what tools leave behind: never published, so not looked at either.
WORKING_FILES = (
    ".cache/*",
    ".git/*",
    "checkpoint-*/*",
    "optimizer.*",
    "refused_rows.jsonl",
    "rng_state*",
    "runs/*",
    "scaler.pt",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
)
VOCABULARY_FILES = ("merges.txt", "vocab.json")
NAME_KEYS = ("_name_or_path", "base_model_name_or_path", "name_or_path")
TOKENS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{16,}",
    "a GitHub token": r"\bgh[opsu]_[A-Za-z0-9]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a credential": (
        r"(?i)\b(?:api[_-]?key|secret[_-]?key|access[_-]?token|password)\b['\"]?\s*[:=]\s*['\"][^'\"\s]{8,}"
    ),
}
LOCAL_PATH = r"(?<![\w.~/\\-])/(?:home|Users)/\w|(?<![\w.~/\\-])/(?:root|tmp)/|\bfile://|\b[A-Za-z]:\\+Users\b"


def inspect(directory: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Check a folder; returns what was checked, as (name, detail), and everything found wrong."""
    everything = {
        path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()
    }
    files = {name: path for name, path in everything.items() if not _is_working_file(name)}
    texts = {name: path for name, path in files.items() if path.suffix in TEXT_SUFFIXES}
    code = [path for path in files.values() if path.suffix == ".py"]
    findings = [
        f"{name} can hold pickled code; save it as safetensors or remove it"
        for name, path in files.items()
        if path.suffix in PICKLE_SUFFIXES
    ]
    values, broken_json = _parse_json(texts)
    for name, path in texts.items():
        findings += [f"{name}{finding}" for finding in _leaks(path, values.get(name))]
    broken_code = [finding for path in code for finding in code_findings(path)]
    findings += broken_json + broken_code
    if "adapter_config.json" in values:
        findings += _adapter(directory, values["adapter_config.json"])
    elif "config.json" not in texts:
        findings.append("config.json is missing: this is neither a model nor an adapter")
    elif not broken_json + broken_code:
        findings += _auto_map(directory, values, code)
    tensors, broken_weights = _weights(directory, values)
    findings += broken_weights + _card(directory)
    checks = [
        ("files", f"{len(files)} files, {len(texts)} of them text, no pickle"),
        ("leaks", "no token, no local path, no user name"),
        ("code", f"{len(code)} files that compute and nothing else"),
        ("weights", f"{tensors} tensors, every shard whole" if tensors else "none: configuration only"),
    ]
    return checks, findings


def is_local_name(name: str) -> bool:
    """Whether a `name_or_path` names a place on this machine rather than a repository on the Hub."""
    looks_local = name.startswith(("/", ".", "~", "file:")) or "\\" in name or name.count("/") > 1
    return looks_local or (name != "" and Path(name).exists())


def _is_working_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WORKING_FILES)


def _parse_json(texts: dict[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """The content of the JSON files by name, and what is wrong with them."""
    values, findings = {}, []
    for name, path in texts.items():
        if path.suffix == ".json":
            try:
                values[name] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                findings.append(f"{name} is not JSON: {error}")
                continue
            findings += [
                f"{name}: `{key}` is {place!r}, a place on this machine; name the Hub repository"
                for key, place in _names(values[name])
                if is_local_name(place)
            ]
    return values, findings


def _names(values: Any) -> Iterator[tuple[str, str]]:
    """All `name_or_path` entries, at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in NAME_KEYS and isinstance(value, str):
                yield key, value
            else:
                yield from _names(value)
    elif isinstance(values, list):
        for value in values:
            yield from _names(value)


def _leaks(path: Path, values: Any) -> Iterator[str]:
    """Tokens, local paths and user names in one text file, the first of each kind."""
    if path.name in VOCABULARY_FILES:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name == "tokenizer.json" and isinstance(values, dict):
        # A vocabulary is made of other people's text, and pieces of paths are ordinary tokens in it.
        text = json.dumps({key: value for key, value in values.items() if key != "model"}, indent=1)
    for what, pattern in TOKENS.items():
        if found := re.search(pattern, text):
            yield f":{_line(text, found)}: {what} (`{found.group()[:6]}…`); remove it, and revoke it where it is valid"
    text = re.sub(r"https?://\S+", "", text)
    if found := re.search("|".join([LOCAL_PATH, *_personal_patterns()]), text):
        rest = re.match(r"[^\s\"'`)]*", text[found.start() :]).group()
        yield f":{_line(text, found)}: a local path (`{rest[:60]}`); name the Hub repository or a relative path"


def _personal_patterns() -> list[str]:
    home = Path.home()
    users = {home.name, os.environ.get("USER", ""), os.environ.get("LOGNAME", "")} - {""}
    patterns = [rf"(?<=[/\\]){re.escape(user)}(?=[/\\])" for user in sorted(users)]
    return [*patterns, re.escape(str(home)) + r"(?!\w)"] if home.name else patterns


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1


def _auto_map(directory: Path, values: dict[str, Any], code: list[Path]) -> list[str]:
    """Whether every Auto class is named, its file there, and all that the file imports."""
    config = values["config.json"]
    auto_map = config.get("auto_map", {})
    graft = GRAFTS.get(config.get("model_type"))
    if not auto_map and not code and graft is None and config.get("model_type") in CONFIG_MAPPING_NAMES:
        return []
    wanted = set(graft.auto_map) if graft else {"AutoConfig"}
    findings = [f"config.json: `auto_map` lacks {auto}" for auto in sorted(wanted - set(auto_map))]
    # `AutoProcessor` reads its own file and falls back to the bare tokenizer where that names no class.
    own = values.get("processor_config.json", {}).get("auto_map", {}).get("AutoProcessor")
    if "processor_config.json" in values and own != auto_map.get("AutoProcessor"):
        named = auto_map.get("AutoProcessor")
        findings.append(f"processor_config.json: `auto_map` gives AutoProcessor as {own}, config.json as {named}")
    waiting = []
    for auto, reference in sorted(auto_map.items()):
        if not isinstance(reference, str) or not re.fullmatch(r"\w+\.\w+", reference):
            findings.append(f"`auto_map` gives {auto} as {reference!r}; it must be `module.Class` of this repository")
            continue
        module, name = reference.split(".")
        path = directory / f"{module}.py"
        waiting.append(path.name)
        if path.is_file() and name not in defined_classes(path):
            findings.append(f"{path.name} does not define {name}, which `auto_map` gives for {auto}")
    closure: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            if (directory / name).is_file():
                waiting += relative_imports(directory / name)
            else:
                findings.append(f"{name} is missing, though `auto_map` or the code it leads to needs it")
    strays = sorted(path.name for path in code if path.name not in closure)
    return findings + [f"{name} is code that `auto_map` does not lead to; remove it" for name in strays]


def _adapter(directory: Path, config: dict[str, Any]) -> list[str]:
    findings = []
    if not config.get("base_model_name_or_path"):
        findings.append("adapter_config.json: `base_model_name_or_path` is empty; give the base's Hub id")
    if not (directory / "adapter_model.safetensors").is_file():
        findings.append("adapter_model.safetensors is missing; save the adapter again")
    return findings


def _weights(directory: Path, values: dict[str, Any]) -> tuple[int, list[str]]:
    """Number of tensors, and what is wrong with the files they lie in."""
    findings, held = [], {}
    for path in sorted(directory.glob("*.safetensors")):
        problem, held[path.name] = read_shard(path)
        findings += [problem] if problem else []
    for name, index in values.items():
        if name.endswith(".safetensors.index.json"):
            for tensor, shard in index["weight_map"].items():
                if shard not in held:
                    held[shard] = set()
                    findings.append(f"{shard} is missing; {name} says that it holds {tensor}")
                elif held[shard] and tensor not in held[shard]:
                    findings.append(f"{shard} does not hold {tensor}, which {name} says it does")
    return sum(len(names) for names in held.values()), findings


def _card(directory: Path) -> list[str]:
    """What is wrong with the card's metadata and its figures; a folder without a card is not a fault of the folder."""
    card = directory / "README.md"
    if not card.is_file():
        return []
    try:
        metadata = metadata_load(card)
    except (ValueError, yaml.YAMLError) as error:
        return [f"README.md: the metadata at its head cannot be read: {error}"]
    findings = [] if metadata else ["README.md has no metadata at its head; write it with `qwen-grafts card`"]
    figures = re.findall(r"!\[[^\]]*\]\((?!https?://)([^)\s]+)\)", card.read_text(encoding="utf-8"))
    return findings + [
        f"README.md shows {name}, which is missing" for name in figures if not (directory / name).is_file()
    ]
