"""`qwen-grafts data write`: a knowledge folder into the rows of CLaRa's three stages."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from .data_commands import ANSWERS
from .recipes.clara.chat_endpoint import ChatEndpoint, EndpointError, EndpointSettings
from .recipes.clara.chunk_store import ChunkStore
from .recipes.clara.data_synthesis import Synthesis, write_rows
from .recipes.clara.synthesis_cost import writing_cost
from .recipes.clara.synthesis_settings import SynthesisSettings


def write(
    knowledge: Path,
    rows: Path,
    *,
    tokenizer: str,
    endpoint_settings: EndpointSettings,
    settings: SynthesisSettings,
    dry_run: bool,
    console: Console,
) -> dict[str, Any] | None:
    """Write the rows of CLaRa's three stages; returns what `data_meta.json` says.

    Args:
        tokenizer: folder or repository id.
        dry_run: only tell what the endpoint would take.

    Raises:
        ValueError: what reading, asking or writing refuses, or nothing survived.
    """
    synthesis = Synthesis(knowledge, AutoTokenizer.from_pretrained(tokenizer), settings)
    prices = endpoint_settings.input_price, endpoint_settings.output_price

    def tell(store: ChunkStore) -> None:
        chunks = store.counts["chunks"]
        told = f"{chunks['chunks to use']:,} chunks of {chunks['documents to use']:,} documents to ask about."
        console.print(told, highlight=False, soft_wrap=True)
        console.print(writing_cost(store, settings.writing, *prices).table())

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            synthesis.write_chunks(Path(folder))
            with closing(ChunkStore(Path(folder))) as store:
                tell(store)
        return None
    try:
        with ChatEndpoint(endpoint_settings, knowledge / ANSWERS) as endpoint:
            meta = write_rows(synthesis, endpoint, rows, before_asking=tell)
    except EndpointError as error:
        raise ValueError(str(error)) from None
    console.print(str(endpoint.usage), markup=False, highlight=False, soft_wrap=True)
    table = Table("set", "split", "rows", "questions or paraphrases")
    for name, splits in meta["rows"].items():
        for split, count in splits.items():
            table.add_row(name, split, f"{count['rows']:,}", f"{count['questions']:,}")
    console.print(table)
    for name in ("dropped chunks", "dropped"):
        told = ", ".join(f"{count:,} {reason}" for reason, count in meta[name].items() if count)
        console.print(f"{name.capitalize()}: {told or 'none'}.", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Wrote {rows}. Train on {rows / 'compression'} first.", markup=False, highlight=False, soft_wrap=True
    )
    return meta
