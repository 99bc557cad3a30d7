"""lm-evaluation-harness evaluates an export by name, with a task that needs no download."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distinct_export import DOCUMENT_PRESETS, TEXT_PRESETS, VISION_PRESETS, export_distinct

TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset", VISION_PRESETS + TEXT_PRESETS + DOCUMENT_PRESETS)
def test_lm_eval_runs_on_an_export(preset, tmp_path):
    export = export_distinct(tmp_path, preset)
    data = tmp_path / "rows.json"
    rows = [{"question": f"Is {n} even?", "choices": [" yes", " no"], "answer": n % 2} for n in range(6)]
    data.write_text(json.dumps(rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=data))
    options = {
        "model": "hf",
        "model_args": f"pretrained={export},trust_remote_code=True,dtype=float32",
        "tasks": "tiny_choice",
        "include_path": tmp_path / "tasks",
        "device": "cpu",
        "batch_size": "4",
        "output_path": tmp_path / "results.json",
    }
    child = subprocess.run(
        [Path(sys.executable).with_name("lm_eval"), *(w for name, v in options.items() for w in (f"--{name}", v))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results*.json")).read_text())
    assert 0.0 <= results["results"]["tiny_choice"]["acc,none"] <= 1.0
    assert results["n-samples"]["tiny_choice"]["effective"] == 6
