"""A demo's one page: accuracy against controls, loss curve, confusion matrices, images with answers, model card.

Self-contained HTML: every picture is inlined, nothing is fetched. The demo of depth has its own content on this page
(`depth_report.py`).
"""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .demo_results import Result
from .hub_cards.figures import confusion_figure

COLOURS = {"own image": "#2a6fdb", "blank image": "#b8b8b8", "shuffled images": "#6f6f6f"}


def write_report(
    path: Path,
    *,
    headline: str,
    subject: str,
    trained_part: str,
    results: Sequence[Result],
    metadata: dict[str, Any],
    samples: list[dict[str, Any]],
    card: str,
    seconds: float,
) -> Path:
    """Write the page.

    Args:
        headline, subject: what happened, and to what, in words.
        trained_part: what of the model was trained.
        results: what was measured on held-out images.
        metadata: content of `training_meta.json`.
        samples: {"image": path, "question", "expected", "replies": [{"name", "thought", "answer"}, …]}.
        card: the model card's Markdown with its YAML header.
        seconds: wall-clock time of the whole demo.
    """
    return write_page(
        path,
        "report.html.jinja",
        headline=headline,
        subject=subject,
        trained_part=trained_part,
        results=results,
        metadata=metadata,
        minutes=seconds / 60,
        loss_curve=inlined(loss_curve(metadata)),
        accuracy=inlined(_accuracy(results)),
        confusion={field: _confusion(matrix) for field, matrix in (metadata.get("confusion") or {}).items()},
        samples=[sample | {"picture": _picture(sample["image"])} for sample in samples],
        card=card,
    )


def write_page(path: Path, template: str, *, card: str, **values: Any) -> Path:
    """Write a page from a template of this folder, in one step.

    Args:
        template: file name; it extends `report_page.html.jinja`.
        card: the model card's Markdown with its YAML header.
        values: what the template shows.
    """
    environment = Environment(loader=PackageLoader(__package__, ""), autoescape=True)
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    html = environment.get_template(template).render(
        card_header=header,
        card=MarkdownIt("commonmark", {"html": False}).enable("table").render(_without_figures(body)),
        **values,
    )
    partial = path.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def loss_curve(metadata: dict[str, Any]) -> plt.Figure:
    """Of training, and of held-out rows where there are any."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    steps, losses = zip(*metadata["loss_curve"], strict=True)
    axes.plot(steps, losses, color="#2a6fdb", label="training")
    if metadata["eval_loss_curve"]:
        axes.plot(*zip(*metadata["eval_loss_curve"], strict=True), "o-", color="#d1495b", label="held out")
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss (nats a token)", yscale="log")
    return figure


def _accuracy(results: Sequence[Result]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(max(6.4, 1.35 * len(results)), 3.2))
    shares = [{"own image": result.after} | result.controls for result in results]
    width = 0.78 / len(shares[0])
    for number, label in enumerate(shares[0]):
        places = [index + (number - (len(shares[0]) - 1) / 2) * width for index in range(len(results))]
        bars = axes.bar(places, [share[label] for share in shares], width, label=label, color=COLOURS[label])
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    for index, result in enumerate(results):
        if result.chance is not None:
            axes.hlines(result.chance, index - 0.42, index + 0.42, colors="black", linestyles="dotted", linewidth=1)
    axes.set(
        xticks=range(len(results)),
        xticklabels=[result.kind.replace(", ", "\n").replace(" (", "\n(") for result in results],
        ylim=(0, 1.18),
        ylabel="right answers, held out",
    )
    axes.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")
    return figure


def _confusion(matrix: dict[str, Any]) -> str:
    buffer = BytesIO()
    confusion_figure(matrix, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def inlined(figure: plt.Figure) -> str:
    """A figure as PNG in base64; it is closed."""
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
