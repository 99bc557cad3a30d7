"""Resuming after a run was cut off anywhere, also while it wrote a checkpoint."""

import json
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .weights_files import read_shard


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest `checkpoint-N` of a run that was written to its end; None to start from the beginning.

    transformers writes `trainer_state.json` last; a killed save leaves a checkpoint without it, or with a cut-short
    weight file. The optimizer of a sharded run is called `optimizer.bin`.
    """
    found = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if _is_complete(path):
            return str(path)
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        problems = [read_shard(file)[0] for file in checkpoint.glob("*.safetensors")]
    except (OSError, json.JSONDecodeError):
        return False
    whole = bool(problems) and not any(problems)
    optimizer = any((checkpoint / name).is_file() for name in (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN))
    return whole and optimizer and "global_step" in state
