"""`qwen-grafts data`: raw documents with pictures into the rows of CLaRa's three stages; nothing is computed here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .recipes.clara.chat_endpoint import EndpointSettings

data_app = typer.Typer(no_args_is_help=True, help="Make rows for CLaRa out of raw documents.")
console = Console()

BaseUrl = Annotated[
    str | None, typer.Option(help="Of the endpoint; default: the variable OPENAI_BASE_URL. Key: OPENAI_API_KEY.")
]
Concurrency = Annotated[int, typer.Option(help="Requests under way at a time.")]
RequestsPerMinute = Annotated[int | None, typer.Option(help="Limit of the endpoint.")]
TokensPerMinute = Annotated[int | None, typer.Option(help="Limit of the endpoint.")]
InputPrice = Annotated[float | None, typer.Option(help="Of a million prompt tokens, to tell the cost.")]
OutputPrice = Annotated[float | None, typer.Option(help="Of a million answer tokens.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only estimate what the endpoint would take.")]


def _endpoint(
    model: str,
    base_url: str | None,
    concurrency: int,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    input_price: float | None,
    output_price: float | None,
) -> "EndpointSettings":
    from .recipes.clara.chat_endpoint import EndpointSettings

    return EndpointSettings(
        model,
        base_url,
        max_concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        input_price=input_price,
        output_price=output_price,
    )


@data_app.command("collect")
def collect(
    folder: Annotated[Path, typer.Argument(help="Of PDF, DOCX, HTML, Markdown, text and images, in any depth.")],
    knowledge: Annotated[Path, typer.Argument(help="Knowledge folder to write: new, or of a run that was stopped.")],
    on_bad_file: Annotated[str, typer.Option(help="`stop` or `skip`: what a file that cannot be read does.")] = "stop",
) -> None:
    """Read real files into texts with markers and the images that these name; started again, it goes on.

    Example: `qwen-grafts data collect handbook knowledge`
    """
    from .knowledge_commands import collect_files

    collect_files(folder, knowledge, on_bad_file=on_bad_file, console=console)


@data_app.command("describe")
def describe(
    folder: Annotated[Path, typer.Argument(help="A knowledge folder, of `data collect`.", file_okay=False)],
    model: Annotated[str | None, typer.Option(help="Model of an OpenAI-compatible endpoint that reads images.")] = None,
    base_url: BaseUrl = None,
    graft: Annotated[str | None, typer.Option(help="Or: a vision graft, folder or repository id.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a description.")] = 512,
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    batch_size: Annotated[int, typer.Option(help="With --graft: images at a time.")] = 8,
    dry_run: DryRun = False,
) -> None:
    """Describe all images of the documents, each once; started again, it goes on.

    Example: `qwen-grafts data describe knowledge --model qwen-vl --base-url http://127.0.0.1:8000/v1`
    """
    from .data_commands import describe

    if (model is None) == (graft is None):
        raise ValueError("Give exactly one of `--model NAME`, of an endpoint, and `--graft REPOSITORY`.")
    settings = None
    if model is not None:
        settings = _endpoint(
            model, base_url, concurrency, requests_per_minute, tokens_per_minute, input_price, output_price
        )
    elif base_url is not None or dry_run:
        raise ValueError("`--base-url` and `--dry-run` are of an endpoint; leave them out with `--graft`.")
    describe(
        folder,
        settings=settings,
        graft=graft,
        max_tokens=max_tokens,
        batch_size=batch_size,
        dry_run=dry_run,
        console=console,
    )


@data_app.command("write")
def write(
    knowledge: Annotated[Path, typer.Argument(help="A knowledge folder, of `data collect`.", file_okay=False)],
    rows: Annotated[Path, typer.Argument(help="Folder of the rows.", file_okay=False)],
    tokenizer: Annotated[str, typer.Option(help="The model to train, or its tokenizer: folder or repository id.")],
    model: Annotated[str, typer.Option(help="Model of an OpenAI-compatible endpoint that writes and checks.")],
    base_url: BaseUrl = None,
    embedding_model: Annotated[
        str | None, typer.Option(help="Of the same endpoint, for hard negatives; default: by the words.")
    ] = None,
    doc_max_length: Annotated[
        int | None, typer.Option(help="Most tokens of a chunk; default: the model's, or 256.")
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions about a chunk.")] = 4,
    paraphrases: Annotated[int, typer.Option(help="Paraphrases of a chunk.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often what fails is written, at most 10.")] = 10,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer of the endpoint.")] = 1024,
    instruction_docs: Annotated[int, typer.Option(help="Documents of an instruction row.")] = 5,
    target_top_k: Annotated[int, typer.Option(help="Documents of an end-to-end row.")] = 20,
    eval_ratio: Annotated[float, typer.Option(help="Part of the documents to hold out.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the split, and of the order of documents in a row.")] = 42,
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    dry_run: DryRun = False,
) -> None:
    """Write the rows of CLaRa's three stages about all documents; started again, it goes on.

    Example: `qwen-grafts data write knowledge rows --tokenizer outputs/clara-4b --model qwen --base-url
    http://127.0.0.1:8000/v1`
    """
    from .recipes.clara.row_writing import WritingSettings
    from .recipes.clara.synthesis_settings import SynthesisSettings, doc_max_length_of
    from .write_command import write

    settings = SynthesisSettings(
        doc_max_length=doc_max_length_of(tokenizer) if doc_max_length is None else doc_max_length,
        instruction_docs=instruction_docs,
        target_top_k=target_top_k,
        eval_ratio=eval_ratio,
        seed=seed,
        embedding_model=embedding_model,
        writing=WritingSettings(questions, paraphrases, rounds, max_tokens),
    )
    endpoint_settings = _endpoint(
        model, base_url, concurrency, requests_per_minute, tokens_per_minute, input_price, output_price
    )
    write(
        knowledge,
        rows,
        tokenizer=tokenizer,
        endpoint_settings=endpoint_settings,
        settings=settings,
        dry_run=dry_run,
        console=console,
    )


@data_app.command("validate")
def validate(
    path: Annotated[Path, typer.Argument(help="A `.jsonl` file of rows.", dir_okay=False)],
    stage: Annotated[str, typer.Option(help="`compression`, `instruction`, `end_to_end` or `retrieval`.")],
) -> None:
    """Tell every fault of a file of rows, by line and field; exit code 1 if there is one.

    Example: `qwen-grafts data validate rows/compression/train.jsonl --stage compression`
    """
    from .data_commands import validate

    if not validate(path, stage, console).ok:
        raise typer.Exit(1)


@data_app.command("clean")
def clean(
    rows: Annotated[Path, typer.Argument(help="JSON lines of any stage, or raw knowledge.", dir_okay=False)],
    cleaned: Annotated[Path, typer.Argument(help="New file to write.", dir_okay=False)],
) -> None:
    """Take markers, image paths and folder names out of rows of earlier pipelines; drop rows about nothing else.

    Example: `qwen-grafts data clean legacy.jsonl cleaned.jsonl`
    """
    from .knowledge_commands import clean

    clean(rows, cleaned, console=console)
