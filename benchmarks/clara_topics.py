"""Does CLaRa find the document, answer from it, and say it again? The demo's measures with several seeds.

    python benchmarks/clara_topics.py --seeds 0 1 2

Every seed is what `qwen-grafts demo clara --seed SEED` trains and measures: other questions, other documents held out,
other weights. A search by words, the untrained model, one with random roles, another document and no document stand
beside. Each runs in a process of its own, on one thread, about twenty minutes of process time. Results are added to
`benchmarks/results/clara_topics.json` as they come; what is there already, of the same settings, stays.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import measure_apart, write_results

RESULTS = Path(__file__).parent / "results" / "clara_topics.json"
TRAINED_SIZE = 0.05  # deviation of a role's second matrices after training


def prepare(seed: int) -> tuple[list[Any], Any]:
    """Documents and questions, as the demo has them."""
    from qwen_grafts import demo_clara
    from qwen_grafts.recipes.topic_documents import topic_documents
    from qwen_grafts.recipes.topic_task import split_topic_questions, topic_questions

    documents = topic_documents()[: demo_clara.DOCUMENTS]
    questions = topic_questions(documents, seed=seed, kinds=demo_clara.KINDS)
    return documents, split_topic_questions(documents, questions, seed=seed)


def measure(seed: int) -> dict[str, Any]:
    """Train as the demo does; its measures, and process seconds of training."""
    import torch

    from qwen_grafts import ClaraQwen3ForCausalLM, demo_clara

    torch.set_num_threads(1)
    documents, split = prepare(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grafted = demo_clara.make_tiny(folder / "grafted", documents, seed)
        demo_clara.write_rows(folder / "data", split, seed)
        untrained = demo_clara.measure_retrieval(ClaraQwen3ForCausalLM.from_pretrained(grafted), documents, split)
        start = time.process_time()
        finding = demo_clara.learn("finding", grafted, folder, seed)
        answering = demo_clara.learn("answering", finding, folder, seed)
        reconstructing = demo_clara.learn("reconstruction", finding, folder, seed)
        seconds = time.process_time() - start
        model, again = map(ClaraQwen3ForCausalLM.from_pretrained, (answering, reconstructing))
        return {
            "training_seconds": seconds,
            "retrieval, untrained": untrained,
            "retrieval": demo_clara.measure_retrieval(model, documents, split),
            "answers": demo_clara.measure_answers(model, split),
            "reconstruction": demo_clara.measure_reconstruction(again, split),
        }


def measure_random_roles(seed: int, documents: list[Any], split: Any) -> dict[str, dict[str, float]]:
    """Retrieval of the untrained model with random terms in its roles, as large as trained ones, so that they differ.

    What an untrained model finds beyond this it finds because questions and documents go through the same layers.
    """
    import torch
    from clara_against_reference import fill_roles

    from qwen_grafts import ClaraQwen3ForCausalLM, demo_clara

    with tempfile.TemporaryDirectory() as name:
        grafted = demo_clara.make_tiny(Path(name) / "grafted", documents, seed)
        model = ClaraQwen3ForCausalLM.from_pretrained(grafted)
        torch.manual_seed(seed)
        fill_roles(model, TRAINED_SIZE)
        return demo_clara.measure_retrieval(model, documents, split)


def show(runs: dict[str, dict[str, Any]]) -> None:
    """Print the table: mean over the seeds, and the lowest and highest."""
    from rich.console import Console
    from rich.table import Table

    seeds = list(runs.values())
    table = Table(title=f"Mean of {len(seeds)} seeds (lowest to highest)", title_justify="left")
    for column in ("measured", "of", "way", "share, or nats"):
        table.add_column(column, justify="right" if column.startswith("share") else "left")
    controls = ("retrieval, words in common", "retrieval, random roles", "retrieval, untrained")
    for measured in (*controls, "retrieval", "answers", "reconstruction"):
        for kind, row in seeds[0][measured].items():
            for way in row:
                if way != "rows":
                    shares = [run[measured][kind][way] for run in seeds]
                    spread = f"{statistics.mean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
                    table.add_row(measured, kind, way, spread)
    Console(width=130).print(table)
    minutes = statistics.mean(run["training_seconds"] for run in seeds) / 60
    print(f"Training: {minutes:.1f} minutes of process time a seed.")


def main() -> None:
    """Train what is missing, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(arguments.child)))
        return
    from qwen_grafts import demo_clara

    names = ("DOCUMENTS", "VOCABULARY", "WIDTH", "LAYERS", "DOC_MAX_LENGTH", "RATES", "RANK", "FINDING_BATCHES")
    setting = json.loads(json.dumps({name.lower(): getattr(demo_clara, name) for name in names}))
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    runs: dict[str, dict[str, Any]] = known["runs"] if known.get("setting") == setting else {}
    for seed in arguments.seeds:
        if str(seed) not in runs:
            print(f"seed {seed}", file=sys.stderr)
            runs[str(seed)] = measure_apart(__file__, str(seed))
        # Nothing is trained for these, so they are found again for every seed.
        documents, split = prepare(seed)
        runs[str(seed)]["retrieval, random roles"] = measure_random_roles(seed, documents, split)
        runs[str(seed)]["retrieval, words in common"] = {"none": demo_clara.measure_word_search(documents, split)}
        write_results(RESULTS, {"setting": setting, "runs": runs})
    show(runs)


if __name__ == "__main__":
    main()
