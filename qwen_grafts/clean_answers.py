"""Ask a published model, as a stranger would: run alone by `python -I`, this package out of reach.

    python -I clean_answers.py TASK REPOSITORY REQUESTS.json ANSWERS.json

"questions": requests are [{"image": path, "question": text, "enable_thinking": true, false or null}, …]; answers, each
{"thought", "answer"}, come in the same order.

"documents", of a CLaRa model: requests are {"question", "documents": [text, …]}, answered from all of them as
{"answer"}, or {"find": question, "documents"}, answered by the best one as {"text", "score", "index"}.

"values", of a recursive model: requests are {"rows": [[token, …], …], "num_cycles", "halt_threshold"}; answers are
[{"values": [token, …], "cycles": [number, …]}, …], an item a token.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer


class _NoPackage(MetaPathFinder):
    """The published code must stand alone: an import of this package is an error here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "qwen_grafts":
            raise ImportError("the published code imports qwen_grafts")


def questions(repository: str, requests: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Greedy answers of a vision graft about images."""
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True, dtype="auto")
    answers = []
    for request in requests:
        with Image.open(request["image"]) as file:
            image = file.convert("RGB")
        content = [{"type": "image", "image": image}, {"type": "text", "text": request["question"]}]
        switch = request.get("enable_thinking")
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({} if switch is None else {"enable_thinking": switch}),
        )
        with torch.no_grad():
            generated = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]
        prompt, written = generated.split([inputs["input_ids"].shape[1], len(generated) - inputs["input_ids"].shape[1]])
        message = processor.parse_response(written, prefix=prompt)
        thought, answer = (message.get(part, "").strip() for part in ("reasoning_content", "content"))
        answers.append({"thought": thought, "answer": answer})
    return answers


def values(repository: str, asked: dict[str, Any]) -> list[dict[str, list[Any]]]:
    """What a recursive model says after every token of every row, and how many cycles the token took."""
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
    answers = []
    for tokens in asked["rows"]:
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            output = model(ids, num_cycles=asked["num_cycles"], halt_threshold=asked["halt_threshold"])
        said = tokenizer.convert_ids_to_tokens(output.logits[0].argmax(-1).tolist())
        answers.append({"values": said, "cycles": output.cycles_used[0].tolist()})
    return answers


def documents(repository: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Greedy answers from documents, and the documents that fit best."""
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
    answers = []
    for request in requests:
        if "find" in request:
            best = model.retrieve(request["find"], request["documents"], top_k=1)
            index = int(best.indices[0, 0])
            answers.append({"text": request["documents"][index], "score": float(best.scores[0, 0]), "index": index})
        else:
            answers.append({"answer": model.answer(request["question"], request["documents"]).text})
    return answers


TASKS = {"documents": documents, "questions": questions, "values": values}


def main(task: str, repository: str, requests_file: str, answers_file: str) -> None:
    """Load once, answer everything."""
    sys.meta_path.insert(0, _NoPackage())
    requests = json.loads(Path(requests_file).read_text(encoding="utf-8"))
    Path(answers_file).write_text(json.dumps(TASKS[task](repository, requests)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
