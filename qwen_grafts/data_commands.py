"""`qwen-grafts data ...`: from raw documents to rows that train CLaRa."""

from pathlib import Path

from rich.console import Console

from .recipes.clara.chat_endpoint import ChatEndpoint, EndpointError, EndpointSettings
from .recipes.clara.image_descriptions import DescriptionCounts, describe_folder, description_cost
from .recipes.clara.picture_describers import EndpointDescriber
from .recipes.clara.raw_knowledge import DESCRIPTIONS
from .recipes.clara.row_validation import MOST_KEPT, ValidationReport, validate_rows

ANSWERS = "endpoint_answers.sqlite"


def describe(
    folder: Path,
    *,
    settings: EndpointSettings | None,
    graft: str | None,
    max_tokens: int,
    batch_size: int,
    dry_run: bool,
    console: Console,
) -> DescriptionCounts | None:
    """Describe the pictures of a knowledge folder, by an endpoint or by a vision graft; returns the counts.

    Args:
        settings: of the endpoint; or
        graft: folder or repository id of a vision graft.
        batch_size: pictures that the graft reads at a time.
        dry_run: only tell what the endpoint would cost.

    Raises:
        ValueError: what reading, asking or writing refuses.
    """
    if settings is None:
        from .recipes.clara.graft_describer import GraftDescriber

        counts = describe_folder(folder, GraftDescriber(graft, max_tokens, batch_size))
    else:
        cost = description_cost(folder, max_tokens, settings.input_price, settings.output_price)
        console.print(cost.table())
        if dry_run:
            return None
        try:
            with ChatEndpoint(settings, folder / ANSWERS) as endpoint:
                counts = describe_folder(folder, EndpointDescriber(endpoint, max_tokens))
        except EndpointError as error:
            raise ValueError(str(error)) from None
        console.print(str(endpoint.usage), markup=False, highlight=False, soft_wrap=True)
    console.print(str(counts), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Wrote {folder / DESCRIPTIONS}.", markup=False, highlight=False, soft_wrap=True)
    return counts


def validate(path: Path, stage: str, console: Console) -> ValidationReport:
    """Show the faults of a file of rows; returns the report.

    Raises:
        ValueError: no such stage, or no file of JSON lines.
    """
    report = validate_rows(path, stage)
    if not report.ok:
        console.print(report.table(), markup=False)
    console.print(f"{path.name} for {stage}: {report}", markup=False, highlight=False, soft_wrap=True)
    if (more := report.counts.total() - len(report.faults)) > 0:
        console.print(f"The table has the first {MOST_KEPT} faults; {more} more are counted.", highlight=False)
    return report
