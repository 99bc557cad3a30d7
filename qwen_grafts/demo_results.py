"""What a demo measured, in the shape that its table, its figure and its report page share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .recipes.visual_tasks import CHANCE


@dataclass(frozen=True)
class Result:
    """Shares of right answers to one kind of question on held-out images.

    Attributes:
        before, after: training; before is None where nothing was asked then.
        controls: what was shown in place of the image -> share.
        chance: of guessing; None where no guess is the obvious one.
        rows: answers counted.
    """

    kind: str
    before: float | None
    after: float
    controls: dict[str, float]
    chance: float | None
    rows: int


def image_results(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Result]:
    """Of `recipes.generative_evaluation`: exact match by kind; "digit, thinking" is the question "digit"."""
    return [
        Result(
            kind,
            metrics["before"][kind]["exact_match"] if kind in metrics["before"] else None,
            after["exact_match"],
            {"blank image": after["blank_image"], "shuffled images": after["shuffled_image"]},
            CHANCE[kind.partition(",")[0]],
            int(after["rows"]),
        )
        for kind, after in metrics["after"].items()
    ]


def json_results(metadata: Mapping[str, Any]) -> list[Result]:
    """Of `recipes.query_evaluation`: exact match of the whole answer, then accuracy by field.

    A field's chance is the share of its most frequent class in the targets.
    """
    results = []
    for kind, after in metadata["metrics"]["after"].items():
        measure = "accuracy" if "accuracy" in after else "exact_match"
        targets = [sum(row) for row in metadata["confusion"].get(kind, {"counts": ()})["counts"]]
        results.append(
            Result(
                f"{kind} (whole answer)" if measure == "exact_match" else kind,
                metadata["metrics"]["before"][kind][measure],
                after[measure],
                {"blank image": after["blank_image"]},
                max(targets) / sum(targets) if targets else None,
                int(after["rows"]),
            )
        )
    return results


def results_table(results: Sequence[Result]) -> Table:
    """Shares before and after training, beside their controls."""
    table = Table(title="Right answers on held-out images", title_justify="left")
    for column in ("question", "before", "after", *results[0].controls, "chance"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for result in results:
        figures = (result.before, result.after, *result.controls.values(), result.chance)
        table.add_row(result.kind, *("" if figure is None else f"{figure:.3f}" for figure in figures))
    return table
