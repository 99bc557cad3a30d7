"""The report page of the recursive demo: accuracy against depth, beside its control; halting; the cycles of a token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .recipes.affine_task import CHANCE
from .report import inlined, loss_curve, write_page

COLOURS = ("#2a6fdb", "#d1495b", "#6f6f6f", "#1b7f3b")
NAMES = ("tokens", "expected", "values", "cycles")  # of a sample


def write_depth_report(
    path: Path,
    *,
    curves: Mapping[str, Mapping[str, Any]],
    trained_length: int,
    metadata: dict[str, Any],
    samples: Sequence[Mapping[str, Any]],
    card: str,
    seconds: float,
) -> Path:
    """Write the page.

    Args:
        curves: model -> what `measure_depth` gives; the first one is the published model.
        trained_length: of the rows that were learned; all others are longer than any seen.
        metadata: content of `training_meta.json`.
        samples: {"tokens", "expected", "values", "cycles"}, lists of one item a token.
        card: the model card's Markdown with its YAML header.
        seconds: wall-clock time of the whole demo.
    """
    published = next(iter(curves.values()))
    return write_page(
        path,
        "depth_report.html.jinja",
        headline="A model that thinks longer, and is right more often",
        curves=curves,
        trained_length=trained_length,
        metadata=metadata,
        minutes=seconds / 60,
        depth_figure=inlined(depth_figure(curves, trained_length)),
        halting_figure=inlined(halting_figure(published)),
        loss_curve=inlined(loss_curve(metadata)),
        samples=[sample | {"steps": list(zip(*(sample[name] for name in NAMES), strict=True))} for sample in samples],
        card=card,
    )


def depth_figure(curves: Mapping[str, Mapping[str, Any]], trained_length: int) -> plt.Figure:
    """Accuracy against the cycles of the call: a colour a model, dashed at lengths never trained on."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        for length, row in curve["depth"].items():
            seen = int(length) == trained_length
            label = f"{name}, length {length}{'' if seen else ' (never seen)'}"
            style = "o-" if seen else "s--"
            axes.plot([int(depth) for depth in row], list(row.values()), style, color=colour, label=label, markersize=4)
    axes.axhline(CHANCE, color="black", linestyle="dotted", linewidth=1)
    ticks = [int(depth) for depth in next(iter(next(iter(curves.values()))["depth"].values()))]
    axes.set(xscale="log", xlabel="cycles at test time", ylabel="right values", ylim=(0, 1.04))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.18))
    return figure


def halting_figure(curve: Mapping[str, Any]) -> plt.Figure:
    """Accuracy against the mean cycles of a token: every token the same number, and tokens that stop by themselves."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for colour, length in zip(COLOURS, curve["halting"], strict=False):
        fixed, halting = curve["depth"][length], curve["halting"][length]
        axes.plot(
            [int(depth) for depth in fixed], list(fixed.values()), "o-", color=colour, label=f"fixed, length {length}"
        )
        points = sorted((row["cycles"], row["accuracy"]) for row in halting.values())
        axes.plot(
            *zip(*points, strict=True), "s--", color=colour, markerfacecolor="none", label=f"halting, length {length}"
        )
    axes.set(xlabel="mean cycles a token", ylabel="right values", ylim=(0, 1.04))
    axes.legend(frameon=False, fontsize=8)
    return figure
