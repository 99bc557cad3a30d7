"""What published code may do, read off its syntax tree; nothing is imported or run.

Published code computes: it imports torch, transformers, safetensors, huggingface_hub and harmless parts of the
standard library, it opens no files, sockets or processes and evaluates no text. The rules keep our own repositories
clean and show at once when a copied file is not ours; they are no sandbox for hostile code.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

REQUIRED_PACKAGES = frozenset({"huggingface_hub", "safetensors", "torch", "transformers"})
OPTIONAL_PACKAGES = frozenset({"PIL", "flash_attn", "numpy", "peft", "timm", "torchvision"})
STANDARD_MODULES = frozenset(
    {
        "__future__",
        "abc",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "inspect",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "textwrap",
        "types",
        "typing",
        "unicodedata",
        "warnings",
    }
)
FORBIDDEN_NAMES = frozenset({"__builtins__", "__import__", "breakpoint", "compile", "eval", "exec", "input", "open"})
FORBIDDEN_METHODS = frozenset(
    {
        "memmap",
        "mkdir",
        "open",
        "popen",
        "read_bytes",
        "read_text",
        "rmdir",
        "system",
        "tofile",
        "unlink",
        "urlopen",
        "urlretrieve",
        "write_bytes",
        "write_text",
    }
)
FORBIDDEN_IN_TORCH = frozenset({"hub", "load", "save"})


def code_findings(path: Path) -> list[str]:
    """What is wrong with one published Python file; empty when nothing is."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        return [f"{path.name} is not Python: {error}"]
    return [f"{path.name}:{line}: {what}" for line, what in _walk(tree, guarded=False)]


def relative_imports(path: Path) -> list[str]:
    """File names that a published Python file imports from beside itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{node.module}.py" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]


def defined_classes(path: Path) -> set[str]:
    """Names of the classes at the top level of a Python file."""
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)}


def _walk(node: ast.AST, guarded: bool) -> Iterator[tuple[int, str]]:
    yield from _judge(node, guarded)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, guarded or _guards(node, child))


def _guards(node: ast.AST, child: ast.AST) -> bool:
    """Whether `child` runs only where an optional package was found: in `try:`, or in `if is_x_available():`."""
    if isinstance(node, ast.Try):
        return child in node.body
    if isinstance(node, ast.If) and child in node.body:
        calls = (part for part in ast.walk(node.test) if isinstance(part, ast.Call))
        return any(getattr(call.func, "id", "").endswith("available") for call in calls)
    return False


def _judge(node: ast.AST, guarded: bool) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _judge_import(node.lineno, alias.name, guarded)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield from _judge_import(node.lineno, node.module, guarded)
        if node.module == "torch":
            for alias in node.names:
                if alias.name in FORBIDDEN_IN_TORCH:
                    yield node.lineno, f"imports `torch.{alias.name}`, which reads or writes files"
    elif isinstance(node, ast.ImportFrom) and (node.level > 1 or node.module is None or "." in node.module):
        yield node.lineno, "transformers follows only `from .name import x` with a file beside this one"
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in FORBIDDEN_NAMES:
        yield node.lineno, f"uses `{node.id}`, which published code may not"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        attribute, owner = node.func.attr, getattr(node.func.value, "id", None)
        if attribute in FORBIDDEN_METHODS or (owner == "torch" and attribute in FORBIDDEN_IN_TORCH):
            yield node.lineno, f"calls `.{attribute}`, which reaches for files, processes or the network"


def _judge_import(line: int, module: str, guarded: bool) -> Iterator[tuple[int, str]]:
    package = module.split(".")[0]
    if package in REQUIRED_PACKAGES | STANDARD_MODULES or (guarded and package in OPTIONAL_PACKAGES):
        return
    if package in OPTIONAL_PACKAGES:
        yield line, f"imports the optional `{package}` unguarded; put it under `try:` or `if is_…_available():`"
    else:
        yield line, f"imports `{package}`, which is neither a dependency of published code nor a harmless module"
