"""What all tests share: helpers importable from any folder, quiet libraries, one thread."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

# `from contracts.model_contract import …` and `from reference.… import …`, from every folder below.
sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that tests start, too

# Tests that run side by side would write each other's remote code.
_modules_cache = tempfile.TemporaryDirectory(prefix="remote-code-")
os.environ["HF_MODULES_CACHE"] = _modules_cache.name


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of these sizes lose more to hand-over between threads than they win; only if torch is in use at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
