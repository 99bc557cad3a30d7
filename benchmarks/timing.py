"""What the benchmarks share: process time of training steps, and measurements in processes of their own."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

# One thread, nothing from outside, and no advice between the figures.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Clock(TrainerCallback):
    """The time at the end of every step.

    Args:
        now: the clock; process time unless told otherwise.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.now = now
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.ends.append(self.now())

    def median(self) -> float:
        """Seconds of a step; the first one is for warming up."""
        return statistics.median(after - before for before, after in zip(self.ends, self.ends[1:], strict=False))


def measure_apart(script: str, *words: str) -> dict[str, float]:
    """What `script --child WORDS` prints in its last line, as JSON; the benchmark ends where that process fails."""
    command = [sys.executable, script, "--child", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode:  # -9: killed, most likely for memory
        sys.exit(f"{' '.join(words)}: the process ended with {done.returncode}.\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each measure over all repeats."""
    repeats = list(measured)
    return {name: statistics.median(values[name] for values in repeats) for name in repeats[0]}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write what a benchmark found as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
