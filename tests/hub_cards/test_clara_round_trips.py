"""CLaRa on the Hub: the whole, a graft alone and its roles go there and come back to a stranger, who asks the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub, run_script

# A base model as anyone would publish it.
PUSH_BASE = """
import torch
from transformers import Qwen3ForCausalLM
from qwen_grafts.configuration.presets import tiny_qwen3_text_config
from qwen_grafts.processing import build_qwen_tokenizer
torch.manual_seed(3)
model = Qwen3ForCausalLM(tiny_qwen3_text_config(hidden_size=64, pad_token_id=256, eos_token_id=258))
for parameter in model.parameters():
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.15)
model.push_to_hub("tester/qwen3")
build_qwen_tokenizer(256).push_to_hub("tester/qwen3")
"""
ASK = """
QUESTIONS = ["Who?", "Where is the lens, then?"]
DOCUMENTS = [["The lens is on the cape.", "It was built in 1871, and is in use."], ["x"]]

def ask(model):
    answers = model.answer(QUESTIONS, DOCUMENTS, top_k=1, max_new_tokens=8, min_new_tokens=8)
    return [[answer.text, *(document.text for document in answer.documents)] for answer in answers]
"""
GRAFT = """
import json
import sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoProcessor, Qwen3ForCausalLM
from qwen_grafts.configuration.configuration_clara_qwen3 import ROLES
from qwen_grafts.hub_cards import export_folder, export_role, graft_clara, push_repository
settings = {"doc_max_length": 16, "compression_rates": [8, 4], "lora_rank": 3, "lora_alpha": 6.0}
graft_clara("tester/qwen3", Path("whole"), graft_only=True, **settings)
with safe_open("whole/model.safetensors", "pt") as file:
    assert all(".role_" in name or name.endswith(".memory") for name in file.keys())
model, processor = AutoModelForCausalLM.from_pretrained("whole"), AutoProcessor.from_pretrained("whole")
torch.manual_seed(4)
for name, parameter in model.named_parameters():
    if model.is_new(name):
        torch.nn.init.normal_(parameter, std=0.15)
model.save_pretrained("trained")
processor.save_pretrained("trained")
export_folder(Path("trained"), Path("whole"), overwrite=True)
export_folder(Path("trained"), Path("roles"), graft_only=True)
commit = push_repository("whole", "tester/clara").oid
push_repository("roles", "tester/clara-roles")
for role in ROLES:
    export_role("whole", role, role)
push_repository("generator", "tester/generator")
stock = Qwen3ForCausalLM.from_pretrained("tester/qwen3")
PeftModel.from_pretrained(stock, "compressor").push_to_hub("tester/compressor")
ids = torch.arange(20)[None]
torch.save({role: model(ids, role=role).logits.detach() for role in ROLES}, "logits.pt")
model.processor = processor
wanted = {"answers": ask(model), "fingerprint": model.model.fingerprint(), "commit": commit}
Path("wanted.json").write_text(json.dumps(wanted))
# A later commit, to the base and to the repository itself, must not change what was there.
base = Qwen3ForCausalLM.from_pretrained("tester/qwen3")
base.model.norm.weight.data.mul_(3)
base.push_to_hub("tester/qwen3")
processor.chat_template = processor.tokenizer.chat_template = "{{ messages[0].content }}!"
processor.push_to_hub("tester/clara")
"""
STRANGER = """
import json
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
assert "qwen_grafts" not in sys.modules
wanted = json.load(open("wanted.json"))
commit = wanted["commit"]
for number, (name, revision) in enumerate([("tester/clara", commit), ("tester/clara-roles", None)]):
    where = {"trust_remote_code": True} | ({"revision": revision} if revision else {})
    model = AutoModelForCausalLM.from_pretrained(name, **where)
    assert ask(model) == wanted["answers"], name
    assert model.model.fingerprint() == wanted["fingerprint"]
    assert type(model.processor).__module__.startswith("transformers_modules.tester.")
    backbone = AutoModel.from_pretrained(name, **where)
    assert type(backbone).__name__ == "ClaraQwen3Model" and backbone.fingerprint() == wanted["fingerprint"]
    for question, documents in zip(QUESTIONS, DOCUMENTS):
        found = backbone.retrieve(question, documents), model.retrieve(question, documents)
        assert torch.equal(found[0].scores, found[1].scores)
    folder = f"again{number}"
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert ask(again) == wanted["answers"]
    again.push_to_hub(f"tester/{folder}")
    again.processor.push_to_hub(f"tester/{folder}")
    assert ask(AutoModelForCausalLM.from_pretrained(f"tester/{folder}", trust_remote_code=True)) == wanted["answers"]
newest = AutoModelForCausalLM.from_pretrained("tester/clara", trust_remote_code=True)
assert newest.processor.tokenizer.decode(newest.processor("Who?")["input_ids"][0]) == "Who?!"
assert ask(newest) != wanted["answers"]
"""
ROLES_ALONE = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
assert "qwen_grafts" not in sys.modules
logits, ids = torch.load("logits.pt"), torch.arange(20)[None]
for role in ("generator", "compressor"):
    adapted = AutoPeftModelForCausalLM.from_pretrained(f"tester/{role}").eval()
    torch.testing.assert_close(adapted(ids).logits, logits[role], atol=1e-5, rtol=0)
    merged = adapted.merge_and_unload()
    assert type(merged).__module__ == "transformers.models.qwen3.modeling_qwen3"
    torch.testing.assert_close(merged(ids).logits, logits[role], atol=1e-5, rtol=0)
merged.push_to_hub("tester/merged")
torch.testing.assert_close(
    AutoModelForCausalLM.from_pretrained("tester/merged")(ids).logits, logits["compressor"], atol=1e-5, rtol=0
)
"""


@pytest.mark.slow
def test_whole_graft_and_roles_come_back_as_they_went(hub: LoopbackHub, tmp_path: Path) -> None:
    """To somebody without this package, at the commits they were made of, whatever was pushed behind them."""
    run_script(PUSH_BASE, hub, tmp_path)
    run_script(ASK + GRAFT, hub, tmp_path)
    run_script(ASK + STRANGER, hub, tmp_path, home="stranger")
    run_script(ROLES_ALONE, hub, tmp_path, home="stranger")
    sizes = {name: len(hub.read(f"tester/{name}", "model.safetensors")) for name in ("clara", "clara-roles")}
    assert sizes["clara-roles"] < 0.5 * sizes["clara"]
    card = ModelCard(hub.read("tester/clara-roles", "README.md").decode())
    assert card.data.base_model == ["tester/qwen3"] and card.data.base_model_relation == "finetune"
    assert "No training is on record" in card.text and "every role is the base model itself" in card.text
    card = ModelCard(hub.read("tester/generator", "README.md").decode())
    assert card.data.base_model == ["tester/qwen3"] and card.data.base_model_relation == "adapter"
    assert "It is the generator of a CLaRa model" in card.text
    assert "adapter_model.safetensors" in hub.files("tester/compressor")
