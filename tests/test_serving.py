"""vLLM's Transformers backend gives the tokens that `generate` gives (`make serve-check` makes its environment)."""

import json
import subprocess
from pathlib import Path

import pytest
from distinct_export import VISION_PRESETS, export_distinct
from test_supported_versions import answers

ROOT = Path(__file__).parents[1]


def until_stop(tokens: list[int], stops: set[int]) -> list[int]:
    """The tokens up to and with the first stop; `generate` pads a batch behind it."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


@pytest.mark.serve
@pytest.mark.parametrize("preset", VISION_PRESETS)
def test_vllm_gives_the_tokens_of_generate(preset, tmp_path):
    export = export_distinct(tmp_path, preset)
    expected = answers(export)["greedy"]
    child = subprocess.run(
        [ROOT / ".venv-serve/bin/python", ROOT / "tests/children/serve_with_vllm.py", export, tmp_path / "image.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    served = json.loads(next(line for line in reversed(child.stdout.splitlines()) if line.startswith("[[")))
    stops = set(json.loads((export / "generation_config.json").read_text())["eos_token_id"])
    assert served == [until_stop(tokens, stops) for tokens in expected]
    assert len({tuple(tokens) for tokens in served}) == 3
