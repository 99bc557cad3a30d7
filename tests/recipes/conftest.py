"""A tiny exported graft, rows to train it on, and a way to run the recipe script as users do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from distinct_export import VISION_PRESETS
from tiny_qwen3_vl import query_rows, qwen3_vl_checkpoint

from qwen_grafts.hub_cards import export_preset
from qwen_grafts.recipes.visual_tasks import visual_task

GRAFT_MODULES = {"qwen3_perceiver": "connector", "qwen3_vision_bridge": "adapter"}
RECIPE = Path(__file__).parents[2] / "recipes" / "perceiver_vlm" / "tiny.yaml"
SFT_RECIPE = RECIPE.parents[1] / "qwen3_vl_sft" / "tiny.yaml"


@pytest.fixture(scope="session")
def graft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of `perceiver-vlm-tiny`; not to be changed.

    `@pytest.mark.parametrize("graft", VISION_PRESETS, indirect=True)` marks what is worth running for every graft.
    """
    preset = getattr(request, "param", VISION_PRESETS[0])
    return export_preset(preset, tmp_path_factory.mktemp("graft") / "tiny")


@pytest.fixture(scope="session")
def new_part(graft: Path) -> str:
    """Name of the module that the graft adds."""
    return GRAFT_MODULES[json.loads((graft / "config.json").read_text())["model_type"]]


@pytest.fixture(scope="session")
def rows() -> Dataset:
    return visual_task("shapes", "train", shapes=16, seed=3)


@pytest.fixture
def script_arguments(graft: Path, new_part: str) -> Callable[..., list[str]]:
    """Arguments of a short run of the tiny recipe: 6 steps of 4 rows, no evaluation."""

    def arguments(output_dir: Path, **overrides: object) -> list[str]:
        values = {
            "model_name_or_path": graft,
            "output_dir": output_dir,
            "trainable": new_part,
            "task": "shapes",
            "task_shapes": 16,
            "task_test_shapes": 4,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "generative_eval_rows": 0,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 10,
            "warmup_steps": 2,
            "disable_tqdm": True,
        } | overrides
        return [
            "--config",
            str(RECIPE),
            *(word for name, value in values.items() for word in (f"--{name}", str(value))),
        ]

    return arguments


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return qwen3_vl_checkpoint(tmp_path_factory.mktemp("qwen3_vl") / "base")


@pytest.fixture(scope="session")
def saved_rows(tmp_path_factory) -> Path:
    """12 rows to train on and 4 to test with."""
    folder = tmp_path_factory.mktemp("rows") / "tiny"
    rows = query_rows(16)
    DatasetDict(train=rows.select(range(12)), test=rows.select(range(12, 16))).save_to_disk(folder)
    return folder


@pytest.fixture
def words(checkpoint, saved_rows):
    """Arguments of a run of the tiny recipe."""

    def build(output_dir: Path, **overrides: object) -> list[str]:
        values = {
            "model_name_or_path": checkpoint,
            "query_data": saved_rows,
            "output_dir": output_dir,
            "max_steps": 4,
            "save_steps": 2,
            "generative_eval_rows": 0,
            "disable_tqdm": True,
            "use_cpu": True,
        } | overrides
        return ["--config", str(SFT_RECIPE), *(w for name, value in values.items() for w in (f"--{name}", str(value)))]

    return build


@pytest.fixture
def start_script() -> Callable[..., subprocess.Popen]:
    """Start the recipe script in a process of its own, or in several under torchrun."""

    def start(
        arguments: list[str], processes: int = 1, accelerate: bool = False, script: Path | None = None
    ) -> subprocess.Popen:
        module = [*([str(script)] if script else ["-m", "qwen_grafts.recipes.graft_sft"]), *arguments]
        launcher = [sys.executable]
        if accelerate:
            launcher += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
            launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        elif processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
        return subprocess.Popen(
            [*launcher, *module], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.fixture
def run_script(start_script: Callable[..., subprocess.Popen]) -> Callable[..., str]:
    """Run it to its end; returns what it printed."""

    def run(arguments: list[str], **launch: object) -> str:
        child = start_script(arguments, **launch)
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output[-3000:]
        return output

    return run
