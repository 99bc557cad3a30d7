"""Figures of a model card, drawn from `training_meta.json`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from .cards import loss_curve_figure

LOSS_CURVE = "loss_curve.png"


def draw_figures(training: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Draw what the training recorded: the loss curve, and a confusion matrix for each field of JSON targets.

    Returns:
        File name in `directory` -> caption.
    """
    figures = {}
    if training.get("loss_curve"):
        loss_curve_figure(training, directory / LOSS_CURVE)
        figures[LOSS_CURVE] = "Training loss by step."
    for field, confusion in (training.get("confusion") or {}).items():
        name = f"confusion_{re.sub(r'[^A-Za-z0-9_-]+', '_', field)}.png"
        confusion_figure(confusion, directory / name)
        figures[name] = f"Held-out rows after training, by {field} in the target and in the answer."
    return figures


def confusion_figure(confusion: Mapping[str, Any], path: Path | BinaryIO) -> None:
    """Draw a confusion matrix as PNG: rows by target, columns by answer, coloured by the share of the row.

    Args:
        confusion: "targets", "answers" and "counts", as `recipes.structured_targets` gives them.
    """
    targets, answers, counts = (confusion[name] for name in ("targets", "answers", "counts"))
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    figure = Figure(figsize=(2.5 + 0.8 * len(answers), 1.6 + 0.6 * len(targets)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="answer", ylabel="target")
    axes.set_xticks(range(len(answers)), [_short(label) for label in answers], rotation=30, ha="right")
    axes.set_yticks(range(len(targets)), [_short(label) for label in targets])
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            colour = "white" if shares[row][column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    figure.savefig(path, format="png", dpi=120)


def _short(label: str) -> str:
    """A class as an axis can carry it; a dollar sign would start a formula."""
    return (label if len(label) <= 24 else f"{label[:23]}…").replace("$", r"\$")
