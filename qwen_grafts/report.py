"""The demo's one page: loss curve, accuracy against controls, sample images with questions and answers, model card.

Self-contained HTML: every picture is inlined, nothing is fetched.
"""

import base64
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment
from markdown_it import MarkdownIt
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .recipes.visual_tasks import CHANCE

BARS = (("exact_match", "own image", "#2a6fdb"), ("blank_image", "blank image", "#b8b8b8"))
BARS += (("shuffled_image", "another row's image", "#6f6f6f"),)


def write_report(
    path: Path,
    *,
    graft: str,
    trained_part: str,
    metadata: dict[str, Any],
    samples: list[dict[str, Any]],
    card: str,
    seconds: float,
) -> Path:
    """Write the page.

    Args:
        graft: what was built, in words.
        trained_part: the part of it that was trained.
        metadata: content of `training_meta.json`.
        samples: {"image": path, "question", "expected", "replies": [{"name", "thought", "answer"}, …]}.
        card: the model card's Markdown with its YAML header.
        seconds: wall-clock time of the whole demo.
    """
    template = Environment(autoescape=True).from_string(
        files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    html = template.render(
        graft=graft,
        trained_part=trained_part,
        metadata=metadata,
        minutes=seconds / 60,
        loss_curve=_figure(_loss_curve(metadata)),
        accuracy=_figure(_accuracy(metadata["metrics"]["after"])),
        results=metadata["metrics"],
        chance={kind: _chance(kind) for kind in metadata["metrics"]["after"]},
        samples=[sample | {"picture": _picture(sample["image"])} for sample in samples],
        card_header=header,
        card=MarkdownIt("commonmark", {"html": False}).enable("table").render(_without_figures(body)),
    )
    partial = path.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _loss_curve(metadata: dict[str, Any]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    steps, losses = zip(*metadata["loss_curve"], strict=True)
    axes.plot(steps, losses, color="#2a6fdb", label="training")
    if metadata["eval_loss_curve"]:
        axes.plot(*zip(*metadata["eval_loss_curve"], strict=True), "o-", color="#d1495b", label="held out")
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss (nats a token)", yscale="log")
    return figure


def _accuracy(after: dict[str, dict[str, float]]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(max(6.4, 1.35 * len(after)), 3.2))
    width = 0.26
    for offset, (key, label, colour) in enumerate(BARS):
        places = [index + (offset - 1) * width for index in range(len(after))]
        bars = axes.bar(places, [result[key] for result in after.values()], width, label=label, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    for index, kind in enumerate(after):
        axes.hlines(_chance(kind), index - 0.42, index + 0.42, colors="black", linestyles="dotted", linewidth=1)
    axes.set(
        xticks=range(len(after)),
        xticklabels=[kind.replace(", ", "\n") for kind in after],
        ylim=(0, 1.18),
        ylabel="exact match, held out",
    )
    axes.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")
    return figure


def _chance(kind: str) -> float:
    """Of a kind of question; "shape, thinking" is the question "shape"."""
    return CHANCE[kind.partition(",")[0]]


def _figure(figure: plt.Figure) -> str:
    figure.axes[0].spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _picture(path: Path) -> str:
    """A small image enlarged four times without smoothing, so that its pixels are what one sees."""
    with Image.open(path) as image:
        buffer = BytesIO()
        enlarged = (image.width * 4, image.height * 4)
        image.convert("RGB").resize(enlarged, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _without_figures(body: str) -> str:
    """The card without its picture links: the page shows the loss curve already and must not look for files."""
    return "\n".join(line for line in body.splitlines() if not line.startswith("!["))
