"""Which files of the package a published model needs, and how they are made flat.

A Hub repository is flat and transformers follows only `from .name import x`, so the code set of a graft is the import
closure of its Auto classes with our package imports rewritten to flat ones; nothing else changes. `carry_code` hooks
that into saving: wherever the JSON that names the code is written, the code is written beside it, whoever saves.
"""

import ast
import functools
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .grafts import GRAFTS, Graft

PACKAGE = __package__.rsplit(".", 1)[0]


def code_set(graft: Graft) -> dict[str, str]:
    """File name -> flat source of everything the graft's Auto classes import from this package.

    Raises:
        ValueError: two files of one name, or a line that transformers would take for an import.
    """
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}
    waiting = [f"{PACKAGE}.{module}" for module in graft.modules]
    while waiting:
        module = waiting.pop(0)
        name = module.rsplit(".", 1)[-1] + ".py"
        if origins.get(name) == module:
            continue
        if name in origins:
            raise ValueError(f"{module} and {origins[name]} would both be `{name}` in a flat repository; rename one.")
        source = Path(find_spec(module).origin).read_text(encoding="utf-8")
        origins[name] = module
        sources[name], imported = _flatten(source, module)
        waiting += imported
    return sources


def write_code(graft: Graft, directory: str | os.PathLike) -> list[Path]:
    """Write the code set into `directory`, each file in one step; returns the paths."""
    paths = []
    for name, source in code_set(graft).items():
        path = Path(directory) / name
        partial = path.with_suffix(".py.partial")
        partial.write_text(source, encoding="utf-8")
        partial.replace(path)
        paths.append(path)
    return paths


def carry_code(cls: type) -> type:
    """Make a configuration or processor class of this package write its graft's code beside its own JSON file.

    transformers does the same for classes that were loaded as remote code; a class imported from a package has
    package imports that it cannot copy. Applied in the folders' `__init__.py`, so published files do not contain it.
    """
    graft = _graft_of(cls)
    to_json_file = cls.to_json_file

    @functools.wraps(to_json_file)
    def to_json_file_with_code(self: Any, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        autos = graft.auto_map if hasattr(self, "model_type") else {"AutoProcessor": graft.auto_map["AutoProcessor"]}
        self.auto_map = autos
        to_json_file(self, json_file_path, *args, **kwargs)
        write_code(graft, Path(json_file_path).parent)

    cls.to_json_file = to_json_file_with_code
    return cls


def _graft_of(cls: type) -> Graft:
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix(f"{PACKAGE}.")
    return next(graft for graft in GRAFTS.values() if name in graft.auto_classes.values())


def _flatten(source: str, module: str) -> tuple[str, list[str]]:
    """Rewrite package imports to flat ones; also return the full names of the modules they import."""
    lines = source.splitlines(keepends=True)
    imported, flat_names = [], []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        parent = module.rsplit(".", node.level)[0]
        if node.module is None:
            raise ValueError(f"{module}:{node.lineno}: import names from a module, not modules from a package.")
        target = f"{parent}.{node.module}"
        flat = target.rsplit(".", 1)[-1]
        written = "." * node.level + node.module
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"from {written} import", f"from .{flat} import", 1)
        imported.append(target)
        flat_names.append(flat)
    flat_source = "".join(lines)
    # transformers looks for imports with this pattern, in docstrings too.
    seen = re.findall(r"^\s*from\s+\.(\S+)\s+import", flat_source, flags=re.MULTILINE)
    seen += re.findall(r"^\s*import\s+\.(\S+)\s*$", flat_source, flags=re.MULTILINE)
    if sorted(seen) != sorted(flat_names):
        raise ValueError(f"{module}: a line of text reads like a relative import, one of {sorted(seen)}; reword it.")
    return flat_source, imported
