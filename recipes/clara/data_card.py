"""The data card: what rows there are, from what they were written, what was dropped and why, and how they look.

The text is in `data_card.md.jinja`, all numbers come from `data_meta.json`. Its front matter names the three sets as
configurations, so that `load_dataset(folder, "compression")` reads one of them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features, List, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

CARD = "README.md"
STAGE_OF = {"compression": "1", "instruction": "2", "end_to_end": "3, and retrieval"}
_TEMPLATE = "data_card.md.jinja"
_SHOWN_CHARACTERS = 400
_TEXTS = List(Value("string"))
_FIRST = Features({"data_type": Value("string"), "question": _TEXTS, "answers": _TEXTS, "docs": _TEXTS})
_LATER = Features(
    {
        "question": Value("string"),
        "docs": _TEXTS,
        "gold_answer": Value("string"),
        "answer": Value("string"),
        "pos_index": List(Value("int64")),
    }
)


def build_card(meta: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> DatasetCard:
    """The card of a folder of rows.

    Args:
        meta: content of `data_meta.json`.
        samples: rows to show, by their names.
    """
    rows = {name: splits for name, splits in meta["rows"].items() if splits}
    languages = [name for name in meta["languages"] if name != "other"]
    data = DatasetCardData(
        language=languages or None,
        task_categories=["question-answering"],
        tags=["clara", "qwen-grafts", "synthetic"],
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": split, "path": f"{name}/{split}.jsonl"} for split in splits],
            }
            for name, splits in rows.items()
        ],
    )
    infos = {name: DatasetInfo(features=_FIRST if name == "compression" else _LATER, config_name=name) for name in rows}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(_TEMPLATE).render(
        card_data=data.to_yaml(),
        repo_id="path/to/rows",
        rows=rows,
        loop_stages=STAGE_OF,
        settings=meta["settings"],
        enrichment=meta["enrichment"],
        chunks=meta["chunks"],
        dropped_chunks=meta["dropped chunks"],
        written=meta["written"],
        dropped=meta["dropped"],
        refused=meta["refused"],
        left_out=meta["left out of instruction and end_to_end"],
        short=meta["rows with fewer documents than asked for"],
        languages=meta["languages"],
        pictures=meta["chunks with pictures"],
        asked=meta["asked"],
        cost=meta["cost"],
        samples={name: _shown(row) for name, row in samples.items()},
    )
    return DatasetCard(re.sub(r"\n{3,}", "\n\n", text))


def write_card(folder: Path, meta: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write it into the folder; returns its path."""
    path = folder / CARD
    path.write_text(str(build_card(meta, samples)), encoding="utf-8")
    return path


def _shown(row: Mapping[str, Any]) -> str:
    """A row as JSON, its documents cut."""
    most = _SHOWN_CHARACTERS if len(row["docs"]) == 1 else _SHOWN_CHARACTERS // 4
    cut = [text if len(text) <= most else f"{text[:most]} …" for text in row["docs"]]
    shown = dict(row) | {"docs": cut}
    text = json.dumps(shown, ensure_ascii=False, indent=2)
    return text.replace("```", "'''")  # a chunk of Markdown would end the block


__all__ = ["CARD", "STAGE_OF", "build_card", "write_card"]
