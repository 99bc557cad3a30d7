"""The latent index at the size of a small library: building, disk, memory, and time of a search.

    python benchmarks/latent_index.py [--passages 100000] [--folder FOLDER]        (Linux)

Random latents, 8 memory vectors of 256 values a passage in float16, one passage a document, one thread. A query is a
passage's latents with as much noise again, so the nearest passage is known; that it is found is checked for the exact
search and measured for the clusters, which look at 16 of 256 (random latents have no clusters: real ones do better).

Every step runs in a process of its own. Building is process time without what makes the latents, which a model does
otherwise. Resident memory is what a search adds to Python and its libraries: `anonymous` has to stay, `mapped` pages of
files may go whenever memory is short. Searches are timed one by one, the files in the page cache, process time; p99 is
that of 100 searches. What the index saves is compressing every passage again for a question: 200 of the same passages
are compressed in the same run, by the model of `clara_against_reference.py` (8 layers, as many latents of the same
width). The table goes to the screen and to `benchmarks/results/latent_index.json`.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import measure_apart, write_results

RESULTS = Path(__file__).parent / "results" / "latent_index.json"
MEMORY_TOKENS, HIDDEN = 8, 256
SETTINGS = {"compression_rate": 32, "num_memory_tokens": MEMORY_TOKENS, "hidden_size": HIDDEN}
TOP_K, SEARCHES, BATCHES = 5, 100, (1, 32)
COMPRESSED = 200
# Way -> factory and parameters of FAISS.
WAYS = {
    "exact, float16": ("SQfp16", ""),
    "exact, float32": ("Flat", ""),
    "16 of 256 clusters, float16": ("IVF256,SQfp16", "nprobe=16"),
}


def resident() -> dict[str, float]:
    """MiB of this process, by kind."""
    status = Path("/proc/self/status").read_text()
    kinds = {"anonymous": "RssAnon", "mapped": "RssFile"}
    return {kind: int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024 for kind, name in kinds.items()}


def size(folder: Path, pattern: str) -> int:
    """Bytes of files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob(pattern))


def texts(passages: int) -> list[str]:
    """What stands in the index."""
    return [f"Passage {number}. " + "A sentence of some words. " * 30 for number in range(passages)]


def compress_again() -> dict[str, float]:
    """Compress some of the passages, which takes as long for each of them all."""
    import torch
    from clara_against_reference import build as build_model

    torch.set_num_threads(1)
    model, *_ = build_model()
    documents = texts(COMPRESSED)
    model.compress(documents[:8])
    start = time.process_time()
    latents = model.compress(documents)
    seconds = time.process_time() - start
    if {tuple(latent.shape) for latent in latents} != {(1, MEMORY_TOKENS, HIDDEN)}:
        sys.exit("The model's latents are not of the index's size.")
    tokens = len(model.processor.passages(documents[-1])[0].token_ids)
    return {"passages": COMPRESSED, "tokens": tokens, "seconds_a_passage": seconds / COMPRESSED}


def build(folder: Path, passages: int) -> dict[str, float]:
    """Write the shards."""
    import torch

    from qwen_grafts.recipes.latent_build import build_index

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inside = 0.0

    def compress(texts: list[str]) -> list[tuple[list[str], torch.Tensor]]:
        nonlocal inside
        start = time.process_time()
        latents = torch.randn(len(texts), 1, MEMORY_TOKENS, HIDDEN, generator=generator)
        made = [([text], latent) for text, latent in zip(texts, latents, strict=True)]
        inside += time.process_time() - start
        return made

    documents = texts(passages)
    start = time.process_time()
    build_index(folder, documents, compress, fingerprint="random", **SETTINGS)
    seconds = time.process_time() - start - inside
    return {"seconds": seconds, "bytes": size(folder, "*.arrow"), "text_bytes": sum(map(len, documents))}


def build_search(folder: Path, way: str) -> dict[str, float]:
    """Write FAISS's index."""
    import faiss

    from qwen_grafts.recipes.latent_index import ClaraIndex

    faiss.omp_set_num_threads(1)
    index = ClaraIndex.load(folder)
    start = time.process_time()
    index.build_search(*WAYS[way])
    return {"seconds": time.process_time() - start, "bytes": size(folder, "*.faiss")}


def search(folder: Path) -> dict[str, Any]:
    """Load the index, and search."""
    import faiss
    import numpy as np
    import torch

    from qwen_grafts.recipes.latent_index import ClaraIndex

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    before, start = resident(), time.process_time()
    index = ClaraIndex.load(folder)
    found: dict[str, Any] = {"load_seconds": time.process_time() - start}
    found["loaded_mib"] = {kind: value - before[kind] for kind, value in resident().items()}
    generator = torch.Generator().manual_seed(1)
    right = asked = 0
    for batch in BATCHES:
        times = []
        for _ in range(SEARCHES):
            rows = torch.randint(0, len(index), (batch,), generator=generator)
            latents = torch.stack(index.memory(rows)).float()
            queries = latents + torch.randn(latents.shape, generator=generator)
            start = time.process_time()
            result = index.search(queries, TOP_K)
            times.append(1e3 * (time.process_time() - start))
            right, asked = right + int((result.rows[:, 0] == rows).sum()), asked + batch
        found[f"batch_{batch}_ms"] = {"p50": np.percentile(times, 50), "p99": np.percentile(times, 99)}
    found["searched_mib"] = {kind: value - before[kind] for kind, value in resident().items()}
    return found | {"nearest_found": right / asked}


def show(shards: dict[str, float], ways: dict[str, dict[str, Any]], again: dict[str, float], passages: int) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    console.print(
        f"{passages:,} passages: shards of {shards['bytes'] / 1e6:,.0f} MB, {shards['text_bytes'] / 1e6:,.0f} MB of "
        f"them text, written in {shards['seconds']:.1f} s"
    )
    table = Table(title=f"Top {TOP_K}, one thread, {platform.machine()}", title_justify="left")
    columns = ("search", "built in", "file", "loaded in", "anonymous after load", "after searches", "mapped")
    for column in (*columns, *(f"batch {batch}: p50 / p99" for batch in BATCHES), "nearest found"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for name, way in ways.items():
        table.add_row(
            name,
            f"{way['built']['seconds']:.1f} s",
            f"{way['built']['bytes'] / 1e6:,.0f} MB",
            f"{way['load_seconds']:.2f} s",
            f"{way['loaded_mib']['anonymous']:,.0f} MiB",
            f"{way['searched_mib']['anonymous']:,.0f} MiB",
            f"{way['searched_mib']['mapped']:,.0f} MiB",
            *("{p50:,.1f} / {p99:,.1f} ms".format(**way[f"batch_{batch}_ms"]) for batch in BATCHES),
            f"{100 * way['nearest_found']:.1f} %",
        )
    console.print(table)
    seconds = again["seconds_a_passage"]
    exact = next(iter(ways.values()))["batch_1_ms"]["p50"] / 1e3
    console.print(
        f"Compressing a passage of {again['tokens']} tokens again: {seconds:.4f} s. All {passages:,} for one question: "
        f"{passages * seconds / 60:,.0f} minutes, {passages * seconds / exact:,.0f} times the exact search."
    )


def compare(folder: Path, passages: int) -> None:
    """Build and search in processes of their own; print the table, write the results."""
    shards, ways = measure_apart(__file__, "build", str(folder), str(passages)), {}
    for way in WAYS:
        print(way, file=sys.stderr)
        built = measure_apart(__file__, "build_search", str(folder), way)
        ways[way] = {"built": built, **measure_apart(__file__, "search", str(folder))}
        if "exact" in way and ways[way]["nearest_found"] < 1:
            sys.exit(f"{way}: the nearest passage was found in {ways[way]['nearest_found']:.4f} of all searches only.")
    print("compressing again", file=sys.stderr)
    again = measure_apart(__file__, "compress_again", str(folder))
    show(shards, ways, again, passages)
    versions = {package: version(package) for package in ("faiss-cpu", "datasets", "pyarrow", "torch")}
    setting = {**SETTINGS, "dtype": "float16", "passages": passages, "top_k": TOP_K, "searches": SEARCHES}
    write_results(RESULTS, {"versions": versions, "setting": setting, "shards": shards, "ways": ways, "again": again})


def main() -> None:
    """Compare, or take one measurement as a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where 1.5 GB are written and removed again")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, folder, *words = arguments.child
        steps = {"build": lambda: build(Path(folder), int(words[0])), "search": lambda: search(Path(folder))}
        steps["compress_again"] = compress_again
        steps["build_search"] = lambda: build_search(Path(folder), words[0])
        print(json.dumps(steps[step]()))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(Path(folder) / "index", arguments.passages)


if __name__ == "__main__":
    main()
