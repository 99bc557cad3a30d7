"""A real model behind a real server: `transformers serve` in a process of its own, on loopback, with no way to the Hub.

A tiny model with random weights writes noise until `max_tokens` ends it. `taught_checkpoint` has one learn a few
conversations by heart, so that what is served can be told to be what was taught: record what a scripted endpoint was
asked and what it answered, teach that, and a real model stands in for the script.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import torch
from base_checkpoints import chat_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_grafts.processing.chat_template import load_chat_template

_SECONDS_TO_START = 120.0


@dataclass
class ServedModel:
    """Where it is, and what it is called there."""

    base_url: str
    model: str


@contextmanager
def served_model(folder: Path, log: Path) -> Iterator[ServedModel]:
    """A model of a folder, until the end of the `with`.

    Args:
        folder: with tokenizer or processor and a chat template; of an architecture that transformers itself has.
        log: gets what the server says.
    """
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(process, f"http://127.0.0.1:{port}/health", log)
        yield ServedModel(f"http://127.0.0.1:{port}/v1", str(folder))
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)


def served_checkpoint(folder: Path) -> Path:
    """A tiny Qwen3 with random weights and this package's chat template."""
    chat_checkpoint(folder, layers=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = load_chat_template()
    tokenizer.save_pretrained(folder)
    return folder


def taught_checkpoint(
    folder: Path,
    conversations: Sequence[tuple[list[dict[str, Any]], str]],
    *,
    max_steps: int = 400,
    batch_size: int = 8,
    most_tokens: int = 1500,
) -> Path:
    """The same, when it has learned by heart what to answer to a few conversations.

    Args:
        conversations: messages whose contents are texts, and the answer.
        most_tokens: a longer prompt is refused, a byte is a token.

    Raises:
        ValueError: a conversation is too long, or they were not learned.
    """
    served_checkpoint(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    torch.manual_seed(0)
    with torch.no_grad():  # the random weights are meant to differ, not to learn
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    rows = []
    for messages, answer in conversations:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        written = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(prompt) + len(written) > most_tokens:
            raise ValueError(f"A conversation has {len(prompt) + len(written)} tokens, {most_tokens} at most.")
        rows.append((prompt + written, len(prompt)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    for step in range(max_steps):
        picked = torch.randperm(len(rows), generator=order)[:batch_size].tolist()
        loss = model(**_batch([rows[index] for index in picked])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9 and _knows(model, rows):
            model.eval().save_pretrained(folder)
            return folder
    raise ValueError(f"{len(rows)} conversations were not learned in {max_steps} steps.")


def _batch(rows: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """Padded on the right; only answers are learned."""
    longest = max(len(ids) for ids, _ in rows)
    input_ids, labels, mask = (torch.full((len(rows), longest), value) for value in (0, -100, 0))
    for index, (ids, start) in enumerate(rows):
        input_ids[index, : len(ids)] = torch.tensor(ids)
        labels[index, start : len(ids)] = torch.tensor(ids[start:])
        mask[index, : len(ids)] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


@torch.no_grad()
def _knows(model: Any, rows: list[tuple[list[int], int]]) -> bool:
    """Whether each token of each answer is the likeliest behind those before it."""
    for row in rows:
        batch = _batch([row])
        predicted = model(batch["input_ids"]).logits[0, row[1] - 1 : -1].argmax(-1)
        if predicted.tolist() != row[0][row[1] :]:
            return False
    return True
