"""`qwen-grafts data collect` and `data clean`: files into a knowledge folder, rows without leftovers of pictures."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from .recipes.clara.knowledge_folder import LEFT_OUT, CollectReport, collect
from .recipes.clara.legacy_cleaner import CleaningCounts, clean_rows
from .recipes.clara.raw_knowledge import RAW_KNOWLEDGE


def collect_files(
    folder: Path, directory: Path, *, on_bad_file: Literal["stop", "skip"], console: Console
) -> CollectReport:
    """Read all files of a folder and show the counts; returns them.

    Raises:
        ValueError: what `collect` refuses.
    """
    report = collect(folder, directory, on_bad_file=on_bad_file)
    left_out = {"picture lost": report.lost_pictures, "passed over": report.passed_over, "refused": report.refused}
    if rows := [(what, reason, str(count)) for what, counts in left_out.items() for reason, count in counts.items()]:
        table = Table("left out", "reason", "count")
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False)
        console.print(f"Each of them is in {directory / LEFT_OUT}.", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Wrote {directory / RAW_KNOWLEDGE}: {report.texts} texts with {sum(report.pictures.values())} pictures "
        f"({report.pictures.get('new', 0)} different ones) and {report.images} images, from {report.files} files.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return report


def clean(source: Path, target: Path, *, console: Console) -> CleaningCounts:
    """Write a file's rows without references to pictures and show the counts; returns them.

    Raises:
        ValueError: what `clean_rows` refuses.
    """
    counts = clean_rows(source, target)
    console.print(f"Wrote {target}: {counts}", markup=False, highlight=False, soft_wrap=True)
    return counts
