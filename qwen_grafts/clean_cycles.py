"""Ask a published recursive model for every value of given rows: run alone by `python -I`, this package out of reach.

    python -I clean_cycles.py REPOSITORY REQUESTS.json ANSWERS.json

Requests are {"rows": [[token, …], …], "num_cycles", "halt_threshold"}; answers are [{"values": [token, …], "cycles":
[number, …]}, …], an item a token.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class _NoPackage(MetaPathFinder):
    """The published code must stand alone: an import of this package is an error here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "qwen_grafts":
            raise ImportError("the published code imports qwen_grafts")


def main(repository: str, requests_file: str, answers_file: str) -> None:
    """Load once, answer every row."""
    sys.meta_path.insert(0, _NoPackage())
    asked = json.loads(Path(requests_file).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
    answers = []
    for tokens in asked["rows"]:
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            output = model(ids, num_cycles=asked["num_cycles"], halt_threshold=asked["halt_threshold"])
        values = tokenizer.convert_ids_to_tokens(output.logits[0].argmax(-1).tolist())
        answers.append({"values": values, "cycles": output.cycles_used[0].tolist()})
    Path(answers_file).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
