"""The documentation is true: links lead somewhere, what it names exists, its commands parse and its code runs."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from qwen_grafts.cli import app
from qwen_grafts.configuration import preset_config
from qwen_grafts.hub_cards import export_preset
from qwen_grafts.hub_cards.graft_parts import build_processor

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
FOLDERS = ("configuration", "processing", "modeling", "recipes", "hub_cards", "qwen_grafts", "tests", "benchmarks")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# Page -> sections whose Python runs, in this order. The others need a network, data or a finished demo.
RUNNING = {
    "README.md": ["Use"],
    "docs/prompts_and_thinking.md": ["A batch", "Thought and answer", "Streaming"],
    "docs/vision_bridge.md": ["Images, several and moving", "Inference"],
    "docs/graft_your_own_encoder.md": ["Use it", "Train it"],
    "docs/clara.md": ["Use", "An index of latents"],
    "docs/recursive_qwen.md": ["Depth", "Halting", "Ask it", "Caches and generation"],
}


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", page), flags=re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Where GitHub's links into a page may lead."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in headings(page):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def code(name: str, section: str) -> list[str]:
    """Python blocks of one section."""
    after = PAGES[name].split(f"\n## {section}\n", 1)[1]
    text = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    return [source for language, source in FENCE.findall(text) if language == "python"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[name])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        assert place.exists(), f"{target}: no such file"
        if anchor:
            page = place.resolve().relative_to(ROOT)
            assert anchor in anchors(PAGES[str(page)]), f"{target}: no such heading"


def test_every_page_is_linked() -> None:
    linked = {Path(target).name for page in PAGES.values() for target in re.findall(r"\]\(([^)#\s]+)", page)}
    assert {Path(name).name for name in PAGES} - linked <= {"CHANGELOG.md", "README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_named_tests_and_files_exist(name: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    tests = {test for source in sources for test in re.findall(r"^\s*def (test_\w+)", source, flags=re.MULTILINE)}
    for test in re.findall(r"`(test_\w+)`", PAGES[name]):
        assert test in tests, f"{name} names {test}"
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./]+)`", PAGES[name]):
        assert "example" in path or (ROOT / path).exists(), f"{name} names {path}"


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    """Every `qwen-grafts` command of a page, and every option that it is given."""
    lines = [line for language, text in FENCE.findall(PAGES[name]) if language == "bash" for line in text.split("\n")]
    lines = [line for line in "\n".join(lines).replace("\\\n", " ").split("\n") if line.startswith("qwen-grafts ")]
    lines += re.findall(r"`(qwen-grafts\s[^`]+)`", FENCE.sub("", PAGES[name]))
    for line in lines:
        words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)[1:]
        command = get_command(app)
        while hasattr(command, "commands"):
            options = {option for parameter in command.params for option in parameter.opts}
            word = next((word for word in words if word not in options), "")
            if not word.islower():  # `qwen-grafts COMMAND …`
                break
            assert word in command.commands, f"{name}: {line}"
            words.remove(word)
            command = command.commands[word]
        if hasattr(command, "commands") or command.name == "train":  # whose options are those of TRL
            continue
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        given = {word for word in words if word.startswith("--")}
        assert given <= options | {"--help"}, f"{name}: {line}"


@pytest.mark.parametrize("name", PAGES)
def test_code_parses(name: str) -> None:
    for language, source in FENCE.findall(PAGES[name]):
        if language == "python":
            ast.parse(source)


def test_sizes_in_the_table_are_the_processors() -> None:
    """`docs/vision_bridge.md`: what becomes of pictures, with the preset's bounds and with those of phase 1."""
    processor = build_processor(preset_config("vision-bridge-4b"))
    section = PAGES["docs/vision_bridge.md"].split("\n## Resolution\n")[1].split("\n## ")[0]
    side, number = r"(\d+) x (\d+)", r"([\d,]+)"
    rows = re.findall(rf"^\| {side} \| {side} \| {number} \| {side} \| {number} \|$", section, flags=re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        width, height, *cells = (int(cell.replace(",", "")) for cell in row)
        expected = []
        for size in (processor.image_processor.size, {"shortest_edge": 3136, "longest_edge": 401_408}):
            image = Image.new("L", (width, height))
            grid = processor.image_processor(image, size=dict(size))["image_grid_thw"][0].tolist()
            expected += [grid[2] * 14, grid[1] * 14, grid[1] * grid[2] // 4]
        assert cells == expected, row


def test_pages_run(tmp_path: Path) -> None:
    """Code of the pages as it stands, in a folder where what it speaks of lies, each page in a namespace of its own."""
    for graft, preset in (("", "perceiver-vlm-tiny"), ("vision-bridge", "vision-bridge-tiny")):
        folder = tmp_path / "demo" / graft
        export_preset(preset, folder / "published")
        (folder / "samples").mkdir()
        for index in range(2):
            noise = np.random.default_rng(index).integers(0, 256, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "samples" / f"{index:02d}.png")
    for preset in ("recursive-tiny", "clara-tiny"):
        export_preset(preset, tmp_path / "outputs" / preset)
    frames = [Image.new("RGB", (48, 32), (60 * number, 0, 0)) for number in range(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    own_encoder = code("docs/graft_your_own_encoder.md", "Any other encoder")
    (tmp_path / "dino_qwen.py").write_text(own_encoder[0], encoding="utf-8")
    script = "import sys\nsys.path.insert(0, '')\n"
    for name, sections in RUNNING.items():
        source = "\n".join(block for section in sections for block in code(name, section))
        script += f"print({name!r})\nexec(compile({source!r}, {name!r}, 'exec'), {{'__name__': 'page'}})\n"
    child = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-1000:] + child.stderr[-3000:]
    assert "\n[[1, 4, 6], [1, 4, 6]] " in child.stdout  # frames 0 and 2 of the clip
    assert (tmp_path / "dino-qwen-trained" / "training_meta.json").is_file()
