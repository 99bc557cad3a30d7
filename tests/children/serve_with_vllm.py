"""Answer about an image with vLLM's Transformers backend; prints one JSON line of token ids.

serve_with_vllm.py REPOSITORY IMAGE
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from PIL import Image
from vllm import LLM, SamplingParams

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def main(repository: str, image_file: str) -> None:
    image = Image.open(image_file).convert("RGB")
    model = LLM(
        repository,
        trust_remote_code=True,
        model_impl="transformers",
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        limit_mm_per_prompt={"image": 2},
    )
    prompts = [
        {"prompt": TURN.format(IMAGE + "What is it?"), "multi_modal_data": {"image": image}},
        {"prompt": TURN.format("A question of text alone, longer than the other one is.")},
        {"prompt": TURN.format(IMAGE * 2 + "The same?"), "multi_modal_data": {"image": [image, image]}},
    ]
    outputs = model.generate(prompts, SamplingParams(temperature=0, max_tokens=10))
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
