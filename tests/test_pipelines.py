"""`pipeline(...)` on an export, in a process where the package does not exist."""

import json
import os
import subprocess
import sys

import pytest
from distinct_export import DOCUMENT_PRESETS, TEXT_PRESETS, VISION_PRESETS, export_distinct

SCRIPT = """
import json, sys
from importlib.abc import MetaPathFinder

class NoPackage(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qwen_grafts":
            raise ImportError("out of reach")

sys.meta_path.insert(0, NoPackage())
from PIL import Image
from transformers import pipeline

repository, image = sys.argv[1], Image.open(sys.argv[2]).convert("RGB")
settings = {"trust_remote_code": True, "max_new_tokens": 5, "do_sample": False}
reading = pipeline("text-generation", model=repository, **settings)
read = reading([{"role": "user", "content": "Hello"}])[0]["generated_text"][-1]
if len(sys.argv) > 3:
    prompt, options = "Hello", {"num_cycles": 9}
    if sys.argv[3] == "documents":
        options = {"memory": reading.model.compress(["A lens on a cape."])[0]}
        prompt = "<|document_pad|>" * options["memory"].shape[1] + "<|document_sep|>Hello"
    other = reading([{"role": "user", "content": prompt}], **options)[0]["generated_text"][-1]
    print(json.dumps([read, other, reading([{"role": "user", "content": "What?"}])[0]["generated_text"][-1]]))
    sys.exit()
seeing = pipeline("image-text-to-text", model=repository, **settings)

def ask(image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    return seeing(text=[{"role": "user", "content": content}])[0]["generated_text"][-1]

blank = Image.new("RGB", image.size)
print(json.dumps([ask(image), ask(blank), read]))
"""


KINDS = (
    dict.fromkeys(VISION_PRESETS) | dict.fromkeys(TEXT_PRESETS, "text") | dict.fromkeys(DOCUMENT_PRESETS, "documents")
)


@pytest.mark.parametrize(("preset", "kind"), KINDS.items())
def test_pipelines_answer(preset, kind, tmp_path):
    export = export_distinct(tmp_path, preset)
    child = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, export, tmp_path / "image.png", *([kind] if kind else [])],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    answers = json.loads(child.stdout.splitlines()[-1])
    assert [answer["role"] for answer in answers] == ["assistant"] * 3
    assert all(answer["content"] for answer in answers)
    assert answers[0] != answers[1]
