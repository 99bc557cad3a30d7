"""One of several processes that share the layers of a repository: generates, and compares with the whole model.

usage: torchrun tensor_parallel.py FOLDER
"""

import json
import os
import sys

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

settings = {"trust_remote_code": True, "dtype": torch.float32}
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1], **settings).eval()
split = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], distributed_config=DistributedConfig(tp_plan="auto"), **settings
).eval()
ids = torch.tensor([[5, 61, 7, 128, 9, 33]])
generation = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
with torch.no_grad():
    difference = (whole(input_ids=ids).logits - split(input_ids=ids).logits).abs().max().item()
same = torch.equal(whole.generate(input_ids=ids, **generation), split.generate(input_ids=ids, **generation))
shared = sum(isinstance(parameter, DTensor) for parameter in split.parameters())
if os.environ["RANK"] == "0":
    print("FOUND " + json.dumps({"shared": shared, "difference": difference, "same": same}), flush=True)
