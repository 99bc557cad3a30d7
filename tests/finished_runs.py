"""Runs of the recipe script: killed ones, and how far what two of them left is apart."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def assert_same_run(one: Path, two: Path, steps: int = 4) -> None:
    """Losses of so many steps, and weights, up to rounding."""
    curves = [json.loads((run / "training_meta.json").read_text())["loss_curve"] for run in (one, two)]
    assert len(curves[0]) == steps
    for first, second in zip(*curves, strict=True):
        assert second == pytest.approx(first, abs=1e-4)
    assert difference(weights(one), weights(two)) < 1e-4


def kill_behind_checkpoint(child: subprocess.Popen, folder: Path, seconds: float = 0.0) -> None:
    """`kill -9` so long behind a run's first whole checkpoint."""
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert child.poll() is None, child.stdout.read()[-3000:]
        time.sleep(0.02)
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    child.wait()
