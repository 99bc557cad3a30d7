"""The house rules that no reader should have to check: who imports whom, and what a flat repository can hold."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwen_grafts.configuration import GRAFTS, Graft
from qwen_grafts.configuration.code_files import PACKAGE, _flatten, code_set

FOLDERS = ("configuration", "processing", "modeling", "recipes", "hub_cards")
# Data flows one way. What lies in `qwen_grafts/` itself (the command line, the demo) may import everything.
MAY_IMPORT = {
    "configuration": {"configuration"},
    "processing": {"processing", "configuration"},
    "modeling": {"modeling", "configuration"},
    "recipes": {"recipes", "configuration", "processing", "modeling"},
    "hub_cards": {"hub_cards", "recipes", "configuration", "processing", "modeling"},
}
EXPORTED_IMPORTS = {"torch", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names


def package_files() -> Iterator[tuple[str, Path]]:
    """Full module name and file of every module of the package, wherever it is installed."""
    roots = [(PACKAGE, Path(find_spec(PACKAGE).origin).parent)]
    roots += [(f"{PACKAGE}.{folder}", Path(find_spec(f"{PACKAGE}.{folder}").origin).parent) for folder in FOLDERS]
    for name, root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join((name, *(part for part in parts if part != "__init__"))), path


FILES = dict(package_files())


def imported_modules(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Full names of what a module imports, wherever in the file; `from a import b` counts as `a.b`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def own_imports(module: str) -> set[str]:
    path = FILES[module]
    imported = imported_modules(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    return {name for name in imported if name.split(".")[0] == PACKAGE}


def test_imports_are_seen() -> None:
    """Guards the tests below: a walk that finds no file or no import would let everything pass."""
    assert all(f"{PACKAGE}.{folder}" in FILES for folder in FOLDERS)
    seen = own_imports(f"{PACKAGE}.modeling.modeling_qwen3_perceiver")
    assert f"{PACKAGE}.configuration.configuration_qwen3_perceiver.Qwen3PerceiverConfig" in seen
    assert f"{PACKAGE}.modeling.vision_language.VisionLanguageModel" in seen
    source = "from .. import processing\ndef f():\n    import qwen_grafts.cli\n    from ..cli import main\n"
    assert set(imported_modules("qwen_grafts.recipes.x", source, is_package=False)) == {
        "qwen_grafts.processing",
        "qwen_grafts.cli",
        "qwen_grafts.cli.main",
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_import_directions(folder: str) -> None:
    for module in FILES:
        if module.split(".")[1:2] == [folder]:
            for name in own_imports(module):
                part = name.split(".")[1] if "." in name else ""
                assert part in MAY_IMPORT[folder], f"{module} imports {name}"


def test_nothing_imports_the_command_line() -> None:
    for module in FILES:
        assert not any(re.match(rf"{PACKAGE}\.cli(\.|$)", name) for name in own_imports(module)), module


def test_file_names_are_unique() -> None:
    """In a flat repository two files of one name would be one file."""
    names = [path.name for path in FILES.values() if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_no_multihead_attention_in_modeling() -> None:
    """vLLM swaps its inner linear layer and fails."""
    for module, path in FILES.items():
        if module.startswith(f"{PACKAGE}.modeling"):
            names = {
                getattr(node, "attr", getattr(node, "id", None))
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            }
            assert "MultiheadAttention" not in names, module


@pytest.mark.parametrize("graft", GRAFTS.values(), ids=GRAFTS)
def test_exported_code(graft: Graft) -> None:
    code = code_set(graft)
    for named in graft.auto_map.values():
        module, class_name = named.split(".")
        assert f"\nclass {class_name}(" in code[f"{module}.py"]
    for name, source in code.items():
        assert name != "__init__.py" and "/" not in name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= EXPORTED_IMPORTS, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in EXPORTED_IMPORTS, f"{name} imports {node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and f"{node.module}.py" in code, f"{name}:{node.lineno}"
        assert PACKAGE not in source, f"{name} names the package, which is not there on the Hub"


@pytest.mark.parametrize("graft", GRAFTS.values(), ids=GRAFTS)
def test_exported_code_differs_in_import_lines_only(graft: Graft) -> None:
    files = {path.name: path for path in FILES.values()}
    for name, source in code_set(graft).items():
        original = files[name].read_text(encoding="utf-8").splitlines()
        flat = source.splitlines()
        assert len(flat) == len(original)
        for before, after in zip(original, flat, strict=True):
            if before != after:
                assert re.match(r"from \.+[\w.]* import ", before) and re.match(r"from \.\w+ import ", after)


def test_flatten() -> None:
    source = (
        '"""A model."""\n\nimport torch\nfrom ..configuration.config_x import (\n    A,\n    B,\n)\n'
        "from .part import C\nfrom transformers import Cache\n"
    )
    flat, imported = _flatten(source, "pkg.modeling.model_x")
    assert flat == source.replace("..configuration.config_x", ".config_x")
    assert imported == ["pkg.configuration.config_x", "pkg.modeling.part"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('"""Use it so:\n\n    from .part import C\n"""\n', "reads like a relative import"),
        ('"""\nfrom ..other.part import C\n"""\nfrom .part import C\n', "reads like a relative import"),
        ("from . import part\n", "import names from a module"),
        ("from .. import configuration\n", "import names from a module"),
    ],
)
def test_flatten_refuses_what_transformers_would_misread(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _flatten(source, "pkg.modeling.model_x")


def test_two_files_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "two_names"
    for folder, source in (("a", "from .part import X\nfrom ..b.part import Y\n"), ("b", "")):
        (package / folder).mkdir(parents=True)
        (package / folder / "part.py").write_text("X = Y = 1\n")
        (package / folder / "model.py").write_text(source)
        (package / folder / "__init__.py").touch()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(f"{code_set.__module__}.PACKAGE", "two_names")
    with pytest.raises(ValueError, match=r"would both be `part\.py` in a flat repository"):
        code_set(Graft(model_type="x", auto_classes={"AutoModel": "a.model.X"}, pipeline_tag=""))
