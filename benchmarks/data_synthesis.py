"""Rows of many documents: memory that stays, and time a document, for all that is ours.

    python benchmarks/data_synthesis.py [--documents 10000 100000] [--folder FOLDER]        (Linux)

Documents are three sentences each of Python's language reference, drawn at random and made distinct by a number in each
sentence. The endpoint is a server in a process of its own that answers at once: one question a document, which is
verified, so two requests a document; its time counts in the seconds that pass and not as processor time. Rows get 20
documents each, hard negatives by words. Every number of documents runs in a process of its own, in which memory is the
most that was resident, libraries and FAISS's vectors included. Goes to the screen and to
`benchmarks/results/data_synthesis.json`.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import measure_apart, write_results

RESULTS = Path(__file__).parent / "results" / "data_synthesis.json"
SENTENCES, DOCUMENTS_A_ROW = 3, 20


class Answers(BaseHTTPRequestHandler):
    """Writes one question about a text's first sentence, and finds every answer right."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer a request."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        text = re.search(r"<text>\n(.*?)\n</text>", asked, re.S).group(1)
        words = text.partition(". ")[0].split()
        question, answer = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        said: dict[str, Any] = {"answerable": True, "correct": True, "stands_alone": True, "quote": answer}
        if "\nQuestion: " not in asked:
            said = {"pairs": [{"question": f"How does it go on: {question}?", "answer": answer}]}
        message = {"role": "assistant", "content": json.dumps(said)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 20, "total_tokens": len(asked) // 4 + 20}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "benchmark"}
        content = json.dumps(body | {"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def serve() -> None:
    """Answer until killed; the first line says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


def write_documents(folder: Path, count: int) -> int:
    """`raw_knowledge.jsonl`; its bytes."""
    from qwen_grafts.recipes.topic_documents import topic_documents

    folder.mkdir(parents=True)
    sentences = [text for document in topic_documents() for text in document.sentences if len(text.split()) > 8]
    rng = random.Random(0)
    path = folder / "raw_knowledge.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            chosen = rng.sample(sentences, SENTENCES)
            text = " ".join(f"In edition {number} of it {sentence}" for sentence in chosen)
            lines.write(json.dumps({"id": str(number), "source_type": "text", "text": text}) + "\n")
    return path.stat().st_size


def write(folder: Path, base_url: str) -> dict[str, float]:
    """Write the rows."""
    from transformers import AutoTokenizer

    from qwen_grafts.recipes.clara.chat_endpoint import ChatEndpoint, EndpointSettings
    from qwen_grafts.recipes.clara.data_synthesis import Synthesis, write_rows
    from qwen_grafts.recipes.clara.row_writing import WritingSettings
    from qwen_grafts.recipes.clara.synthesis_settings import SynthesisSettings

    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "tokenizer")
    writing = WritingSettings(questions_per_chunk=1, paraphrases_per_chunk=0)
    settings = SynthesisSettings(doc_max_length=1024, target_top_k=DOCUMENTS_A_ROW, writing=writing)
    before = resident()
    start, cpu = time.perf_counter(), time.process_time()
    with ChatEndpoint(EndpointSettings("benchmark", base_url), folder / "answers.sqlite") as endpoint:
        meta = write_rows(Synthesis(folder, tokenizer, settings), endpoint, folder / "rows", show_progress=False)
    rows = meta["rows"]["end_to_end"]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "libraries_mib": before,
        "peak_mib": resident(),
        "chunks": meta["chunks"]["chunks to use"],
        "rows": sum(split["rows"] for split in rows.values()),
        "rows_bytes": sum(path.stat().st_size for path in (folder / "rows").rglob("*.jsonl")),
    }


def resident() -> float:
    """MiB, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(results: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="`qwen-grafts data write`, one question a document", title_justify="left")
    names = ("documents", "text", "rows", "seconds a document", "processor seconds", "peak memory", "of it libraries")
    for name in names:
        table.add_column(name, justify="right")
    for count, found in results.items():
        table.add_row(
            f"{int(count):,}",
            f"{found['text_bytes'] / 1e6:,.0f} MB",
            f"{found['rows']:,} in {found['rows_bytes'] / 1e6:,.0f} MB",
            f"{found['seconds'] / int(count):.4f}",
            f"{found['cpu_seconds'] / int(count):.4f}",
            f"{found['peak_mib']:,.0f} MiB",
            f"{found['libraries_mib']:,.0f} MiB",
        )
    Console(width=130).print(table)


def main(counts: list[int], folder: Path) -> None:
    """All measurements."""
    from qwen_grafts.processing import build_qwen_tokenizer

    build_qwen_tokenizer(256).save_pretrained(folder / "tokenizer")
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        base_url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        versions = {name: version(name) for name in ("faiss-cpu", "numpy", "openai", "scikit-learn", "tokenizers")}
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        results: dict[str, dict[str, float]] = {}
        for count in counts:
            place = folder / str(count)
            size = write_documents(place, count)
            results[str(count)] = {"text_bytes": size} | measure_apart(__file__, "write", str(place), base_url)
            write_results(RESULTS, {"documents": results, "versions": versions, "machine": machine})
        server.kill()
    show(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif arguments.child:
        print(json.dumps(write(Path(arguments.child[1]), arguments.child[2])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(arguments.documents, arguments.folder or Path(temporary))
