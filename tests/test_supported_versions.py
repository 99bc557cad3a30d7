"""An export answers the same on the oldest and the newest supported transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distinct_export import DOCUMENT_PRESETS, TEXT_PRESETS, VISION_PRESETS, export_distinct

ROOT = Path(__file__).parents[1]
# What transformers 5.16.1 needs that the newest does not: another hub client, and httpx.
OLDEST = ("transformers==5.16.1", "huggingface-hub==1.5.0", "httpx==0.28.1", "httpcore==1.0.9", "certifi")


def answers(export: Path, *overlay: str) -> dict:
    script = ROOT / "tests/children/load_and_generate.py"
    child = subprocess.run(
        [sys.executable, "-I", script, export, export.parent / "image.png", *overlay],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(export.parent / f"home{len(overlay)}"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("preset", VISION_PRESETS + TEXT_PRESETS + DOCUMENT_PRESETS)
def test_oldest_and_newest_transformers_agree(preset, tmp_path):
    overlay = ROOT / ".venv-oldest"
    if not (overlay / "transformers").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(overlay)]
        subprocess.run([*pip, *OLDEST], check=True)
    export = export_distinct(tmp_path, preset)
    newest, oldest = answers(export), answers(export, str(overlay))
    assert (oldest["transformers"], newest["transformers"]) == ("5.16.1", "5.23.0")
    assert oldest["prompts"] == newest["prompts"]
    assert oldest["greedy"] == newest["greedy"]
    assert oldest["answers"] == newest["answers"]
    assert len(newest["answers"]) == (3 if preset in DOCUMENT_PRESETS else 0)
    assert len({tuple(row) for row in newest["greedy"]}) == 3
    for old, new in zip(oldest["logits"], newest["logits"], strict=True):
        assert old == pytest.approx(new, abs=1e-5)
