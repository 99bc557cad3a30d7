"""Resuming after a run was cut off anywhere, also while it wrote a checkpoint."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest `checkpoint-N` of a run that was written to its end; None to start from the beginning.

    transformers writes `trainer_state.json` last; a killed save leaves a checkpoint without it, or with a cut-short
    weight file.
    """
    found = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if _is_complete(path):
            return str(path)
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False
    return bool(weights) and "global_step" in state and (checkpoint / "optimizer.pt").is_file()
