"""What came of a folder of files, counted by reason, and what is said where nothing is written."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .file_problems import PASSED_OVER

_SHOWN = 5


@dataclass
class CollectReport:
    """What came of a folder; by reason where something was left out.

    Attributes:
        files: all of them.
        texts, images: documents.
        pictures: pictures of documents that became markers: "new", or "repeated" where the same one was there already.
        lost_pictures: those that did not.
        passed_over: files that are no documents and need not be.
        refused: files that cannot be read.
    """

    files: int = 0
    texts: int = 0
    images: int = 0
    pictures: dict[str, int] = field(default_factory=dict)
    lost_pictures: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Texts and images."""
        return self.texts + self.images


def count_records(records: Iterable[dict[str, Any]]) -> CollectReport:
    """Counts over the lines of a journal."""
    report = CollectReport()
    pictures, lost, passed_over, refused = (Counter() for _ in range(4))
    for record in records:
        report.files += 1
        if record["document"] is not None:
            report.texts += record["document"]["source_type"] == "text"
            report.images += record["document"]["source_type"] == "image"
            if record["document"]["source_type"] == "text":
                pictures["new"] += len(record["new_pictures"])
                pictures["repeated"] += record["repeated"]
        for picture, reason, _ in record["left_out"]:
            (lost if picture is not None else passed_over if reason in PASSED_OVER else refused)[reason] += 1
    report.pictures = dict(+pictures)
    report.lost_pictures, report.passed_over, report.refused = map(_sorted, (lost, passed_over, refused))
    return report


def _sorted(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def refusal_message(report: CollectReport, records: Iterable[dict[str, Any]]) -> str:
    """Why nothing is written, with the first files that cannot be read."""
    shown = (
        f"{record['path']!r}: {reason}{f' ({detail})' if detail else ''}"
        for record in records
        for picture, reason, detail in record["left_out"]
        if picture is None and reason not in PASSED_OVER
    )
    counts = ", ".join(f"{count} {reason}" for reason, count in report.refused.items())
    message = f"{sum(report.refused.values())} of {report.files} files cannot be read: {counts or 'none'}."
    examples = list(islice(shown, _SHOWN))
    if examples:
        message += f" The first {len(examples)}: {'; '.join(examples)}."
    if not report.documents:
        return f"{message} No document is left."
    return f"{message} Repair or remove them, or leave them out with `--on-bad-file skip`; what was read is kept."


__all__ = ["CollectReport", "count_records", "refusal_message"]
