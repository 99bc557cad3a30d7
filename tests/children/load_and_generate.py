"""Load an export by remote code and answer; prints one JSON line. Run as `python -I`, this package out of reach.

    load_and_generate.py REPOSITORY IMAGE [OVERLAY]

OVERLAY is a folder of packages that goes before the installed ones: another version of transformers.
"""

import json
import sys
from importlib.abc import MetaPathFinder


class _NoPackage(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qwen_grafts":
            raise ImportError("qwen_grafts is out of reach here")


sys.meta_path.insert(0, _NoPackage())
if len(sys.argv) > 3:
    sys.path.insert(0, sys.argv[3])

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

repository, image = sys.argv[1], Image.open(sys.argv[2]).convert("RGB")
auto_map = AutoConfig.from_pretrained(repository, trust_remote_code=True).auto_map
sees = "AutoModelForImageTextToText" in auto_map
auto_processor = AutoProcessor if "AutoProcessor" in auto_map else AutoTokenizer
processor = auto_processor.from_pretrained(repository, trust_remote_code=True)
auto_class = AutoModelForImageTextToText if sees else AutoModelForCausalLM
model = auto_class.from_pretrained(repository, trust_remote_code=True).eval()
questions = ["What is it?", "A question of text alone, longer than the other one is.", "The same?"]
answers = []
if hasattr(model, "answer"):
    documents = [["A lens on a cape."], [], ["It was built in 1871, and it still runs on its first lens.", "A cape."]]
    inputs = processor(questions, documents)
    prompts = processor.batch_decode(inputs["input_ids"])
    for answer in model.answer(questions, documents, max_new_tokens=10):
        answers.append([answer.text, *(round(document.score, 4) for document in answer.documents)])
else:
    block = [{"type": "image", "image": image}] if sees else []
    messages = [
        [{"role": "user", "content": [*block, {"type": "text", "text": questions[0]}]}],
        [{"role": "user", "content": questions[1]}],
        [{"role": "user", "content": [*block, *block, {"type": "text", "text": questions[2]}]}],
    ]
    prompts = [processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in messages]
    images = {"images": [image] * 3} if sees else {}
    inputs = processor(text=prompts, **images, padding=True, padding_side="left", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[:, -1]
    greedy = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    beams = model.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)
length = inputs["input_ids"].shape[1]
print(
    json.dumps(
        {
            "transformers": transformers.__version__,
            "prompts": prompts,
            "logits": logits.tolist(),
            "greedy": greedy[:, length:].tolist(),
            "beams": beams[:, length:].tolist(),
            "answers": answers,
        }
    )
)
