"""Tensor parallelism: layers shared by two processes compute the whole model, or are refused before any reading."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clara_checkpoint import clara_checkpoint
from distinct_export import TEXT_PRESETS, VISION_PRESETS, export_distinct
from tiny_recursive import recursive_config
from transformers.distributed import DistributedConfig

from qwen_grafts import ClaraQwen3ForCausalLM, RecursiveQwenForCausalLM

CHILD = Path(__file__).parents[1] / "children" / "tensor_parallel.py"


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*VISION_PRESETS, *TEXT_PRESETS])
def test_two_processes_share_the_layers(preset: str, tmp_path: Path) -> None:
    export = export_distinct(tmp_path, preset)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "m")}
    done = subprocess.run(
        [*launcher, str(CHILD), str(export)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("FOUND ")[1].splitlines()[0])
    assert found["shared"] >= 7 and found["same"] and found["difference"] < 1e-4


@pytest.mark.parametrize(
    "asked", [{"tp_plan": "auto"}, {"tp_size": 2}, {"distributed_config": DistributedConfig(tp_plan="auto")}], ids=str
)
def test_low_rank_terms_are_not_split(asked: dict[str, Any], tmp_path: Path) -> None:
    RecursiveQwenForCausalLM(recursive_config(loop_lora_rank=2, loop_lora_cycles=2)).save_pretrained(tmp_path / "loops")
    for model_class, folder in (
        (ClaraQwen3ForCausalLM, clara_checkpoint(tmp_path / "clara")),
        (RecursiveQwenForCausalLM, tmp_path / "loops"),
    ):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="would split this model's linear layers and leave their low-rank terms"):
            model_class.from_pretrained(folder, **asked)
