"""A tiny CLaRa with its processor, in memory or saved, and rows about documents to train it on."""

import json
from pathlib import Path
from typing import Any

import torch
from contracts.model_contract import randomize
from tiny_clara import LENGTH, RATES, clara_config

from qwen_grafts.modeling import ClaraQwen3ForCausalLM
from qwen_grafts.processing import ClaraQwen3Processor, build_qwen_tokenizer, load_chat_template
from qwen_grafts.processing.memory_tokens import new_token_names
from qwen_grafts.processing.qwen_tokenizer import QWEN3_SPECIAL_TOKENS

BYTES = 256
FIRST_NEW = BYTES + len(QWEN3_SPECIAL_TOKENS)
VOCABULARY = 296
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "larch"]


def tiny_processor() -> ClaraQwen3Processor:
    """A token is a byte; passages have up to 12."""
    tokenizer = build_qwen_tokenizer(BYTES, more_special_tokens=new_token_names(LENGTH, RATES))
    tokenizer.chat_template = load_chat_template()
    return ClaraQwen3Processor(tokenizer, LENGTH, RATES)


def tiny_clara(text: dict[str, Any] | None = None, **settings: Any) -> ClaraQwen3ForCausalLM:
    """A model of even logits, whose roles are of trained size.

    Args:
        text: further values of the language model.
        settings: further values of the configuration.
    """
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    ids = {"vocab_size": VOCABULARY, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = ClaraQwen3ForCausalLM(clara_config(ids | (text or {}), document_token_id=FIRST_NEW, **settings))
    with torch.no_grad():
        randomize(model)
        for name, parameter in model.named_parameters():
            if "role_" in name or "embed_tokens" in name:
                parameter.mul_(0.2)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.processor = processor
    return model


def clara_checkpoint(folder: Path, **settings: Any) -> Path:
    """The same as a folder, whose code comes with it."""
    tiny_clara(**settings).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def stage_rows(stage: str, count: int = 12) -> list[dict[str, Any]]:
    """Rows in the published form: of compression with two questions a document, else with three candidates each."""
    documents = [f"The {word} is {index} m." for index, word in enumerate(WORDS)]
    rows = []
    for index in range(count):
        own, word = documents[index % len(WORDS)], WORDS[index % len(WORDS)]
        if stage == "compression":
            asked = {"question": [f"How far is {word}?", f"{word}?"], "answers": [f"{index % 12} m", "so far"]}
            rows.append({"data_type": "qa", "docs": [own]} | asked)
            continue
        others = [documents[(index + step) % len(WORDS)] for step in (1, 5)]
        place = index % 3
        given = [*others[:place], own, *others[place:]]
        answer = {"gold_answer": f"{index % 12} m", "answer": f"{index % 12} m", "pos_index": [place]}
        rows.append({"question": f"How far is {word}?", "docs": given} | answer)
    return rows


def write_rows(path: Path, stage: str, count: int = 12) -> Path:
    """The same as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in stage_rows(stage, count)), encoding="utf-8")
    return path
